"""How many inputs a verdict would take."""

from __future__ import annotations

from collections.abc import Sequence

from ._words import Column, tail_probability

MOST_INPUTS = 1_000_000
"""A verdict that would take more inputs is not one that more inputs would bring."""


def inputs_needed(conditions: Sequence[Column], n: int, p_value: float) -> int | None:
    """The fewest inputs, at least n + 1, with which every condition would have `p_value` if margins stayed as they
    are and their standard errors fell as 1 / sqrt(inputs); None where that takes more than MOST_INPUTS.

    **Arguments:**

    - `conditions`: margins, each the value and then its resamples from `n` inputs.
    """

    def enough(more: int) -> bool:
        return all(tail_probability(margin, n, more) <= p_value for margin in conditions)

    if not enough(MOST_INPUTS):
        return None
    low, high = n, MOST_INPUTS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
