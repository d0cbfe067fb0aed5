"""One plain sentence per verdict: why this word, and for undecided heads what would decide it."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan

from ._words import Column, Evidence, Thresholds

_NO_SINK = {
    "uniform": "it averages over all keys alike",
    "diagonal": "its tokens attend to themselves",
    "dead": "it writes next to nothing, whatever it attends to",
    "none": "no key has mass 0.3 or more often enough",
}


def no_sink(kind: str) -> str:
    """Why a head of another kind has no verdict."""
    return f"No sink head: {_NO_SINK[kind]}."


def dead(evidence: Evidence) -> str:
    """Why a dead head with a sink is inert."""
    largest = _percent(float(evidence.largest[0]))
    return f"Mass without function: the head is dead, and no edit changes the final tokens by more than {largest}."


def too_few(n: int, least: int) -> str:
    """Why a head with fewer inputs than `least` is undecided."""
    return f"Too few inputs: its sink has mass 0.3 or more on {n} of those edited; {least} would allow a verdict."


def leans(word: str, confidence: float, q_value: float, needed: int | None) -> str:
    """Why a head with a word is undecided all the same."""
    what = f"about {needed:,} inputs with a sink would decide it" if needed else "more inputs would hardly decide it"
    return f"It leans to {word}, but {confidence:.0%} of resamples agree and the adjusted p is {q_value:.2g}: {what}."


def decided(word: str, evidence: Evidence, n: int) -> str:
    """Why the word is given."""
    strength, share, largest = (float(column[0]) for column in (evidence.strength, evidence.share, evidence.largest))
    over = f"over {n} inputs"
    if word == "inert":
        return f"No edit changes the final tokens by more than {_percent(largest)} {over}: mass without function."
    writes = f"It writes at {strength:.2f} times the norm of an ordinary value {over}"
    if word == "nop":
        return (
            f"{writes}, and an ordinary value in its place or attention elsewhere changes the final tokens "
            f"by up to {_percent(largest)}: the head stays silent by parking here."
        )
    if word == "bias":
        return f"{writes}, {_percent(1 - share)} of that energy the same vector on every input."
    follows = float(evidence.donor_cosine[0])
    cosine = "" if isnan(follows) else f", and the tokens follow a donor's sink with cosine {follows:.2f}"
    return f"{writes}, {_percent(share)} of that energy this input's own content{cosine}."


def undecided(margins: Mapping[str, Column], evidence: Evidence, t: Thresholds) -> str:
    """Why a head has no word, from the first condition that fails, and what would decide it."""
    fails = {name for name, margin in margins.items() if margin[0] <= 0}
    strength, share = float(evidence.strength[0]), float(evidence.share[0])
    if "strengths agree" in fails:
        return (
            f"The evidence conflicts: the sink writes at {evidence.strength_write[0]:.2f} times the norm of an "
            f"ordinary value, but {evidence.strength_final[0]:.2f} arrives at the final tokens; --freeze-all tells "
            "whether later attention makes the difference."
        )
    if isnan(strength):
        return "The zero and ordinary edits that would tell whether it writes are missing: verify it again with them."
    if {"silent", "writes"} <= fails:
        return (
            f"It writes at {strength:.2f} times the norm of an ordinary value, between silent (up to "
            f"{t.nop_strength:g}) and writing (from {t.writing_strength:g}): a mixture that more inputs will not turn "
            "into one word; its shares say how much of each."
        )
    if "silent" not in fails:
        return (
            f"It writes at {strength:.2f} times the norm of an ordinary value, but that changes the final tokens "
            f"{evidence.specific[0]:.1f} times as much as the same mass of other keys: the head is as silent "
            "elsewhere; compare its redirect effect."
        )
    if "shares agree" in fails:
        return (
            f"The evidence conflicts: {_percent(float(evidence.share_write[0]))} of what it writes is content, but "
            f"{_percent(float(evidence.share_final[0]))} of what arrives at the final tokens; --freeze-all tells "
            "whether later attention makes the difference."
        )
    if "common" in fails and "content" not in fails:
        return (
            f"{_percent(share)} of what it writes is content, but only {_percent(float(evidence.common[0]))} of the "
            "change is common to the tokens: it is no broadcast to all; --freeze-all tells whether later attention "
            "makes the difference."
        )
    if "follows the donor" in fails and "content" not in fails:
        return (
            f"{_percent(share)} of what it writes is content, but the tokens do not follow a donor's sink (cosine "
            f"{evidence.donor_cosine[0]:.2f}): more --donors would tell."
        )
    return "What it writes is exactly between constant and content, or the mean edit that would tell is missing."


def _percent(share: float) -> str:
    return f"{share:.0%}" if abs(share) >= 0.1 else f"{share:.1%}"
