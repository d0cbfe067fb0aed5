"""What the page says about verdicts beside its figures: the table of words, the prescription, and what its script
draws the effects of one head from."""

from __future__ import annotations

from typing import Any

import pandas as pd
from markupsafe import Markup

from sinkscope.report._format import NONE, count, head_name, missing, number, percent
from sinkscope.report._heads import records
from sinkscope.report._style import VERDICT_COLOURS
from sinkscope.report._verified import Verified

_MEANINGS = {
    "nop": "stays silent by parking here",
    "broadcast": "hands out this input’s content",
    "bias": "writes one constant vector",
    "inert": "mass without function",
    "undecided": "effects that fit no word, or too few inputs",
    "no sink": "no sink head, edited all the same",
}
_MEASURES = {
    "final_norm": "final tokens, after the last norm",
    "final": "final tokens, before the last norm",
    "write": "the head’s write",
    "output_kl": "output: KL divergence, nats",
    "output_loss": "output: loss, nats per token",
    "output_top1": "output: first choice kept",
    "common": "share common to all tokens",
    "donor_cosine": "cosine with the donor’s",
}
_LOGARITHMIC = ("final_norm", "final", "write", "output_kl")
_PERCENT = ("final_norm", "final", "write", "output_top1", "common")
_EDITS = {
    "zero": "zero",
    "mean": "mean",
    "donor": "donor",
    "ordinary": "ordinary",
    "redirect": "redirect",
    "control": "control",
    "random": "random",
    "other_head": "other head",
    "noop": "noop",
}


def verdict_page(verified: Verified) -> dict[str, Any]:
    """Everything the template needs of `verified`."""
    verdicts, run = verified.verdicts, verified.run
    undecided = verdicts[verdicts["verdict"] == "undecided"]
    donors, frozen = run["options"].get("donors"), run["options"].get("freeze_all")
    seconds = "" if run["seconds"] is None else f" in {number(run['seconds'])} s"
    return {
        "prescription": Markup(verified.prescription._repr_html_()),
        "line": (
            f"{count(len(verdicts), 'head')} edited one at a time{seconds}, on the first inputs on which each has a "
            f"sink of mass ≥ 0.3{f' (at most {n:,})' if (n := run['options'].get('inputs')) else ''}; "
            f"{count(donors, 'donor') if donors else 'donors'} per input. "
            + (
                "Later layers keep their attention (--freeze-all): what is shown flows through values alone."
                if frozen
                else "The edited head keeps its attention, later layers respond."
            )
        ),
        "command": run["command"],
        "words": [
            _word(word, verdicts[verdicts["verdict"] == word])
            for word in VERDICT_COLOURS
            if word in set(verdicts["verdict"])
        ],
        "undecided": [
            (
                head_name(row["layer"], row["head"]),
                _integer(row["n_needed"]),
                NONE if missing(row["reason"]) else row["reason"],
            )
            for row in records(undecided)
        ],
    }


def _word(word: str, heads: pd.DataFrame) -> dict[str, str]:
    halves = heads["split_half"].dropna()
    return {
        "word": word,
        "meaning": _MEANINGS[word],
        "heads": f"{len(heads):,}",
        "layers": _span(heads["layer"], str),
        "confidence": percent(heads["confidence"].median()),
        "inputs": _span(heads["n_verified"], "{:,}".format),
        "halves": f"{int(halves.sum()):,} of {len(halves):,}" if len(halves) else NONE,
    }


def _span(values: pd.Series, form: Any) -> str:
    low, high = form(int(values.min())), form(int(values.max()))
    return low if low == high else f"{low}–{high}"


def _integer(value: Any) -> str:
    return NONE if missing(value) else f"{int(value):,}"


def effect_data(verified: Verified) -> dict[str, Any]:
    """What the script draws the effects of one head from.

    Per head and measure one `[value, low, high, n]` per edit, null where there is none; six digits, so that they read
    as in the card.
    """
    effects = verified.effects.dropna(subset=["value"])
    present = set(effects["measure"])
    measures = [name for name in _MEASURES if name in present]
    labels = _MEASURES if "final_norm" in present else _MEASURES | {"final": "final tokens"}
    edits = [name for name in _EDITS if name in set(effects["edit"])]
    heads: dict[str, Any] = {}
    for row in records(effects[effects["measure"].isin(measures)]):
        measured = heads.setdefault(f"{row['layer']}-{row['head']}", {})
        cells = measured.setdefault(row["measure"], [None] * len(edits))
        numbers = [None if missing(row[name]) else float(f"{row[name]:.6g}") for name in ("value", "low", "high")]
        cells[edits.index(row["edit"])] = [*numbers, row["n"]]
    return {
        "measures": [
            {"name": name, "label": labels[name], "log": name in _LOGARITHMIC, "percent": name in _PERCENT}
            for name in measures
        ],
        "edits": [_EDITS[name] for name in edits],
        "heads": heads,
    }
