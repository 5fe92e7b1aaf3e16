"""`SqlAlchemyStore`: objects of mapped classes, in the tables that SQLAlchemy has for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from ..extras import raise_if_missing
from ..hiding import kind_of
from ..locks import LEASE, Lease
from ..stampcaches import call_after_fork
from .base import BaseStore, Key
from .groups import token_name

try:
    from sqlalchemy import create_engine
    from sqlalchemy.engine import Engine
    from sqlalchemy.exc import IntegrityError
    from sqlalchemy.orm import Session, scoped_session
    from sqlalchemy.orm import sessionmaker as session_factory
    from sqlalchemy.orm.exc import StaleDataError

    from .sqlalchemychanges import TOLD, Noted
    from .sqlalchemyleases import SqlLease, takes_leases
    from .sqlalchemymappers import (
        Shape,
        by_class,
        first_key,
        first_names,
        identity_of,
        is_whole,
        mapper_of,
        shape_of,
        state_of,
    )
    from .sqlalchemyputs import Puts
    from .sqlalchemyqueries import checked_names, find, find_one
    from .sqlalchemyrows import reload, rows_of
except ModuleNotFoundError as error:
    raise_if_missing(error, "SqlAlchemyStore needs", "SQLAlchemy", extra="sqlalchemy")
    raise

__all__ = ["SqlAlchemyStore"]

T = TypeVar("T")

#: Tries of a put whose rows others make and delete at that moment.
TRIES = 3


class SqlAlchemyStore(BaseStore):
    """Keeps objects of mapped classes in a database; what is not mapped is ignored.

    >>> from sqlalchemy import Integer, create_engine
    >>> from sqlalchemy.orm import DeclarativeBase, mapped_column
    >>> class Base(DeclarativeBase):
    ...     pass
    >>> class Foo(Base):
    ...     __tablename__ = "foo"
    ...     id = mapped_column(Integer, primary_key=True)
    ...     foobar = mapped_column(Integer)
    >>> engine = create_engine("sqlite://")
    >>> Base.metadata.create_all(engine)
    >>> store = SqlAlchemyStore(engine=engine)
    >>> foo = Foo(foobar=123)
    >>> store.put(foo)
    >>> foo.id, store.get(Foo, {"foobar": 123}).id
    (1, 1)
    >>> engine.dispose()

    Keys are any mapped columns, whether the class names them in ``__stockpyle_keys__`` or not. An
    object *is* its primary key: a put replaces the row that has it.

    Each operation has a session of its own, and a transaction, which has ended when it returns. A
    get is one query, of a batch as well, whatever the mix of keys. A put is one query that asks
    which rows there are, for each class, and then what SQLAlchemy sends.

    Objects come back detached, with all columns loaded, and relationships as far as the mapping
    loads them at once. ``my_session.merge(obj)`` puts one into a session. It may be used from many
    threads.

    :param uri: of the database, as for `create_engine`; the engine is made here, and `release`
        closes its connections
    :param engine: an engine, in place of a URI
    :param sessionmaker: a sessionmaker, in place of an engine; its sessions route classes to
        engines as they do
    :param merge_into: a function that returns the caller's session, or None: a `scoped_session`,
        say. What a get returns is merged into that, without another query
    :raises ValueError: none of the first three, or several

    """

    def __init__(
        self,
        uri: str | None = None,
        engine: Engine | None = None,
        sessionmaker: Any = None,
        *,
        merge_into: Callable[[], Session | None] | None = None,
    ) -> None:
        given = [each for each in (uri, engine, sessionmaker) if each is not None]
        if len(given) != 1:
            raise ValueError(
                "SqlAlchemyStore takes uri=, engine= or sessionmaker=: one of them, and "
                f"{len(given) or 'none'} was given"
            )
        if engine is not None and not isinstance(engine, Engine):
            raise TypeError(f"engine is {kind_of(engine)}: pass what create_engine returns")
        self._own_engine = None if uri is None else create_engine(uri)
        self._engine = self._own_engine if engine is None else engine
        if isinstance(sessionmaker, scoped_session):
            sessionmaker = sessionmaker.session_factory
        if sessionmaker is None:
            sessionmaker = session_factory(self._engine)
        elif not callable(sessionmaker):
            raise TypeError(f"sessionmaker is {kind_of(sessionmaker)}: pass a sessionmaker")
        self._sessionmaker = sessionmaker
        self._merge_into = merge_into
        # Of the processes that this one was forked from: theirs to close.
        self._inherited: list[Any] = []
        if self._own_engine is not None:
            call_after_fork(self)

    def _after_fork(self) -> None:
        if self._own_engine is not None:
            self._inherited.append(self._own_engine.pool)
            self._own_engine.dispose(close=False)

    def __repr__(self) -> str:
        return f"SqlAlchemyStore({self._sessionmaker if self._engine is None else self._engine!r})"

    def invalidate_group(self, group: Any) -> None:
        """Do nothing: rows are read from the database each time, and are never out of date.

        :raises TypeError: it cannot be a group

        """
        token_name(group)

    def release(self) -> None:
        """Close the connections of an engine that was made here."""
        if self._own_engine is not None:
            self._own_engine.dispose()

    # -- the six operations -----------------------------------------------------------------------

    def get(self, klass: type[T], key: Key) -> T | None:
        """Return the object, or None.

        :raises KeyError: one of the attributes is not mapped
        :raises NonUniqueKeyError: several objects have them

        """
        mapper = _mapper_asked_for(klass)
        if mapper is None:
            return None
        with self._session() as session:
            shape = shape_of(mapper)
            if _is_primary(shape, key):
                found = session.get(mapper, tuple(key.values()))
            else:
                found = find_one(session, mapper, key)
            if found is not None and shape.partial:
                reload(session, [found])
        return self._bound(found)  # type: ignore[no-any-return]  # of the class

    def batch_get(self, klass: type[T], keys: Iterable[Key]) -> list[T | None]:
        """Return an object or None for each key, by one query.

        :raises KeyError: one of the attributes is not mapped
        :raises NonUniqueKeyError: several objects have one of the keys

        """
        mapper = _mapper_asked_for(klass)
        wanted = list(keys)
        if mapper is None or not wanted:
            return [None] * len(wanted)
        with self._session() as session:
            found = find(session, mapper, wanted)
            if shape_of(mapper).partial:
                reload(session, [obj for obj in found if obj is not None])
        return [self._bound(obj) for obj in found] if self._merge_into is not None else found

    def put(self, obj: Any) -> None:
        """Store an object: add it, or merge it into the row with its primary key.

        A new object has its primary key afterwards, and what else the database made.

        :raises sqlalchemy.exc.SQLAlchemyError: the database does not take it; nothing is stored,
            and the object is what it was

        """
        self.batch_put([obj])

    def batch_put(self, objs: Iterable[Any]) -> None:
        """Store objects, in one transaction: all or none."""
        self._put([obj for obj in objs if mapper_of(type(obj)) is not None])

    def delete(self, obj: Any) -> None:
        """Remove the row of an object, if there is one, and what the mapping removes with it."""
        self.batch_delete([obj])

    def batch_delete(self, objs: Iterable[Any]) -> None:
        """Remove the rows of objects, in one transaction."""
        self._delete([obj for obj in objs if mapper_of(type(obj)) is not None])

    def delete_key(self, klass: type, key: Key) -> None:
        """Remove the object that has these attributes, if there is one.

        :raises KeyError: one of them is not mapped
        :raises NonUniqueKeyError: several objects have them

        """
        mapper = _mapper_asked_for(klass)
        if mapper is None:
            return
        with self._session() as session:
            found = find_one(session, mapper, key)
            if found is not None:
                session.delete(found)
                session.commit()

    # -- how they do it ---------------------------------------------------------------------------

    @contextmanager
    def _session(self, told: Iterable[BaseStore] = ()) -> Iterator[Session]:
        """A session for one operation; what it holds is detached at its end."""
        session: Session = self._sessionmaker(expire_on_commit=False)
        session.info[TOLD] = list(told)
        try:
            yield session
        finally:
            session.close()

    def _put(
        self,
        objs: list[Any],
        begin: Callable[..., None] | None = None,
        told: Iterable[BaseStore] = (),
    ) -> None:
        for tries_left in reversed(range(TRIES)):
            with self._session(told) as session:
                puts = Puts(session, objs)
                noted = None if begin is None or not _has_related(objs) else Noted(session)
                try:
                    puts.flush()
                except BaseException as error:
                    session.rollback()
                    puts.take_back()
                    # A row that was not there may have come meanwhile, or one that was be gone.
                    is_race = isinstance(error, IntegrityError) and puts.guessed
                    if tries_left and (is_race or isinstance(error, StaleDataError)):
                        continue
                    raise
                try:
                    if begin is not None:
                        written = puts.read_back()
                        gone = [*puts.replaced, *puts.unchanged()]
                        if noted is not None:
                            gone += _beside(noted, session, puts.stored)
                        begin(written, gone, everything=_is_unknown(noted))
                    puts.load()
                    session.commit()
                except BaseException:
                    session.rollback()
                    puts.take_back()
                    raise
            puts.hand_back()
            return

    def _delete(
        self,
        objs: list[Any],
        begin: Callable[..., None] | None = None,
        told: Iterable[BaseStore] = (),
    ) -> None:
        with self._session(told) as session:
            noted = None if begin is None or not _has_related(objs) else Noted(session)
            gone = _rows_to_delete(session, objs)
            for row in gone:
                session.delete(row)
            session.flush()
            if begin is not None:
                # What the caller has may be under another key than what was there.
                beside = [] if noted is None else _beside(noted, session, gone)
                begin((), [*objs, *gone, *beside], everything=_is_unknown(noted))
            session.commit()

    def _write_through(
        self, objs: list[Any], deleted: bool, begin: Callable[..., None], told: Iterable[BaseStore]
    ) -> None:
        mapped = [obj for obj in objs if mapper_of(type(obj)) is not None]
        others = [obj for obj in objs if mapper_of(type(obj)) is None]

        def begin_all(written: Iterable[Any], gone: Iterable[Any], *, everything: bool) -> None:
            if deleted:
                begin(written, [*gone, *others], everything=everything)
            else:
                begin([*written, *others], gone, everything=everything)

        (self._delete if deleted else self._put)(mapped, begin_all, told)

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        bind: Any = self._engine
        if bind is None:
            bind = getattr(self._sessionmaker, "kw", {}).get("bind")
        if not takes_leases(bind):
            return super()._lease(name, seconds)
        # Short enough for the index of any database.
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        return SqlLease(seconds, ("sql", id(bind), digest), bind, digest)

    # -- for chains, and for the caller's session -------------------------------------------------

    def _is_whole(self, obj: Any) -> bool:
        return is_whole(obj)

    def _before_stockpyle_deserialize(self, obj: Any) -> Any:
        return self._bound(obj)

    def _bound(self, obj: Any) -> Any:
        """Return the object of the caller's session, where there is one."""
        session = None if obj is None or self._merge_into is None else self._merge_into()
        mapper = None if session is None else mapper_of(type(obj))
        if session is None or mapper is None or state_of(obj).session is session:
            return obj
        own = session.identity_map.get(state_of(obj).key)
        if own is not None and session.is_modified(own):
            # A merge without a query would take the caller's changes away.
            return own
        return session.merge(obj, load=False)


def _mapper_asked_for(klass: type) -> Any:
    if not isinstance(klass, type):
        raise TypeError(f"{klass!r}: a class comes first, then the key")
    return mapper_of(klass)


def _is_primary(shape: Shape, key: Key) -> bool:
    """Whether `Session.get` takes a key, and loads all."""
    if shape.deferred or not isinstance(key, Mapping) or shape.primary != tuple(key):
        return False
    return not any(value is None for value in key.values())


def _has_related(objs: Iterable[Any]) -> bool:
    """Whether a put or delete of objects may write others as well."""
    mappers = {mapper_of(type(obj)) for obj in objs}
    return any(
        shape_of(each).related
        for mapper in mappers
        for each in (() if mapper is None else mapper.self_and_descendants)
    )


def _is_unknown(noted: Noted | None) -> bool:
    """Whether something was deleted beside, and nobody knows under which key."""
    return noted is not None and noted.changes.everything


def _beside(noted: Noted, session: Session, objs: Iterable[Any]) -> list[Any]:
    """Return what a put or delete wrote and deleted, as its relationships said, beside objects."""
    for mapper, group in by_class(objs).items():
        for obj in group:
            noted.changes.written.pop((mapper, tuple(state_of(obj).key[1])), None)
    written, gone = noted.changes.read_back(session)
    own = {first_key(obj) for obj in objs}
    return [obj for obj in (*written, *gone) if first_key(obj) not in own]


def _rows_to_delete(session: Session, objs: list[Any]) -> list[Any]:
    """Return the rows of objects: by primary key, or by the first key where they have none."""
    found: dict[int, Any] = {}
    for mapper, group in by_class(objs).items():
        shape = shape_of(mapper)
        identities = [identity_of(obj, shape) for obj in group]
        known = [identity for identity in identities if identity is not None]
        rows = list(rows_of(session, mapper, known, lock=True).values())
        names = first_names(mapper.class_)
        if names:
            keys = [
                {name: getattr(obj, name) for name in names}
                for obj, identity in zip(group, identities, strict=True)
                if identity is None
            ]
            for key in keys:
                checked_names(mapper, key)
            rows += [row for row in find(session, mapper, keys) if row is not None]
        found.update({id(row): row for row in rows})
    return list(found.values())
