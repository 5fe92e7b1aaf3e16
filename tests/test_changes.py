"""What differs, and what several commits and a delta come to."""

from __future__ import annotations

from typing import Any

from durabledict import MISSING, Commit, DecodingError, Undecodable
from durabledict.changes import Difference, chained, differs


class Unpicklable:
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]  # as a class with an __eq__ alone has it

    def __reduce__(self) -> Any:
        raise ZeroDivisionError


def test_what_a_reader_could_tell_apart_differs() -> None:
    same = Unpicklable()
    for old, new in [(1, 2), (1, True), (1, 1.0), ([1], [True]), (1, MISSING), ("a", "b")]:
        assert differs(old, new)
        assert not differs(old, old)
    for old, new in [([1], [1]), ("12", str(12)), (2**70, 2**70), (None, None)]:
        assert not differs(old, new)
    assert differs(same, Unpicklable())
    assert not differs(same, same)


def test_commits_in_a_row_are_one() -> None:
    first, second = Commit(1, 2, {"a": 1}, ["b"]), Commit(2, 3, {"c": 2})
    assert chained([first, second]) == Commit(1, 3, {"a": 1, "c": 2}, ["b"])


def test_where_somebody_else_wrote_in_between_the_beginning_is_unknown() -> None:
    one = chained([Commit(1, 2), Commit(3, 4)])
    assert one is not None
    assert (one.before, one.after) == (None, 4)


def test_a_write_that_tells_nothing_leaves_nothing_known() -> None:
    commit = Commit(1, 2, {"a": 1})
    assert chained([commit, None]) is chained([None, commit]) is chained([]) is None


def test_the_last_commit_says_whether_a_key_is_there() -> None:
    back = chained([Commit(1, 2, {}, ["a"]), Commit(2, 3, {"a": 1})])
    assert back == Commit(1, 3, {"a": 1}, [])
    gone = chained([Commit(1, 2, {"a": 1}), Commit(2, 3, {}, ["a"])])
    assert gone == Commit(1, 3, {}, ["a"])


def test_a_delta_may_name_a_key_as_written_and_as_removed() -> None:
    error = DecodingError("spoilt")
    delta = Difference.of_changes({"w": 1, "u": Undecodable(error)}, ["w", "r", "u"])
    assert delta.written == {"w": 1}
    assert sorted(delta.removed) == ["r", "u"]
    assert delta.undecodable == {"u": error}
