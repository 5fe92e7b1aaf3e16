"""Random writes in the transactions of two threads: every read is what its connection would select.

docs/internals.rst, rules 3.3 and 3.4, and 3.7.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from durabledict import JSONEncoding

from .transactions import OnPurposeError, OtherProcess, OtherThread, database, fill, glance, opened

pytestmark = pytest.mark.usefixtures("django_project")

KEYS = "abcde"


class Actor:
    """One who reads and writes, on a connection of its own.

    :param call: runs a function where that connection is

    """

    def __init__(self, call: Callable[..., Any], alias: str, chance: random.Random) -> None:
        self.call = call
        self.alias = alias
        self.chance = chance
        self.dicts = [opened(alias), opened(alias, False)]
        self.blocks: list[Any] = []

    def act(self, dicts: list[Any]) -> str:
        """Do something, and return what."""
        chance = self.chance
        actions = [self.write] * 6 + [self.write_past] * 4 + [self.begin] * 2
        if self.blocks:
            actions += [self.end] * 3 + [self.fail, self.roll_back]
        action = chance.choice(actions)
        try:
            return f"{action.__name__}: {self.call(action, chance.choice(dicts))}"
        except self.refusals() as error:
            # A row that the other one has locked, as a rule. The transaction is broken.
            if self.blocks:
                self.call(self.fail, None)
            return f"{action.__name__}: {error!r}"

    @staticmethod
    def refusals() -> tuple[type[Exception], ...]:
        from django.db import IntegrityError, OperationalError
        from django.db.transaction import TransactionManagementError

        return OperationalError, IntegrityError, TransactionManagementError

    # -- what there is to do, on the actor's connection ---------------------------------------

    def write(self, d: Any) -> str:
        key, value = self.chance.choice(KEYS), self.chance.randrange(1000)
        writes: dict[str, Callable[[], object]] = {
            "set": lambda: d.__setitem__(key, value),
            "pop": lambda: d.pop(key, None),
            "update": lambda: d.update(dict.fromkeys(self.chance.sample(KEYS, 2), value)),
            "replace_all": lambda: d.replace_all(dict.fromkeys(self.chance.sample(KEYS, 3), value)),
            "clear": d.clear,
            "setdefault": lambda: d.setdefault(key, value),
            "compute": lambda: d.compute(key, lambda old: (old or 0) + 1, None),
            "compare_and_set": lambda: d.compare_and_set(key, d.get(key), value),
            "get_or_create": lambda: d.get_or_create(key, value),
        }
        name = self.chance.choice(list(writes))
        writes[name]()
        return f"{name} {key} {value}"

    def write_past(self, d: Any) -> str:
        from .djangoapp.models import Plain, PlainProxy

        rows: Any = Plain.objects.using(self.alias)
        key, value = self.chance.choice(KEYS), JSONEncoding.encode(self.chance.randrange(1000))

        def told(write: Callable[[], object]) -> None:
            steps = [write, d.touch_last_updated]
            for step in steps if not self.blocks or self.chance.random() < 0.5 else steps[::-1]:
                step()

        writes: dict[str, Callable[[], object]] = {
            "save": lambda: rows.update_or_create(key=key, defaults={"value": value}),
            "save a proxy": lambda: PlainProxy.objects.using(self.alias).update_or_create(
                key=key, defaults={"value": value}
            ),
            "delete": lambda: [row.delete() for row in rows.filter(key=key)],
            "delete rows": lambda: rows.filter(key__lte=key).delete(),
            "UPDATE": lambda: told(lambda: rows.filter(key__lte=key).update(value=value)),
            "bulk_create": lambda: told(
                lambda: rows.bulk_create([Plain(key=key, value=value)], ignore_conflicts=True)
            ),
        }
        name = self.chance.choice(list(writes))
        writes[name]()
        return f"{name} {key} {value}"

    def begin(self, d: Any) -> None:
        from django.db import transaction

        block = transaction.atomic(using=self.alias)
        block.__enter__()
        self.blocks.append(block)

    def end(self, d: Any) -> None:
        self.blocks.pop().__exit__(None, None, None)

    def fail(self, d: Any) -> None:
        self.blocks.pop().__exit__(OnPurposeError, OnPurposeError(), None)

    def roll_back(self, d: Any) -> str:
        from django.db import transaction

        name = transaction.savepoint(using=self.alias)
        done = self.write(d)
        transaction.savepoint_rollback(name, using=self.alias)
        return done

    def look(self, dicts: list[Any]) -> None:
        """See that each dict shows the rows that are there."""
        for d in dicts:
            if d.autosync is False:
                d.sync()
            there, twice = database(self.alias), self.repeated()
            shown = d.copy()
            for key in twice:
                # Whoever wrote it shows what it wrote; to others it cannot be told.
                del there[key]
                shown.pop(key, None)
            assert shown == there
            assert {key: d.get(key) for key in KEYS if key not in twice} == {
                key: there.get(key) for key in KEYS if key not in twice
            }
            assert twice or len(d) == len(there)

    def repeated(self) -> list[str]:
        """Return the keys of which this connection sees two rows.

        So it does under REPEATABLE READ, of one that others have removed and it has added.

        """
        from .djangoapp.models import Plain

        found = Counter(Plain.objects.using(self.alias).values_list("key", flat=True))
        return [key for key, number in found.items() if number > 1]


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 40))]
)
@pytest.mark.parametrize(
    "aliases",
    # SQLite has one writer, which the others would wait for.
    [("default", "default"), ("default", "repeatable"), ("sqlite",)],
    ids=" and ".join,
)
def test_every_read_is_what_its_connection_would_select(
    aliases: tuple[str, ...], seed: int, process: OtherProcess, thread: OtherThread
) -> None:
    from django.db import connections

    def waits_for_nobody() -> None:
        connection = connections[actor.alias]
        if connection.vendor == "postgresql":
            with connection.cursor() as cursor:
                cursor.execute("SET lock_timeout = '20ms'")

    def leave() -> None:
        while actor.blocks:
            actor.fail(None)
        connections[actor.alias].close()

    chance = random.Random(seed)
    calls = [lambda act, *given: act(*given), thread.call]
    actors = [Actor(call, alias, chance) for call, alias in zip(calls, aliases, strict=False)]
    # A dict is of one kind of transactions: threads of that kind share it.
    dicts = {
        alias: [d for actor in actors if actor.alias == alias for d in actor.dicts]
        for alias in aliases
    }
    fill(actors[0].dicts[0], {"a": 1, "b": 2})
    done: list[str] = []
    try:
        for actor in actors:
            actor.call(waits_for_nobody)
        for _ in range(40):
            who = chance.randrange(len(actors))
            done.append(f"{who}: {actors[who].act(dicts[aliases[who]])}")
            for actor in actors:
                actor.call(actor.look, dicts[actor.alias])
            assert process.call(glance, aliases[0]) == process.call(database, aliases[0])
    except BaseException:
        print("\n".join(done))
        raise
    finally:
        for actor in actors:
            actor.call(leave)
