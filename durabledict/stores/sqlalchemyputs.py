"""How `SqlAlchemyStore` puts objects into its session, whatever state they come in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Mapper, Session, make_transient
from sqlalchemy.orm.attributes import set_committed_value

from .sqlalchemymappers import (
    by_class,
    changed_columns,
    copy_of,
    first_names,
    has_changed_columns,
    identity_of,
    key_columns,
    mapper_of,
    shape_of,
    state_of,
)
from .sqlalchemyrows import Identity, reload, rows_of

__all__ = ["Puts"]


class Puts:
    """Objects that are put in one transaction.

    A new object is added, as it is: so it has its primary key afterwards. Any other is merged, and
    stays what it was: detached, or in a session of somebody else.

    :param session: a session of the Store's own
    :param objs: mapped objects

    """

    def __init__(self, session: Session, objs: Sequence[Any]) -> None:
        self._session = session
        self._objs = objs
        #: What the session has for each of them.
        self.stored: list[Any] = []
        #: Copies of what was there before, where that had another first key.
        self.replaced: list[Any] = []
        #: Whether a row was taken for a new one that somebody else may be making, too.
        self.guessed = False
        self._changed: set[int] = set()
        # Objects of the caller's that were added, with all that they held.
        self._added: list[tuple[Any, dict[str, Any]]] = []
        self._existing: dict[tuple[Mapper[Any], Identity], Any] = {}

    def flush(self) -> None:
        """Add and merge the objects, and send them to the database.

        :raises sqlalchemy.exc.SQLAlchemyError: it does not take them

        """
        identified = self._load_existing()
        repeated = {each for each, count in Counter(identified).items() if each and count > 1}
        seen: set[tuple[Mapper[Any], Identity]] = set()
        # Each merge would flush what the one before it did.
        with self._session.no_autoflush:
            for obj, identity in zip(self._objs, identified, strict=True):
                if state_of(obj).session is self._session:
                    # It came with another one, or is there twice.
                    self._note(obj)
                elif identity in repeated and identity is not None:
                    if identity in seen:
                        # So that the merge finds what the one before it made.
                        self._session.flush()
                    seen.add(identity)
                    self._merge(obj)
                elif identity not in self._existing and _is_free(obj):
                    self._add(obj)
                    self.guessed |= identity is not None
                else:
                    self._merge(obj)
            self._session.flush()

    def _load_existing(self) -> list[tuple[Mapper[Any], Identity] | None]:
        """Load what is there, by one query for each class: `merge` would ask one by one.

        :return: the primary key of each object, where it has one

        """
        groups: dict[Mapper[Any], dict[Identity, None]] = {}
        identified: list[tuple[Mapper[Any], Identity] | None] = []
        for obj in self._objs:
            mapper = mapper_of(type(obj))
            assert mapper is not None
            identity = identity_of(obj, shape_of(mapper))
            if identity is None:
                identified.append(None)
            else:
                identified.append((mapper, identity))
                groups.setdefault(mapper, {})[identity] = None
        for mapper, identities in groups.items():
            rows = rows_of(self._session, mapper, identities, lock=True)
            self._existing.update({(mapper, identity): row for identity, row in rows.items()})
        return identified

    def _add(self, obj: Any) -> None:
        # With all that it brings along.
        self._added += [(each, dict(state_of(each).dict)) for each in (obj, *_brought_along(obj))]
        self._session.add(obj)
        self._note(obj)

    def _merge(self, obj: Any) -> None:
        mapper = mapper_of(type(obj))
        assert mapper is not None
        row = self._existing.get((mapper, identity_of(obj, shape_of(mapper)) or ()))
        merged = self._session.merge(obj)
        if row is not None and first_names(type(obj)):
            changed = changed_columns(merged, key_columns(mapper))
            if changed:
                old = {name: each.deleted[0] for name, each in changed.items() if each.deleted}
                self.replaced.append(copy_of(merged, **old))
        if row is None or has_changed_columns(merged):
            self._note(merged)
        else:
            self.stored.append(merged)

    def _note(self, obj: Any) -> None:
        self.stored.append(obj)
        self._changed.add(id(obj))

    def read_back(self) -> list[Any]:
        """Load the rows that were written once more, as the database has them; return the objects.

        They are locked until the commit, so that what is read is what will last. A row that was
        put as it already was is not written, and may be another one by then: it is left out.

        """
        changed = [obj for obj in self.stored if id(obj) in self._changed]
        for mapper, group in by_class(changed).items():
            rows_of(self._session, mapper, [tuple(state_of(obj).key[1]) for obj in group])
        return changed

    def unchanged(self) -> list[Any]:
        """Return the objects whose rows were not written."""
        return [obj for obj in self.stored if id(obj) not in self._changed]

    def load(self) -> None:
        """Load what the database made: defaults, and what triggers did to new columns."""
        reload(self._session, self.stored)

    def hand_back(self) -> None:
        """After the commit: tell new objects that were merged what the database made of them."""
        for obj, stored in zip(self._objs, self.stored, strict=True):
            state = state_of(obj)
            if stored is not obj and state.key is None:
                held = state_of(stored).dict
                mapper = mapper_of(type(obj))
                assert mapper is not None
                for name in shape_of(mapper).columns:
                    if state.dict.get(name) is None and held.get(name) is not None:
                        set_committed_value(obj, name, held[name])

    def take_back(self) -> None:
        """After a rollback: leave the caller's objects as they came."""
        for obj, held in self._added:
            make_transient(obj)
            own = state_of(obj).dict
            own.clear()
            own.update(held)


def _is_free(obj: Any) -> bool:
    """Whether an object can be added: neither it nor what it refers to was ever in a session."""
    state = state_of(obj)
    if state.key is not None or state.session is not None:
        return False
    others = map(state_of, _brought_along(obj))
    return all(other.key is None and other.session is None for other in others)


def _brought_along(obj: Any) -> list[Any]:
    """Return the objects that are added when this one is."""
    mapper = mapper_of(type(obj))
    if mapper is None or not shape_of(mapper).related:
        return []
    found = mapper.cascade_iterator("save-update", state_of(obj))
    return [other.obj() for _, _, other, _ in found]
