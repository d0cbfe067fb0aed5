"""How numbers read."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from sinkscope.report._format import count, head_name, interval, missing, number, percent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.000123, "1.2e-4"),
        (-0.000123, "−1.2e-4"),
        (0.0314, "0.031"),
        (0.0999, "0.10"),
        (1.248, "1.25"),
        (9.996, "10.0"),
        (46.04, "46.0"),
        (99.96, "100"),
        (22134.4, "22,134"),
        (-1.5, "−1.50"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (None, "–"),
        (pd.NA, "–"),
        (np.float32(0.25), "0.25"),
    ],
)
def test_numbers_have_three_significant_digits(value: object, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (0.0004, "<0.1%"),
        (0.057, "5.7%"),
        (0.0996, "10%"),
        (0.81, "81%"),
        (0.9949, "99%"),
        (0.9999, ">99%"),
        (1.0, "100%"),
        (1.28, "128%"),
        (-0.03, "−3.0%"),
        (-0.0002, "−<0.1%"),
        (math.nan, "–"),
    ],
)
def test_only_exact_ends_read_as_none_or_all(share: float, text: str) -> None:
    assert percent(share) == text


def test_intervals_counts_and_names() -> None:
    assert interval(0.12, 0.31) == "0.12 to 0.31"
    assert interval(0.12, 0.31, percent) == "12% to 31%"
    assert interval(math.nan, 0.31) == ""
    assert count(1, "head") == "1 head"
    assert count(2048, "head") == "2,048 heads"
    assert count(0, "entry", "entries") == "0 entries"
    assert head_name(3, 2) == "L3.H2"
    assert missing(pd.NaT) and not missing(0) and not missing("")
