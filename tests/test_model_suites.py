"""The conformance suite over SettingsDict and over plain models, on each database and cache."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from durabledict import DurableDict
from durabledict.testing import DurableDictSuite

from .fewsequences import FewSequences

CAPABILITIES = frozenset({"strict", "compare_and_set", "push", "shared", "aliasing"})


def loaded(durable: DurableDict[Any, Any]) -> DurableDict[Any, Any]:
    """Return a dict as the suite expects it: those of the other backends load when made."""
    durable.sync()
    return durable


class Settings(FewSequences, DurableDictSuite):
    """What the suites over SettingsDict share; each place is a keyspace."""

    capabilities = CAPABILITIES
    modes: tuple[bool | float, ...] = (True,)
    using = "default"
    cache = "default"

    @pytest.fixture(autouse=True)
    def project(self, django_project: None) -> Iterator[None]:
        yield
        from durabledict.ext.django.models import Setting

        Setting.objects.using(self.using).all()._raw_delete(self.using)

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        from durabledict.ext.django import SettingsDict

        return loaded(SettingsDict(str(place), using=self.using, cache=self.cache, **options))


class TestSettingsOnPostgresAndMemcached(Settings):
    """In full."""

    modes = (True, 3600.0, False)


class TestSettingsOnSqliteAndMemcached(Settings):
    using = "sqlite"


@pytest.mark.long
class TestSettingsOnPostgresAndRedis(Settings):
    cache = "redis"


class TestPlainModels(FewSequences, DurableDictSuite):
    """A model of a user's own, a table for each place: one that is used no more is used again."""

    capabilities = CAPABILITIES
    modes = (True,)
    tables: ClassVar[list[Any]] = []
    numbers: ClassVar[Iterator[int]] = itertools.count()

    @pytest.fixture(autouse=True)
    def project(self, django_project: None) -> Iterator[None]:
        self._taken: dict[Path, Any] = {}
        yield
        for model in self._taken.values():
            model.objects.using("sqlite").all()._raw_delete("sqlite")
            self.tables.append(model)

    def factory(self, place: Path, **options: Any) -> DurableDict[Any, Any]:
        from durabledict import ModelDict

        if place not in self._taken:
            self._taken[place] = self.tables.pop() if self.tables else self._new_table()
        return loaded(ModelDict(self._taken[place].objects, "redis", using="sqlite", **options))

    @classmethod
    def _new_table(cls) -> Any:
        from django.db import connections, models

        name = f"Table{next(cls.numbers)}"

        class Meta:
            app_label = "djangoapp"

        fields = {
            "__module__": __name__,
            "Meta": Meta,
            "key": models.TextField(unique=True),
            "value": models.BinaryField(),
        }
        model: Any = type(name, (models.Model,), fields)
        with connections["sqlite"].schema_editor() as editor:
            editor.create_model(model)
        return model


# CPython's test of popitem takes 16,000 entries one by one, which is half a minute of SQL. So it
# runs over PostgreSQL and memcached alone, and there it is one of the long tests.
POPITEM = "test_mapping_popitem_"

for suite in (TestSettingsOnSqliteAndMemcached, TestSettingsOnPostgresAndRedis, TestPlainModels):
    assert hasattr(suite, f"{POPITEM}strict")
    setattr(suite, f"{POPITEM}strict", None)

for name in (f"{POPITEM}strict", f"{POPITEM}bounded", f"{POPITEM}manual"):
    pytest.mark.long(getattr(TestSettingsOnPostgresAndMemcached, name))
