"""The stamp in a cache: rules 3.1 and 3.2, over memory and with a clock that stands still."""

from __future__ import annotations

import os
import random
import threading
from datetime import timedelta
from typing import Any

import pytest

from durabledict.stampcaches import TERMS, StampCache, stamp_cache
from durabledict.stamps import (
    DEAD,
    ENDED,
    FAR,
    GOOD,
    LEAST,
    SKIPPED,
    SPARSE,
    WRITERS,
    CacheStamp,
    MemoryCache,
    Stamp,
)
from durabledict.testing.tools import PATIENCE, Clock

from .stampcases import read

KEY = "k"


pytestmark = pytest.mark.usefixtures("clock")


@pytest.fixture
def cache() -> MemoryCache:
    return MemoryCache()


@pytest.fixture
def stamp(cache: MemoryCache) -> CacheStamp:
    return CacheStamp(cache, KEY)


def number(cache: StampCache) -> int:
    found = cache.get(KEY)
    assert found is not None
    return found


def at_work(cache: StampCache) -> int:
    """How many writers the stamp counts."""
    return number(cache) % WRITERS


class FailingCache(MemoryCache):
    """One that may be down."""

    unavailable = (ConnectionError,)
    down = False

    def _may_fail(self) -> None:
        if self.down:
            raise ConnectionError("down")

    def get(self, key: str) -> int | None:
        self._may_fail()
        return super().get(key)

    def put(self, key: str, number: int) -> None:
        self._may_fail()
        super().put(key, number)

    def increase(self, key: str, by: int) -> int | None:
        self._may_fail()
        return super().increase(key, by)


class ForgetfulCache(MemoryCache):
    """One that keeps nothing."""

    def add(self, key: str, number: int) -> bool:
        return False

    def put(self, key: str, number: int) -> None:
        pass


class PlainCache(MemoryCache):
    """One without an atomic incr."""

    atomic = False

    def increase(self, key: str, by: int) -> int | None:
        raise AssertionError("two processes would put one number")


class TestNumbers:
    def test_a_writer_is_counted_while_it_is_at_work(
        self, cache: MemoryCache, stamp: CacheStamp
    ) -> None:
        before = read(stamp)
        opening = stamp.begin()
        assert at_work(cache) == 1
        assert number(cache) // WRITERS == before.number
        write = stamp.end(opening)
        assert at_work(cache) == 0
        assert write.before == before
        assert write.after == read(stamp)
        assert read(stamp).number == before.number + 1

    def test_who_ended_in_between_is_seen(self, cache: MemoryCache) -> None:
        one, two = CacheStamp(cache, KEY), CacheStamp(cache, KEY)
        known = read(one)
        first, second = one.begin(), two.begin()
        assert at_work(cache) == 2
        # Nobody else has ended: the other one's change will come with a stamp of its own.
        assert two.end(second).before == known
        # Whether that one wrote before this one, or after it, nobody can tell.
        write = one.end(first)
        assert (write.before, write.after) == (None, None)

    def test_a_touch_is_a_write_to_others(self, cache: MemoryCache, stamp: CacheStamp) -> None:
        known = read(stamp)
        opening = stamp.begin()
        CacheStamp(cache, KEY).touch()
        assert read(stamp).number == known.number + 1
        assert stamp.end(opening).before is None

    def test_stamps_are_within_what_caches_add_up(self, cache: MemoryCache) -> None:
        for _ in range(200):
            CacheStamp(cache, KEY).renew()
            assert LEAST <= number(cache) < 2 * LEAST < 1 << 63
            assert at_work(cache) == 0

    def test_a_program_that_seeds_its_randomness_puts_no_number_twice(
        self, cache: MemoryCache
    ) -> None:
        """As tests do before each test, and a process that was started anew."""
        bases = set()
        for _ in range(10):
            random.seed(42)
            CacheStamp(cache, KEY).renew()
            bases.add(number(cache))
        assert len(bases) == 10

    def test_two_stamps_of_one_place_are_one(self, cache: MemoryCache) -> None:
        assert CacheStamp(cache, KEY).identity == CacheStamp(cache, KEY).identity
        assert CacheStamp(cache, KEY).identity != CacheStamp(cache, "other").identity
        assert CacheStamp(cache, KEY).identity != CacheStamp(MemoryCache(), KEY).identity


class TestMissing:
    def test_it_is_added_and_read_back(self, cache: MemoryCache, stamp: CacheStamp) -> None:
        found = read(stamp)
        assert found == read(stamp) == read(CacheStamp(cache, KEY))
        assert found.number == number(cache) // WRITERS

    def test_who_is_faster_decides(self, cache: MemoryCache, stamp: CacheStamp) -> None:
        class Slow(MemoryCache):
            def add(self, key: str, number: int) -> bool:
                super().add(key, LEAST)  # another process, after our get and before our add
                return super().add(key, number)

        slow = CacheStamp(Slow(), KEY)
        assert read(slow).number == LEAST // WRITERS

    def test_a_cache_that_keeps_nothing_knows_nothing(self) -> None:
        stamp = CacheStamp(ForgetfulCache(), KEY)
        assert stamp.read() is None
        stamp.touch()
        with stamp.writing() as write:
            assert stamp.read() is None
        assert (write.before, write.after) == (None, None)

    @pytest.mark.parametrize("found", [-1, -5, 0, 1, ENDED, LEAST - WRITERS])
    def test_what_is_no_stamp_is_replaced(
        self, cache: MemoryCache, stamp: CacheStamp, found: int
    ) -> None:
        known = read(stamp)
        cache.put(KEY, found)
        assert read(stamp) != known
        assert number(cache) >= LEAST
        cache.put(KEY, found)
        with stamp.writing():
            assert at_work(cache) == 1
        assert at_work(cache) == 0
        assert number(cache) >= LEAST

    def test_text_in_its_place_is_logged(
        self, cache: MemoryCache, stamp: CacheStamp, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache.put(KEY, -1)
        read(stamp)
        assert [record.getMessage() for record in caplog.records] == [
            "what was under 'k' in the cache is no stamp: replaced"
        ]

    def test_a_write_that_nobody_could_see_begin_puts_it(
        self, cache: MemoryCache, stamp: CacheStamp
    ) -> None:
        opening = stamp.begin()
        assert at_work(cache) == 1
        write = stamp.end(opening)
        assert write.after == read(stamp)

    def test_evicted_at_the_end_the_next_reader_loads(
        self, cache: MemoryCache, stamp: CacheStamp
    ) -> None:
        known = read(stamp)
        opening = stamp.begin()
        cache._numbers.clear()
        write = stamp.end(opening)
        assert (write.before, write.after) == (None, None)
        assert read(stamp) != known
        cache._numbers.clear()
        stamp.touch()
        assert cache.get(KEY) is None

    @pytest.mark.parametrize("others", range(4))
    def test_who_was_forgotten_makes_it_good(
        self, cache: MemoryCache, stamp: CacheStamp, others: int
    ) -> None:
        """The others began since, and are to be counted on."""
        opening = stamp.begin()
        cache._numbers.clear()
        known = read(stamp)
        openings = [stamp.begin() for _ in range(others)]
        write = stamp.end(opening)
        assert (write.before, write.after) == (None, None)
        assert at_work(cache) == others
        assert read(stamp).number != known.number
        for each in openings:
            assert stamp.end(each).after is None
        assert at_work(cache) == 0
        with stamp.writing() as write:
            pass
        assert write.after == read(stamp)

    def test_an_old_number_that_came_back_is_left_behind(
        self, cache: MemoryCache, stamp: CacheStamp, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Other readers may hold the next ones of its line."""
        old = number(cache) if read(stamp) else 0
        for _ in range(5):
            stamp.touch()
        opening = stamp.begin()
        cache.put(KEY, old)
        numbers = set()
        for _ in range(20):
            cache.put(KEY, old)
            stamp.end(opening)
            assert at_work(cache) == 0
            numbers.add(number(cache))
        assert len(numbers) > 10
        assert all(old < one <= old + SKIPPED * WRITERS for one in numbers)

    def test_another_base_that_lies_near_costs_a_minute_of_reloads(
        self, cache: MemoryCache, stamp: CacheStamp, clock: Clock
    ) -> None:
        """Once in 500 million times it cannot be told from the old one."""
        known = read(stamp)
        opening = stamp.begin()
        cache.put(KEY, opening - 1 + FAR // 2)
        assert stamp.end(opening).before is None
        assert read(stamp) != known
        for _ in range(int(DEAD) + 2):
            clock.move(GOOD)
            read(stamp)
        assert at_work(cache) == 0


class TestKilled:
    """A writer may have committed, and be killed before it can say so."""

    def test_a_copy_is_good_for_a_second(self, stamp: CacheStamp, clock: Clock) -> None:
        known = read(stamp)
        stamp.begin()
        clock.move(0.9)
        assert read(stamp) == known
        clock.move(0.1)
        second = read(stamp)
        assert second != known
        clock.move(0.9)
        assert read(stamp) == second
        clock.move(0.1)
        assert len({known, second, read(stamp)}) == 3

    def test_the_second_counts_from_the_question(self, cache: MemoryCache, clock: Clock) -> None:
        class Slow(MemoryCache):
            def get(self, key: str) -> int | None:
                found = super().get(key)
                clock.move(0.6)
                return found

        stamp = CacheStamp(Slow(), KEY)
        first = read(stamp)  # asked twice: missing at first
        stamp.begin()
        assert read(stamp) != first

    def test_a_stamp_that_is_first_seen_with_a_writer_is_its_own(
        self, cache: MemoryCache, stamp: CacheStamp
    ) -> None:
        """A copy loaded beside a writer is no base for the commits that follow."""
        known = read(stamp)
        killed = CacheStamp(cache, KEY)
        killed.begin()
        with CacheStamp(cache, KEY).writing():
            pass
        found = read(stamp)
        assert found.number == known.number + 1
        assert found != Stamp(found.number, 0, 0)

    def test_after_a_minute_it_is_taken_for_dead(
        self,
        cache: MemoryCache,
        stamp: CacheStamp,
        clock: Clock,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        stamp = CacheStamp(cache, KEY, verify=None)
        read(stamp)
        CacheStamp(cache, KEY).begin()
        read(stamp)
        seen = set()
        for _ in range(int(DEAD) - 1):
            clock.move(1.0)
            seen.add(read(stamp))
        assert len(seen) == DEAD - 1
        assert at_work(cache) == 1
        assert not caplog.records
        clock.move(1.0)
        read(stamp)
        assert at_work(cache) == 0
        assert "taken for dead" in caplog.records[0].getMessage()
        last = read(stamp)
        assert last not in seen
        clock.move(3600.0)
        assert read(stamp) == last

    def test_a_renewal_that_fails_is_tried_again(self, clock: Clock) -> None:
        cache = FailingCache()
        stamp = CacheStamp(cache, KEY)
        read(stamp)
        stamp.begin()
        read(stamp)
        clock.move(DEAD)
        tries = 0

        def put(key: str, number: int) -> None:
            nonlocal tries
            tries += 1
            if tries == 1:
                raise ConnectionError("down")
            MemoryCache.put(cache, key, number)

        cache.put = put  # type: ignore[method-assign]  # for this one object
        with pytest.raises(ConnectionError):
            stamp.read()
        assert read(stamp).number
        assert at_work(cache) == 1
        clock.move(GOOD)
        read(stamp)
        assert (at_work(cache), tries) == (0, 2)

    def test_writers_that_are_met_by_chance_are_not_dead(
        self, cache: MemoryCache, stamp: CacheStamp, clock: Clock
    ) -> None:
        """A reader that looks seldom finds another one each time."""
        writer = CacheStamp(cache, KEY)
        for _ in range(20):
            opening = writer.begin()
            read(stamp)
            assert at_work(cache) == 1
            writer.end(opening)
            clock.move(SPARSE)

    def test_one_writer_that_is_met_seldom_is(
        self, cache: MemoryCache, stamp: CacheStamp, clock: Clock
    ) -> None:
        """The bits above have not changed: nobody has ended."""
        read(stamp)
        stamp.begin()
        for _ in range(2):
            read(stamp)
            clock.move(DEAD)
        read(stamp)
        assert at_work(cache) == 0

    def test_it_is_found_dead_beside_others_that_come_and_go(
        self, cache: MemoryCache, stamp: CacheStamp, clock: Clock
    ) -> None:
        writer = CacheStamp(cache, KEY)
        writer.begin()
        for _ in range(int(DEAD) + 1):
            with writer.writing():
                pass
            read(stamp)
            clock.move(1.0)
        assert at_work(cache) == 0

    def test_a_reader_knows_its_own_write(self, stamp: CacheStamp, clock: Clock) -> None:
        known = read(stamp)
        opening = stamp.begin()
        for _ in range(3):
            clock.move(1.0)
            assert read(stamp, own=1) == known
        stamp.begin()
        clock.move(1.0)
        assert read(stamp, own=1) != known
        assert stamp.end(opening).after != known


class TestVerify:
    def test_after_so_many_seconds_a_stamp_is_another(
        self, cache: MemoryCache, clock: Clock
    ) -> None:
        stamp = CacheStamp(cache, KEY, verify=timedelta(seconds=10))
        known = read(stamp)
        clock.move(7.4)
        assert read(stamp) == known
        clock.move(2.6)
        second = read(stamp)
        assert second != known
        assert second.number == known.number
        clock.move(7.4)
        assert read(stamp) == second

    def test_readers_do_not_reload_in_one_instant(self, cache: MemoryCache, clock: Clock) -> None:
        stamps = [CacheStamp(cache, KEY, verify=60.0) for _ in range(40)]
        first = [read(stamp) for stamp in stamps]
        clock.move(52.0)
        early = sum(read(stamp) != known for stamp, known in zip(stamps, first, strict=True))
        assert 0 < early < 40

    def test_nor_do_forked_children(self, cache: MemoryCache, clock: Clock) -> None:
        """The hook runs in each child, on what is the parent's."""
        stamp = CacheStamp(cache, KEY, verify=60.0)
        read(stamp)
        parents = stamp._verify_at
        assert parents is not None
        moments = set()
        for _ in range(20):
            stamp._verify_at = parents
            stamp._after_fork()
            moments.add(stamp._verify_at)
        assert len(moments) == 20
        assert all(parents - 15 <= each <= parents for each in moments)

    def test_none_is_never(self, cache: MemoryCache, clock: Clock) -> None:
        stamp = CacheStamp(cache, KEY, verify=None)
        known = read(stamp)
        clock.move(1e9)
        assert read(stamp) == known

    def test_it_bounds_a_stamp_that_comes_back(
        self, cache: MemoryCache, stamp: CacheStamp, clock: Clock
    ) -> None:
        known = read(stamp)
        old = number(cache)
        CacheStamp(cache, KEY).touch()
        cache.put(KEY, old)
        clock.move(40.0)
        assert read(stamp) == known  # nobody can tell
        clock.move(20.0)
        assert read(stamp) != known

    def test_it_bounds_one_that_comes_back_with_a_write(
        self, cache: MemoryCache, clock: Clock
    ) -> None:
        """A sleeper has the very stamp that a writer on the old number then gives."""
        sleeper, writer = CacheStamp(cache, KEY), CacheStamp(cache, KEY)
        old = number(cache) if read(writer) else 0
        writer.touch()
        known = read(sleeper)
        cache.put(KEY, old)
        with writer.writing():
            pass
        assert read(sleeper) == known
        clock.move(60.0)
        assert read(sleeper) != known

    def test_commits_stay_known_from_one_round_to_the_next(
        self, stamp: CacheStamp, clock: Clock
    ) -> None:
        read(stamp)
        clock.move(60.0)
        known = read(stamp)
        with stamp.writing() as write:
            pass
        assert (write.before, write.after) == (known, read(stamp))

    @pytest.mark.parametrize("wrong", [0, -1, True, "60", float("nan"), float("inf"), timedelta()])
    def test_what_is_no_bound_is_refused(self, cache: MemoryCache, wrong: Any) -> None:
        with pytest.raises(TypeError, match="write seconds above 0, a timedelta, or None"):
            CacheStamp(cache, KEY, verify=wrong)


class TestWriting:
    def test_an_outage_comes_before_the_write(self) -> None:
        cache = FailingCache()
        stamp = CacheStamp(cache, KEY)
        cache.down = True
        with pytest.raises(ConnectionError), stamp.writing():
            raise AssertionError("the body ran")

    def test_a_body_that_fails_has_ended_too(self, cache: MemoryCache, stamp: CacheStamp) -> None:
        known = read(stamp)
        with pytest.raises(KeyboardInterrupt), stamp.writing():
            raise KeyboardInterrupt
        assert at_work(cache) == 0
        assert read(stamp) != known

    def test_its_own_error_is_heard_of(self, caplog: pytest.LogCaptureFixture) -> None:
        cache = FailingCache()
        stamp = CacheStamp(cache, KEY)
        with pytest.raises(LookupError), stamp.writing():
            cache.down = True
            raise LookupError
        assert "look again each second" in caplog.records[0].getMessage()

    def test_an_outage_after_the_write_leaves_readers_a_second(self, clock: Clock) -> None:
        cache = FailingCache()
        stamp = CacheStamp(cache, KEY)
        known = read(stamp)
        with pytest.raises(ConnectionError), stamp.writing() as write:
            cache.down = True
        assert write.after is None
        cache.down = False
        clock.move(1.0)
        assert read(stamp) != known

    def test_a_cache_without_atomic_incr_gives_no_commit(self) -> None:
        cache = PlainCache()
        stamp = CacheStamp(cache, KEY)
        known = read(stamp)
        with stamp.writing() as write:
            assert at_work(cache) == 1
            assert read(stamp) != known
        assert (write.before, write.after) == (None, None)
        assert at_work(cache) == 0
        last = read(stamp)
        stamp.touch()
        assert len({known, last, read(stamp)}) == 3


class TestMemoryCache:
    def test_threads_lose_nothing(self, cache: MemoryCache, stamp: CacheStamp) -> None:
        first = read(stamp).number
        barrier = threading.Barrier(8)

        def work() -> None:
            barrier.wait(PATIENCE)
            for _ in range(200):
                stamp.end(stamp.begin())

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert read(stamp) == Stamp(first + 1600, 0, 0)

    @pytest.mark.parametrize("adding_up", [False, True])
    def test_a_finalizer_in_the_middle_loses_nothing(
        self, cache: MemoryCache, adding_up: bool
    ) -> None:
        class Interrupting(int):
            calls = 0

            def __radd__(self, other: int) -> int:
                if Interrupting.calls < 3 and cache._adding_up is adding_up:
                    Interrupting.calls += 1
                    cache.increase(KEY, 1)
                return int(self) + other

        cache.add(KEY, 0)
        for _ in range(TERMS - 1):
            cache.increase(KEY, 1)
        cache.increase(KEY, Interrupting(1000))
        assert cache.get(KEY) == TERMS - 1 + 1000 + 3
        assert Interrupting.calls == 3
        assert not cache.is_in_use()

    def test_a_read_may_come_in_the_middle_of_a_read(self, stamp: CacheStamp) -> None:
        with stamp._lock:
            assert stamp.read() is not None

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_no_lock_of_another_thread_is_held_in_a_forked_child(
        self, cache: MemoryCache, stamp: CacheStamp
    ) -> None:
        read(stamp)
        held, goes_on = threading.Event(), threading.Event()

        def hold() -> None:
            with stamp._lock, cache._lock:
                held.set()
                goes_on.wait(PATIENCE)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(PATIENCE)
        pid = os.fork()
        if pid == 0:
            stamp.end(stamp.begin())
            os._exit(0 if stamp.read() else 1)
        goes_on.set()
        thread.join(PATIENCE)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("wrong", [{}, None, 5, MemoryCache, "nothing"])
def test_what_is_no_cache_is_refused(wrong: Any) -> None:
    if isinstance(wrong, str):
        return  # an alias of Django's: see test_stamps_django
    with pytest.raises(TypeError, match="a stamp is kept in a client of pymemcache or redis-py"):
        stamp_cache(wrong)


def test_what_is_no_key_is_refused(cache: MemoryCache) -> None:
    with pytest.raises(TypeError, match="key=5"):
        CacheStamp(cache, 5)  # type: ignore[arg-type]  # what is refused
