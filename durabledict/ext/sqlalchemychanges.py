"""What a session's transaction changed, as caches have to be told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.orm import Mapper, Session, SessionTransaction
from sqlalchemy.orm.attributes import get_history

from ..stores.sqlalchemy import TOLD
from ..stores.sqlalchemymappers import (
    PASSIVE,
    copy_of,
    first_names,
    has_changed_columns,
    mapper_of,
    shape_of,
    state_of,
)
from ..stores.sqlalchemyrows import Identity, rows_of
from ..stores.writethrough import WriteThrough

__all__ = ["READER", "Before", "Changes", "Progress", "look_before_flush", "reader"]

#: In `Session.info`: a session that only reads, for us.
READER = "durabledict.reader"


@contextmanager
def reader(session: Session, mapper: Mapper[Any]) -> Iterator[Session]:
    """A session that sees what a transaction did, and changes nothing of the session itself."""
    connection = session.connection(bind_arguments={"mapper": mapper})
    reading = Session(
        connection,
        autoflush=False,
        expire_on_commit=False,
        join_transaction_mode="rollback_only",
        info={READER: True, TOLD: []},
    )
    try:
        yield reading
    finally:
        reading.close()


class Before:
    """What was found before a flush, by the `id` of objects."""

    def __init__(self) -> None:
        #: Objects that will be written, held so that the `id` stays theirs.
        self.modified: dict[int, Any] = {}
        #: What had the first keys that they had, as detached copies.
        self.old: dict[int, Any] = {}


class Changes:
    """What one transaction, or one savepoint, did until now."""

    def __init__(self) -> None:
        #: Rows that were written. They are locked, so that nobody else changes them any more.
        self.written: dict[tuple[Mapper[Any], Identity], None] = {}
        #: Copies of objects whose first keys are to be emptied.
        self.gone: list[Any] = []
        #: Whether it is not known which.
        self.everything = False

    def __bool__(self) -> bool:
        return bool(self.written or self.gone or self.everything)

    @property
    def mappers(self) -> list[Mapper[Any]]:
        """The classes that are concerned."""
        found = [mapper for mapper, _ in self.written]
        found += [mapper for obj in self.gone if (mapper := mapper_of(type(obj))) is not None]
        return list(dict.fromkeys(found))

    def merge(self, inner: Changes) -> None:
        """Add what a savepoint did, when that is released."""
        self.written.update(inner.written)
        self.gone += inner.gone
        self.everything |= inner.everything

    # -- flushes ----------------------------------------------------------------------------------

    def flushed(self, session: Session, before: Before) -> None:
        """Note what a flush wrote: in `after_flush`, where the session still knows what changed."""
        for obj in session.new:
            self._note_written(obj)
        for obj in session.dirty:
            # What was set to an expression of SQL is only known to be modified before.
            if id(obj) in before.modified or has_changed_columns(obj):
                self._note_written(obj)
                self._note_old_key(obj, before.old.get(id(obj)))

    def deleted(self, obj: Any) -> None:
        """Note an object that a flush deleted: for itself, by a cascade, or as an orphan."""
        names = first_names(type(obj))
        mapper = mapper_of(type(obj))
        if not names or mapper is None:
            return
        state = state_of(obj)
        identity = dict(zip(shape_of(mapper).primary, state.key[1], strict=True))
        if not all(name in state.dict or name in identity for name in names):
            self.everything = True
        else:
            self.gone.append(copy_of(obj, **identity))

    def _note_written(self, obj: Any) -> None:
        mapper = mapper_of(type(obj))
        if mapper is not None and first_names(type(obj)):
            held = state_of(obj).dict
            key = state_of(obj).key
            primary = shape_of(mapper).primary
            if all(name in held for name in primary):
                self.written[mapper, tuple(held[name] for name in primary)] = None
            elif key is not None:
                self.written[mapper, tuple(key[1])] = None

    def _note_old_key(self, obj: Any, before: Any) -> None:
        if before is not None:
            self.gone.append(before)
            return
        old: dict[str, Any] = {}
        for name in first_names(type(obj)):
            # A relationship set it, during the flush.
            history = get_history(obj, name, PASSIVE)
            if history.added and history.deleted:
                old[name] = history.deleted[0]
            elif history.added:
                self.everything = True
        if old:
            self.gone.append(copy_of(obj, **old))

    # -- the end ----------------------------------------------------------------------------------

    def read_back(self, session: Session) -> tuple[list[Any], list[Any]]:
        """Return the rows that were written as they are now, and what is to be emptied.

        One query for each class, in the transaction that is about to be committed.

        """
        groups: dict[Mapper[Any], list[Identity]] = {}
        for mapper, identity in self.written:
            groups.setdefault(mapper, []).append(identity)
        written: list[Any] = []
        for mapper, identities in groups.items():
            with reader(session, mapper) as reading:
                written += rows_of(reading, mapper, identities).values()
        # What was deleted and made anew, and keys that two rows swapped, are there once more.
        taken = {_first_key(obj) for obj in written}
        return written, [obj for obj in self.gone if _first_key(obj) not in taken]


def _first_key(obj: Any) -> tuple[Any, ...]:
    return type(obj), *[getattr(obj, name) for name in first_names(type(obj))]


def look_before_flush(session: Session) -> Before:
    """Return what nobody can tell after a flush, and load what it takes to tell it then."""
    before = Before()
    unknown: dict[Mapper[Any], list[Any]] = {}
    for obj in session.dirty:
        mapper = mapper_of(type(obj))
        if mapper is None:
            continue
        if has_changed_columns(obj):
            before.modified[id(obj)] = obj
        names = first_names(type(obj))
        histories = {name: get_history(obj, name, PASSIVE) for name in names}
        changed = {name: list(each.deleted) for name, each in histories.items() if each.added}
        if not changed:
            continue
        if all(changed.values()) and all(n in changed or n in state_of(obj).dict for n in names):
            before.old[id(obj)] = copy_of(obj, **{n: old[0] for n, old in changed.items()})
        else:
            unknown.setdefault(mapper, []).append(obj)
    for mapper, objs in unknown.items():
        identities = {tuple(state_of(obj).key[1]): obj for obj in objs}
        with reader(session, mapper) as reading:
            for identity, row in rows_of(reading, mapper, identities).items():
                before.old[id(identities[identity])] = row
    return before


class Progress:
    """How far a session is with its transaction."""

    def __init__(self) -> None:
        #: What was found before a flush, until it is over.
        self.before = Before()
        #: Whether the outermost transaction is being committed.
        self.is_committing = False
        #: The markers, between the two phases.
        self.writing: WriteThrough | None = None
        self.everything = False
        #: Whether the connection has a transaction of its own around the session's.
        self.joined = False
        #: Savepoints that were released, until they have ended.
        self.released: set[SessionTransaction] = set()
        self._changes: dict[SessionTransaction, Changes] = {}

    def current(self, session: Session) -> Changes:
        """Return what the innermost savepoint did, or the transaction."""
        transaction = session.get_nested_transaction() or session.get_transaction()
        assert transaction is not None
        return self._changes.setdefault(transaction, Changes())

    def take(self, session: Session) -> Changes:
        """Return what the whole transaction did since the last time."""
        transaction = session.get_transaction()
        return self._changes.pop(transaction, Changes()) if transaction else Changes()

    def end_nested(self, transaction: SessionTransaction) -> None:
        """Give what a savepoint did to what is around it, if it was released; else forget it."""
        changes = self._changes.pop(transaction, None)
        outer = transaction.parent
        while outer is not None and not outer.nested and outer.parent is not None:
            outer = outer.parent
        if transaction in self.released and changes is not None and outer is not None:
            self._changes.setdefault(outer, Changes()).merge(changes)
        self.released.discard(transaction)
