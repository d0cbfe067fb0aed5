"""Which word sums up what a sink head does: conditions on the evidence, and their thresholds in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log

import numpy as np
from jaxtyping import Float, Int
from scipy.special import stdtr

from .._errors import OptionError

WORDS = ("undecided", "nop", "broadcast", "bias", "inert")
"""What a sink head can be called. `no sink` is for heads of another kind."""


@dataclass(frozen=True)
class Thresholds:
    """Where one word ends and another begins. Strengths are norms, in units of an ordinary value's.

    - `nop_strength`: up to here the sink is silent.
    - `writing_strength`: from here on it writes; between the two a head stays undecided.
    - `strength_conflict`: write and final tokens conflict when the sink is silent by one and writes by the other, and
        their strengths differ by more than this factor.
    - `broadcast_share`: from this share of content in the energy on, a sink that writes is a broadcast, else a bias.
    - `least_content`: below this share of content a sink is no broadcast, however its content compares with what
      ordinary values differ by.
    - `share_conflict`: write and final tokens conflict when their contents lie on different sides of
      `broadcast_share`, both by more than this.
    - `control_ratio`: a nop changes the final tokens at most this many times as much as the same mass of other keys.
    - `inert_effect`: relative RMS change of the final tokens below which an edit changes nothing that matters.
    - `inert_noise`: the same, as a multiple of what an edit that changes nothing does.
    - `common`: least common share of the change that zeroing a broadcast makes.
    - `donor_cosine`: least cosine between what a donor's sink does to a broadcast and what it should do. Many layers
        after the edit the two are nearly unrelated even where the sink hands out content, so only a contradiction
        counts.

    **Raises:** `OptionError` when they contradict each other.
    """

    nop_strength: float = 0.3
    writing_strength: float = 0.45
    strength_conflict: float = 3.0
    broadcast_share: float = 0.5
    least_content: float = 0.15
    share_conflict: float = 0.15
    control_ratio: float = 3.0
    inert_effect: float = 1e-3
    inert_noise: float = 10.0
    common: float = 0.1
    donor_cosine: float = -0.2

    def __post_init__(self) -> None:
        if not 0 < self.nop_strength <= self.writing_strength:
            raise OptionError(
                f"nop_strength is {self.nop_strength} and writing_strength {self.writing_strength}",
                "0 < nop_strength <= writing_strength",
                "correct the thresholds",
            )
        if not 0 < self.broadcast_share < 1:
            raise OptionError(
                f"broadcast_share is {self.broadcast_share}", "a number between 0 and 1", "correct broadcast_share"
            )


Column = Float[np.ndarray, " rows"]


@dataclass(frozen=True)
class Evidence:
    """What the words rest on, per resample: the columns of one head, NaN where not known.

    - `strength_write`, `strength_final`: norm of what the sink writes in units of an ordinary value's, at the head's
      write and at the final tokens.
    - `share_write`, `share_final`: content's share of that energy.
    - `swing_write`, `swing_final`: energy of the mean edit over half that of the ordinary edit: how much the sink's
      value varies from input to input, 1 where it does as much as ordinary values. Tells what is left of a broadcast
      when all values of the head, the sink's and the others', have one large vector in common.
    - `largest`: the largest effect of zero, ordinary and redirect on the final tokens.
    - `noise`: effect on them of the edit that changes nothing.
    - `specific`: effect of zero in units of that of other keys with the same mass.
    - `common`: of the zero edit. `donor_cosine`: of the donor edit.
    """

    strength_write: Column
    strength_final: Column
    share_write: Column
    share_final: Column
    swing_write: Column
    swing_final: Column
    largest: Column
    noise: Column
    specific: Column
    common: Column
    donor_cosine: Column

    @property
    def strength(self) -> Column:
        """Geometric mean of the two levels; the one that is known where the other is not."""
        product = _either(self.strength_write, self.strength_final) * _either(self.strength_final, self.strength_write)
        mean: Column = np.sqrt(product)
        return mean

    @property
    def share(self) -> Column:
        """Mean of the two levels; the one that is known where the other is not."""
        total = _either(self.share_write, self.share_final) + _either(self.share_final, self.share_write)
        mean: Column = total / 2
        return mean

    def contents(self, thresholds: Thresholds) -> tuple[Column, Column]:
        """How much of a broadcast there is at the write and at the final tokens, against `broadcast_share`: content's
        share, or the swing where that is more and the share at least `least_content`."""
        slope = thresholds.broadcast_share / thresholds.least_content
        write, final = (
            np.maximum(share, np.fmin(swing, slope * share))
            for share, swing in ((self.share_write, self.swing_write), (self.share_final, self.swing_final))
        )
        return write, final


def _either(first: Column, second: Column) -> Column:
    return np.where(np.isnan(first), second, first)


CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "nop": ("works", "silent", "strengths agree", "below control"),
    "broadcast": ("works", "writes", "strengths agree", "content", "shares agree", "common", "follows the donor"),
    "bias": ("works", "writes", "strengths agree", "constant", "shares agree"),
    "inert": ("nothing changes",),
}
"""A word is given when all of its conditions hold; no two words can."""


def margins(evidence: Evidence, thresholds: Thresholds) -> dict[str, Column]:
    """By how much each condition holds: above 0 where it does, infinite where there is nothing to hold against it.

    Strengths and effects are compared as logarithms of ratios, shares and cosines as differences. A condition on
    something that was not measured holds where it only guards (`below control`, `common`, `follows the donor`, the
    two agreements) and fails otherwise.
    """
    t = thresholds
    contents = evidence.contents(t)
    content = (_either(contents[0], contents[1]) + _either(contents[1], contents[0])) / 2
    quiet, quiet_write, quiet_final = (
        log(t.nop_strength) - _log(s) for s in (evidence.strength, evidence.strength_write, evidence.strength_final)
    )
    loud, loud_write, loud_final = (
        _log(s) - log(t.writing_strength) for s in (evidence.strength, evidence.strength_write, evidence.strength_final)
    )
    with np.errstate(invalid="ignore"):  # both strengths may be 0
        apart = np.abs(_log(evidence.strength_write) - _log(evidence.strength_final)) - log(t.strength_conflict)
    low_write, low_final = (t.broadcast_share - t.share_conflict - c for c in contents)
    high_write, high_final = (c - t.broadcast_share - t.share_conflict for c in contents)
    works = _log(evidence.largest) - _log(np.fmax(t.inert_noise * evidence.noise, t.inert_effect))
    return {
        "works": _known(works, -np.inf),
        "nothing changes": _known(-works, -np.inf),
        "silent": _known(quiet, -np.inf),
        "writes": _known(loud, -np.inf),
        "strengths agree": _known(-np.minimum(_both(quiet_write, loud_final, loud_write, quiet_final), apart), np.inf),
        "content": _known(content - t.broadcast_share, -np.inf),
        "constant": _known(t.broadcast_share - content, -np.inf),
        "shares agree": _known(-_both(low_write, high_final, high_write, low_final), np.inf),
        "below control": _known(log(t.control_ratio) - _log(evidence.specific), np.inf),
        "common": _known(evidence.common - t.common, np.inf),
        "follows the donor": _known(evidence.donor_cosine - t.donor_cosine, np.inf),
    }


def _both(a: Column, b: Column, c: Column, d: Column) -> Column:
    """Above 0 where a and b are, or c and d."""
    either: Column = np.maximum(np.minimum(a, b), np.minimum(c, d))
    return either


def _log(values: Column) -> Column:
    with np.errstate(divide="ignore"):
        logarithm: Column = np.log(values)
    return logarithm


def _known(margin: Column, otherwise: float) -> Column:
    return np.where(np.isnan(margin), otherwise, margin)


def word_codes(conditions: Mapping[str, Column]) -> Int[np.ndarray, " rows"]:
    """Number in WORDS of the word of each row, 0 (undecided) where no word's conditions all hold."""
    codes = np.zeros(len(next(iter(conditions.values()))), dtype=np.int64)
    for word, needed in CONDITIONS.items():
        holds = np.logical_and.reduce([conditions[name] > 0 for name in needed])
        codes[holds] = WORDS.index(word)
    return codes


def tail_probability(margin: Column, n: int, wanted: int | None = None) -> float:
    """One-sided p-value that a condition holds no more than by chance: Student's t of the margin, its standard error
    from the resamples and corrected for what a bootstrap from n inputs is too narrow by. With `wanted`, what it would
    be from that many inputs.

    **Arguments:**

    - `margin`: the value, then its resamples.
    """
    if np.isinf(margin[0]):
        return float(margin[0] < 0)
    resampled = margin[1:]
    error = np.std(resampled[np.isfinite(resampled)]) * np.sqrt(n / (n - 1))
    if error == 0:
        return float(margin[0] <= 0)
    more = n if wanted is None else wanted
    return float(stdtr(more - 1, -margin[0] / error * np.sqrt(more / n)))
