"""What a `ModelDict` has to know of Django's connections.

docs/internals.rst, section 3: which database a connection is of (rule 3.6), whether it is in a
transaction and whether it shows the present (rule 3.4), and whose it is after a fork (rule 0.9).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections

__all__ = [
    "beside",
    "database_name",
    "is_in_transaction",
    "leave_to_parent",
    "may_be_behind",
    "runs_event_loop",
    "shared_name",
]


def database_name(connection: Any) -> object:
    """Return the name of the database that a connection is of, equal in all processes."""
    name = connection.settings_dict["NAME"]
    if connection.vendor == "sqlite" and not str(name).startswith(("file:", ":memory:")):
        return os.path.abspath(name)
    return name


def shared_name(connection: Any) -> object:
    """Return the name of the database that processes have in common who name it differently.

    A file may be named through symbolic links: that of a release's folder, say.

    """
    name = database_name(connection)
    return os.path.realpath(name) if isinstance(name, str) and os.path.isabs(name) else name


def is_in_transaction(connection: Any) -> bool:
    """Whether a connection is in `atomic`, or under `set_autocommit(False)`."""
    if connection.in_atomic_block:
        return True
    if connection.connection is None:
        # Not get_autocommit(), which would connect. This is what it will be then.
        return not connection.settings_dict["AUTOCOMMIT"]
    return not connection.autocommit


def may_be_behind(connection: Any) -> bool:
    """Whether a connection may be read from a state that is past, though in no transaction.

    So it is with SQLite's write-ahead log: while a SELECT is not read to its end (of a queryset's
    `iterator()`, say), every other one on the connection sees the same state, whatever others
    commit. That a SELECT is open, nothing tells.

    """
    if connection.vendor != "sqlite" or connection.connection is None:
        return False
    if connection.is_in_memory_db():
        return False
    # Past Django's own cursor, which would count it as a query.
    ((mode,),) = connection.connection.execute("PRAGMA journal_mode")
    return bool(mode == "wal")


@contextmanager
def beside(connection: Any) -> Iterator[Any]:
    """Have a connection of its own in the place of one, for this thread, until the end."""
    alias = connection.alias
    connections[alias] = another = connection.copy()
    try:
        yield another
    finally:
        connections[alias] = connection
        another.close()


#: The connections of the parent, in a forked child: never used, never closed (rule 0.9).
_inherited: list[Any] = []


def leave_to_parent(alias: str) -> None:
    """Have Django open a connection of its own in a forked child."""
    if not hasattr(connections._connections, alias):  # type: ignore[attr-defined]  # of Django's handler
        return
    connection = connections[alias]
    in_memory = getattr(connection, "is_in_memory_db", lambda: False)()
    if connection.connection is not None and not in_memory:
        _inherited.append(connection)
        del connections[alias]


def runs_event_loop() -> bool:
    """Whether Django would refuse to ask the database here (rule 3.10)."""
    return asyncio._get_running_loop() is not None and not os.environ.get(
        "DJANGO_ALLOW_ASYNC_UNSAFE"
    )
