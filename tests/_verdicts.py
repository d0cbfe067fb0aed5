"""Invented verdicts beside a finished artifact: what `sinkscope verify` would leave, from a seed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sinkscope.artifact import SHARES, open_artifact, verdict_columns, write_verdicts

WORDS = ("nop", "broadcast", "bias", "inert", "undecided")
EDITS = ("noop", "zero", "mean", "donor", "ordinary", "redirect", "control", "random", "other_head")
MEASURES = ("write", "final", "final_norm", "common", "donor_cosine", "output_kl", "output_top1", "output_loss")

# Typical effects on the final tokens, and (silent, constant, content), per word.
_EFFECTS = {
    "nop": (0.0, 0.003, 0.002, 0.003, 0.060, 0.050, 0.020, 0.055, 0.01),
    "broadcast": (0.0, 0.060, 0.055, 0.080, 0.070, 0.065, 0.010, 0.08, 0.01),
    "bias": (0.0, 0.060, 0.004, 0.005, 0.080, 0.070, 0.010, 0.08, 0.01),
    "inert": (0.0, 0.0004, 0.0004, 0.0004, 0.0006, 0.0005, 0.0008, 0.0006, 0.01),
    "undecided": (0.0, 0.020, 0.010, 0.013, 0.045, 0.040, 0.018, 0.05, 0.01),
    "no sink": (0.0, 0.010, 0.009, 0.013, 0.015, 0.012, 0.011, 0.015, 0.01),
}
_SHARES = {
    "nop": (0.96, 0.03, 0.01), "broadcast": (0.10, 0.15, 0.75), "bias": (0.15, 0.80, 0.05),
    "inert": (0.40, 0.30, 0.30), "undecided": (0.50, 0.30, 0.20), "no sink": (0.30, 0.30, 0.40),
}  # fmt: skip


def fabricate(
    folder: Path, seed: int = 5, *, words: tuple[str, ...] = WORDS, inputs: int = 13, everything: bool = False
) -> Path:
    """Writes verdicts on all sink heads of the finished artifact in `folder`: in turn those of `words`, the first twice
    as often. The last sink head is left unedited where there are more than five. With `everything`, heads that are no
    sinks are edited too."""
    rng = np.random.default_rng(seed)
    heads = open_artifact(folder).heads
    sinks = heads[heads["kind"] == "sink"]
    left_out = set(sinks.index[-1:]) if len(sinks) > 5 else set()
    verdicts, effects, edited = [], [], []
    turns = itertools.cycle((words[0], *words))
    for index, row in heads.iterrows():
        layer, head = int(row["layer"]), int(row["head"])
        verdict: dict[str, Any] = {"layer": layer, "head": head}
        sink = row["kind"] == "sink"
        if index not in left_out and (sink or everything):
            word = next(turns) if sink else "no sink"
            own, rows = _effects(rng, layer, head, word, inputs)
            effects += rows
            edited.append(f"{layer}.{head}")
            verdict |= _verdict(rng, layer, head, word, inputs) | own
        if not sink:
            verdict |= dict.fromkeys(("confidence", "p_value", "q_value", "split_half", "n_needed"))
            verdict |= {"verdict": "no sink", "reason": "No sink head."}
        verdicts.append(verdict)
    names = [column.name for column in verdict_columns()]
    types: dict[str, Any] = {
        "n_verified": "Int64",
        "n_needed": "Int64",
        "split_half": "boolean",
        "verdict": object,
        "reason": object,
    }
    kinds: dict[str, Any] = {"layer": "int32", "head": "int32"} | {
        name: types.get(name, "float64") for name in names[2:]
    }
    columns = ["layer", "head", "edit", "measure", "value", "low", "high", "n"]
    write_verdicts(
        folder, heads, pd.DataFrame(verdicts, columns=names).astype(kinds), pd.DataFrame(effects, columns=columns)
    )
    (folder / "edits").mkdir(exist_ok=True)
    verification = {
        "sinkscope": "0.1.0",
        "created": "2026-01-02T03:04:05+00:00",
        "finished": "2026-01-02T03:05:06+00:00",
        "command": f"sinkscope verify {folder.name}",
        "weights_sha256": "0123456789abcdef" * 4,
        "rounds": [edited],
        "options": {"inputs": 64, "donors": 2, "freeze_all": False, "seed": 0},
        "seconds": 31.5,
    }
    (folder / "edits" / "verification.json").write_text(json.dumps(verification), encoding="utf-8")
    return folder


def _spread(rng: np.random.Generator, name: str, value: float, width: float) -> dict[str, float]:
    value *= float(np.exp(0.15 * rng.normal()))
    return {name: value, f"{name}_low": value * (1 - width), f"{name}_high": value * (1 + width)}


def _effects(
    rng: np.random.Generator, layer: int, head: int, word: str, inputs: int
) -> tuple[dict[str, float], list[tuple[Any, ...]]]:
    own: dict[str, float] = {}
    rows: list[tuple[Any, ...]] = []
    for edit, typical in zip(EDITS, _EFFECTS[word], strict=True):
        for measure in MEASURES:
            scale = {"common": 12.0, "donor_cosine": 11.0, "output_kl": 0.1, "output_top1": 12.0}.get(measure, 1.0)
            if measure == "donor_cosine" and edit != "donor":
                continue
            found = _spread(rng, "value", min(typical * scale, 0.98), 0.25)
            value, low, high = found["value"], found["value_low"], found["value_high"]
            rows.append((layer, head, edit, measure, value, low, high, inputs))
            if measure == "final_norm" and edit in ("zero", "mean", "donor", "ordinary", "redirect", "control"):
                own |= {f"effect_{edit}": value, f"effect_{edit}_low": low, f"effect_{edit}_high": high}
    return own, rows


def _verdict(rng: np.random.Generator, layer: int, head: int, word: str, inputs: int) -> dict[str, Any]:
    undecided = word == "undecided"
    reasons = {
        "nop": "putting nothing in place of the sink changes less than the control does",
        "undecided": "the effect of zero lies between those of a nop and a broadcast",
    }
    found: dict[str, Any] = {
        "layer": layer,
        "head": head,
        "verdict": word,
        "confidence": 0.6 + 0.1 * rng.random() if undecided else 0.95 + 0.05 * rng.random(),
        "n_verified": inputs,
        "p_value": 0.2 if undecided else 0.001,
        "q_value": 0.3 if undecided else 0.002,
        "split_half": None if inputs < 16 else not undecided,
        "n_needed": 47 if undecided and layer % 2 == 0 else None,
        "reason": reasons.get(word, f"the effects are those of <{word}>"),
    }
    silent, constant, content = rng.dirichlet(40 * np.array(_SHARES[word]))
    shares = (silent, constant, content, content / (constant + content))
    for name, value in zip(SHARES, shares, strict=True):
        found |= {name: value, f"{name}_low": max(0.0, value - 0.06), f"{name}_high": min(1.0, value + 0.06)}
    return found | _spread(rng, "specific", 0.2 if word == "nop" else 3.0, 0.4)
