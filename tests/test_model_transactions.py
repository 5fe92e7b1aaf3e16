"""The table of transactions: how each ends, and who sees what is written in it, and when.

docs/internals.rst, rules 3.3 and 3.4.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from durabledict import MISSING, JSONEncoding

from . import transactionviews
from .transactions import (
    ALIASES,
    OnPurposeError,
    OtherProcess,
    OtherThread,
    assert_nothing_is_left,
    database,
    fill,
    look,
    opened,
    savepoint,
)

if TYPE_CHECKING:
    from durabledict import ModelDict

Write = Callable[[], object]
At = Callable[[str], None]


# -- how a transaction ends -----------------------------------------------------------------------

# Each calls `write`, `at("written")` after it, `at("partly")` when a part of the transaction has
# ended and the rest goes on, and returns when all has ended.


def autocommit(alias: str, write: Write, at: At) -> None:
    write()
    at("written")


def atomic(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        write()
        at("written")


def savepoint_released(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        with transaction.atomic(using=alias):
            write()
            at("written")
        at("partly")


def savepoint_rolled_back(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
            write()
            at("written")
            raise OnPurposeError
        at("partly")


def savepoint_in_savepoint_rolled_back(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
            with transaction.atomic(using=alias):
                write()
                at("written")
            raise OnPurposeError
        at("partly")


def rolled_back(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        write()
        at("written")
        raise OnPurposeError


def marked_for_rollback(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        write()
        at("written")
        transaction.set_rollback(True, using=alias)


def earlier_callback_raises(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    def fail() -> None:
        raise OnPurposeError

    with pytest.raises(OnPurposeError), transaction.atomic(using=alias):
        transaction.on_commit(fail, using=alias)
        write()
        at("written")


def manual_commit(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    transaction.set_autocommit(False, using=alias)
    try:
        write()
        at("written")
        transaction.commit(using=alias)
        at("partly")
    finally:
        transaction.rollback(using=alias)  # of what was read
        transaction.set_autocommit(True, using=alias)


def manual_rollback(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    transaction.set_autocommit(False, using=alias)
    try:
        write()
        at("written")
        transaction.rollback(using=alias)
        at("partly")
    finally:
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)


def atomic_in_manual_commit(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    def act(write: Write, at: At) -> None:
        with transaction.atomic(using=alias):
            write()

    manual_commit(alias, lambda: act(write, at), at)


def _request(alias: str, body: Write) -> None:
    from django.db import connections
    from django.test import Client, override_settings

    transactionviews.body.append(body)
    settings: Any = connections[alias].settings_dict
    settings["ATOMIC_REQUESTS"] = True
    try:
        with override_settings(ROOT_URLCONF=transactionviews.__name__):
            assert Client().get("/").content == b"done"
    finally:
        settings["ATOMIC_REQUESTS"] = False
        transactionviews.body.pop()


def request(alias: str, write: Write, at: At) -> None:
    def body() -> None:
        write()
        at("written")

    _request(alias, body)


def request_raises(alias: str, write: Write, at: At) -> None:
    def body() -> None:
        write()
        at("written")
        raise OnPurposeError

    with pytest.raises(OnPurposeError):
        _request(alias, body)


def closed(alias: str, write: Write, at: At) -> None:
    from django.db import connections, transaction

    with transaction.atomic(using=alias):
        write()
        at("written")
        connections[alias].close()


def manual_savepoint(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        name = savepoint(alias)
        write()
        at("written")
        transaction.savepoint_commit(name, using=alias)
        at("partly")


def manual_savepoint_rolled_back(alias: str, write: Write, at: At) -> None:
    from django.db import transaction

    with transaction.atomic(using=alias):
        name = savepoint(alias)
        write()
        at("written")
        transaction.savepoint_rollback(name, using=alias)
        at("partly")


# What a read gives, of a strict dict, and of a manual one after sync(): the entries from before
# the write ("old") or from after it ("new"). The same under READ COMMITTED, under REPEATABLE READ
# and on SQLite. "written": after the write, before the end. "partly": when a part has ended and
# the rest goes on. "end": when all has ended.
TABLE = [
    #                                   | written             | partly              | end
    #                                   | this  other other   | this  other other   | all
    #                                   | thread thread proc. | thread thread proc. | three
    (autocommit,                          "new   new   new",    "",                   "new"),
    (atomic,                              "new   old   old",    "",                   "new"),
    (savepoint_released,                  "new   old   old",    "new   old   old",    "new"),
    (savepoint_rolled_back,               "new   old   old",    "old   old   old",    "old"),
    (savepoint_in_savepoint_rolled_back,  "new   old   old",    "old   old   old",    "old"),
    (rolled_back,                         "new   old   old",    "",                   "old"),
    (marked_for_rollback,                 "new   old   old",    "",                   "old"),
    (earlier_callback_raises,             "new   old   old",    "",                   "new"),
    (manual_commit,                       "new   old   old",    "new   new   new",    "new"),
    (manual_rollback,                     "new   old   old",    "old   old   old",    "old"),
    (atomic_in_manual_commit,             "new   old   old",    "new   new   new",    "new"),
    (request,                             "new   old   old",    "",                   "new"),
    (request_raises,                      "new   old   old",    "",                   "old"),
    (closed,                              "new   old   old",    "",                   "old"),
    (manual_savepoint,                    "new   old   old",    "new   old   old",    "new"),
    (manual_savepoint_rolled_back,        "new   old   old",    "old   old   old",    "old"),
]  # fmt: skip

# The rows that are also seen with every other kind of write.
MAIN = [autocommit, atomic, savepoint_rolled_back, rolled_back, earlier_callback_raises]

# -- what is written ------------------------------------------------------------------------------

OLD = {"a": 1, "b": 2, "c": 3}


def _row(model: str, key: str, value: object) -> Any:
    from .djangoapp import models

    return getattr(models, model)(key=key, value=JSONEncoding.encode(value))


def _found(model: str, key: str, alias: str) -> Any:
    from .djangoapp import models

    return getattr(models, model).objects.using(alias).get(key=key)


def _saved(alias: str) -> None:
    row = _found("Plain", "a", alias)
    row.value = JSONEncoding.encode(10)
    row.save(using=alias)


# name -> what it does, and the entries after it
THROUGH_THE_DICT: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "set": (lambda d: d.__setitem__("a", 10), {**OLD, "a": 10}),
    "add": (lambda d: d.__setitem__("n", 4), {**OLD, "n": 4}),
    "delete": (lambda d: d.__delitem__("a"), {"b": 2, "c": 3}),
    "update": (lambda d: d.update(a=10, n=4), {**OLD, "a": 10, "n": 4}),
    "setdefault": (lambda d: d.setdefault("n", 4), {**OLD, "n": 4}),
    "pop": (lambda d: d.pop("a"), {"b": 2, "c": 3}),
    "compute": (lambda d: d.compute("a", lambda n: n + 9), {**OLD, "a": 10}),
    "compare_and_set": (lambda d: d.compare_and_set("a", 1, MISSING), {"b": 2, "c": 3}),
    "clear": (lambda d: d.clear(), {}),
    "replace_all": (lambda d: d.replace_all({"a": 10, "z": 0}), {"a": 10, "z": 0}),
    "get_or_create": (lambda d: d.get_or_create("n", 4), {**OLD, "n": 4}),
    "two": (lambda d: (d.update(a=9, n=4), d.update(a=10), d.pop("b")), {"a": 10, "c": 3, "n": 4}),
}

PAST_THE_DICT: dict[str, tuple[Callable[[Any], object], dict[str, Any]]] = {
    "Model.save": (lambda d: _saved(d._alias), {**OLD, "a": 10}),
    "Model.save of a new one": (
        lambda d: _row("Plain", "n", 4).save(using=d._alias),
        {**OLD, "n": 4},
    ),
    "Model.delete": (
        lambda d: _found("Plain", "a", d._alias).delete(using=d._alias),
        {"b": 2, "c": 3},
    ),
    "proxy.save": (lambda d: _row("PlainProxy", "n", 4).save(using=d._alias), {**OLD, "n": 4}),
    "proxy.delete": (
        lambda d: _found("PlainProxy", "a", d._alias).delete(using=d._alias),
        {"b": 2, "c": 3},
    ),
    "child.save": (lambda d: _row("PlainChild", "n", 4).save(using=d._alias), {**OLD, "n": 4}),
    "QuerySet.delete": (
        lambda d: d.model.objects.using(d._alias).filter(key="a").delete(),
        {"b": 2, "c": 3},
    ),
    "touch_last_updated": (
        lambda d: (
            d.model.objects.using(d._alias).filter(key="a").update(value="10"),
            d.touch_last_updated(),
        ),
        {**OLD, "a": 10},
    ),
}

WRITES = {**THROUGH_THE_DICT, **PAST_THE_DICT}


# -- the test -------------------------------------------------------------------------------------


class Onlookers:
    """Reads from three sides, and compares with the table."""

    def __init__(
        self, d: ModelDict[Any, Any], thread: OtherThread, process: OtherProcess, kind: str
    ) -> None:
        self.d, self.thread, self.process = d, thread, process
        self.alias, self.autosync = d._alias, d.autosync
        self.must_sync = self.autosync is False and kind in PAST_THE_DICT

    def here(self) -> dict[str, Any]:
        """What the very dict says; a manual one is synced for what was written past it."""
        if self.must_sync:
            self.d.sync()
        entries: dict[str, Any] = self.d.copy()
        assert {key: self.d[key] for key in entries} == entries
        assert (len(self.d), list(self.d)) == (len(entries), list(entries))
        return entries

    def all(self) -> list[dict[str, Any]]:
        """This thread, another one with the same dict, another process."""
        elsewhere = look, self.alias, self.autosync is False, self.autosync
        # The others before and after this one: who looks first must not matter.
        first = self.thread.call(self.here), self.process.call(*elsewhere)
        seen = [self.here(), self.thread.call(self.here), self.process.call(*elsewhere)]
        assert first == tuple(seen[1:])
        return seen


def note(
    seen: dict[str, list[str]],
    names: dict[str, dict[str, Any]],
    onlookers: Onlookers,
    moment: str,
) -> None:
    """Note what the onlookers see at a moment, by its name."""
    seen[moment] = [
        next((name for name, entries in names.items() if entries == entries_seen), "?")
        for entries_seen in onlookers.all()
    ]


@pytest.mark.parametrize("autosync", [True, False], ids=["strict", "manual"])
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize(
    ("case", "written", "partly", "end"), TABLE, ids=[row[0].__name__ for row in TABLE]
)
def test_who_sees_what_when(
    process: OtherProcess,
    thread: OtherThread,
    alias: str,
    autosync: bool,
    case: Callable[[str, Write, At], None],
    written: str,
    partly: str,
    end: str,
) -> None:
    expected = {"written": written.split(), "partly": partly.split(), "end": [end] * 3}
    d = opened(alias, autosync)
    all_kinds = case in MAIN and (alias, autosync) in (("default", True), ("sqlite", False))
    for kind in WRITES if all_kinds else ("set", "Model.save"):
        write, new = WRITES[kind]
        fill(d, OLD)
        names = {"old": OLD, "new": new}
        onlookers = Onlookers(d, thread, process, kind)
        seen: dict[str, list[str]] = {}

        assert onlookers.all() == [OLD] * 3
        at = partial(note, seen, names, onlookers)
        case(alias, partial(write, d), at)
        at("end")
        assert seen == {moment: who for moment, who in expected.items() if who}, kind
        assert database(alias) == names[end]
        assert_nothing_is_left(d)
