"""What a session's transaction changed, as caches have to be told of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event
from sqlalchemy.orm import Mapper, Session

from .sqlalchemymappers import (
    changed_columns,
    copy_of,
    first_key,
    first_names,
    has_changed_columns,
    key_columns,
    mapper_of,
    shape_of,
    state_of,
)
from .sqlalchemyrows import Identity, rows_of

__all__ = ["READER", "TOLD", "Before", "Changes", "Noted", "look_before_flush", "reader"]

#: In `Session.info`: a session that only reads, for us.
READER = "durabledict.reader"

#: In `Session.info`: the Stores that are told of the session's writes by somebody else already.
TOLD = "durabledict.told"


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
        #: Their rows, where those are deleted or given another first key: locked, and detached.
        self.old: dict[int, Any] = {}


class Changes:
    """What one transaction, or one savepoint, did until now."""

    def __init__(self) -> None:
        #: Rows that were written. They are locked, so that nobody else changes them any more. And
        #: whether all of an object is: one that several tables hold may be locked in part.
        self.written: dict[tuple[Mapper[Any], Identity], bool] = {}
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
        for row, is_whole in inner.written.items():
            self._note_row(row, is_whole)
        self.gone += inner.gone
        self.everything |= inner.everything

    # -- flushes ----------------------------------------------------------------------------------

    def flushed(self, session: Session, before: Before) -> None:
        """Note what a flush wrote: in `after_flush`, where the session still knows what changed."""
        for obj in session.new:
            self._note_written(obj, True)
        for obj in session.dirty:
            # What was set to an expression of SQL is only known to be modified before.
            if id(obj) in before.modified or has_changed_columns(obj):
                self._note_written(obj, False)
                self._note_old_key(obj, before.old.get(id(obj)))

    def deleted(self, obj: Any, before: Before) -> None:
        """Note an object that a flush deleted: for itself, by a cascade, or as an orphan."""
        mapper = mapper_of(type(obj))
        if mapper is None or not first_names(type(obj)):
            return
        row = before.old.get(id(obj))
        if row is not None:
            self.gone.append(row)
            return
        # An orphan: it was not known before that it would go.
        state = state_of(obj)
        identity = dict(zip(shape_of(mapper).primary, state.key[1], strict=True))
        if not all(name in state.dict or name in identity for name in key_columns(mapper)):
            self.everything = True
        else:
            self.gone.append(copy_of(obj, **identity))

    def _note_written(self, obj: Any, is_new: bool) -> None:
        mapper = mapper_of(type(obj))
        if mapper is not None and first_names(type(obj)):
            held = state_of(obj).dict
            key = state_of(obj).key
            primary = shape_of(mapper).primary
            is_whole = is_new or len(mapper.tables) == 1
            if all(name in held for name in primary):
                self._note_row((mapper, tuple(held[name] for name in primary)), is_whole)
            elif key is not None:
                self._note_row((mapper, tuple(key[1])), is_whole)

    def _note_row(self, row: tuple[Mapper[Any], Identity], is_whole: bool) -> None:
        self.written[row] = is_whole or self.written.get(row, False)

    def _note_old_key(self, obj: Any, before: Any) -> None:
        if before is not None:
            self.gone.append(before)
            return
        mapper = mapper_of(type(obj))
        assert mapper is not None
        # A relationship set it, during the flush.
        changed = changed_columns(obj, key_columns(mapper)) if first_names(type(obj)) else {}
        if not all(each.deleted for each in changed.values()):
            self.everything = True
        elif changed:
            old = {name: next(iter(each.deleted)) for name, each in changed.items()}
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
        gone = list(self.gone)
        for mapper, identities in groups.items():
            with reader(session, mapper) as reading:
                for identity, row in rows_of(reading, mapper, identities).items():
                    is_whole = self.written.get((mapper, identity), False)
                    (written if is_whole else gone).append(row)
        # What was deleted and made anew, and keys that two rows swapped, are there once more.
        taken = {first_key(obj) for obj in written}
        return written, [obj for obj in gone if first_key(obj) not in taken]


def look_before_flush(session: Session) -> Before:
    """Return what nobody can tell after a flush.

    The rows that are to be deleted, or given another first key, are read, and locked: what the
    session has of them may be older than the row, or not what the database made of it.

    """
    before = Before()
    wanted: dict[Mapper[Any], dict[Identity, Any]] = {}
    for obj in session.dirty:
        mapper = mapper_of(type(obj))
        if mapper is None or not has_changed_columns(obj):
            continue
        before.modified[id(obj)] = obj
        if first_names(type(obj)) and changed_columns(obj, key_columns(mapper)):
            wanted.setdefault(mapper, {})[tuple(state_of(obj).key[1])] = obj
    for obj in session.deleted:
        mapper = mapper_of(type(obj))
        if mapper is not None and first_names(type(obj)):
            before.modified[id(obj)] = obj
            wanted.setdefault(mapper, {})[tuple(state_of(obj).key[1])] = obj
    for mapper, objs in wanted.items():
        with reader(session, mapper) as reading:
            for identity, row in rows_of(reading, mapper, objs, lock=True).items():
                if identity in objs:
                    before.old[id(objs[identity])] = row
    return before


class Noted:
    """What a session of one operation changes, beside the objects that it is for.

    :param session: the session, which is not used for anything else

    """

    def __init__(self, session: Session) -> None:
        self.changes = Changes()
        self._before = Before()
        event.listen(session, "before_flush", self._before_flush)
        event.listen(session, "after_flush", self._after_flush)
        event.listen(session, "persistent_to_deleted", self._deleted)

    def _before_flush(self, session: Session, *_: Any) -> None:
        self._before = look_before_flush(session)

    def _after_flush(self, session: Session, _: Any) -> None:
        self.changes.flushed(session, self._before)

    def _deleted(self, _: Session, obj: Any) -> None:
        self.changes.deleted(obj, self._before)
