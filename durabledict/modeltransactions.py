"""What the dicts of this process know of one open transaction of a Django connection.

docs/internals.rst, rules 3.3 and 3.4. A `Block` is registered as a callback of the transaction's
commit, *before* the SQL, and Django's list of those callbacks is the only register of blocks.
Django takes a callback off the list when a savepoint or the transaction is rolled back, when the
connection is closed, and when a callback before it raises. Nobody else holds the block, so it is
finished by its finalizer then. Where somebody does (a traceback, a list of callbacks), the next
comparison in this process finishes it.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import ProgrammingError, router

from .errors import DecodingError
from .modelconnections import is_in_transaction
from .stamps import CacheStamp, Write

if TYPE_CHECKING:
    from .modelreads import ModelReads

__all__ = ["Block", "View", "busy", "heard_while_busy", "is_busy"]

logger = logging.getLogger("durabledict.models")


class View:
    """The entries of one dict as one open transaction sees them.

    :param durable: the dict

    """

    __slots__ = (
        "durable", "entries", "heard", "removed", "sent", "spoilt", "stamp", "undecodable",
        "written", "wrote",
    )  # fmt: skip

    def __init__(self, durable: ModelReads[Any, Any]) -> None:
        self.durable = durable
        self.entries: dict[Any, Any] | None = None  # None: to be loaded, or made from the copy
        self.undecodable: dict[Any, DecodingError] = {}
        self.stamp: Any = None
        self.sent = -float("inf")
        self.written: dict[Any, Any] = {}  # by the dict itself, in this transaction
        self.removed: dict[Any, None] = {}
        self.wrote = False
        self.heard = False  # whether a write past the dict was heard of
        self.spoilt = False  # whether `written` and `removed` may not be what is committed

    def fill(
        self,
        entries: dict[Any, Any],
        undecodable: Mapping[Any, DecodingError],
        stamp: Any,
        sent: float,
    ) -> None:
        """Take the entries that were loaded on the transaction's own connection."""
        self.entries, self.undecodable = entries, dict(undecodable)
        self.stamp, self.sent = stamp, sent

    def derive(self, entries: dict[Any, Any], undecodable: Mapping[Any, DecodingError]) -> None:
        """Make the entries from the shared copy and what this transaction wrote."""
        self.entries = entries
        self.undecodable = {
            key: error
            for key, error in undecodable.items()
            if key not in self.written and key not in self.removed
        }
        self.entries.update(self.written)
        for key in self.removed:
            self.entries.pop(key, None)

    def apply(self, written: Mapping[Any, Any], removed: Collection[Any]) -> None:
        """Note what the dict itself wrote."""
        self.wrote = True
        for key in removed:
            self.written.pop(key, None)
            self.removed[key] = None
        for key, value in written.items():
            self.removed.pop(key, None)
            self.written[key] = value
        for key in (*written, *removed):
            self.undecodable.pop(key, None)
        if self.entries is not None:
            self.entries.update(written)
            for key in removed:
                self.entries.pop(key, None)

    def spoil(self) -> None:
        """Forget the entries: part of the transaction was rolled back, or nobody knows."""
        self.entries = None
        self.spoilt = True
        self.written.clear()
        self.removed.clear()


class Block:
    """The open stamps and the views of one transaction; called by Django after its commit."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._process = os.getpid()
        self._openings: dict[tuple[object, str], tuple[CacheStamp, int | None]] = {}
        self._views: dict[int, View] = {}
        self._finished = False
        # Re-entrant: a handler of the log may read a dict, which looks for ended transactions.
        self._finishing = threading.RLock()
        self._watch = _rollback_watch(weakref.ref(self))
        # First, since `execute_wrapper` takes the last one off at its end.
        connection.execute_wrappers.insert(0, self._watch)
        self._commit: Callable[[], None] | None = None

    @classmethod
    def of(cls, connection: Any) -> Block | None:
        """Return the block of the transaction that a connection is in, if there is one."""
        if not is_in_transaction(connection):
            return None
        for entry in connection.run_on_commit:
            # SQLite commits at `set_autocommit(True)`, without a word: its callbacks stay, and
            # ours may have been found, and finished, meanwhile.
            if isinstance(entry[1], cls) and not entry[1]._finished:
                return entry[1]
        return None

    @classmethod
    def begin(cls, connection: Any) -> Block:
        """Return the block of the transaction that a connection is in; register it if needed.

        :raises django.db.ProgrammingError: the connection was closed in its `atomic`

        """
        block = cls.of(connection)
        if block is None:
            if connection.closed_in_transaction:
                raise ProgrammingError("the connection was closed in this atomic block")
            connection.ensure_connection()  # which would forget the callbacks
            block = cls(connection)
            if connection.in_atomic_block:
                # Not transaction.on_commit, in whose place people put a mock.
                connection.on_commit(block)
            else:
                # Under `set_autocommit(False)` on_commit refuses.
                connection.run_on_commit.append((set(), block, False))
            if not (connection.in_atomic_block and connection.commit_on_exit):
                block._commit = _watch_commit(connection, weakref.ref(block))
        return block

    def is_current(self) -> bool:
        """Whether the transaction is still open."""
        return Block.of(self._connection) is self

    def view(self, durable: ModelReads[Any, Any]) -> View:
        """Return the view of a dict; made at the first call."""
        view = self._views.get(id(durable))
        if view is None:
            view = self._views[id(durable)] = View(durable)
            durable._block_opened(self)
        return view

    def view_of(self, durable: ModelReads[Any, Any]) -> View | None:
        """Return the view of a dict, if it has one."""
        return self._views.get(id(durable))

    def open(self, stamp: CacheStamp) -> None:
        """Note in the stamp that a writer is at work: once a transaction, before its SQL."""
        _, opening = self._openings.get(stamp.identity, (stamp, None))
        if opening is None:
            self._openings[stamp.identity] = (stamp, stamp.begin())

    def touch_at_end(self, stamp: CacheStamp) -> None:
        """Tell readers when the transaction has ended: the cache could not be asked before."""
        self._openings.setdefault(stamp.identity, (stamp, None))

    def is_open(self, stamp: CacheStamp) -> bool:
        """Whether this transaction is one of the writers that the stamp counts."""
        return self._openings.get(stamp.identity, (stamp, None))[1] is not None

    def spoil(self) -> None:
        """Forget what was read and written: part of it was rolled back."""
        for view in self._views.values():
            view.spoil()

    def __call__(self) -> None:
        if is_in_transaction(self._connection):
            # Called by captureOnCommitCallbacks, in the transaction of a TestCase: nothing is
            # committed, and it will be rolled back.
            for stamp, _ in self._openings.values():
                _logged(stamp.touch)
            return
        self.finish(committed=True)

    def __del__(self) -> None:
        if self._finished or self._process != os.getpid():
            return  # in a forked child, it is the parent's to finish
        if any(stamp.cache.is_in_use() for stamp, _ in self._openings.values()):
            # The garbage collector called, in the middle of a request of this very thread to the
            # cache: another request in between would take its answer.
            run = threading.Thread(target=_finish, args=_taken(self), daemon=True).start
            _logged(run)
            return
        self.finish(committed=False)

    def finish(self, *, committed: bool) -> None:
        """End the stamps; give the dicts what was committed, or tell them that it is not known.

        Another thread may have begun to: its work is waited for, or a commit would return before
        its readers are told.

        """
        views: list[View] = []
        with self._finishing:
            if not self._finished:
                openings, views = _taken(self)
                _finish(openings, views, committed)
        if committed:
            for view in views:
                _logged(view.durable._feed.deliver)


def _taken(block: Block) -> tuple[list[tuple[CacheStamp, int | None]], list[View]]:
    block._finished = True
    connection = block._connection
    if block._watch in connection.execute_wrappers:
        connection.execute_wrappers.remove(block._watch)
    if block._commit is not None and connection.__dict__.get("commit") is block._commit:
        del connection.commit
    openings = [
        (stamp, opening)
        for stamp, opening in block._openings.values()
        # Its opening was rolled back with the rest, and SQL would begin a transaction here.
        if not (is_in_transaction(connection) and _is_kept_in(stamp, connection))
    ]
    return openings, list(block._views.values())


def _finish(
    openings: list[tuple[CacheStamp, int | None]], views: list[View], committed: bool = False
) -> None:
    ended: dict[tuple[object, str], Write] = {}
    for stamp, opening in openings:
        write = _logged(stamp.touch) if opening is None else _logged(stamp.end, opening)
        if isinstance(write, Write):
            ended[stamp.identity] = write
    for view in views:
        _logged(view.durable._block_finished, view, ended if committed else {})


def _logged(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call what must not fail in the middle of somebody else's commit or rollback."""
    try:
        return function(*arguments)
    except Exception:
        logger.warning(
            "a transaction has ended, and its readers cannot be told; they look again within a "
            "second, or when `verify` has passed",
            exc_info=True,
        )
        return None


def _is_kept_in(stamp: CacheStamp, connection: Any) -> bool:
    """Whether a stamp is in Django's database cache, on this very connection."""
    model = getattr(getattr(stamp.cache, "cache", None), "cache_model_class", None)
    return model is not None and router.db_for_write(model) == connection.alias


def _rollback_watch(reference: weakref.ref[Block]) -> Callable[..., Any]:
    """Return a wrapper of Django's that sees when a savepoint is rolled back.

    Of a savepoint of `atomic` Django tells by dropping callbacks; of one that was made by
    `transaction.savepoint` it tells nobody.

    """

    def watch(execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        if isinstance(sql, str) and sql.lstrip()[:8].upper() == "ROLLBACK":
            block = reference()
            if block is not None:
                block.spoil()
        return execute(sql, params, many, context)

    return watch


def _watch_commit(connection: Any, reference: weakref.ref[Block]) -> Callable[[], None]:
    """Put a `commit` in the place of the connection's, which finishes the block, and return it.

    Under `set_autocommit(False)` Django runs the callbacks when autocommit is set again: long after
    the commit, or never.

    """
    commit = connection.commit

    def watched() -> None:
        commit()
        block = reference()
        if block is not None and not block._finished:
            connection.run_on_commit = [
                entry for entry in connection.run_on_commit if entry[1] is not block
            ]
            block.finish(committed=True)

    connection.commit = watched
    return watched


_busy = threading.local()


@contextmanager
def busy(stamp: CacheStamp) -> Iterator[list[int]]:
    """Mark a stamp as being written by this thread, for the signals that its SQL sends.

    :return: a list of one number, how many `pre_save` and `pre_delete` there were

    """
    held: dict[tuple[object, str], list[int]] = _busy.__dict__.setdefault("stamps", {})
    new = stamp.identity not in held
    heard = held.setdefault(stamp.identity, [0])
    try:
        yield heard
    finally:
        if new:
            held.pop(stamp.identity, None)


def is_busy(stamp: CacheStamp) -> bool:
    """Whether this thread is in the middle of a dict's own write under a stamp."""
    return stamp.identity in _busy.__dict__.get("stamps", {})


def heard_while_busy(stamps: Iterable[CacheStamp]) -> None:
    """Note one signal before a row is written, for the dicts' own writes that it may be part of."""
    held: dict[tuple[object, str], list[int]] = _busy.__dict__.get("stamps", {})
    for identity in {stamp.identity for stamp in stamps}:
        if identity in held:
            held[identity][0] += 1
