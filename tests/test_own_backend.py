"""The worked example of docs/own_backend.rst: four methods make a working dict."""

from __future__ import annotations

import enum
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from folderdict import FolderDict

from durabledict import (
    MISSING,
    DecodingError,
    EncodingError,
    JSONEncoding,
    NoOpEncoding,
    SignedEncoding,
)
from durabledict.testing import DurableDictSuite

from .fewsequences import FewSequences

EXAMPLES = Path(__file__).parent.parent / "examples"
ABSENT = object()


class TestFolderDict(FewSequences, DurableDictSuite):
    capabilities = frozenset({"strict", "shared", "aliasing"})

    def factory(self, place: Path, **options: Any) -> FolderDict[Any, Any]:
        return FolderDict(place / "entries", **options)


# CPython sets and pops up to 2,048 items one by one, and a dict of four methods reloads after each
# write: the cost grows with the square. Over memory that is some seconds for each of `modes`, over
# files more than two minutes. `test_popitem_takes_every_item_once` of the suite stays.
for name in dir(TestFolderDict):
    if name.startswith("test_mapping_popitem_"):
        setattr(TestFolderDict, name, None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "entries"


@pytest.fixture
def d(folder: Path) -> FolderDict[Any, Any]:
    return FolderDict(folder)


def in_another_process(folder: Path, code: str) -> str:
    """Run `code`, in which `d` is a dict over `folder`, in a process of its own."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from folderdict import FolderDict\n"
        f"d = FolderDict(sys.argv[2])\n{code}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(EXAMPLES), str(folder)],
        cwd=EXAMPLES.parent,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout.strip()


def test_it_is_a_dict(d: FolderDict[Any, Any]) -> None:
    assert isinstance(d, dict)
    assert d == {}
    d["a"] = 1
    d.update({"b": 2}, c=3)
    d |= {"e": [5]}
    assert d == {"a": 1, "b": 2, "c": 3, "e": [5]}
    assert (d["a"], d.get("z"), "b" in d, len(d)) == (1, None, True, 4)
    assert sorted(d) == ["a", "b", "c", "e"]
    del d["a"]
    with pytest.raises(KeyError):
        del d["a"]
    assert d.pop("b") == 2
    key, value = d.popitem()
    assert {key: value, **d} == {"c": 3, "e": [5]}
    d.clear()
    assert d == {}
    with pytest.raises(KeyError):
        d.popitem()


def test_what_is_written_is_in_the_folder(d: FolderDict[Any, Any], folder: Path) -> None:
    d["a"] = 1
    with FolderDict[Any, Any](folder) as again:
        assert again == {"a": 1}
    assert sorted(path.name for path in folder.iterdir()) == ["a.value", "stamp"]


def test_opening_changes_no_stamp(d: FolderDict[Any, Any], folder: Path) -> None:
    assert d.last_updated() is None
    d["a"] = 1
    stamp = d.last_updated()
    assert FolderDict[Any, Any](folder).last_updated() == stamp


def test_two_instances_share_a_folder(d: FolderDict[Any, Any], folder: Path) -> None:
    other: FolderDict[Any, Any] = FolderDict(folder)
    d["a"] = 1
    assert other["a"] == 1
    other.replace_all({"b": 2})
    assert d == {"b": 2}
    del d["b"]
    assert "b" not in other
    assert not other


def test_a_manual_dict_waits_for_sync(d: FolderDict[Any, Any], folder: Path) -> None:
    manual: FolderDict[Any, Any] = FolderDict(folder, autosync=False)
    d["a"] = 1
    assert manual.sync() is True
    d["a"] = 2
    assert manual["a"] == 1
    assert manual.sync() is True
    assert manual["a"] == 2
    assert manual.sync() is False


def test_a_watch_brings_what_others_write(d: FolderDict[Any, Any], folder: Path) -> None:
    d["a"] = 1
    manual: FolderDict[Any, Any] = FolderDict(folder, autosync=False)
    seen = threading.Event()
    heard = []

    def hear(*change: Any) -> None:
        heard.append(change)
        seen.set()

    manual.on_change(hear)
    with manual.watch(interval=60):
        d["a"] = 2
        assert seen.wait(30)
    assert heard == [("a", 1, 2)]


def test_two_processes_share_a_folder(d: FolderDict[Any, Any], folder: Path) -> None:
    d["a"] = {"n": 1}
    assert in_another_process(folder, "print(d['a']); d['b'] = 2; del d['a']") == "{'n': 1}"
    assert d == {"b": 2}


@pytest.mark.parametrize("default", [None, 0, "", False])
def test_falsy_defaults(d: FolderDict[Any, Any], folder: Path, default: Any) -> None:
    assert d.pop("k", default) is default
    assert d.setdefault("k", default) is default
    assert FolderDict[Any, Any](folder).get("k", ABSENT) is default
    assert d.setdefault("k", 5) is default
    assert d.pop("k", 5) is default
    assert "k" not in FolderDict[Any, Any](folder)
    with pytest.raises(KeyError, match="k"):
        d.pop("k")


def test_what_needs_compare_and_set_says_so(d: FolderDict[Any, Any]) -> None:
    d["a"] = [1]
    lacking = r"FolderDict has to define _fetch\(\) and _compare_and_set\(\)"
    with pytest.raises(NotImplementedError, match=lacking):
        d.compute("a", lambda value: [*value, 2])
    with pytest.raises(NotImplementedError, match=lacking):
        d.compare_and_set("a", [1], MISSING)
    with pytest.raises(NotImplementedError, match=lacking), d.edit("a"):
        pass
    assert d == {"a": [1]}


class Size(str, enum.Enum):
    SMALL = "small"


@pytest.mark.parametrize(
    "key",
    [
        *("", ".", "..", "a/b", "a\\b", "A", "%41", "nul\0", "ü", "a b\n", "~int:1", "\ud800"),
        *(1, -1.5, None, b"\xff", (1, ("a", None)), "stamp", "x.new", "stamp.value"),
    ],
)
def test_every_key_is_a_file_name(d: FolderDict[Any, Any], folder: Path, key: Any) -> None:
    d[key] = "here"
    assert FolderDict[Any, Any](folder) == {key: "here"}
    assert [path.parent for path in folder.rglob("*.value")] == [folder]
    del d[key]
    assert FolderDict[Any, Any](folder) == {}


def test_capitals_are_keys_of_their_own(d: FolderDict[Any, Any], folder: Path) -> None:
    d.update({"a": 1, "A": 2, Size.SMALL: 3})
    assert FolderDict[Any, Any](folder) == {"a": 1, "A": 2, "small": 3}
    names = [path.name.lower() for path in folder.iterdir()]
    assert len(names) == len(set(names))


def test_a_key_that_is_too_long_is_refused(d: FolderDict[Any, Any], folder: Path) -> None:
    with pytest.raises(ValueError, match="file name of 306 bytes"):
        d["x" * 300] = 1
    assert list(folder.iterdir()) == []


def test_encodings(folder: Path) -> None:
    json: FolderDict[Any, Any] = FolderDict(folder / "json", encoding=JSONEncoding)
    json["a"] = {"b": (1, 2)}
    assert json["a"] == {"b": [1, 2]}
    assert (folder / "json" / "a.value").read_text() == '{"b":[1,2]}'
    signed: FolderDict[Any, Any] = FolderDict(folder / "signed", encoding=SignedEncoding("secret"))
    signed["a"] = 1
    (folder / "signed" / "b.value").write_bytes((folder / "signed" / "a.value").read_bytes())
    signed.sync(force=True)
    with pytest.raises(DecodingError, match="'b'"):
        signed["b"]
    assert signed == {"a": 1}


def test_a_value_that_cannot_be_encoded_changes_nothing(
    d: FolderDict[Any, Any], folder: Path
) -> None:
    d["a"] = 1
    before = d.last_updated()
    with pytest.raises(EncodingError, match="'a'"):
        d["a"] = threading.Lock()
    assert d == {"a": 1}
    assert d.last_updated() == before


def test_a_damaged_file_harms_one_key(d: FolderDict[Any, Any], folder: Path) -> None:
    d.update(good=1, bad=2)
    (folder / "bad.value").write_bytes(b"damaged")
    d.sync(force=True)
    assert d == {"good": 1}
    assert list(d.undecodable) == ["bad"]
    d["bad"] = 3
    assert d == {"good": 1, "bad": 3}
    assert not d.undecodable


def test_a_folder_that_is_gone_is_an_outage(folder: Path) -> None:
    d: FolderDict[Any, Any] = FolderDict(folder, on_outage="stale")
    d["a"] = 1
    folder.rename(folder.with_name("away"))
    assert d["a"] == 1
    assert d.stale_since is not None
    with pytest.raises(OSError, match="entries"):
        d["a"] = 2
    folder.with_name("away").rename(folder)
    d.sync()
    assert d.stale_since is None
    assert d == {"a": 1}


def test_threads_lose_no_default(d: FolderDict[Any, Any]) -> None:
    start = threading.Barrier(8)
    given: list[Any] = []

    def default(number: int) -> None:
        start.wait(30)
        given.append(d.setdefault("first", number))

    threads = [threading.Thread(target=default, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert given == [d["first"]] * 8


def test_payloads_are_bytes_or_text(folder: Path) -> None:
    d: FolderDict[Any, Any] = FolderDict(folder, encoding=NoOpEncoding)
    d["a"] = b"bytes"
    assert d["a"] == b"bytes"


def test_a_class_between_may_say_nothing_of_what_it_can_do() -> None:
    """What it leaves out its subclasses have again; what a subclass takes out stays out."""

    class Between(DurableDictSuite):
        pass

    class Below(Between):
        capabilities = frozenset({"aliasing"})

    names = [
        name for name in dir(Below) if "aliasing" in getattr(getattr(Below, name), "needs", ())
    ]
    assert names
    assert all(getattr(Between, name) is None for name in names)
    without = type("Without", (Below,), {names[0]: None})
    assert getattr(without, names[0]) is None
    again: Any = type("Again", (Below,), {"capabilities": frozenset()})
    assert all(getattr(again, name) is None for name in names)
