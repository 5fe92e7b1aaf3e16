"""The log of an SQLite file: which keys each commit touched, who notes it, and for how long.

docs/internals.rst, rule 1.1. Real processes are in test_sqlite_faults.py, other programs in
test_sqlite_programs.py.
"""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durabledict import JSONEncoding, SqliteDict, sqlitestatements
from durabledict.keys import encode_key
from durabledict.sqlitelog import LOG_BYTES, LONG_LIST, MOST_KEYS, packed, trim, unpacked
from durabledict.sqlitereads import NEVER_WRITTEN
from durabledict.sqliteschema import COMMITS_KEPT, TRIM_EACH

from .sqlitewatch import plain

INSERT = "INSERT INTO durabledict_entries (keyspace, key, value) VALUES (?, ?, ?)"
COMMITS = "SELECT version, written, removed FROM durabledict_commits WHERE keyspace = ?"


def opened(file: Path, keyspace: str = "default", **options: Any) -> SqliteDict[Any, Any]:
    """A dict whose values are read in SQL, and whose writes wait for nothing."""
    return SqliteDict(file, keyspace, encoding=JSONEncoding, synchronous="OFF", **options)


def manual(file: Path, keyspace: str = "default") -> SqliteDict[Any, Any]:
    return opened(file, keyspace, autosync=False)


def text_or_bytes(stored: bytes) -> str | bytes:
    try:
        return stored.decode("utf-8")
    except UnicodeDecodeError:
        return stored


def query(file: Path, sql: str, *values: Any) -> list[Any]:
    with plain(file) as connection:
        connection.text_factory = text_or_bytes
        return connection.execute(sql, values).fetchall()


def lists(file: Path, keyspace: str = "default") -> list[tuple[int, list[Any], list[Any]]]:
    """Each commit in the file: its version, the keys written, the keys removed."""
    rows = query(file, f"{COMMITS} ORDER BY version", keyspace)
    return [
        (version, unpacked(written) or [], unpacked(removed) or [])
        for version, written, removed in rows
    ]


# What the table of entries has for a key: ours, or bytes, which are no UTF-8.
native_keys: Any = st.recursive(
    st.text() | st.integers() | st.none() | st.binary() | st.floats(allow_nan=False),
    lambda inner: st.tuples(inner, inner),
    max_leaves=3,
)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


stored_keys: Any = native_keys.map(encode_key) | st.binary().filter(lambda data: not _is_text(data))


class TestFields:
    @given(st.lists(stored_keys, unique=True, max_size=20))
    def test_packed_and_unpacked_are_inverse(self, keys: list[Any]) -> None:
        field = packed(keys)
        assert unpacked(field) == keys
        assert unpacked(packed(dict.fromkeys(keys))) == keys
        assert (field is None) is (not keys)
        if len(keys) == 1 and isinstance(keys[0], str):
            assert field == keys[0]
        elif keys:
            assert isinstance(field, bytes)
            assert field.isascii()

    @given(st.binary().filter(lambda data: not _is_text(data)))
    def test_a_trigger_s_key_that_is_no_utf8(self, key: bytes) -> None:
        assert unpacked(key) == [key]

    @pytest.mark.parametrize("key", ["", "[]", '["a", "b"]', "null", "ü", "~int:1", "a\0b"])
    def test_a_key_is_not_taken_for_a_list(self, key: str) -> None:
        assert packed([key]) == key
        assert unpacked(key) == [key]
        assert unpacked(packed([key, "other"])) == [key, "other"]

    def test_so_many_keys_are_listed_and_no_more(self) -> None:
        keys = [str(number) for number in range(MOST_KEYS)]
        assert unpacked(packed(keys)) == keys
        with pytest.raises(OverflowError, match=r"20001 keys, and at most 20000 are listed"):
            packed([*keys, "one more"])

    def test_so_many_bytes_are_listed_and_no_more(self) -> None:
        frame = len(json.dumps(["", "b"]))
        field = packed(["a" * (LOG_BYTES - frame), "b"])
        assert isinstance(field, bytes)
        assert len(field) == LOG_BYTES
        with pytest.raises(OverflowError, match=r"4000001 bytes, and at most 4000000 are kept"):
            packed(["a" * (LOG_BYTES - frame + 1), "b"])

    def test_one_key_is_always_listed(self) -> None:
        key = "a" * (LOG_BYTES + 1)
        assert packed([key]) == key


class TestCommitsThatDoNotListTheirKeys:
    def follow(self, file: Path, act: Callable[[SqliteDict[Any, Any]], object]) -> None:
        with opened(file) as d, opened(file) as reader, manual(file) as late:
            d.update(a=1, b=2)
            assert reader == late.durables() == d
            late.sync()
            stamp = d.last_updated()
            act(d)
            version = d.last_updated()[0]
            assert version == stamp[0] + 1
            assert lists(file)[-1] == (version, [], [])
            assert d.changes(stamp) is None
            for each in (reader, late):
                reloads = each.stats.reloads
                each.sync()
                assert each.stats.reloads == reloads + 1
                assert each.last_synced == d.last_synced == d.last_updated()
                assert list(each.items()) == list(d.items()) == list(d.durables().items())
            # It goes on from there by deltas.
            stamp = d.last_updated()
            d["after"] = 1
            changes = d.changes(stamp)
            assert changes is not None
            assert changes.written == {"after": 1}
            late.sync()
            assert late.stats.reloads == reloads + 1
            assert late == d

    def test_too_many_are_written(self, file: Path) -> None:
        self.follow(file, lambda d: d.update(dict.fromkeys(range(MOST_KEYS + 1), 1)))

    def test_too_many_are_removed(self, file: Path) -> None:
        with opened(file) as d:
            d.update(dict.fromkeys(range(MOST_KEYS - 1), 1))
        self.follow(file, lambda d: d.replace_all({"c": 1}))

    def test_the_keys_are_too_long(self, file: Path) -> None:
        keys = [letter * 1_000_000 for letter in "cdef"]
        self.follow(file, lambda d: d.update(dict.fromkeys(keys, 1)))

    def test_one_long_key_is_listed(self, file: Path) -> None:
        key = "k" * (LOG_BYTES + 1)
        with opened(file) as d, opened(file) as reader:
            d["a"] = 1
            assert reader == {"a": 1}
            reloads = reader.stats.reloads
            d[key] = 1
            assert reader == {"a": 1, key: 1}
            assert lists(file)[-1] == (2, [key], [])
            # Longer than all lists together may be, it has taken the others away.
            assert len(lists(file)) == 1
            d["b"] = 1
            assert reader == {"a": 1, key: 1, "b": 1}
            assert reader.stats.reloads == reloads + 1

    def test_both_are_listed_or_neither(self, file: Path) -> None:
        """What is removed, and not listed, would stay for ever."""
        with opened(file) as d, opened(file) as reader:
            d.update(dict.fromkeys(range(MOST_KEYS + 1), 1))
            assert len(reader) == MOST_KEYS + 1
            d.replace_all({"few": 1})
            assert lists(file)[-1][1:] == ([], [])
            assert reader == {"few": 1}


class TestTrimming:
    def test_by_number(self, file: Path) -> None:
        with opened(file) as d, opened(file, "elsewhere") as elsewhere, manual(file) as late:
            elsewhere["k"] = 0
            stamps = [NEVER_WRITTEN]
            most = 0
            with d._file.use() as connection:
                for number in range(1, 3 * COMMITS_KEPT + 1):
                    d["k"] = number
                    stamps.append(d.last_synced)
                    if number % 16 == 0:
                        ((rows, newest),) = connection.rows(
                            "SELECT count(*), max(version) FROM durabledict_commits "
                            "WHERE keyspace = 'default'"
                        )
                        most = max(most, rows)
                        assert newest == number
            assert most <= COMMITS_KEPT + TRIM_EACH
            last = len(stamps) - 1
            horizon = last - last % TRIM_EACH - COMMITS_KEPT + 1
            assert [version for version, _, _ in lists(file)] == list(range(horizon, last + 1))
            assert len(lists(file, "elsewhere")) == 1
            # The one that holds the oldest commit gets a delta; the one before it reloads.
            changes = d.changes(stamps[horizon])
            assert changes is not None
            assert (changes.stamp, changes.written) == (stamps[last], {"k": last})
            assert d.changes(stamps[horizon - 1]) is None
            assert d.changes(stamps[0]) is None
            for begin, reloads in ((horizon, 0), (horizon - 1, 1)):
                with late._copy_lock:
                    late.last_synced = stamps[begin]
                    dict.__setitem__(late, "k", begin)
                before = late.stats.reloads
                late.sync()
                assert late.stats.reloads == before + reloads
                assert late == {"k": last}
            assert elsewhere == {"k": 0}
            assert elsewhere.stats.reloads == 1

    def test_of_the_writes_of_another_program(self, file: Path) -> None:
        with opened(file) as d:
            d["k"] = 0
            with plain(file) as program:
                program.execute("PRAGMA synchronous = OFF")
                program.execute("BEGIN")
                for number in range(COMMITS_KEPT + 2 * TRIM_EACH):
                    program.execute("UPDATE durabledict_entries SET value = ?", (str(number),))
                program.execute("COMMIT")
            assert len(lists(file)) <= COMMITS_KEPT + TRIM_EACH
            assert d == {"k": COMMITS_KEPT + 2 * TRIM_EACH - 1}
            assert d.stats.reloads == 2

    def test_by_size(self, file: Path) -> None:
        with opened(file) as d, opened(file) as reader, opened(file, "elsewhere") as elsewhere:
            elsewhere.update({"e" * 300_000: 1, "f": 1})
            keys = ["a" * 300_000, "b" * 300_000]
            d["first"] = 0
            assert reader == d
            reloads = reader.stats.reloads
            for number in range(1, 20):
                d.update(dict.fromkeys(keys, number))
                rows = query(
                    file,
                    "SELECT sum(length(written)), max(version) FROM durabledict_commits "
                    "WHERE keyspace = 'default'",
                )
                assert rows[0][0] <= LOG_BYTES
                assert rows[0][1] == number + 1 == d.last_updated()[0]
                assert reader == d
            assert reader.stats.reloads == reloads
            assert len(lists(file)) == LOG_BYTES // 600_000
            assert len(lists(file, "elsewhere")) == 1

    def put(self, file: Path, version: int, written: int, removed: int = 0) -> list[int]:
        """Add a commit with lists of these lengths; return the versions that are left."""
        with plain(file) as program:
            program.execute(
                "INSERT INTO durabledict_commits VALUES "
                "('default', ?, 1, zeroblob(?), zeroblob(?))",
                (version, written, removed),
            )
            trim(program, "default", version, bytes(written), bytes(removed))
            rows = program.execute("SELECT version FROM durabledict_commits ORDER BY version")
            return [version for (version,) in rows]

    @pytest.mark.parametrize("of_what", ["written", "removed", "both"])
    def test_by_size_exactly(self, file: Path, of_what: str) -> None:
        def sizes(length: int) -> tuple[int, int]:
            if of_what == "both":
                return length - 4_500, 4_500
            return (length, 0) if of_what == "written" else (0, length)

        with opened(file):
            quarter = LOG_BYTES // 4
            for version in range(1, 4):
                self.put(file, version, *sizes(quarter))
            # Just as much as is kept, and then one byte more.
            assert self.put(file, 4, *sizes(quarter)) == [1, 2, 3, 4]
            assert self.put(file, 5, *sizes(quarter + 1)) == [3, 4, 5]
            assert self.put(file, 6, *sizes(LOG_BYTES)) == [6]
            # The newest is the stamp, however long its list is.
            assert self.put(file, 7, *sizes(LOG_BYTES + 1)) == [7]
            assert self.put(file, 8, *sizes(LONG_LIST + 1 + 4_500)) == [8]

    def test_what_short_lists_can_hold_is_bounded_too(self) -> None:
        assert (COMMITS_KEPT + TRIM_EACH) * 2 * LONG_LIST <= 10_000_000

    def test_only_long_lists_have_them_added_up(self, file: Path) -> None:
        """It costs time; and what short lists can hold is bounded by their number."""
        with opened(file):
            self.put(file, 1, LOG_BYTES)
            half = LONG_LIST // 2
            assert self.put(file, 2, LONG_LIST) == [1, 2]
            assert self.put(file, 3, half, half) == [1, 2, 3]
            assert self.put(file, 4, half, half + 1) == [2, 3, 4]

    def test_the_newest_is_kept_where_versions_jump(self, file: Path) -> None:
        with opened(file):
            assert self.put(file, 1, 1) == [1]
            assert self.put(file, 64 * 100, 1) == [6400]
            assert self.put(file, 64 * 101, 1) == [6400, 6464]
            assert self.put(file, 64 * 100 + COMMITS_KEPT + 24, 1) == [6464, 7424]


class TestDeltas:
    @pytest.mark.parametrize("size", [1, 2, 199, 200, 201, 399, 400, 401])
    def test_update(self, file: Path, size: int) -> None:
        """Of old and new keys; several statements are used for more than 200."""
        with opened(file) as d, opened(file) as reader, manual(file) as late:
            d.update(dict.fromkeys(range(0, 600, 3), "old"))
            model: dict[Any, Any] = dict(d)
            assert reader == model
            begun = reader.stats.reloads
            late.sync()
            fetched, reloads = late.stats.keys_fetched, late.stats.reloads
            stamp = d.last_updated()
            entries = {599 - number: f"new {number}" for number in range(size)}
            d.update(entries)
            model.update(entries)
            assert late.sync() is True
            for each in (d, reader, late):
                assert list(each.items()) == list(model.items())
            assert list(d.durables().items()) == list(model.items())
            assert late.stats.keys_fetched == fetched + size
            assert (late.stats.reloads, reader.stats.reloads) == (reloads, begun)
            assert d.last_updated()[0] == stamp[0] + 1
            assert lists(file)[-1] == (stamp[0] + 1, [encode_key(key) for key in entries], [])

    @pytest.mark.parametrize("size", [1, 200, 201, 401])
    def test_replace_all(self, file: Path, size: int) -> None:
        with opened(file) as d, opened(file) as reader, manual(file) as late:
            d.update(dict.fromkeys(range(size), "old"))
            assert len(reader) == size
            begun = reader.stats.reloads
            late.sync()
            fetched, reloads = late.stats.keys_fetched, late.stats.reloads
            kept = dict.fromkeys(range(0, size, 2), "old")
            changed = dict.fromkeys(range(1, size, 4), "new")
            new = {-1 - number: "new" for number in range(size)}
            d.replace_all({**new, **changed, **kept})
            expected = [
                *((n, {**kept, **changed}[n]) for n in range(size) if n in kept or n in changed),
                *new.items(),
            ]
            late.sync()
            for each in (d, reader, late):
                assert list(each.items()) == expected
            assert list(d.durables().items()) == expected
            assert late.stats.keys_fetched == fetched + len(changed) + len(new)
            assert (late.stats.reloads, reader.stats.reloads) == (reloads, begun)
            version, written, removed = lists(file)[-1]
            assert version == 2
            assert set(written) == {encode_key(key) for key in [*changed, *new]}
            assert removed == [
                encode_key(number) for number in range(size) if number not in {**kept, **changed}
            ]

    @pytest.mark.parametrize("size", [1, 2, 401])
    def test_clear(self, file: Path, size: int) -> None:
        with opened(file) as d, opened(file) as reader:
            d.update(dict.fromkeys(range(size), "old"))
            assert len(reader) == size
            fetched, begun = reader.stats.keys_fetched, reader.stats.reloads
            d.clear()
            assert reader == d == d.durables() == {}
            assert (reader.stats.keys_fetched, reader.stats.reloads) == (fetched, begun)
            assert lists(file)[-1] == (2, [], [encode_key(number) for number in range(size)])
            assert len(lists(file)) == 2
            d["k"] = 1
            assert reader == {"k": 1}
            assert reader.stats.reloads == begun

    def test_one_key_at_a_time(self, file: Path) -> None:
        with opened(file) as d, opened(file) as reader:
            d["a"] = 1
            assert reader == {"a": 1}
            fetched, begun = reader.stats.keys_fetched, reader.stats.reloads
            assert d.setdefault("b", 2) == 2
            assert reader == {"a": 1, "b": 2}
            assert d.setdefault("b", 3) == 2
            assert d.pop("a") == 1
            assert reader == {"b": 2}
            d["b"] = 4
            assert reader == {"b": 4}
            del d["b"]
            assert reader == {}
            assert d.pop("b", None) is None
            assert d.compare_and_set("b", 1, 2) is False
            assert (reader.stats.keys_fetched, reader.stats.reloads) == (fetched + 2, begun)
            assert lists(file) == [
                (1, ["a"], []),
                (2, ["b"], []),
                (3, [], ["a"]),
                (4, ["b"], []),
                (5, [], ["b"]),
            ]

    def test_an_own_commit_has_our_nonce(self, file: Path) -> None:
        with opened(file) as d:
            for act in (
                lambda: d.update(a=1),
                lambda: d.update(a=2, b=2, c=2),
                lambda: d.replace_all({"a": 3, "d": 3}),
                lambda: d.pop("a"),
                lambda: d.clear(),
            ):
                act()
                rows = query(
                    file,
                    "SELECT version, nonce FROM durabledict_commits ORDER BY version DESC LIMIT 1",
                )
                assert rows == [d.last_synced]
            versions = [version for version, _, _ in lists(file)]
            assert versions == [1, 2, 3, 4, 5]
            nonces = {nonce for (nonce,) in query(file, "SELECT nonce FROM durabledict_commits")}
            assert len(nonces) == 5
            assert all(0 <= nonce < 2**62 for nonce in nonces)

    def test_several_commits_at_once(self, file: Path) -> None:
        with opened(file) as d, manual(file) as late:
            d.update(a=1, b=2, c=3, d=4)
            late.sync()
            fetched, begun = late.stats.keys_fetched, late.stats.reloads
            d["a"] = 5
            del d["b"]
            d.update(e=6, a=7)
            del d["c"]
            d["c"] = 8
            d["gone"] = 9
            del d["gone"]
            changes = d.changes(late.last_synced)
            assert changes is not None
            assert changes.stamp == d.last_updated()
            assert list(changes.written.items()) == [("a", 7), ("e", 6), ("c", 8)]
            assert set(changes.removed) == {"b", "gone"}
            assert list(changes.moved) == ["c"]
            late.sync()
            assert list(late.items()) == list(d.items())
            assert list(late) == ["a", "d", "e", "c"]
            assert (late.stats.keys_fetched, late.stats.reloads) == (fetched + 3, begun)

    def test_the_present_is_a_delta_of_nothing(self, file: Path) -> None:
        with opened(file) as d:
            assert d.changes(d.last_updated()) is None  # there is no proof of no commit
            d["k"] = 1
            changes = d.changes(d.last_updated())
            assert changes is not None
            assert changes.stamp == d.last_updated()
            assert (changes.written, list(changes.removed)) == ({}, [])
            assert d.changes(NEVER_WRITTEN) is None

    def test_a_stamp_is_a_tuple_of_two(self, file: Path) -> None:
        """As `last_updated` gives it; else the next comparison finds a difference."""
        with opened(file) as d:
            d["k"] = 1
            stamp = d.last_updated()
            d["k"] = 2
            changes = d.changes(stamp)
            assert changes is not None
            assert changes.stamp == d.last_updated()
            assert type(changes.stamp) is type(stamp) is tuple

    def test_statements_stay_below_the_limit_of_values(self) -> None:
        assert 4 * sqlitestatements.ROWS_AT_ONCE <= 999
        assert sqlitestatements.UPSERT_MANY.count("?") == 4 * sqlitestatements.ROWS_AT_ONCE
        assert sqlitestatements.UPSERT.count("?") == 4


class TestOrder:
    def test_ids_that_are_used_again(self, file: Path) -> None:
        """SQLite gives the number of the newest row again once that was removed."""
        with opened(file) as d, opened(file) as reader, manual(file) as late:
            d.update(a=1, b=2, c=3)
            late.sync()
            assert list(reader) == ["a", "b", "c"]
            begun = late.stats.reloads, reader.stats.reloads
            del d["c"]
            del d["b"]
            d["c"] = 4
            d["b"] = 5
            ids = query(file, "SELECT key, id FROM durabledict_entries ORDER BY id")
            assert ids == [("a", 1), ("c", 2), ("b", 3)]
            late.sync()
            assert list(d) == list(reader) == list(late) == ["a", "c", "b"]
            d.clear()
            d["b"] = 1
            d["a"] = 2
            late.sync()
            assert list(d) == list(reader) == list(late) == ["b", "a"]
            assert (late.stats.reloads, reader.stats.reloads) == begun

    @pytest.mark.parametrize("seed", range(6))
    def test_it_is_that_of_a_dict_however_commits_are_gathered(self, file: Path, seed: int) -> None:
        chance = random.Random(seed)
        model: dict[str, int] = {}
        with opened(file) as d, manual(file) as late:
            d["a"] = model["a"] = -1
            late.sync()
            begun = late.stats.reloads
            for number in range(120):
                newest = list(model)[-3:]
                keys = [*newest, *chance.sample("abcdefgh", 3)]
                act = chance.randrange(5)
                if act == 0:
                    entries = dict.fromkeys(chance.sample(keys, 3), number)
                    d.update(entries)
                    model.update(entries)
                elif act == 1 and newest:
                    # The newest rows: their numbers are given again.
                    for key in reversed(newest):
                        del d[key], model[key]
                elif act == 2:
                    kept = {key: model.get(key, number) for key in chance.sample("abcdefgh", 5)}
                    d.replace_all(kept)
                    model = {
                        **{key: kept[key] for key in model if key in kept},
                        **kept,
                    }
                elif act == 3 and newest:
                    key = chance.choice(list(model))
                    d.pop(key)
                    model.pop(key)
                    d[key] = model[key] = number
                else:
                    key = chance.choice(keys)
                    d[key] = model[key] = number
                assert list(d.items()) == list(model.items())
                if chance.random() < 0.3:
                    late.sync()
                    assert list(late.items()) == list(model.items())
                    assert list(late.copy().items()) == list(model.items())
            late.sync()
            assert list(late.durables().items()) == list(late.items()) == list(model.items())
            assert late.stats.reloads == begun


class TestOtherPrograms:
    """The triggers: what another program writes leaves exactly the right rows."""

    @pytest.fixture
    def edited(self, file: Path) -> Iterator[Callable[..., list[Any]]]:
        """Run SQL as another program; return the commits that it left, and check two readers."""
        with opened(file) as strict, manual(file) as late, opened(file, "b") as elsewhere:
            strict.update(a=1, b=2, c=3)
            elsewhere["z"] = 1
            late.sync()
            readers = strict, late, elsewhere
            reloads = [each.stats.reloads for each in readers]

            def run(*statements: str) -> list[Any]:
                begun = len(lists(file)), len(lists(file, "b"))
                with plain(file) as program:
                    for sql in statements:
                        program.execute(sql)
                late.sync()
                with opened(file) as fresh:
                    assert list(strict.items()) == list(late.items()) == list(fresh.items())
                assert elsewhere.durables() == elsewhere
                assert [each.stats.reloads for each in readers] == reloads
                versions = [version for version, _, _ in lists(file)]
                assert versions == list(range(1, len(versions) + 1))
                nonces = query(file, "SELECT keyspace, nonce FROM durabledict_commits")
                assert len(set(nonces)) == len(nonces)
                assert all(0 <= nonce < 2**62 for _, nonce in nonces)
                return [
                    (keyspace, written, removed)
                    for keyspace, first in zip(("default", "b"), begun, strict=True)
                    for _, written, removed in lists(file, keyspace)[first:]
                ]

            yield run

    def test_insert(self, edited: Any) -> None:
        sql = "INSERT INTO durabledict_entries (keyspace, key, value) VALUES ('default', 'd', '4')"
        assert edited(sql) == [("default", ["d"], ["d"])]

    def test_insert_of_several(self, edited: Any) -> None:
        sql = (
            "INSERT INTO durabledict_entries (keyspace, key, value) "
            "VALUES ('default', 'd', '4'), ('b', 'd', '4'), ('default', 'e', '5')"
        )
        assert edited(sql) == [
            ("default", ["d"], ["d"]),
            ("default", ["e"], ["e"]),
            ("b", ["d"], ["d"]),
        ]

    def test_insert_or_replace(self, edited: Any, file: Path) -> None:
        sql = (
            "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) "
            "VALUES ('default', 'a', '10')"
        )
        assert edited(sql) == [("default", ["a"], ["a"])]
        with opened(file) as d:
            assert list(d.items()) == [("b", 2), ("c", 3), ("a", 10)]

    def test_insert_or_replace_with_triggers_that_call_triggers(self, edited: Any) -> None:
        sql = (
            "INSERT OR REPLACE INTO durabledict_entries (keyspace, key, value) "
            "VALUES ('default', 'a', '10')"
        )
        left = edited("PRAGMA recursive_triggers = ON", sql)
        assert left == [("default", [], ["a"]), ("default", ["a"], ["a"])]

    def test_upsert(self, edited: Any) -> None:
        sql = (
            "INSERT INTO durabledict_entries (keyspace, key, value) VALUES ('default', 'a', '10') "
            "ON CONFLICT (keyspace, key) DO UPDATE SET value = excluded.value"
        )
        assert edited(sql) == [("default", ["a"], [])]

    def test_update(self, edited: Any) -> None:
        sql = "UPDATE durabledict_entries SET value = '10' WHERE key = 'b'"
        assert edited(sql) == [("default", ["b"], [])]

    def test_update_of_a_row_that_another_program_inserted(self, edited: Any) -> None:
        """Its version is NULL, before and after."""
        insert = (
            "INSERT INTO durabledict_entries (keyspace, key, value) VALUES ('default', 'd', '4')"
        )
        edited(insert)
        update = "UPDATE durabledict_entries SET value = '10' WHERE key = 'd'"
        assert edited(update) == [("default", ["d"], [])]
        delete = "DELETE FROM durabledict_entries WHERE key = 'd'"
        assert edited(delete) == [("default", [], ["d"])]

    def test_update_to_the_same_value(self, edited: Any) -> None:
        sql = "UPDATE durabledict_entries SET value = value WHERE keyspace = 'default'"
        assert sorted(edited(sql)) == [("default", [key], []) for key in "abc"]

    def test_delete(self, edited: Any) -> None:
        sql = "DELETE FROM durabledict_entries WHERE key IN ('a', 'c', 'z')"
        assert edited(sql) == [("default", [], ["a"]), ("default", [], ["c"]), ("b", [], ["z"])]

    def test_rename(self, edited: Any, file: Path) -> None:
        left = edited("UPDATE durabledict_entries SET key = 'n' WHERE key = 'a'")
        assert {tuple(map(tuple, each[1:])) for each in left} >= {((), ("a",)), (("n",), ())}
        assert {each[0] for each in left} == {"default"}
        with opened(file) as d:
            assert dict(d) == {"b": 2, "c": 3, "n": 1}

    def test_rename_over_another_key(self, edited: Any, file: Path) -> None:
        """That one's row is removed, and nothing says so."""
        edited("UPDATE OR REPLACE durabledict_entries SET key = 'c' WHERE key = 'a'")
        with opened(file) as d:
            assert dict(d) == {"b": 2, "c": 1}

    def test_rename_to_the_same_name(self, edited: Any) -> None:
        left = edited("UPDATE durabledict_entries SET key = key WHERE key = 'a'")
        assert left == [("default", ["a"], [])]

    def test_change_of_the_keyspace(self, edited: Any, file: Path) -> None:
        left = edited("UPDATE durabledict_entries SET keyspace = 'b' WHERE key = 'a'")
        assert [each for each in left if each[0] == "default"] == [("default", [], ["a"])]
        assert ("b", ["a"], []) in left
        # And "removed", too, for that an UPDATE OR REPLACE may have deleted one there.
        assert {tuple(each[2]) for each in left if each[0] == "b"} == {(), ("a",)}
        with opened(file, "b") as d:
            assert list(d.items()) == [("z", 1), ("a", 1)]

    def test_swapped_names(self, edited: Any, file: Path) -> None:
        edited(
            "BEGIN",
            "UPDATE durabledict_entries SET key = 'tmp' WHERE key = 'a'",
            "UPDATE durabledict_entries SET key = 'a' WHERE key = 'b'",
            "UPDATE durabledict_entries SET key = 'b' WHERE key = 'tmp'",
            "COMMIT",
        )
        with opened(file) as d:
            assert dict(d) == {"a": 2, "b": 1, "c": 3}

    def test_a_key_that_is_no_utf8(self, edited: Any, file: Path) -> None:
        left = edited(
            "INSERT INTO durabledict_entries (keyspace, key, value) "
            "VALUES ('default', CAST(x'6bff' AS TEXT), '4')"
        )
        assert len(left) == 1
        left = edited("UPDATE durabledict_entries SET value = '5' WHERE value = '4'")
        assert len(left) == 1
        with opened(file) as d:
            assert d == {"a": 1, "b": 2, "c": 3, "k\udcff": 5}
        edited("DELETE FROM durabledict_entries WHERE value = '5'")
        with opened(file) as d:
            assert d == {"a": 1, "b": 2, "c": 3}

    def test_what_was_rolled_back_leaves_nothing(self, edited: Any) -> None:
        delete = "DELETE FROM durabledict_entries WHERE key = 'a'"
        update = "UPDATE durabledict_entries SET value = '10' WHERE key = 'b'"
        assert edited("BEGIN", delete, update, "ROLLBACK") == []
        left = edited(
            "BEGIN", "SAVEPOINT one", delete, "ROLLBACK TO one", update, "RELEASE one", "COMMIT"
        )
        assert left == [("default", ["b"], [])]

    def test_a_statement_that_fails_leaves_nothing(self, file: Path) -> None:
        with opened(file) as d, plain(file) as program:
            d["a"] = 1
            with pytest.raises(sqlite3.IntegrityError):
                program.execute(
                    "INSERT INTO durabledict_entries (keyspace, key, value) "
                    "VALUES ('default', 'b', '2'), ('default', 'a', '2')"
                )
            assert lists(file) == [(1, ["a"], [])]

    def test_in_turn_with_own_writes(self, file: Path) -> None:
        sql = "UPDATE durabledict_entries SET value = ? WHERE key = ?"
        with opened(file) as d, manual(file) as late, plain(file) as program:
            d.update(a=0, b=0)
            late.sync()
            begun = d.stats.reloads, late.stats.reloads
            for number in range(1, 20):
                program.execute(sql, (str(number), "a"))
                d["b"] = number
                assert d == {"a": number, "b": number}
                d["a"] = -number
                program.execute(sql, (str(-number), "b"))
                program.execute("DELETE FROM durabledict_entries WHERE key = 'a'")
                program.execute(INSERT, ("default", "a", str(number)))
                late.sync()
                assert d == late == {"a": number, "b": -number}
                assert list(d) == list(late) == ["b", "a"]
                assert d.last_updated() == d.last_synced == late.last_synced
                assert d.last_updated()[0] == 1 + 6 * number
            assert (d.stats.reloads, late.stats.reloads) == begun

    def test_it_alone_has_written_to_the_file(self, file: Path) -> None:
        opened(file).close()
        with plain(file) as program:
            for key in ("b", "a"):
                program.execute(INSERT, ("default", key, "1"))
        with opened(file) as d:
            assert list(d.items()) == [("b", 1), ("a", 1)]
            assert d.last_updated()[0] == 2
            with plain(file) as program:
                program.execute("UPDATE durabledict_entries SET value = '2' WHERE key = 'b'")
            assert list(d.items()) == [("b", 2), ("a", 1)]
            assert d.stats.reloads == 1
            with plain(file) as program:
                program.execute("DELETE FROM durabledict_entries")
            assert d == {}
            d["c"] = 1
            assert d == d.durables() == {"c": 1}
            assert d.last_updated()[0] == 6

    def test_a_row_of_another_program_that_we_overwrite_and_remove(self, file: Path) -> None:
        with opened(file) as d, plain(file) as program:
            program.execute(INSERT, ("default", "a", "1"))
            assert d == {"a": 1}
            d["a"] = 2
            program.execute(INSERT, ("default", "b", "1"))
            d.update(a=3, b=3)
            program.execute(INSERT, ("default", "c", "1"))
            del d["c"]
            d.clear()
            assert [each[1:] for each in lists(file)] == [
                (["a"], ["a"]),
                (["a"], []),
                (["b"], ["b"]),
                (["a", "b"], []),
                (["c"], ["c"]),
                ([], ["c"]),
                ([], ["a", "b"]),
            ]


class TestDurables:
    """All entries: by the table, or by the index where there are other keyspaces."""

    KEYS = ("a", "~", "~x", 1, (1, "a"), None, 1.5, b"b", "ü", "", "\ud800", "a\0b")

    @pytest.mark.parametrize("others", [[], ["a"], ["z"], ["a", "z"]])
    @pytest.mark.parametrize("tagged", [False, True])
    def test_keys_of_each_kind(self, file: Path, others: list[str], tagged: bool) -> None:
        keys = self.KEYS if tagged else ("b", "a", "ü", "")
        model = {key: number for number, key in enumerate(keys)}
        for keyspace in others:
            with opened(file, keyspace) as other:
                other.update({"x": 1, 2: 2})
        with opened(file) as d:
            for key, value in model.items():
                d[key] = value
            assert list(d.durables().items()) == list(model.items())
            with opened(file) as fresh:
                assert list(fresh.items()) == list(model.items())
            for keyspace in others:
                with opened(file, keyspace) as other:
                    assert other == {"x": 1, 2: 2}

    def test_an_empty_keyspace_beside_a_full_one(self, file: Path) -> None:
        with opened(file, "full") as full, opened(file) as d:
            assert d.durables() == full.durables() == {}
            full.update({1: 1, "a": 2})
            assert d.durables() == {}
            assert full.durables() == {1: 1, "a": 2}

    def test_keys_that_are_no_utf8(self, file: Path) -> None:
        with opened(file) as d, plain(file) as program:
            d.update({"a": 1, 2: 2})
            program.execute("UPDATE durabledict_entries SET key = CAST(x'61ff' AS TEXT) WHERE id=1")
            assert d.durables() == {"a\udcff": 1, 2: 2}
            d.sync(force=True)
            assert d == {"a\udcff": 1, 2: 2}

    def test_they_are_of_one_state(self, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with opened(file) as d, opened(file) as other, opened(file, "elsewhere") as elsewhere:
            d["a"] = 1

            class Format(str):
                def format(self, *arguments: Any, **named: Any) -> str:
                    # Between the question for the keyspaces and that for the entries.
                    monkeypatch.undo()
                    other.update({2: 2})
                    elsewhere["k"] = 1
                    return super().format(*arguments, **named)

            monkeypatch.setattr(sqlitestatements, "ENTRIES", Format(sqlitestatements.ENTRIES))
            assert d.durables() == {"a": 1}
            assert d == {"a": 1, 2: 2}
