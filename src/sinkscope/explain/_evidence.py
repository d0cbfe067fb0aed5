"""From effects of edits to the evidence that words rest on: strength, shares and controls under every resample."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float

from ._effects import HeadEffects, head_effects
from ._resamples import weighted_means
from ._words import WORDS, Column, Evidence, Thresholds, margins, word_codes

LEAST_ENERGY = 1e-8
"""A sink with less of an ordinary value's energy is no yardstick for what an ordinary value is."""


@dataclass(frozen=True)
class Signature:
    """What the table of heads knows of a sink, in units of an ordinary value's energy; NaN where it does not."""

    constant: float
    content: float

    @property
    def energy(self) -> float:
        """Mean |u_s|^2."""
        return self.constant + self.content


def signatures(heads: pd.DataFrame) -> dict[tuple[int, int], Signature]:
    """Of every (layer, head) in the table of heads."""
    numbers = (heads[name].astype("float64") for name in ("constant", "content"))
    places = zip(heads["layer"].tolist(), heads["head"].tolist(), strict=True)
    return {place: Signature(*parts) for place, *parts in zip(places, *numbers, strict=True)}


def evidence_table(edits: pd.DataFrame, heads: pd.DataFrame) -> pd.DataFrame:
    """The evidence on every edited head without its resamples: what `Thresholds` are fitted on.

    **Arguments:**

    - `edits`, `heads`: as for `judge`.

    **Returns:** columns `layer, head, n`, the fields of `Evidence`, its `strength` and `share`.
    """
    known = signatures(heads)
    rows = []
    for head in head_effects(edits):
        n = len(head.inputs)
        evidence = gather(head, np.full((1, n), 1 / n), known[head.layer, head.head])
        names = (*(field.name for field in fields(Evidence)), "strength", "share")
        numbers = {name: float(getattr(evidence, name)[0]) for name in names}
        rows.append({"layer": head.layer, "head": head.head, "n": n} | numbers)
    return pd.DataFrame(rows)


def words(evidence: pd.DataFrame, thresholds: Thresholds) -> pd.Series[str]:
    """The word of every row of `evidence_table` under the given thresholds, however many inputs it rests on."""
    columns = Evidence(**{field.name: evidence[field.name].to_numpy() for field in fields(Evidence)})
    codes = word_codes(margins(columns, thresholds))
    return pd.Series(np.array(WORDS)[codes], index=evidence.index)


def gather(head: HeadEffects, weights: Float[np.ndarray, "rows inputs"], signature: Signature) -> Evidence:
    """The evidence under each row of weights, of which the first holds all inputs alike.

    With Z, M and O the mean squared effects of zero, of the mean over the n - 1 other inputs and of an ordinary value,
    content = M (n - 1) / n, for the mean of n - 1 values adds 1 / (n - 1) of their variance to M.

    At the write an edit is linear and its effect known beforehand, so strength and share are those of the signature,
    and the edits say how they vary over inputs. (Z, M and O alone would do if all inputs had the same norm of the
    head's write, which `write` is relative to, and ordinary values no direction in common with the sink's.) What an
    ordinary value itself would write is then E = Z / energy, and strength is sqrt(Z / E).

    Effects on the final tokens are brought to the scale of the write input by input, with how much of an ordinary
    value's effect at the write arrives there: times O_write / O_final.

    **Arguments:**

    - `signature`: where it is not known, E is O - Z, or (sqrt(O) - sqrt(Z))^2 where that is more, and the share M / Z.
    """
    final = head.final_measure
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = head["ordinary", "write"] / head["ordinary", final] if head.knows("write") else 1.0
        columns = {
            "zero_write": head["zero", "write"],
            "mean_write": head["mean", "write"],
            "ordinary_write": head["ordinary", "write"],
            "zero_arrived": head["zero", final] * scale,
            "zero_final": head["zero", final],
            "mean_final": head["mean", final],
            "ordinary_final": head["ordinary", final],
            "redirect_final": head["redirect", final],
            "noop_final": head["noop", final],
            "control_final": head["full_control", final],
            "common": head["zero", "common"],
            "donor_cosine": head["donor", "donor_cosine"],
        }
        means = weighted_means(
            weights, np.stack([np.where(np.isfinite(x), x, np.nan) for x in columns.values()], axis=1)
        )
        by_name = dict(zip(columns, means.T, strict=True))
        zero_write, zero_arrived = by_name["zero_write"], by_name["zero_arrived"]
        unbiased = (len(head.inputs) - 1) / len(head.inputs)
        share_write = unbiased * by_name["mean_write"] / zero_write
        if signature.energy > LEAST_ENERGY and zero_write[0] > 0:
            yardstick = np.full(len(weights), zero_write[0] / signature.energy)
            share_write += signature.content / signature.energy - share_write[0]
        elif head.knows("write"):
            yardstick = _without_zero(by_name["ordinary_write"], zero_write)
        else:
            yardstick = _without_zero(by_name["ordinary_final"], by_name["zero_final"])
        largest = np.fmax.reduce([by_name[f"{edit}_final"] for edit in ("zero", "ordinary", "redirect")])
        return Evidence(
            strength_write=np.sqrt(zero_write / yardstick),
            strength_final=np.sqrt(zero_arrived / yardstick),
            share_write=share_write,
            share_final=unbiased * by_name["mean_final"] / by_name["zero_final"],
            swing_write=2 * unbiased * by_name["mean_write"] / by_name["ordinary_write"],
            swing_final=2 * unbiased * by_name["mean_final"] / by_name["ordinary_final"],
            largest=np.sqrt(largest),
            noise=np.sqrt(by_name["noop_final"]),
            specific=np.sqrt(by_name["zero_final"] / by_name["control_final"]),
            common=by_name["common"],
            donor_cosine=by_name["donor_cosine"],
        )


def shares(evidence: Evidence) -> dict[str, Column]:
    """Silent, constant and content in units of an ordinary value's energy, and content's share of what is written:
    both levels taken together as in `Evidence.strength` and `Evidence.share`. Over resamples the sink varies; the
    ordinary energy, a mean over all other tokens, is taken as known."""
    energy, share = evidence.strength**2, evidence.share
    with np.errstate(invalid="ignore"):  # where ordinary tokens write exact zeros, energy is infinite
        content = np.where(energy == 0, 0.0, energy * share)
        constant = energy - content
    return {
        "silent": np.maximum(0, 1 - energy),
        "constant": constant,
        "content": content,
        "content_share": share,
    }


def _without_zero(ordinary: Column, zero: Column) -> Column:
    without: Column = np.maximum(ordinary - zero, (np.sqrt(ordinary) - np.sqrt(zero)) ** 2)
    return without
