"""Numbers and counts as the page writes them."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

NONE = "–"
"""What stands where there is no value."""


def number(value: Any) -> str:
    """Three significant digits without exponents where that reads well: `0.031`, `1.25`, `46.0`, `22,134`."""
    if missing(value):
        return NONE
    size = abs(float(value))
    sign = "−" if value < 0 else ""
    if math.isinf(size):
        return f"{sign}∞"
    if size == 0:
        return "0"
    if size < 0.001:
        return sign + f"{size:.1e}".replace("e-0", "e-")
    if size >= 99.95:
        return f"{sign}{size:,.0f}"
    return f"{sign}{size:.{1 if size >= 9.995 else 2 if size >= 0.0995 else 3}f}"


def percent(value: Any) -> str:
    """A share in percent; only an exact 0 or 1 is written as `0%` or `100%`."""
    if missing(value):
        return NONE
    share = 100 * float(value)
    if 0 < share < 0.1:
        return "<0.1%"
    if 99.5 <= share < 100:
        return ">99%"
    if share < 0:
        return f"−{percent(-value)}"
    return f"{share:.0f}%" if share >= 9.95 or share == 0 else f"{share:.1f}%"


def change(value: Any) -> str:
    """A relative change in percent with two digits, small ones too: `12%`, `3.4%`, `0.056%`."""
    if missing(value):
        return NONE
    size = 100 * float(value)
    if size == 0:
        return "0%"
    if size < 0.001:
        return "<0.001%"
    digits = 1 - math.floor(math.log10(float(f"{size:.1e}")))
    return f"{size:,.{max(0, digits)}f}%"


def interval(low: Any, high: Any, form: Any = number) -> str:
    """`0.12 to 0.31`, or nothing where an end is missing."""
    return "" if missing(low) or missing(high) else f"{form(low)} to {form(high)}"


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`1 head`, `2 heads`, `1,024 inputs`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def missing(value: Any) -> bool:
    """Whether a table cell holds no value: None, NaN or NA."""
    return bool(pd.isna(value))


def head_name(layer: int, head: int) -> str:
    """How a head is called everywhere on the page: `L3.H2`."""
    return f"L{layer}.H{head}"
