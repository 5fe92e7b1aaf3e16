"""Hear of writes past a dict: `Model.save` and `delete`, the admin, fixtures, proxies.

docs/internals.rst, rule 3.7. Signals are connected to each class whose instances are rows of the
dict's table, and to no others: a listener that hears all models would take Django's fast way of
deleting from every one of them.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from django.core.signals import request_finished
from django.db import connections
from django.db.backends.signals import connection_created
from django.db.models.signals import (
    class_prepared,
    post_delete,
    post_migrate,
    post_save,
    pre_delete,
    pre_save,
)

from .modelconnections import is_in_transaction
from .modeltransactions import Block, heard_while_busy, is_busy

if TYPE_CHECKING:
    from .models import ModelDict
    from .modelstore import ModelStore
    from .stamps import CacheStamp

__all__ = ["connect", "living"]

logger = logging.getLogger("durabledict.models")

# By identity, since dicts have no hash.
_dicts: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_connected: set[type] = set()
_pending = threading.local()


def connect(durable: ModelStore[Any, Any]) -> None:
    """Have a dict hear of what is saved and deleted past it, as long as it lives."""
    _dicts[id(durable)] = durable
    for kind in _with_subclasses(durable.model._meta.concrete_model):
        _connect_class(kind)


def living() -> list[ModelDict[Any, Any]]:
    """Return the dicts of this process."""
    # Not `values()`, whose iteration another thread breaks that makes a dict.
    return [found for one in _dicts.valuerefs() if (found := one()) is not None]


def _with_subclasses(kind: Any) -> list[Any]:
    found = [kind]
    for below in kind.__subclasses__():
        found += _with_subclasses(below)
    return found


def _connect_class(kind: type) -> None:
    if kind in _connected:
        return
    _connected.add(kind)
    for before in (pre_save, pre_delete):
        before.connect(_began, sender=kind, dispatch_uid="durabledict")
    for after in (post_save, post_delete):
        after.connect(_ended, sender=kind, dispatch_uid="durabledict")


def _class_was_made(sender: Any, **named: object) -> None:
    """Listen to a proxy, or a child, that is defined after the dict was made."""
    if any(base in _connected for base in sender.__mro__[1:]):
        _connect_class(sender)


class_prepared.connect(_class_was_made, dispatch_uid="durabledict")


def _listeners(sender: Any, instance: Any, using: str) -> list[ModelDict[Any, Any]]:
    """Return the dicts that a row belongs to."""
    name = connections[using].settings_dict["NAME"]
    return [
        durable
        for durable in living()
        if issubclass(sender, durable.model._meta.concrete_model)
        and durable._has(instance)
        and durable._connection.settings_dict["NAME"] == name
    ]


def _began(sender: Any, instance: Any, using: str, **named: object) -> None:
    """Open the stamps before the SQL, so that a process that is killed after it is noticed."""
    _end_pending(using)
    listeners = _listeners(sender, instance, using)
    heard_while_busy(durable._stamp() for durable in listeners)
    for durable in listeners:
        try:
            _open(durable, instance, connections[using])
        except durable.unavailable as error:
            # The user's save does not fail because a cache is down. Readers look again when
            # `verify` has passed, if the word at the end of the write does not get through either.
            durable._record_failure(error)
            durable._report_outage(error)


def _open(durable: ModelDict[Any, Any], instance: Any, connection: Any) -> None:
    stamp = durable._stamp()
    if is_busy(stamp):
        return  # the dict's own write
    if is_in_transaction(connection):
        block = Block.begin(connection)
        durable._note_foreign_write(block)
        try:
            block.open(stamp)
        except stamp.unavailable:
            block.touch_at_end(stamp)
            raise
        return
    held = _held(connection.alias)
    if stamp.identity not in held:
        held[stamp.identity] = _Opening(stamp, instance)


class _Opening:
    """A stamp that a save outside of a transaction has opened.

    A save that fails sends no `post_save`. Then it is ended by the next signal of the thread, the
    end of the request or of the thread, or when the instance goes: whatever comes first.

    """

    def __init__(self, stamp: CacheStamp, instance: Any) -> None:
        self._stamp = stamp
        self._process = os.getpid()
        self._opening: int | None = None
        self._opening = stamp.begin()
        # Weakly: the thread alone holds this, so that it goes with the thread.
        self._finalizer = weakref.finalize(instance, _abandon, weakref.ref(self))
        self._finalizer.atexit = False

    def _take(self) -> int | None:
        """Return what the stamp is to be ended with, unless it has been, or is the parent's."""
        opening, self._opening = self._opening, None
        if opening is None:
            return None
        self._finalizer.detach()
        return opening if self._process == os.getpid() else None

    def end(self) -> None:
        """End the stamp, unless it has been."""
        opening = self._take()
        if opening is not None:
            self._stamp.end(opening)

    def end_quietly(self) -> None:
        """End the stamp, where nobody can be told that the cache is down."""
        opening = self._take()
        if opening is not None:
            _end_quietly(self._stamp, opening)

    def abandon(self) -> None:
        """End the stamp from a finalizer, which may come in the middle of a request to the cache.

        Another request in between would take its answer: then it is sent by another thread.

        """
        opening = self._take()
        if opening is None:
            return
        if self._stamp.cache.is_in_use():
            threading.Thread(target=_end_quietly, args=(self._stamp, opening), daemon=True).start()
        else:
            _end_quietly(self._stamp, opening)

    def __del__(self) -> None:
        self.abandon()


def _abandon(reference: weakref.ref[_Opening]) -> None:
    opening = reference()
    if opening is not None:
        opening.abandon()


def _end_quietly(stamp: CacheStamp, opening: int) -> None:
    try:
        stamp.end(opening)
    except stamp.unavailable as error:
        logger.debug("a writer was not ended, and will be taken for dead: %s", error)


def _ended(sender: Any, instance: Any, using: str, **named: object) -> None:
    """End the stamps: outside of a transaction, the row is committed when this is called."""
    connection = connections[using]
    inside = is_in_transaction(connection)
    told: set[object] = set()
    for durable in _listeners(sender, instance, using):
        stamp = durable._stamp()
        if is_busy(stamp):
            continue
        if inside:
            block = Block.of(connection)
            view = None if block is None else block.view_of(durable)
            if view is not None and view.heard and durable._autosync is not False:
                view.entries = None  # it was read between the two signals
            continue
        if stamp.identity not in told:  # several dicts may have the same
            told.add(stamp.identity)
            opening = _held(using).pop(stamp.identity, None)
            try:
                if opening is None:
                    stamp.touch()
                else:
                    opening.end()
            except durable.unavailable as error:
                durable._record_failure(error)
                durable._report_outage(error)


def _held(alias: str) -> dict[tuple[object, str], _Opening]:
    every: dict[str, Any] = _pending.__dict__.setdefault("stamps", {})
    return every.setdefault(alias, {})  # type: ignore[no-any-return]  # of a thread's namespace


def _end_pending(alias: str) -> None:
    """End the stamps of a save that failed, or in whose signals this one is."""
    held = _held(alias)
    while held:
        _, opening = held.popitem()
        opening.end_quietly()


def _request_was_finished(**named: object) -> None:
    """End the stamps of a save that failed, so that readers need not look each second."""
    for alias in list(_pending.__dict__.get("stamps", ())):
        _end_pending(alias)


request_finished.connect(_request_was_finished, dispatch_uid="durabledict")


def _connection_was_made(connection: Any, **named: object) -> None:
    """Look whether the alias names another database now, as in a test run (rule 3.6)."""
    for durable in living():
        if durable._place is not None and durable._alias == connection.alias:
            durable._refill_elsewhere()


connection_created.connect(_connection_was_made, dispatch_uid="durabledict")


def _was_migrated(app_config: Any, using: str, **named: object) -> None:
    """Tell of what `migrate` and `flush` did, the latter also at the end of a TransactionTestCase.

    Their SQL sends no other signals.

    """
    name = connections[using].settings_dict["NAME"]
    for durable in living():
        if durable.model._meta.app_label != app_config.label or durable._is_closed:
            continue
        if durable._connection.settings_dict["NAME"] == name:
            durable._doubt()
            try:
                durable.touch_last_updated()
            except durable.unavailable as error:
                logger.info(
                    "readers of %s are not told of a migration: %s", durable.keyspace, error
                )


post_migrate.connect(_was_migrated, dispatch_uid="durabledict")
