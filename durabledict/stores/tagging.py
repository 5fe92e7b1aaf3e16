"""How a Store over bytes keeps the tokens of groups, and compares them (rule 5.8).

`BaseDictionaryStore` is made of this. A Store that has a way to do it in one request overrides
`_read_tokens` and `_add_tokens`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any

from ..errors import DecodingError
from .base import BaseStore
from .cells import TAGGED, Tags, is_whole, new_token, tags_of
from .groups import ANY, Tokens, all_groups_of, groups_of, may_have_groups, token_name

__all__ = ["TaggingStore"]


class TaggingStore(BaseStore):
    """Invalidates groups by tokens that stand under names, beside the records."""

    @abstractmethod
    def _read(self, name: str) -> bytes | None:
        """Return what is stored under a name, or None."""

    @abstractmethod
    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        """Store something under a name."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Remove what is stored under a name, if there is something."""

    def invalidate_group(self, group: Any) -> None:
        """Have no object of a group be found any more, in any process. Two requests.

        However many they are. What is being put or read below at that moment, and was begun
        before, is not found either. The records stay until they are put again, or expire.

        :param group: as classes name it in ``__stockpyle_groups__``
        :raises TypeError: it has no name

        """
        name = token_name(group)
        # In this order: who finds the group without its old token finds that something was
        # invalidated, too.
        self._write(ANY, new_token(), None)
        self._remove(name)

    # -- tokens -----------------------------------------------------------------------------------

    def _read_tokens(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the tokens of groups; what has none is left out."""
        return self._read_each(names)

    def _read_each(self, names: Iterable[str]) -> dict[str, bytes]:
        cells = ((name, self._read(name)) for name in names)
        return {name: cell for name, cell in cells if cell is not None}

    def _add_tokens(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return the tokens of groups; what has none gets one.

        Where two add one at once, in a store that has no such step, the one that does not last
        makes what was put with it count as invalid.

        """
        found = {}
        for name in names:
            cell = self._read(name)
            if cell is None:
                cell = new_token()
                self._write(name, cell, None)
            found[name] = cell
        return found

    def _tokens_of(self, objs: Iterable[Any]) -> Tokens:
        names = all_groups_of(objs)
        return self._add_tokens(sorted(names)) if names else {}

    def _tokens_before(self, klass: type) -> Tokens:
        return self._add_tokens([ANY]) if may_have_groups(klass) else {}

    # -- tags -------------------------------------------------------------------------------------

    def _tags_for(self, objs: Iterable[Any], before: Tokens) -> dict[int, Tags | None]:
        """Return the tags of objects, by `id`, so that they say when the objects were made.

        Two requests, if there are groups of which `before` has no token.

        :param before: tokens as they were before the objects were made
        :return: None: a group may have been invalidated since then

        """
        named = {id(obj): groups_of(obj) for obj in objs}
        known = dict(before)
        missing = {name for names in named.values() for name in names} - before.keys()
        if missing and ANY in before:
            # First these, then that: what is invalidated in between is noticed.
            now = self._add_tokens(sorted(missing))
            if self._read_tokens([ANY]).get(ANY) == before[ANY]:
                known.update(now)
        return {
            identity: tuple((name, known[name]) for name in names)
            if all(name in known for name in names)
            else None
            for identity, names in named.items()
        }

    def _invalidated(self, cells: Mapping[str, bytes], tokens: Tokens) -> set[str]:
        """Return the names of records that are of an invalidated group. One request, if of any.

        :param cells: what was read, by name
        :param tokens: what was read along with them

        """
        tagged = {}
        broken = set()
        for name, cell in cells.items():
            if cell[:2] == TAGGED:
                try:
                    tagged[name] = tags_of(cell)
                except DecodingError:
                    # Nobody can tell whether its groups were invalidated; what is cut off, whoever
                    # decodes it will tell.
                    if is_whole(cell):
                        broken.add(name)
        if not tagged:
            return broken
        known = dict(tokens)
        unknown = {each for tags in tagged.values() for each, _ in tags} - known.keys()
        if unknown:
            known.update(self._read_tokens(sorted(unknown)))
        return broken | {
            name
            for name, tags in tagged.items()
            if any(known.get(each) != token for each, token in tags)
        }
