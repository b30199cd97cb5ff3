"""Figures as text, and the table that holds them."""

from typing import NamedTuple


class Table(NamedTuple):
    """A titled table of texts; the first column names the row."""

    title: str
    header: list[str]
    rows: list[list[str]]


def percent(share: float | None) -> str:
    """0.885 -> 88.5 %."""
    return "–" if share is None else f"{100 * share:.1f} %"


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * difference:+.1f}".replace("-", "−")


def number(value: float | None) -> str:
    """Two decimals."""
    return "–" if value is None else f"{value:.2f}"


def with_margin(score: float, low: float, high: float) -> str:
    """62.3 ±4.7 in percent: the score, and half the width of its interval."""
    return f"{100 * score:.1f} ±{50 * (high - low):.1f}"
