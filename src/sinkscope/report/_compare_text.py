"""Numbers of a comparison as page and terminal write them: in their unit, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sinkscope.report._format import NONE, change, missing, number, percent


def share(value: Any) -> str:
    """A share in percent with one digit, so that intervals show; only an exact 0 or 1 is `0%` or `100%`."""
    if missing(value) or value in (0, 1):
        return percent(value)
    told = f"{100 * abs(value):.1f}"
    return "<0.1%" if told == "0.0" else ">99.9%" if told == "100.0" else f"{'−' if value < 0 else ''}{told}%"


def value_text(value: Any, unit: str) -> str:
    """A number in its unit: shares in percent, a relative change with two digits, counts whole."""
    return _form(unit)(value)


def cell_text(cell: Mapping[str, Any]) -> str:
    """Value, interval, and the layer of a number that has one: `33.6% (32.3 to 34.9%)`."""
    form = _form(cell["unit"])
    layer = "" if missing(cell["layer"]) else f" in layer {cell['layer']}"
    return form(cell["value"]) + _span(cell["low"], cell["high"], form) + layer


def change_text(cell: Mapping[str, Any]) -> str:
    """The change against the base with its interval; shares in points. Nothing for what is no change."""
    if missing(cell["change"]):
        return NONE
    form = _signed(cell["unit"])
    return form(cell["change"]) + _span(cell["change_low"], cell["change_high"], form)


def clear(cell: Mapping[str, Any]) -> bool:
    """Whether the interval of the change leaves out 0."""
    low, high = cell["change_low"], cell["change_high"]
    return not missing(low) and not missing(high) and (low > 0 or high < 0)


def _span(low: Any, high: Any, form: Callable[[Any], str]) -> str:
    return "" if missing(low) or missing(high) else f" ({form(low)} to {form(high)})"


def _form(unit: str) -> Callable[[Any], str]:
    forms: Mapping[str, Callable[[Any], str]] = {
        "share": share,
        "heads": lambda value: NONE if missing(value) else f"{value:,.0f}",
        "change": change,
        "cosine": lambda value: NONE if missing(value) else f"{value:.4f}".replace("-", "−"),
    }
    return forms.get(unit, digits)


def digits(value: Any) -> str:
    """Three significant digits: `0.0269`, `1.25`, `22,134`, `3.7e-6`."""
    if missing(value) or not 0.001 <= abs(value) < 99.95:
        return number(value)
    told = f"{abs(value):.3g}"
    return f"{'−' if value < 0 else ''}{told}"


def _signed(unit: str) -> Callable[[Any], str]:
    def text(value: Any) -> str:
        size = abs(value)
        if unit == "share":
            told = "0" if size == 0 else f"{100 * size:.1f}" if size >= 0.0005 else "<0.1"
        else:
            told = _form(unit)(size)
        return f"{'−' if value < 0 else '+' if value > 0 else ''}{told}"

    return text
