"""Sessions of SQLAlchemy kept in step: what they commit, caches hear.

``sync_sessions(sessionmaker, store)`` does it; stockpyle's name is `StockpyleSessionExtension`.
How, and why in this order, is rule 5.6 of docs/internals.rst.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from ..extras import raise_if_missing
from ..hiding import kind_of
from ..stores.base import BaseStore
from ..stores.cachelayers import layer_of
from ..stores.chained import MARKER_LIFE, ChainedStore
from ..stores.layers import Layer
from ..stores.writethrough import WriteThrough

try:
    from sqlalchemy import event
    from sqlalchemy.engine import Connection
    from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction, scoped_session
    from sqlalchemy.orm import sessionmaker as session_factory

    from ..stores.sqlalchemy import SqlAlchemyStore
    from ..stores.sqlalchemychanges import READER, TOLD, Before, look_before_flush
    from .sqlalchemyprogress import Progress
    from .sqlalchemystatements import execute
except ModuleNotFoundError as error:
    raise_if_missing(error, "durabledict.ext.sqlalchemy needs", "SQLAlchemy", extra="sqlalchemy")
    raise

__all__ = ["StockpyleSessionExtension", "sync_sessions"]


class StockpyleSessionExtension:
    """Tells a Store of what sessions commit; stockpyle's name.

    >>> from sqlalchemy.orm import sessionmaker
    >>> from durabledict.stores import ProcessMemoryStore
    >>> my_session = sessionmaker()
    >>> ext = StockpyleSessionExtension(store=ProcessMemoryStore())
    >>> stop = ext.listen(my_session)
    >>> stop()

    :param store: a cache, or a chain. Of a chain whose last is a `SqlAlchemyStore`, the caches
        before it are told: the session itself writes to the database
    :raises ValueError: there is no cache in it

    """

    def __init__(self, store: BaseStore) -> None:
        self._own: list[Layer] = []
        # What is to be emptied when a connection's own transaction is committed.
        self._joined: WeakKeyDictionary[Connection, list[tuple[list[Layer], list[Any]]]]
        self._joined = WeakKeyDictionary()
        self._layers = self._layers_of(store)
        if not self._layers:
            raise ValueError(
                f"store is {kind_of(store)}: there is no cache in it that could be told"
            )

    def _layers_of(self, store: BaseStore) -> list[Layer]:
        if isinstance(store, SqlAlchemyStore):
            return []
        if isinstance(store, ChainedStore):
            # Those that the chain reads: so it passes over one that missed what we told.
            return [*store._layers, *self._layers_of(store._last)]
        self._own.append(layer_of(store, MARKER_LIFE))
        return self._own[-1:]

    def listen(self, target: Any) -> Callable[[], None]:
        """Listen to sessions, and return a function that ends it.

        :param target: a sessionmaker, a scoped_session, a Session, a class of those, or an
            AsyncSession; for an async_sessionmaker, the sessionmaker that is its
            ``sync_session_class``
        :raises TypeError: it is none of these

        """
        sessions = _sessions_of(target)
        heard: list[tuple[str, Callable[..., Any]]] = [
            ("before_flush", self._before_flush),
            ("after_flush", self._after_flush),
            ("persistent_to_deleted", self._deleted),
            ("after_flush_postexec", self._after_flush_postexec),
            ("do_orm_execute", self._execute),
            ("before_commit", self._before_commit),
            ("after_commit", self._after_commit),
            ("after_transaction_end", self._ended),
        ]
        for name, function in heard:
            event.listen(sessions, name, function)

        def stop() -> None:
            for name, function in heard:
                event.remove(sessions, name, function)

        return stop

    # -- what was changed -------------------------------------------------------------------------

    def _progress(self, session: Session) -> Progress | None:
        if session.info.get(READER):
            return None
        found = session.info.get(self)
        if found is None:
            found = session.info[self] = Progress()
        return found

    def _before_flush(self, session: Session, *_: Any) -> None:
        progress = self._progress(session)
        if progress is not None:
            progress.before = look_before_flush(session)

    def _after_flush(self, session: Session, _: Any) -> None:
        progress = self._progress(session)
        if progress is not None:
            progress.current(session).flushed(session, progress.before)

    def _deleted(self, session: Session, obj: Any) -> None:
        progress = self._progress(session)
        if progress is not None:
            progress.current(session).deleted(obj, progress.before)

    def _after_flush_postexec(self, session: Session, _: Any) -> None:
        progress = self._progress(session)
        if progress is not None:
            progress.before = Before()
            # Another listener to the commit flushed once more, after ours.
            self._announce_more(session, progress)

    def _execute(self, state: ORMExecuteState) -> Any:
        if not (state.is_update or state.is_delete or state.is_insert):
            return None
        progress = self._progress(state.session)
        if progress is None:
            return None
        result = execute(state, progress)
        self._announce_more(state.session, progress)
        return result

    # -- how it ended -----------------------------------------------------------------------------

    def _before_commit(self, session: Session) -> None:
        progress = self._progress(session)
        if progress is not None and session.get_nested_transaction() is None:
            # The commit itself flushes after this event.
            session.flush()
            progress.is_committing = True
            self._announce(session, progress)

    def _announce_more(self, session: Session, progress: Progress) -> None:
        """Put the markers of what another listener to the commit does, after ours."""
        if progress.is_committing and session.get_nested_transaction() is None:
            self._announce(session, progress)

    def _layers_for(self, session: Session) -> list[Layer]:
        told = session.info.get(TOLD, ())
        return [layer for layer in self._layers if not any(layer.store is s for s in told)]

    def _announce(self, session: Session, progress: Progress) -> None:
        """Put the markers: from now on nobody fills a cache with what is about to change."""
        changes = progress.take(session)
        layers = self._layers_for(session)
        if not changes or not layers:
            return
        for layer in self._own:
            # Nobody else asks it whether it is there again.
            layer.is_readable()
        written, gone = changes.read_back(session)
        if progress.writing is None:
            progress.writing = WriteThrough(layers)
        outer = [
            bind for bind in map(session.get_bind, changes.mappers) if isinstance(bind, Connection)
        ]
        if outer:
            # It may be rolled back after all, and when it is committed, no session will say.
            written, gone = [], [*written, *gone]
            progress.joined = True
            for connection in set(outer):
                self._empty_at_commit(connection, layers, gone)
        progress.everything |= changes.everything
        progress.writing.begin(written, gone)

    def _after_commit(self, session: Session) -> None:
        progress = self._progress(session)
        if progress is None:
            return
        nested = session.get_nested_transaction()
        if nested is not None:
            # A savepoint is released: the event is the same.
            progress.released.add(nested)
            return
        if progress.take(session):
            # Another listener released a savepoint after ours: that has no markers.
            progress.everything = True
        writing, progress.writing = progress.writing, None
        if writing is not None and progress.joined:
            writing.abandon()
        elif writing is not None:
            writing.end()
        if progress.everything:
            WriteThrough(self._layers_for(session)).forget_all()

    def _ended(self, session: Session, transaction: SessionTransaction) -> None:
        progress = self._progress(session)
        if progress is None:
            return
        if transaction.nested:
            progress.end_nested(transaction)
        elif transaction.parent is None:
            if progress.writing is not None:
                # It was to be committed, and nobody can tell whether it was.
                progress.writing.abandon()
            session.info.pop(self, None)

    def _empty_at_commit(
        self, connection: Connection, layers: list[Layer], objs: list[Any]
    ) -> None:
        """Leave markers when a connection's own transaction is committed, until they expire.

        A rollback leaves it for the next commit, where it costs some misses.

        """
        waiting = self._joined.get(connection)
        if waiting is None:
            # Once for each connection: a listener that was called is not freed.
            waiting = self._joined[connection] = []

            def empty(*_: Any) -> None:
                while waiting:
                    writing = WriteThrough(waiting[0][0])
                    writing.begin((), waiting[0][1])
                    writing.abandon()
                    del waiting[0]

            for name in ("commit", "commit_twophase"):
                event.listen(connection, name, empty)
        waiting.append((layers, objs))


def sync_sessions(target: Any, store: BaseStore) -> Callable[[], None]:
    """Tell a Store of what sessions commit, and return a function that ends it.

    A commit puts markers into the caches before it, and after it the objects: two requests to each
    cache, four where the transaction deleted as well. Before the markers the rows that were written
    are read back, by one query for each class. A transaction that is rolled back tells nothing.

    :param target: a sessionmaker, a scoped_session, a Session, a class of those, or an AsyncSession
    :param store: a cache, or a chain, whose caches are told
    :raises TypeError: something that is no session
    :raises ValueError: a Store without a cache

    """
    return StockpyleSessionExtension(store).listen(target)


def _sessions_of(target: Any) -> Any:
    """Return what to listen to."""
    if type(target).__module__.startswith("sqlalchemy.ext.asyncio"):
        # Only here: it is not asked of programs that are not asynchronous.
        from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

        if isinstance(target, AsyncSession):
            return target.sync_session
        if isinstance(target, async_sessionmaker):
            sessions = target.kw.get("sync_session_class", target.class_.sync_session_class)
            if sessions is not Session:
                return sessions
            raise TypeError(
                f"target is {kind_of(target)}: all such sessions are of the class Session; write "
                "maker = sessionmaker(); sync_sessions(maker, store); "
                "async_sessionmaker(engine, sync_session_class=maker)"
            )
    is_class = isinstance(target, type) and issubclass(target, Session)
    if not is_class and not isinstance(target, (Session, scoped_session, session_factory)):
        raise TypeError(
            f"target is {kind_of(target)}: pass a sessionmaker, a scoped_session, a Session, a "
            "class of those, or an AsyncSession"
        )
    return target
