"""A save past a dict that fails outside of a transaction leaves no writer behind (rule 3.7)."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from durabledict import modelsignals
from durabledict.stamps import MemoryCache

from .servers import PATIENCE, wait_until
from .transactions import fill, opened, stamp_of, writers

both = pytest.mark.parametrize("alias", ["default", "sqlite"])


class OnPurposeError(Exception):
    """What a receiver raises."""


@pytest.fixture(autouse=True)
def project(django_project: None) -> None:
    """The tests' Django project."""


def filled(alias: str = "default", **options: Any) -> Any:
    d = opened(alias, **options)
    fill(d, {"a": 1})
    assert d == {"a": 1}
    return d


def row(key: str = "a", value: int = 2) -> Any:
    from .djangoapp.models import Plain

    return Plain(key=key, value=str(value))


def collide(instance: Any, alias: str) -> None:
    from django.db import IntegrityError

    with pytest.raises(IntegrityError):
        instance.save(using=alias)


def be_refused(instance: Any, alias: str) -> None:
    from django.db.models.signals import pre_save

    def refuse(**named: Any) -> None:
        raise OnPurposeError

    pre_save.connect(refuse, sender=type(instance))
    try:
        with pytest.raises(OnPurposeError):
            instance.save(using=alias)
    finally:
        pre_save.disconnect(refuse, sender=type(instance))


FAILURES: list[Callable[[Any, str], None]] = [collide, be_refused]


@both
@pytest.mark.parametrize("cache", ["default", "redis", "locmem"])
@pytest.mark.parametrize("fail", FAILURES)
def test_a_failed_save_is_ended_when_its_instance_goes(
    alias: str, cache: str, fail: Callable[[Any, str], None]
) -> None:
    d = filled(alias, cache=cache)
    for _ in range(3):
        instance = row()
        fail(instance, alias)
        assert writers(d) == 1
        del instance
        gc.collect()
        assert writers(d) == 0
    before = stamp_of(d)
    assert d == {"a": 1}
    assert stamp_of(d) == before


@both
@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("fail", FAILURES)
def test_a_failed_save_is_ended_with_its_thread(
    alias: str, fail: Callable[[Any, str], None], kept: bool
) -> None:
    from django.db import connections

    d = filled(alias)
    instances: list[Any] = []
    found: list[int] = []

    def work() -> None:
        instance = row()
        if kept:
            instances.append(instance)
        fail(instance, alias)
        found.append(writers(d))
        connections.close_all()

    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(PATIENCE)
    assert found == [1, 1, 1]
    gc.collect()
    assert writers(d) == 0
    instances.clear()
    assert writers(d) == 0
    assert d == {"a": 1}


@both
def test_the_next_save_ends_the_failed_one_before(alias: str) -> None:
    d = filled(alias)
    failed = row()
    collide(failed, alias)
    assert writers(d) == 1
    row("b").save(using=alias)
    assert writers(d) == 0
    assert d == {"a": 1, "b": 2}
    before = stamp_of(d)
    del failed
    gc.collect()
    assert stamp_of(d) == before  # it is not ended twice


@both
def test_an_instance_that_is_saved_often_leaves_nothing_behind(alias: str) -> None:
    d = filled(alias)
    registry: dict[Any, Any] = weakref.finalize._registry  # type: ignore[attr-defined]  # its own
    saved = row("b")
    saved.save(using=alias)
    gc.collect()
    before = len(registry)
    for number in range(50):
        saved.value = str(number)
        saved.save(using=alias)
        if number % 10 == 0:
            collide(row(), alias)
    assert d == {"a": 1, "b": 49}
    gc.collect()
    assert len(registry) <= before
    assert writers(d) == 0
    stamp = stamp_of(d)
    del saved
    gc.collect()
    assert stamp_of(d) == stamp


def test_a_forked_child_does_not_end_its_parents_save() -> None:
    d = filled(cache=MemoryCache())
    instance = row()
    collide(instance, "default")
    assert writers(d) == 1
    pid = os.fork()
    if pid == 0:
        try:
            del instance
            gc.collect()
            os._exit(writers(d))
        finally:
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    del instance
    gc.collect()
    assert writers(d) == 0


def test_the_garbage_collector_in_the_middle_of_a_request_to_the_cache() -> None:
    """A failed save that a cycle kept must not ask a cache that is being asked."""
    from django.core.cache import caches

    d = filled(cache="locmem")
    collected: list[int] = []

    def read() -> None:
        instance = row()
        be_refused(instance, "default")
        gc.disable()  # the cycle is not to be collected before
        instance.cycle = instance
        cache: Any = caches["locmem"]
        asked = cache._has_expired

        def collecting(key: str) -> Any:
            collected.append(gc.collect())  # in the middle of a get, under the lock of the cache
            return asked(key)

        cache._has_expired = collecting
        del instance
        assert d == {"a": 1}

    # One that hangs must not hold up the end of the tests.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    gc.enable()
    if thread.is_alive():
        del modelsignals._dicts[id(d)]  # the tests after this one are not to wait for it
    assert any(collected)
    assert not thread.is_alive()
    wait_until(lambda: writers(d) == 0, "the writer is ended")
