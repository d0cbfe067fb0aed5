"""What verdicts are made of: edits, words and their conditions, and thresholds."""

from __future__ import annotations

from dataclasses import asdict

from sinkscope.artifact import EDITS
from sinkscope.explain import CONDITIONS, Thresholds

from .docstring import meanings
from .markdown import number, plain, table

_EDITS = {
    "noop": ("v&prime; = v<sub>s</sub>", "nothing may change: the noise floor, and the test of a deterministic model"),
    "zero": ("v&prime; = 0", "what the sink hands out, as it is"),
    "mean": ("v&prime; = mean of v<sub>s</sub> over the other inputs", "what of it belongs to this input"),
    "donor": ("v&prime; = v<sub>s</sub> of another input, at its own sink", "whether the tokens follow its sink"),
    "ordinary": (
        "v&prime; = value of a random token, no sink, of another input",
        "what attention here would do if the value were not special",
    ),
    "redirect": (
        "o&prime;<sub>i</sub> = (o<sub>i</sub> − A<sub>is</sub> v<sub>s</sub>) / (1 − A<sub>is</sub>)",
        "what the head would do if it could not park here",
    ),
    "control": (
        "values of random other keys are zero, as many as have the sink’s total mass",
        "what the same share of attention does elsewhere",
    ),
    "random": (
        "v&prime; = a random direction with |v&prime;| = |v<sub>s</sub>|",
        "whether its direction matters, at equal norm",
    ),
    "other_head": (
        "zero, at the same token, in a random other head of the layer",
        "whether it is this head that matters",
    ),
}
_CONDITIONS = {
    "works": "an edit changes the final tokens",
    "nothing changes": "no edit changes the final tokens",
    "silent": "strength ≤ `nop_strength`",
    "writes": "strength ≥ `writing_strength`",
    "strengths agree": "write and final tokens are not on opposite sides of these two",
    "content": "content share > `broadcast_share`",
    "constant": "content share < `broadcast_share`",
    "shares agree": "write and final tokens are not on opposite sides of it by more than `share_conflict`",
    "below control": "zero changes less than the control at the sink’s mass, times `control_ratio`",
    "common": "the change is common to the tokens",
    "follows the donor": "under donor the tokens move towards that input’s sink",
}


def edits() -> str:
    return table(["edit", "what is done", "what it asks"], [[f"`{name}`", *_EDITS[name]] for name in EDITS])


def words() -> str:
    rows = [[f"`{word}`", "; ".join(_CONDITIONS[name] for name in needed)] for word, needed in CONDITIONS.items()]
    return table(["word", "all of"], rows)


def thresholds() -> str:
    told = meanings(Thresholds)
    rows = [[f"`{name}`", number(value), plain(told[name])] for name, value in asdict(Thresholds()).items()]
    return table(["threshold", "value", "meaning"], rows)
