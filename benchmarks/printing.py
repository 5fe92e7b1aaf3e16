"""How the tables are printed."""

from __future__ import annotations

from collections.abc import Iterable

from .tables import Amount, Row, Spread

__all__ = ["print_amounts", "print_rows", "print_spreads"]

FRACTIONS = (0.5, 0.9, 0.99, 0.999)

HEADINGS = ("what", "against", "ratio", "limit", "A/A", "figure", "against", "", "")
LINE = "{:<38} {:<26} {:>7} {:>6} {:>5} {:>10} {:>10} {:<5} {}"
AMOUNT_LINE = "{:<65} {:>7} {:>6} {:<11} {}"
SPREAD_LINE = "{:<38} {:>8} {:>10} {:>10} {:>10} {:>10}"


def print_rows(rows: Iterable[Row]) -> list[str]:
    """Print ratios, each as soon as it is there; return what was missed."""
    missed = []
    print(LINE.format(*HEADINGS).rstrip())
    for row in rows:
        print(_line(row), flush=True)
        if row.verdict not in ("", "ok"):
            missed.append(
                f"{row.verdict}: {row.what}: {_ratio(row)} x {row.against}, limit {row.limit:g}"
            )
    return missed


def print_amounts(amounts: Iterable[Amount]) -> list[str]:
    """Print what is no ratio; return what was missed."""
    missed = []
    for amount in amounts:
        print(_amount_line(amount))
        if amount.verdict != "ok":
            missed.append(
                f"{amount.verdict}: {amount.what}: {amount.figure:.2f} {amount.unit}, "
                f"limit {amount.limit:g}"
            )
    return missed


def print_spreads(spreads: Iterable[Spread]) -> None:
    """Print percentiles in microseconds."""
    names = [f"p{fraction * 100:g}" for fraction in FRACTIONS]
    print(SPREAD_LINE.format("what", "samples", *names))
    for spread in spreads:
        print(_spread_line(spread), flush=True)


def _ratio(row: Row) -> str:
    # Two decimals of a ten-thousandth would be zero.
    return f"{row.ratio:.2f}" if row.ratio >= 0.001 else f"{row.ratio:.6f}"


def _line(row: Row) -> str:
    scale, digits = (1e6, 3) if row.unit == "us" else (1, 1)
    return LINE.format(
        row.what,
        row.against,
        _ratio(row),
        "" if row.limit is None else f"{row.limit:g}",
        f"{row.noise:.2f}",
        f"{row.measured.candidate * scale:.{digits}f}",
        f"{row.measured.baseline * scale:.{digits}f}",
        row.unit,
        row.verdict,
    ).rstrip()


def _amount_line(amount: Amount) -> str:
    return AMOUNT_LINE.format(
        amount.what, f"{amount.figure:.2f}", f"{amount.limit:g}", amount.unit, amount.verdict
    )


def _spread_line(spread: Spread) -> str:
    figures = (spread.percentile(fraction) for fraction in FRACTIONS)
    return SPREAD_LINE.format(
        spread.what,
        f"{len(spread.samples):,}",
        *("" if figure is None else f"{figure / 1000:.2f}" for figure in figures),
    ).rstrip()
