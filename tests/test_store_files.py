"""What is special to `ShoveStore` and `DurableDictStore`."""

from __future__ import annotations

import os
import pickle
import shelve
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from durabledict import (
    JSONEncoding,
    MemoryDict,
    NoOpEncoding,
    RestrictedPickleEncoding,
    SignedEncoding,
    SqliteDict,
)
from durabledict.errors import DecodingError, EncodingError
from durabledict.stores import BaseDictionaryStore, DurableDictStore, ShoveStore
from durabledict.stores.cells import pack_pointer
from durabledict.testing.things import Automobile, Thing

NAME = {"zone": 1, "name": "x"}
STEM = "durabledict.testing.things.Thing/"


class Incomparable(Thing):
    """Objects that are not to be asked."""

    def __eq__(self, other: object) -> bool:
        raise AssertionError

    __hash__ = None  # type: ignore[assignment]  # as that of Thing


@pytest.mark.parametrize("form", ["path", "file"])
def test_objects_are_files_with_readable_names(tmp_path: Path, form: str) -> None:
    store = ShoveStore(uri=f"file://{tmp_path}" if form == "file" else str(tmp_path))
    store.put(Thing("my key"))
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert found == [STEM + "id=my%20key", STEM + "zone=~int:1&name=x"]
    store.delete(Thing("my key"))
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    store = ShoveStore(uri=str(tmp_path))
    things = [Thing("x" * 300 + end, name=end) for end in "ab"]
    store.batch_put(things)
    assert store.batch_get(Thing, [{"id": thing.id} for thing in things]) == things


def test_a_file_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Who has the old one open reads it to its end."""
    store = ShoveStore(uri=str(tmp_path))
    store.put(Thing(1, value="old"))
    path = tmp_path / STEM / "id=~int:1"
    with path.open("rb") as file:
        store.put(Thing(1, value="new"))
        assert b"old" in file.read()
    assert store.get(Thing, {"id": 1}) == Thing(1, value="new")
    assert sorted(os.listdir(tmp_path / STEM)) == ["id=~int:1", "zone=~int:1&name=x"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    store = ShoveStore(uri=str(tmp_path))
    store.put(Automobile("B 1"))
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    file.unlink()
    file.mkdir()
    with pytest.raises(OSError, match="directory"):
        store.put(Automobile("B 1"))
    assert os.listdir(file.parent) == [file.name]


def test_threads_put_and_delete_the_same_file(tmp_path: Path) -> None:
    store = ShoveStore(uri=str(tmp_path))

    def work(number: int) -> None:
        for _ in range(60):
            store.put(Thing(1))
            store.delete(Thing(1))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert store.get(Thing, {"id": 1}) is None


def test_a_file_that_somebody_else_deletes_first_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `pop` of an older fsspec raises KeyError then, whatever its default."""
    store, other = ShoveStore(uri=str(tmp_path)), ShoveStore(uri=str(tmp_path))
    store.put(Thing(1))
    remove = store._remove

    def remove_after_another(name: str) -> None:
        other._remove(name)
        remove(name)

    monkeypatch.setattr(store, "_remove", remove_after_another)
    store.delete(Thing(1))
    assert store.get(Thing, {"id": 1}) is None


def test_a_zip_is_read_and_a_new_one_written(tmp_path: Path) -> None:
    folder = ShoveStore(uri=str(tmp_path / "folder"))
    folder.batch_put([Thing(1), Thing(2, name="y")])
    archive = tmp_path / "objects.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in (tmp_path / "folder").rglob("*"):
            file.write(path, path.relative_to(tmp_path / "folder"))
    packed = ShoveStore(uri=f"zip://::{archive}")
    assert packed.batch_get(Thing, [{"id": 1}, {"zone": 1, "name": "y"}, {"id": 3}]) == [
        Thing(1),
        Thing(2, name="y"),
        None,
    ]
    # A new archive is for writing alone.
    target = f"zip://::{tmp_path / 'new.zip'}"
    written = ShoveStore(uri=target, storage_options={"zip": {"mode": "w"}})
    written.batch_put([Automobile("B 1"), Automobile("B 2")])
    written._files.fs.close()  # the archive ends with its list
    assert ShoveStore(uri=target).get(Automobile, {"license_plate": "B 2"}) == Automobile("B 2")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "'' names no place"),
        ("://x", "'://x' names no place"),
        ("zip://objects.zip", "of which: write zip://::objects.zip"),
        ("zip:///a/objects.zip", "of which: write zip://::/a/objects.zip"),
        ("tar://objects.tar", "of which: write tar://::objects.tar"),
        (
            "shelve://me:sesame@x",
            r"'shelve://\*\*\*@x': fsspec knows no scheme 'shelve'; .*, file, ",
        ),
    ],
)
def test_a_url_that_cannot_be_opened_says_what_can(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShoveStore(uri=url)


def test_a_folder_of_an_archive_may_be_named(tmp_path: Path) -> None:
    archive = tmp_path / "objects.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("folder/name", b"cell")
    assert dict(ShoveStore(uri=f"zip://folder::{archive}")._mapping) == {"name": b"cell"}


def test_a_url_of_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smbclient", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "fsspec.implementations.smb", raising=False)
    with pytest.raises(ImportError, match=r"'smb://\*\*\*@host/x' needs .* pip.*smbprotocol"):
        ShoveStore(uri="smb://me:sesame@host/x")


@pytest.mark.parametrize("arguments", [[], [{}, {"shove": {}}]])
def test_one_source_is_needed(arguments: Any) -> None:
    positional, named = (arguments[:1], arguments[1]) if arguments else ([], {})
    with pytest.raises(TypeError, match="one of"):
        ShoveStore(*positional, **named)
    with pytest.raises(TypeError, match="no mutable mapping"):
        ShoveStore(5)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("name", ["shove", "mapping"])
def test_any_mapping_will_do(tmp_path: Path, name: str) -> None:
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        ShoveStore(**{name: shelf}).put(Thing(1))  # type: ignore[arg-type]  # by either name
    with shelve.open(str(tmp_path / "shelf")) as shelf:
        assert ShoveStore(shelf).get(Thing, NAME) == Thing(1)


def test_what_stockpyle_stored_is_read() -> None:
    """Tuples of an object and the moment at which it expires."""
    soon = datetime.now(timezone.utc) + timedelta(hours=1)
    past = datetime.now() - timedelta(hours=1)  # noqa: DTZ005  # as stockpyle's are
    stored: dict[str, Any] = {}
    for number, expires in enumerate((None, soon, soon.timestamp(), past, 5.0)):
        entry = (Thing(number), expires)
        stored[f"{STEM}id={f'~int:{number}'}"] = entry if number % 2 else pickle.dumps(entry)
    store = ShoveStore(stored)
    found = store.batch_get(Thing, [{"id": number} for number in range(5)])
    assert found == [Thing(0), Thing(1), Thing(2), None, None]
    store.put(Thing(1, value="new"))
    assert store.get(Thing, {"id": 1}) == Thing(1, value="new")
    stored[f"{STEM}id=~int:6"] = (Incomparable(6), None)
    assert isinstance(store.batch_get(Thing, [{"id": 6}])[0], Incomparable)
    store.delete(Thing(6))
    signed = ShoveStore(stored, encoding=SignedEncoding("secret" * 6))
    with pytest.raises(DecodingError):
        signed.get(Thing, {"id": 0})


# -- DurableDicts ---------------------------------------------------------------------------------


@pytest.fixture
def d(tmp_path: Path) -> Iterator[SqliteDict[Any, Any]]:
    with SqliteDict[Any, Any](tmp_path / "objects.sqlite") as opened:
        yield opened


def test_a_batch_is_one_commit_and_one_comparison(d: SqliteDict[Any, Any]) -> None:
    store = DurableDictStore(d)
    commits: list[Any] = []
    original = d.persist_many

    def counting(entries: Any) -> Any:
        commits.append(len(entries))
        return original(entries)

    d.persist_many = counting  # type: ignore[method-assign]  # a hook
    store.batch_put([Thing(number, name=number) for number in range(20)])
    assert commits == [20, 20]
    before = d.stats.comparisons
    assert all(store.batch_get(Thing, [{"id": number} for number in range(20)]))
    assert d.stats.comparisons == before + 1


def test_the_dicts_own_encoding_is_used(tmp_path: Path) -> None:
    path = tmp_path / "signed.sqlite"
    with SqliteDict[Any, Any](path, encoding=SignedEncoding("secret" * 6)) as signed:
        store = DurableDictStore(signed)
        assert store.encoding is signed.encoding
        store.put(Thing(1))
        assert store.get(Thing, NAME) == Thing(1)
    allowed = RestrictedPickleEncoding(allow=[Thing])
    with SqliteDict[Any, Any](tmp_path / "restricted.sqlite", encoding=allowed) as restricted:
        store = DurableDictStore(restricted)
        store.put(Thing(1))
        assert store.get(Thing, {"id": 1}) == Thing(1)
        store.put(Thing(1, value=Path()))
        with pytest.raises(DecodingError, match="id="):
            store.get(Thing, {"id": 1})
    assert DurableDictStore(MemoryDict()).encoding is not NoOpEncoding


def test_a_dict_that_keeps_no_bytes_says_so(tmp_path: Path) -> None:
    path = tmp_path / "json.sqlite"
    with SqliteDict[Any, Any](path, encoding=JSONEncoding) as d, pytest.raises(EncodingError):
        DurableDictStore(d).put(Thing(1))


def test_one_undecodable_value_harms_its_own_reads(tmp_path: Path) -> None:
    path = tmp_path / "d.sqlite"
    with SqliteDict[Any, Any](path, encoding=SignedEncoding("secret" * 6)) as one:
        DurableDictStore(one).batch_put([Thing(1), Thing(2, name="y")])
    with SqliteDict[Any, Any](path, encoding=SignedEncoding("another" * 6)) as other:
        store = DurableDictStore(other)
        for keys in ([{"id": 1}], [{"id": 1}, {"id": 2}]):
            with pytest.raises(DecodingError, match="id="):
                store.batch_get(Thing, keys)
        store.put(Thing(1, value="mended"))
        assert store.get(Thing, {"id": 1}) == Thing(1, value="mended")


def test_an_undecodable_value_can_be_deleted(tmp_path: Path) -> None:
    d: SqliteDict[Any, Any] = SqliteDict(tmp_path / "d", encoding=SignedEncoding("secret" * 6))
    with d:
        DurableDictStore(d).batch_put([Thing(1), Thing(2, name="y")])
    d = SqliteDict(tmp_path / "d", encoding=SignedEncoding("another" * 6))
    with d:
        store = DurableDictStore(d)
        with pytest.raises(DecodingError, match="id="):
            store.get(Thing, {"id": 1})
        store.batch_delete([Thing(1), Thing(2, name="y")])
        assert store.batch_get(Thing, [{"id": 1}, {"id": 2}]) == [None, None]
        assert store.get(Thing, {"id": 2}) is None


def test_a_mapping_that_is_a_durable_dict_is_shared(tmp_path: Path) -> None:
    with SqliteDict[Any, Any](tmp_path / "d") as d:
        assert ShoveStore(d).shared
    assert not ShoveStore({}).shared


def test_other_values_of_the_dict_are_left_alone() -> None:
    d = MemoryDict[Any, Any]()
    d.update({"other": 1, f"{STEM}id=~int:1": "no cell"})
    store = DurableDictStore(d)
    assert store.get(Thing, {"id": 1}) is None
    store.put(Thing(1))
    store.delete(Thing(1))
    assert d == {"other": 1}


def test_a_pointer_is_removed_only_while_it_leads_to_the_record(d: SqliteDict[Any, Any]) -> None:
    """Another process takes the key between a delete's read and its last step."""
    store = DurableDictStore(d)
    store.put(Thing(1))
    original = store._remove_many

    def take_over(names: Any) -> None:
        original(names)
        DurableDictStore(d).put(Thing(2))

    store._remove_many = take_over  # type: ignore[method-assign]  # a hook
    store.delete(Thing(1))
    assert store.get(Thing, NAME) == Thing(2)


def test_a_reader_between_record_and_pointers_sees_one_of_both(d: SqliteDict[Any, Any]) -> None:
    """The record comes first: who reads through the old pointer meanwhile finds no ghost."""
    store = DurableDictStore(d)
    store.put(Thing(1, name="old"))
    original = store._write_many
    seen: list[Any] = []

    def look(writings: Any) -> None:
        original(writings)
        seen.append([store.get(Thing, {"zone": 1, "name": name}) for name in ("old", "new")])

    store._write_many = look  # type: ignore[method-assign]  # a hook
    store.put(Thing(1, name="new"))
    assert seen == [[None, None], [None, Thing(1, name="new")]]


class Minimal(BaseDictionaryStore):
    """A Store of three methods."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cells: dict[str, bytes] = {}

    def _read(self, name: str) -> bytes | None:
        return self.cells.get(name)

    def _write(self, name: str, cell: bytes, lifetime: float | None) -> None:
        self.cells[name] = cell

    def _remove(self, name: str) -> None:
        self.cells.pop(name, None)


def test_three_methods_make_a_store() -> None:
    store = Minimal()
    store.batch_put([Thing(1), Thing(2, name="y")])
    store.put(Thing(1, name="z"))
    assert store.get(Thing, NAME) is None
    assert store.get(Thing, {"zone": 1, "name": "z"}) == Thing(1, name="z")
    store.batch_delete([Thing(1), Thing(2)])
    assert store.cells == {}


def test_encodings_are_checked() -> None:
    with pytest.raises(TypeError, match="encode"):
        Minimal(encoding=5)
    with pytest.raises(ValueError, match="allow_unsigned"):
        Minimal(encoding=SignedEncoding("secret" * 6), old_encoding=Minimal().encoding)


def test_what_is_found_is_checked_against_what_was_asked_for() -> None:
    """A pointer that leads to another object, and a record under a name that is not its own."""
    store = Minimal()
    store.batch_put([Thing(1), Thing(2, name="y")])
    record, pointer = (f"{STEM}{word}" for word in ("id=~int:2", "zone=~int:1&name=x"))
    store.cells[pointer] = pack_pointer(record)
    assert store.get(Thing, NAME) is None
    store.cells[record] = store.cells[f"{STEM}id=~int:1"]
    assert store.get(Thing, {"id": 2}) is None
    store.cells[pointer] = pack_pointer(pointer)
    assert store.get(Thing, NAME) is None
