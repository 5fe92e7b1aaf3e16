"""Requests that kazoo has no method for: watches armed by themselves, and many reads in one.

And one that arms its watch as kazoo's own does, but so that the watch can be taken out again.

ZooKeeper has had both for long: its own client arms its watches again with the first when it
connects, the second came with 3.6. kazoo takes any object with a `type`, `serialize` and
`deserialize`, and calls both on the thread that has its socket.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kazoo.client import KazooClient
from kazoo.exceptions import EXCEPTIONS
from kazoo.protocol.serialization import (
    GetChildren2,
    GetData,
    int_struct,
    long_struct,
    multiheader_struct,
    read_buffer,
    stat_struct,
    write_string,
)
from kazoo.protocol.states import ZnodeStat

__all__ = ["Armed", "MultiRead", "PlacedResult", "SetWatches"]

#: More than any zxid: as if all had been seen that may be there, so that arming sends no event.
ALL_IS_SEEN = (1 << 63) - 1

#: The type of an operation of `MultiRead` that was refused.
REFUSED = -1


class SetWatches:
    """Arm watches on the data of znodes, without reading them.

    :param kazoo: the client that is to call the watches
    :param watches: pairs of a full path, with the chroot, and a watch

    """

    type = 101

    def __init__(
        self, kazoo: KazooClient, watches: Sequence[tuple[str, Callable[..., object]]]
    ) -> None:
        self._kazoo = kazoo
        self._watches = watches

    def serialize(self) -> bytes:
        """Return the bytes of the request; the client knows the watches from then on.

        It calls this on the thread that reads its socket, right before it sends. At the answer it
        would be too late: that a znode is not there is told by an event before the answer. Where it
        is made between that and the request that reads it, nothing else would tell that no watch is
        armed.

        """
        watchers = vars(self._kazoo)["_data_watchers"]
        for path, watch in self._watches:
            watchers[path].add(watch)
        none = int_struct.pack(0)
        return b"".join(
            [
                long_struct.pack(ALL_IS_SEEN),
                int_struct.pack(len(self._watches)),
                *(write_string(path) for path, _ in self._watches),
                none,  # watches on the existence
                none,  # watches on the list of children
            ]
        )

    def deserialize(self, buffer: bytes, offset: int) -> None:
        """Return nothing: the answer is that there is one."""


class Armed:
    """A request of kazoo's that arms a watch, which is entered before the answer is handed out.

    kazoo enters it among those that it is to call when it has handed the answer out. By then
    whoever waited for that may have taken the watch out again, and it would stay for ever.

    :param kazoo: the client that is to call the watch
    :param asked: a `GetData`, an `Exists` or a `GetChildren2` with a `watcher`

    """

    def __init__(self, kazoo: KazooClient, asked: Any) -> None:
        self.type = asked.type
        self.asked = asked
        self._kazoo = kazoo

    def serialize(self) -> bytes:
        """Return the bytes of the request."""
        return bytes(self.asked.serialize())

    def deserialize(self, buffer: bytes, offset: int) -> Any:
        """Return what the answer says."""
        return self.asked.deserialize(buffer, offset)

    def enter(self) -> None:
        """Let the client call the watch, unless that was dropped; on the thread with its socket."""
        kind = "_child_watchers" if isinstance(self.asked, GetChildren2) else "_data_watchers"
        entered, watch = vars(self._kazoo)[kind][self.asked.path], self.asked.watcher
        entered.add(watch)
        # Looked at behind that: whoever drops it says so first, and then takes it out.
        if watch.is_dropped:
            entered.discard(watch)


class MultiRead:
    """Read the data of many znodes at one moment.

    At one moment, because a server applies no transaction while it answers a request for reading
    (`CommitProcessor` waits for all that are under way).

    :param paths: full paths, with the chroot

    """

    type = 22

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def serialize(self) -> bytes:
        """Return the bytes of the request: operations, each behind a header of its own."""
        header = multiheader_struct.pack(GetData.type, False, -1)
        parts: list[bytes] = []
        for path in self._paths:
            parts += (header, write_string(path), b"\0")
        parts.append(multiheader_struct.pack(-1, True, -1))
        return b"".join(parts)

    def deserialize(self, buffer: bytes, offset: int) -> list[Any]:
        """Return for each path its data and stat, or the error that there was instead."""
        answers: list[Any] = []
        while True:
            kind, done, _ = multiheader_struct.unpack_from(buffer, offset)
            offset += multiheader_struct.size
            if done:
                return answers
            if kind == REFUSED:
                answers.append(EXCEPTIONS[int_struct.unpack_from(buffer, offset)[0]]())
                offset += int_struct.size
            else:
                data, offset = read_buffer(buffer, offset)
                answers.append((data, ZnodeStat._make(stat_struct.unpack_from(buffer, offset))))
                offset += stat_struct.size


class PlacedResult:
    """The result of a request, for kazoo to set; calls somebody when that comes.

    Both are called on the thread that reads the client's socket, before anyone who waits for the
    result wakes up.

    :param result: the client's own object, which is waited for
    :param on_success: called when it is no refusal
    :param on_answer: called then, and whatever it is

    """

    def __init__(
        self, result: Any, on_success: Callable[[], object], on_answer: Callable[[], object]
    ) -> None:
        self._result = result
        self._on_success = on_success
        self._on_answer = on_answer

    def set(self, value: object = None) -> None:
        """Take the answer."""
        self._on_success()
        self._on_answer()
        self._result.set(value)

    def set_exception(self, error: Exception) -> None:
        """Take the refusal, or that there will be no answer."""
        self._on_answer()
        self._result.set_exception(error)
