"""What docutils takes without a word, and shows as something else.

In a simple table, the kind between lines of ``=``, a second line in the first column is another
row. And in bold text there is no other markup: the marks of code are shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.rst"), *ROOT.glob("docs/**/*.rst")])

BOLD = re.compile(r"(?<![\w*`])\*\*(?=\S)((?:[^*]|\*(?!\*))+?)\*\*(?=[\s.,:;)]|$)")
BORDER = re.compile(r" *=+(?: +=+)+")


def first_cells(text: str) -> Iterator[str]:
    """Return the first cells of the rows of all simple tables."""
    width = None
    for line in text.splitlines():
        if BORDER.fullmatch(line):
            width = re.match(r" *=+", line).end()  # type: ignore[union-attr]  # a border has it
        elif not line.strip():
            width = None
        elif width is not None:
            yield line[:width].strip()


def test_the_cells_are_found() -> None:
    table = "=== ===\na   b\n=== ===\nc,  d\n    e\nf\n=== ===\n\ng\n"
    assert list(first_cells(table)) == ["a", "c,", "", "f"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_row_of_a_simple_table_begins_in_the_middle(page: Path) -> None:
    assert [cell for cell in first_cells(page.read_text()) if cell.endswith(",")] == []


def bold(text: str) -> list[str]:
    """Return what stands in bold; examples, in which ``**`` is Python, begin with blanks or >>>."""
    lines = (line for line in text.splitlines() if not re.match(r" *(>>>|\.\.\. )|    ", line))
    return BOLD.findall("\n".join(lines))


def test_bold_text_is_found() -> None:
    assert bold("a **b\nc** ``{**d}`` **``e`` f**.\n    **g**\n") == ["b\nc", "``e`` f"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_code_is_in_bold(page: Path) -> None:
    assert [text for text in bold(page.read_text()) if "``" in text] == []
