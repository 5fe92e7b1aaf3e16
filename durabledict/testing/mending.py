"""The suite: values that cannot be decoded, closing, `migrate` and `override`."""

from __future__ import annotations

import math
from typing import Any

from ..changes import Undecodable
from ..errors import MISSING, DecodingError
from ..reading import Syncing
from .overriding import override
from .tools import SuiteBase, in_thread, needs, raises

__all__ = ["MendingTests"]


class MendingTests(SuiteBase):
    """A dict that is not as it should be, no longer open, or made to look different."""

    def spoil(self, d: Any, key: Any) -> DecodingError:
        """Make the payload of one key one that this client cannot decode."""
        error = DecodingError(f"the value of key {key!r} cannot be decoded: spoilt")
        fetched, changes, durables = d._fetch, d.changes, d.durables

        def noted(entries: Any) -> Any:
            return {k: Undecodable(error) if k == key else v for k, v in entries.items()}

        def spoilt_changes(since: Any) -> Any:
            found = changes(since)
            return (
                None
                if found is None
                else type(found)(found.stamp, noted(found.written), found.removed)
            )

        def spoilt_fetch(k: Any) -> Any:
            value, proof = fetched(k)
            return (Undecodable(error) if k == key and value is not MISSING else value), proof

        d.durables = lambda: noted(durables())
        d.changes = spoilt_changes
        if "compare_and_set" in self.capabilities:
            d._fetch = spoilt_fetch
        return error

    def test_one_bad_value_harms_one_key(self) -> None:
        for autosync in (self.strictest, 3600.0, False):
            d = self.open(autosync=autosync)
            d.update(good=1, bad=2)
            self.spoil(d, "bad")
            with self.logged() as records:
                d.sync(force=True)
                d.sync(force=True)
            assert len(records) == 1
            assert "'bad'" in records[0].getMessage()
            assert list(d.undecodable) == ["bad"]
            reads: list[Any] = [
                lambda d: d["bad"],
                lambda d: d.get("bad"),
                lambda d: "bad" in d,
                lambda d: d.setdefault("bad", 3),
                lambda d: d.pop("bad"),
                lambda d: d.pop("bad", None),
            ]
            if "compare_and_set" in self.capabilities:
                reads += [
                    lambda d: d.compute("bad", lambda value: value),
                    lambda d: d.compare_and_set("bad", MISSING, 1),
                    lambda d: d.edit("bad").__enter__(),
                ]
            for read in reads:
                with raises(DecodingError, "'bad'"):
                    read(d)
            assert d["good"] == 1
            assert d.get("absent") is None
            assert (len(d), list(d), d.copy(), list(d.items())) == (
                1, ["good"], {"good": 1}, [("good", 1)],
            )  # fmt: skip
            d["good"] = 5
            assert d["good"] == 5
            assert d.popitem() == ("good", 5)
            with raises(KeyError):
                d.popitem()
            del d["bad"]
            assert not d.undecodable
            assert "bad" not in d
            with raises(KeyError):
                d["bad"]

    def test_a_bad_value_can_be_replaced_and_cleared(self) -> None:
        mends: list[Any] = [
            lambda d: d.clear(),
            lambda d: d.replace_all({"k": 1}),
            lambda d: d.__delitem__("bad"),
        ]
        for mend in mends:
            d = self.open(autosync=False)
            d["bad"] = 2
            self.spoil(d, "bad")
            d.sync(force=True)
            assert list(d.undecodable) == ["bad"]
            mend(d)
            assert not d.undecodable
            assert "bad" not in d
            d.sync(force=True)
            assert not d.undecodable
            d.clear()
        d = self.open(autosync=False)
        d["bad"] = 2
        original = d.durables
        self.spoil(d, "bad")
        d.sync(force=True)
        for name in ("durables", "changes", "_fetch"):
            vars(d).pop(name, None)
        assert d.durables() == original() == {"bad": 2}
        d["bad"] = 3
        assert not d.undecodable
        assert d["bad"] == 3

    @needs("shared")
    def test_a_bad_value_that_somebody_else_removes_or_mends_is_listed_no_more(self) -> None:
        mends: list[Any] = [
            lambda b: b.__delitem__("bad"), lambda b: b.clear(), lambda b: b.update(bad=3),
        ]  # fmt: skip
        for mend in mends:
            a, b = self.open(autosync=False), self.open()
            b.update(good=1, bad=2)
            self.spoil(a, "bad")
            a.sync(force=True)
            assert list(a.undecodable) == ["bad"]
            for name in ("durables", "changes", "_fetch"):
                vars(a).pop(name, None)
            mend(b)
            a.sync()
            assert not a.undecodable
            self.check(a, self.other(b))

    # -- closing ------------------------------------------------------------------------------

    def test_after_close_reads_go_on_and_writes_do_not(self) -> None:
        for autosync in (self.strictest, 3600.0, False):
            with self.open(autosync=autosync) as d:
                d.clear()
                d["k"] = 1
                d.watch(interval=3600.0)
            assert (d["k"], d.get("k"), "k" in d, len(d), list(d), d.copy()) == (
                1, 1, True, 1, ["k"], {"k": 1},
            )  # fmt: skip
            actions: list[Any] = [
                lambda d=d: d.sync(),
                lambda d=d: d.__setitem__("k", 2),
                lambda d=d: d.__delitem__("k"),
                lambda d=d: d.update(k=2),
                lambda d=d: d.update(),
                lambda d=d: d.setdefault("k", 2),
                lambda d=d: d.pop("k"),
                lambda d=d: d.popitem(),
                lambda d=d: d.clear(),
                lambda d=d: d.replace_all({}),
                lambda d=d: d.watch(),
                lambda d=d: d.migrate(),
            ]
            for action in actions:
                with raises(RuntimeError, "closed"):
                    action()
            d.close()
        assert self.other(self.open()) == {"k": 1}

    def test_a_closed_dict_is_native_and_a_read_under_way_asks_nobody(self) -> None:
        d = self.open()
        d["k"] = 1
        read = type(d).__getitem__
        with self.hook(d, "last_updated") as calls:
            d.close()
            assert not issubclass(type(d), Syncing)
            d._good_until = -math.inf  # as a read that began before has found it
            assert read(d, "k") == 1
        assert not calls

    @needs("!told")
    def test_a_read_that_fails_because_another_thread_closed_the_dict_is_served(self) -> None:
        for autosync in (self.strictest, 0.001):
            for outage in (True, False):
                with self.clock() as clock:
                    d = self.open(autosync=autosync)
                    d["k"] = 1
                    clock.move(1.0)

                    def close(d: Any = d, outage: bool = outage) -> None:
                        in_thread(d.close)
                        raise self.outage(d) if outage else RuntimeError("closed")

                    with self.hook(d, "last_updated", before=close) as calls:
                        assert d["k"] == 1
                        assert len(calls) == 1

    # -- migrate ------------------------------------------------------------------------------

    def test_migrate_rewrites_everything(self) -> None:
        d, b = self.open(), self.reader()
        entries = {"a": 1, "b": [2], 3: None}
        d.update(entries)
        stamp = d.last_updated()
        assert d.migrate() == 3
        assert d.last_updated() != stamp
        self.check(d, entries)
        self.check(b, entries)

    @needs("compare_and_set", "shared")
    def test_migrate_reads_again_what_somebody_else_wrote(self) -> None:
        a, b = self.open(), self.open()
        a["k"] = 1
        with (
            self.hook(a, "_fetch", after=lambda: b.update(k=2), times=1),
            self.hook(a, "_compare_and_set") as writes,
        ):
            assert a.migrate() == 1
        assert [write is None for write in writes] == [True, False]
        self.check(b, {"k": 2})

    # -- override -----------------------------------------------------------------------------

    def test_override(self) -> None:
        d, b = self.open(), self.reader()
        d.update(a=1, b=2)
        stamp = d.last_updated()
        with override(d, {"c": 3}, a="over", b=MISSING) as shown:
            assert shown is d
            assert d["a"] == "over"
            assert "b" not in d
            assert dict(d.items()) == d.copy() == {"a": "over", "c": 3}
            with override(d, a="inner"):
                assert d["a"] == "inner"
            assert d["a"] == "over"
            assert d.last_updated() == stamp
            self.seen(b)["a"] = 5
            b["b"] = 6
            b["d"] = 7
            d.sync()
            assert d.copy() == {"a": "over", "c": 3, "d": 7}
            d.sync(force=True)
            assert d.copy() == {"a": "over", "c": 3, "d": 7}
            assert b["a"] == 5
        self.check(d, {"a": 5, "b": 6, "d": 7})

        @override(d, a="decorated")
        def read() -> Any:
            return d["a"]

        assert read() == "decorated"
        assert d["a"] == 5
        with raises(ZeroDivisionError), override(d, a=0):
            raise ZeroDivisionError
        self.check(d, {"a": 5, "b": 6, "d": 7})
        with raises(TypeError):
            override({}, a=1)

    @needs("shared")
    def test_what_the_store_removes_under_an_override_is_gone_at_its_end(self) -> None:
        for force in (True, False):
            a, b = self.open(autosync=False), self.open()
            b["gone"] = 1
            a.sync()
            for shown in (MISSING, 2):
                b["gone"] = 1
                with override(a, gone=shown):
                    del b["gone"]
                    a.sync(force=force)
                assert "gone" not in a

    @needs("shared")
    def test_an_override_that_begins_during_a_sync_stays_on_top(self) -> None:
        a, b = self.open(autosync=False), self.open()
        a["k"] = 0
        b["k"] = 1
        for name in ("changes", "durables"):
            layer = override(a, k="shown")
            with self.hook(a, name, after=layer.__enter__, times=1):
                a.sync(force=name == "durables")
            assert a["k"] == "shown"
            layer.__exit__(None, None, None)
            assert a["k"] == 1
            b["k"] = 0
            b["k"] = 1

    def test_an_override_may_show_a_key_that_cannot_be_decoded(self) -> None:
        for autosync in (True, False):
            d = self.open(autosync=autosync)
            d["bad"] = 1
            self.spoil(d, "bad")
            d.sync(force=True)
            with override(d, bad="shown"):
                assert d["bad"] == d.get("bad") == d.copy()["bad"] == "shown"
                assert "bad" in d
            with raises(DecodingError, "'bad'"):
                d["bad"]

    def test_what_an_override_shows_is_not_written(self) -> None:
        d = self.open()
        d["k"] = "store"
        with override(d, k="shown", only="shown"):
            assert d.migrate() == 1
            assert self.other(d) == {"k": "store"}
            assert d.pop("k") == "store"
            with raises(KeyError):
                d.pop("only")
        d["k"] = "store"
        with override(d, k=MISSING):
            assert d.setdefault("k", "default") == "store"
        self.check(d, {"k": "store"})
