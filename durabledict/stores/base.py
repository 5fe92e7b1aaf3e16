"""What a Store is: six operations on objects. `BaseStore` is there to subclass.

Whoever writes a Store of their own subclasses `BaseStore` and writes the six operations, or
subclasses `BaseDictionaryStore` (in `dictionary.py`) and writes how bytes are read, written and
removed under a name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from ..locks import LEASE, Lease, ProcessLease

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["BaseStore", "Key"]

T = TypeVar("T")

#: A query: the names and values of attributes that identify an object together.
Key = Mapping[str, Any]


class BaseStore(ABC):
    """Puts, gets and deletes objects by the attributes that identify them.

    ===========  ===================================================================
    for          methods
    ===========  ===================================================================
    one object   `put`, `get`, `delete`, `delete_key`
    many         `batch_put`, `batch_get`, `batch_delete`
    the end      `release`; a Store is a context manager that calls it
    ===========  ===================================================================

    A subclass has to have the six operations, those of the first two lines but `delete_key`.

    """

    #: Whether other processes see what is put here; a chain warns where that makes caches stale.
    shared: bool = True

    @abstractmethod
    def put(self, obj: Any) -> None:
        """Store an object under its keys, in place of what was stored under the first of them."""

    @abstractmethod
    def get(self, klass: type[T], key: Key) -> T | None:
        """Return the object that has these attributes, or None.

        :param klass: its class
        :param key: names and values of the attributes of one of its keys
        :raises KeyError: the class is not indexed by them; it says by which it is

        """

    @abstractmethod
    def delete(self, obj: Any) -> None:
        """Remove the object that has the first key of this one, if there is one."""

    @abstractmethod
    def batch_put(self, objs: Iterable[Any]) -> None:
        """Put many objects."""

    @abstractmethod
    def batch_get(self, klass: type[T], keys: Iterable[Key]) -> list[T | None]:
        """Return an object or None for each of many keys, in their order."""

    @abstractmethod
    def batch_delete(self, objs: Iterable[Any]) -> None:
        """Delete many objects."""

    def delete_key(self, klass: type, key: Key) -> None:
        """Remove the object that has these attributes, if there is one.

        :raises KeyError: the class is not indexed by them

        """
        found = self.get(klass, key)
        if found is not None:
            self.delete(found)

    def release(self) -> None:  # noqa: B027  # not every Store opens something
        """Let go of what the Store itself opened: connections, sessions. It may be used again."""

    def _write_through(
        self, objs: list[Any], deleted: bool, begin: Callable[..., None], told: Iterable[BaseStore]
    ) -> None:
        """Write for a chain, whose last Store this is.

        A Store that learns only in a transaction what it will hold calls `begin` there.

        :param begin: is called once, before others can see the write: with the objects as they will
            be stored, and those that will be gone
        :param told: the Stores that `begin` tells of it

        """
        if deleted:
            begin((), objs)
            self.batch_delete(objs)
        else:
            begin(objs, ())
            self.batch_put(objs)

    def _is_whole(self, obj: Any) -> bool:
        """Whether what a cache holds still is an object as this Store returns them."""
        return True

    def _before_stockpyle_deserialize(self, obj: Any) -> Any:  # noqa: B027  # nor binds objects
        """Return what a caller of a chain gets for an object that was found; None: that object.

        A chain calls it on each of its layers, for a Store that has to bind objects to a session,
        say.

        """

    def _lease(self, name: str, seconds: float = LEASE) -> Lease:
        """Return the lock of that name, of this Store: what a `locks.Mutex` is made of.

        This one is of this process alone; a Store that processes share has one that they share, if
        it can.

        :param name: any str; the lock of another name is another lock
        :param seconds: for which it is held without being renewed

        """
        return ProcessLease(self, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
