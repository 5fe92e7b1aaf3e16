"""Faults put into the library on purpose, each of which the proof has to catch.

A checker that finds nothing has to be seen finding something: this is what it is to find. Each is
the breach of a rule of docs/internals.rst. `sow` puts one into the process that calls it. Where the
moment that matters would come seldom by chance, the bug itself waits at that point.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from durabledict.changes import Commit
from durabledict.syncing import SyncedCopy

from .checker import check
from .clients import Client
from .history import History
from .violations import COPIES, STALE, SUMS

__all__ = ["BUGS", "Bug", "sow"]


@dataclass(frozen=True)
class Bug:
    """A breach of a rule.

    :param sow: puts it into the library, in this process
    :param backend: where it is caught
    :param caught_as: the violations of which one has to be among those that are found
    :param faults: the names of the faults that bring it out, or their beginnings
    :param seconds: in which it is caught, on a machine that does nothing else

    """

    sow: Callable[[Client], None]
    backend: str
    caught_as: tuple[str, ...]
    faults: tuple[str, ...] = ()
    seconds: float = 1.0

    def is_caught(self, history: History) -> bool:
        """Tell whether the checker finds it in a history."""
        return not {violation.kind for violation in check(history)}.isdisjoint(self.caught_as)


def _stamp_compared_with_greater(client: Client) -> None:
    """Rule 0.1: a store that is restored has a smaller stamp."""
    from durabledict import SqliteDict

    last_updated = SqliteDict.last_updated

    def at_least_what_is_known(self: Any) -> Any:
        stamp, synced = last_updated(self), self.last_synced
        return synced if synced is not None and not stamp > synced else stamp

    SqliteDict.last_updated = at_least_what_is_known  # type: ignore[method-assign]  # the bug


def _stamp_read_after_the_data(client: Client) -> None:
    """Rule 0.1: what is written in between is never seen."""
    from durabledict import RedisDict

    def ask(self: Any, since: Any, stamp: Any, force: bool) -> Any:
        difference, _ = SyncedCopy._ask(self, None, stamp, force)
        time.sleep(0.003)
        return difference, self.last_updated()

    RedisDict._ask = ask  # type: ignore[method-assign]  # the bug


def _missing_bump(client: Client) -> None:
    """Rule 2.1: a write that leaves the stamp as it is."""
    from durabledict import redisscripts

    script = redisscripts.SET
    quiet = redisscripts.Script(
        script.text.decode().replace("redis.call('SET', KEYS[3], id)", "local told = id", 1)
    )
    assert quiet.text != script.text
    script.text, script.sha = quiet.text, quiet.sha


def _delta_of_a_trimmed_stream(client: Client) -> None:
    """Rule 0.2: what the stream has forgotten is taken for nothing."""
    from durabledict import redisscripts

    script = redisscripts.DELTA
    text = script.text.decode()
    for proof, none in (
        ("if #entries == 0 or entries[1][1] ~= since then return false end",
         "if #entries == 0 then return false end\n"
         "if entries[1][1] ~= since then table.insert(entries, 1, {since, {}}) end"),
        ("number_of(id) ~= number or ", ""),
    ):  # fmt: skip
        assert proof in text
        text = text.replace(proof, none, 1)
    trusting = redisscripts.Script(text)
    script.text, script.sha = trusting.text, trusting.sha


def _commit_over_a_newer_sync(client: Client) -> None:
    """Rule 0.3: two threads of a process, one of which syncs past the other's write."""
    take = SyncedCopy._take

    def take_in_any_case(self: Any, commit: Commit[Any, Any]) -> bool:
        if commit.after is not None and self._filled:
            time.sleep(random.uniform(0.0, 0.005))  # the watch of this dict syncs meanwhile
            commit = Commit(
                self.last_synced, commit.after, commit.written, commit.removed, commit.value
            )
            with self._copy_lock:
                if commit.before is None:
                    return False
        return take(self, commit)

    SyncedCopy._take = take_in_any_case  # type: ignore[method-assign]  # the bug


def _driver_retries(client: Client) -> None:
    """Rule 0.4: what was done is done once more."""
    from redis.exceptions import ConnectionError, TimeoutError

    from durabledict.redisprimary import Primary

    write = Primary.write

    def write_again(self: Any, script: Any, arguments: Any, replicas: Any) -> Any:
        try:
            return write(self, script, arguments, replicas)
        except (ConnectionError, TimeoutError):
            nonce = b"%d" % random.getrandbits(62)
            return write(self, script, (nonce, *arguments[1:]), replicas)

    Primary.write = write_again  # type: ignore[method-assign]  # the bug


BUGS: dict[str, Bug] = {
    "a stamp compared with >": Bug(
        _stamp_compared_with_greater,
        "sqlite",
        (STALE, COPIES),
        faults=("an older backup is restored into",),
        seconds=2.0,
    ),
    "a stamp read after the data": Bug(_stamp_read_after_the_data, "redis", (STALE,)),
    "a missing bump": Bug(_missing_bump, "redis", (STALE,)),
    "a delta that trusts a trimmed stream": Bug(
        _delta_of_a_trimmed_stream,
        "redis",
        (STALE, COPIES),
        faults=("the stream is trimmed while",),
        seconds=3.0,
    ),
    "a commit applied over a newer sync": Bug(_commit_over_a_newer_sync, "redis", (STALE, COPIES)),
    "driver retries left on": Bug(
        _driver_retries,
        "redis",
        (SUMS,),
        faults=("the answers to additions are cut",),
        seconds=2.0,
    ),
}


def sow(name: str, client: Client) -> None:
    """Put the bug of that name into this process."""
    BUGS[name].sow(client)
