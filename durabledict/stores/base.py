"""What a Store is: six operations on objects. `BaseStore` is there to subclass.

Whoever writes a Store of their own subclasses `BaseStore` and writes the six operations, or
subclasses `BaseDictionaryStore` (in `dictionary.py`) and writes how bytes are read, written and
removed under a name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from ..locks import LEASE, Lease, Mutex, ProcessLease
from .creation import create_missing
from .groups import Moments, Tokens
from .keys import Address

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
    once         `get_or_create`
    a group      `invalidate_group`
    the end      `release`; a Store is a context manager that calls it
    ===========  ===================================================================

    A subclass has to have the six operations, those of the first two lines but `delete_key`. One
    that keeps groups, too, has `invalidate_group`.

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

    def invalidate_group(self, group: Any) -> None:
        """Have no object be found any more that was put with a group, in any process.

        :param group: one of those that a class names in ``__stockpyle_groups__``
        :raises TypeError: it cannot be a group
        :raises NotImplementedError: this Store does not keep groups

        """
        raise NotImplementedError(
            f"{self!r} does not keep groups: write invalidate_group(group), or subclass "
            "BaseDictionaryStore, which does"
        )

    def get_or_create(
        self,
        klass: type[T],
        key: Key,
        creator: Callable[[], T | None],
        lifetime: Any = None,
        serve_expired: bool = False,
        timeout: float | timedelta | None = None,
    ) -> T | None:
        """Return the object that has these attributes; where there is none, create and put it.

        Of all who find nothing one calls its creator, and the others wait for what it puts: the
        threads of this process, and other processes where the Store is shared. A hit is a `get`;
        who creates asks for a lock as well, looks once more, puts, and releases it.

        A creator that raises raises in its own caller; one of those who wait creates then. One that
        is killed costs the others 30 s at most, in which the lock ends. One that was overtaken,
        since it stalled for longer than that, or since somebody put or deleted the object
        meanwhile, gets what it has created, and nothing is stored: Stores that can compare and set
        make sure of it by the first key, and the others ask whether the lock is still held right
        before the put.

        No lock but this one is held while the creator runs. If it returns None, None is returned,
        also to those who waited in this process, and nothing is stored; so it is with an object
        whose lifetime is 0, which they are given.

        :param klass: its class
        :param key: names and values of the attributes of one of its keys
        :param creator: a function that returns the object, or None
        :param lifetime: of this object, in place of what `lifetime_cb` says: seconds, a timedelta
            or a datetime
        :param serve_expired: keep the object for one more lifetime after the first. In that time
            one caller creates it anew, and the others who say so get the old one meanwhile; `get`
            does not
        :param timeout: seconds, or a timedelta, to wait for what another one creates
        :raises KeyError: the class is not indexed by these attributes
        :raises TimeoutError: it was not done in time; the message names the class and the key
        :raises RuntimeError: the creator asks for what it is to create
        :raises ValueError: the creator has returned an object that does not have these attributes
        :raises TypeError: a lifetime, or `serve_expired`, for a Store that has no lifetimes

        """
        found = self.get(klass, key)
        if found is not None:
            return found
        return create_missing(  # type: ignore[no-any-return]  # of the class
            self, klass, key, creator, lifetime, serve_expired, timeout
        )

    def release(self) -> None:  # noqa: B027  # not every Store opens something
        """Let go of what the Store itself opened: connections, sessions. It may be used again."""

    def _write_through(
        self, objs: list[Any], deleted: bool, begin: Callable[..., None], told: Iterable[BaseStore]
    ) -> None:
        """Write for a chain, whose last Store this is.

        A Store that learns only in a transaction what it will hold calls `begin` there.

        :param begin: is called once, before others can see the write: with the objects as they will
            be stored, and those that will be gone; and ``everything=True`` where it is not known
            what else will be
        :param told: the Stores that `begin` tells of it

        """
        if deleted:
            begin((), objs)
            self.batch_delete(objs)
        else:
            begin(objs, ())
            self.batch_put(objs)

    def _invalidate_as_layer(self, group: Any) -> None:
        """Invalidate a group for a chain, of which this Store is a cache layer."""
        self.invalidate_group(group)

    # Who makes an object that is to be stored asks for tokens before, and stores it as of then:
    # what is invalidated in between is not found (rule 5.8 of docs/internals.rst).

    def _tokens_before(self, klass: type) -> Tokens:
        """Return what shows later that no group was invalidated since now; {}: it has none.

        :param klass: the class of the objects that are about to be made

        """
        return {}

    def _tokens_of(self, objs: Iterable[Any]) -> Tokens:
        """Return the same for objects that there are already."""
        return {}

    def _moments(self, klass: type) -> Moments:
        """Return what `_tokens_before` does, for each Store that a put here goes to."""
        return {id(self): self._tokens_before(klass)}

    def _put_as_of(self, objs: Iterable[Any], tokens: Tokens) -> None:
        """Put objects that were made after the tokens were read.

        One that cannot be shown to be of no group that was invalidated meanwhile is not kept.

        """
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

    # -- for `get_or_create` ----------------------------------------------------------------------

    #: Whether objects expire here, so that a lifetime means something.
    _keeps_lifetimes = False

    def _get_expired(self, address: Address, lifetime: Any) -> Any:
        """Return an object that has expired no longer than its lifetime ago; None: there is none.

        :param lifetime: as it was given to `get_or_create`; None: what the callback says

        """
        return None

    def _reserve(self, address: Address) -> tuple[Any, Any]:
        """Return the object, or None and what shows that nobody else has written since."""
        return self.get(address.klass, address.key), None

    def _put_reserved(self, obj: Any, proof: Any, mutex: Mutex) -> bool | None:
        """Put what was created, if nobody else has written since.

        :param proof: from `_reserve`
        :param mutex: the lock that is held
        :return: False: somebody has, and nothing is stored; None: it is not to be kept

        """
        if not mutex.still_held():
            return False
        self.put(obj)
        return True

    def _unreserve(self, address: Address, proof: Any) -> None:  # noqa: B027  # nor leaves marks
        """Take back what `_reserve` left, if it is still there."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
