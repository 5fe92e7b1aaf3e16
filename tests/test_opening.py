"""`durabledict.open`, and what importing the package does not do."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import durabledict
from durabledict import MemoryDict, MemoryStorage, SqliteDict
from durabledict.opening import _schemes

from . import not_measured


@pytest.fixture(autouse=True)
def _schemes_as_they_were() -> Iterator[None]:
    before = dict(_schemes)
    yield
    _schemes.clear()
    _schemes.update(before)


def test_memory() -> None:
    assert isinstance(durabledict.open("memory://"), MemoryDict)
    a = durabledict.open("memory://shared", autosync=5.0)
    assert a.autosync == 5.0
    a["k"] = 1
    assert durabledict.open("memory://shared") == {"k": 1}
    assert durabledict.open("memory://other") == {}
    assert durabledict.open("memory://") == {}


def test_sqlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with durabledict.open("sqlite:///relative.sqlite", keyspace="flags") as d:
        assert isinstance(d, SqliteDict)
        assert d.path == str(tmp_path / "relative.sqlite")
        assert d.keyspace == "flags"
        d["k"] = 1
    with durabledict.open(f"sqlite:///{tmp_path}/relative.sqlite", keyspace="flags") as d:
        assert d == {"k": 1}
    for bad in ("sqlite://", "sqlite:///", "sqlite://relative.sqlite"):
        with pytest.raises(ValueError, match="sqlite:///relative/path"):
            durabledict.open(bad)


@pytest.mark.parametrize("url", ["redsi://host", "plain", "", "://", "sqlite"])
def test_an_unknown_scheme_is_told_which_there_are(url: str) -> None:
    schemes = "memory://, redis://, rediss://, sqlite://, unix://, zookeeper://"
    with pytest.raises(ValueError, match=schemes):
        durabledict.open(url)


@pytest.mark.parametrize("url", ["app.sqlite", "/var/lib/app.sqlite", "mysql://host"])
def test_who_means_a_file_is_told_its_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"a file is sqlite:///relative/path or sqlite:////abs"):
        durabledict.open(url)


@pytest.mark.parametrize("url", [5, None, b"memory://", Path("x.sqlite")])
def test_what_is_no_url_is_a_type_error(url: Any) -> None:
    with pytest.raises(TypeError, match=rf"not {type(url).__name__}; a path is for SqliteDict"):
        durabledict.open(url)


def test_an_unknown_option_is_told_which_there_are() -> None:
    with pytest.raises(TypeError, match=r"no option 'autosnyc'.*autosync.*storage.*max_stale"):
        durabledict.open("memory://", autosnyc=True)
    with pytest.raises(TypeError, match=r"no option 'storage'.*keyspace.*timeout.*on_outage"):
        durabledict.open("sqlite:///x", storage={})
    with pytest.raises(TypeError, match=r"no option 'path'"):
        durabledict.open("sqlite:///x", path="y")


def test_a_constructor_tells_which_options_there_are(tmp_path: Path) -> None:
    misspelt: Any = {"autosnyc": True}
    with pytest.raises(TypeError, match=r"^MemoryDict has no option 'autosnyc'.* storage, on_out"):
        MemoryDict(**misspelt)
    with pytest.raises(TypeError, match=r"^SqliteDict has no option 'autosnyc'.*keyspace.*timeout"):
        SqliteDict(tmp_path / "x.sqlite", **misspelt)


def test_a_constructor_of_a_subclass_that_hands_options_on_tells_of_all(tmp_path: Path) -> None:
    class Colored:
        def __init__(self, *args: Any, color: str = "red", **options: Any) -> None:
            super().__init__(*args, **options)

    class Mine(Colored, SqliteDict[str, int]):
        def __init__(self, **options: Any) -> None:
            super().__init__(tmp_path / "x.sqlite", **options)

    with pytest.raises(TypeError) as raised:
        Mine(timeot=5)
    with Mine(timeout=5, color="blue") as d, pytest.raises(TypeError) as again:
        type(d)(timeot=5)
    assert str(raised.value) == str(again.value)
    assert str(raised.value) == (
        "Mine has no option 'timeot'; there are: color, keyspace, autosync, encoding, "
        "old_encoding, timeout, synchronous, on_outage, max_stale, allow_unsigned"
    )


def test_contents_are_no_argument() -> None:
    contents: Any = {"k": 1}
    with pytest.raises(TypeError, match=r"write them with update\(\)"):
        MemoryDict(contents)


def test_options_in_the_url_are_refused() -> None:
    with pytest.raises(ValueError, match="keywords"):
        durabledict.open("sqlite:///x.sqlite?timeout=5")
    with pytest.raises(ValueError, match="keywords"):
        durabledict.open("redis://localhost?autosync=5.0", keyspace="k")
    with pytest.raises(ValueError, match="keywords"):
        durabledict.open("zookeeper://localhost/path?autosync=5.0")


def test_what_a_url_does_not_say_is_asked_for() -> None:
    with pytest.raises(TypeError, match=r"redis:// needs keyspace=\.\.\."):
        durabledict.open("redis://localhost")


@pytest.mark.usefixtures("_schemes_as_they_were")
class TestRegistering:
    def test_its_options_are_those_that_it_hands_on_as_well(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Mine(MemoryDict[Any, Any]):
            def __init__(self, color: str = "red", **options: Any) -> None:
                super().__init__(**options)

            @classmethod
            def from_url(cls, url: str, **options: Any) -> Mine:
                return cls(**options)

        module = types.ModuleType("somebodys_module")
        vars(module)["Mine"] = Mine
        monkeypatch.setitem(sys.modules, "somebodys_module", module)
        durabledict.register_scheme("mine", "somebodys_module:Mine")
        storage = MemoryStorage()
        durabledict.open("mine://", color="blue", storage=storage, on_outage="stale")["k"] = 1
        assert MemoryDict(storage=storage) == {"k": 1}
        with pytest.raises(TypeError, match=r"^mine:// has no option 'colr'; .* color, .* storage"):
            durabledict.open("mine://", colr="blue")

    def test_a_scheme_of_somebodys_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Mine(MemoryDict[Any, Any]):
            @classmethod
            def from_url(cls, url: str, timeout: float = 5.0, **options: Any) -> Mine:
                assert (url, timeout) == ("mine://place", 5.0)
                return cls(**options)

        module = types.ModuleType("somebodys_module")
        vars(module)["Mine"] = Mine
        monkeypatch.setitem(sys.modules, "somebodys_module", module)
        durabledict.register_scheme("mine", "somebodys_module:Mine")
        assert isinstance(durabledict.open("mine://place", autosync=False), Mine)
        with pytest.raises(ValueError, match=r"module:Class"):
            durabledict.register_scheme("bad", "somebodys_module")

    def test_a_missing_driver_is_named_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "needs_a_driver.py").write_text("import a_driver_that_is_not_there\n")
        monkeypatch.syspath_prepend(tmp_path)
        durabledict.register_scheme(
            "needs", "needs_a_driver:Dict", extra="needs", driver="a-driver"
        )
        with pytest.raises(ImportError, match=r"pip install a-driver.*\[needs\]"):
            durabledict.open("needs://x")
        durabledict.register_scheme("needs", "needs_a_driver:Dict", driver="a-driver")
        with pytest.raises(ImportError, match=r"pip install a-driver$"):
            durabledict.open("needs://x")

    def test_a_missing_module_is_its_own_error(self) -> None:
        durabledict.register_scheme("gone", "a_module_that_is_not_there:Dict", driver="a-driver")
        with pytest.raises(ModuleNotFoundError, match="a_module_that_is_not_there"):
            durabledict.open("gone://x")


class TestImporting:
    def run(self, code: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=not_measured(),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        return done.stdout.strip()

    def test_a_backend_is_imported_when_its_name_is_used(self) -> None:
        code = (
            "import sys, durabledict\n"
            "names = lambda: [n for n in ('sqlite3', 'durabledict.sqlite', 'durabledict.memory') "
            "if n in sys.modules]\n"
            "print(names()); durabledict.MemoryDict; print(names()); "
            "durabledict.SqliteDict; print(names())"
        )
        assert self.run(code).splitlines() == [
            "[]",
            "['durabledict.memory']",
            "['sqlite3', 'durabledict.sqlite', 'durabledict.memory']",
        ]

    def test_no_third_party_package_is_imported_nor_pytest_by_the_suite(self) -> None:
        code = (
            "import sys, os; base = set(sys.modules)\n"
            "import durabledict, durabledict.sqlite, durabledict.memory, durabledict.testing\n"
            "new = {n.partition('.')[0] for n in set(sys.modules) - base}\n"
            "print(sorted(new - set(sys.stdlib_module_names) - {'durabledict'}))"
        )
        assert self.run(code) == "[]"

    def test_names(self) -> None:
        assert set(durabledict.__all__) <= set(dir(durabledict))
        for name in durabledict.__all__:
            assert getattr(durabledict, name) is not None
        with pytest.raises(AttributeError, match="RedsiDict"):
            durabledict.RedsiDict  # noqa: B018  # that is the test
