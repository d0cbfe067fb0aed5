"""A model in three sentences, built from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..artifact import SINK_MASS
from ._kinds import SINK_RATE
from ._prescription import treatment_groups
from ._shares import MIN_SINK_INPUTS

_ROLES_NAMED = 3
_MOSTLY = 0.5
_ORDINARY = ("word", "punctuation", "special")
_LOOK_ALIKES = {
    "uniform": ("averages uniformly", "average uniformly"),
    "diagonal": ("attends mostly to itself", "attend mostly to themselves"),
    "dead": ("is dead", "are dead"),
}
_WORDS = {
    "nop": ("parks its attention to stay silent (nop)", "park their attention to stay silent (nop)"),
    "broadcast": ("hands out what is in the input (broadcast)", "hand out what is in the input (broadcast)"),
    "bias": ("writes one constant vector (bias)", "write one constant vector (bias)"),
    "inert": ("does nothing that matters (inert)", "do nothing that matters (inert)"),
    "undecided": ("is undecided", "are undecided"),
}
_TREATED = {
    "gate": "gates in",
    "registers": "registers for",
    "both": "gates and registers for",
    "attention bias": "an attention bias in",
    "prune": "a trial of pruning",
}


def summarise(manifest: Mapping[str, Any], heads: pd.DataFrame, sink_tokens: pd.DataFrame | None = None) -> list[str]:
    """Three plain sentences: where the sinks are; what they look like under the rule; what they write, and the next
    step. Once sink heads were edited, two more: what the edits say they do, and what to do about it. A sink head is
    one of kind `sink`.

    **Arguments:**

    - `manifest`: the model's `reference` and the `rule` are used.
    - `heads`: the table of heads.
    - `sink_tokens`: the columns `sink`, `role` and `mass` of the events; with them the first sentence says how many
        sinks on ordinary tokens stand at the start of the input, as those of language models do.
    """
    sinks = heads[heads["kind"] == "sink"]
    start = "" if sink_tokens is None or sinks.empty else _at_start(sink_tokens)
    sentences = [_where(manifest, heads, sinks, start), _looks(manifest, heads), _writes(heads, sinks)]
    if "verdict" in heads and not sinks.empty:
        sentences += [_does(sinks), _treat(manifest, heads)]
    return sentences


def _at_start(sink_tokens: pd.DataFrame) -> str:
    held = sink_tokens[(sink_tokens["mass"] >= SINK_MASS) & sink_tokens["role"].isin(_ORDINARY)]
    share = float((held["sink"] == 0).mean()) if len(held) else 0.0
    if share < _MOSTLY:
        return ""
    return f"; {_percent(share)} of the sinks on ordinary tokens are the first token"


def _where(manifest: Mapping[str, Any], heads: pd.DataFrame, sinks: pd.DataFrame, start: str) -> str:
    reference, n_heads = manifest["model"]["reference"], _number(len(heads), "head")
    test = (
        f"mass >= {SINK_MASS} on one token for at least {_percent(SINK_RATE)} of {_number(_n_inputs(heads), 'input')}"
    )
    if sinks.empty:
        text = f"No head of {reference} is a sink head ({test}; {n_heads} measured)"
    else:
        verb = "is a sink head" if len(sinks) == 1 else "are sink heads"
        text = f"{len(sinks):,} of {n_heads} of {reference} {verb} ({test}): {_listed(_roles(sinks))}"
    return text + start + _virtual(heads) + "."


def _roles(sinks: pd.DataFrame) -> list[str]:
    """The most frequent roles, each with its number of heads and its depth."""
    roles = sinks["role"].astype(object).where(sinks["role"].notna(), "tokens of unknown role")
    groups = sorted(sinks.groupby(roles), key=lambda group: (-len(group[1]), group[0]))
    named = [f"{len(group):,} on {role} in {_layers(group['layer'])}" for role, group in groups[:_ROLES_NAMED]]
    rest = [group for _, group in groups[_ROLES_NAMED:]]
    if rest:
        others = pd.concat(rest)
        named.append(f"{len(others):,} on other roles in {_layers(others['layer'])}")
    return named


def _layers(layers: pd.Series) -> str:
    first, last = layers.min(), layers.max()
    return f"layer {first}" if first == last else f"layers {first} to {last}"


def _virtual(heads: pd.DataFrame) -> str:
    masses = heads["virtual_mass_median"]
    masses = masses[masses > 0]
    if masses.empty:
        return ""
    return (
        f"; a learned or virtual sink, which is no token, takes {_percent(masses.median())} of the attention in the "
        f"median of the {_number(len(masses), 'head')} that have one"
    )


def _looks(manifest: Mapping[str, Any], heads: pd.DataFrame) -> str:
    rule = manifest["rule"]
    decided = heads[heads["event_rate"].notna()]
    alikes = _alikes(heads)
    if decided.empty:
        return f"Rule {rule['name']} cannot be decided here, since values it needs are missing in every row{alikes}."
    n_events = int((decided["event_rate"] * decided["n_inputs"]).round().sum())
    rows = f"{_number(int(decided['n_inputs'].sum()), 'row')} (one per input and head)"
    if n_events == 0:
        return f"Rule {rule['name']} finds no sink event in {rows}{alikes}."
    text = f"Rule {rule['name']} finds {_number(n_events, 'sink event')} in {rows}"
    if "nop" not in rule and "broadcast" not in rule:
        return f"{text} and names no classes of them{alikes}."
    counts = {name: int(decided[name].sum()) for name in ("nop", "broadcast", "other")}
    likes = {"nop": "like a NOP", "broadcast": "like a broadcast", "other": "like neither"}
    told = [f"{count:,} {_verb(count, 'looks', 'look')} {likes[name]}" for name, count in counts.items() if count]
    unknown = n_events - sum(counts.values())
    if unknown:
        told.append(
            f"{unknown:,} {_verb(unknown, 'is', 'are')} of unknown class, since values the rule needs are missing"
        )
    return f"{text}: {_listed(told)}{alikes}."


def _alikes(heads: pd.DataFrame) -> str:
    counts = heads["kind"].value_counts().to_dict()
    found = [
        f"{_number(counts[kind], 'head')} {_verb(counts[kind], *verbs)}"
        for kind, verbs in _LOOK_ALIKES.items()
        if kind in counts
    ]
    return f"; not sinks, though they can look alike: {_listed(found)}" if found else ""


def _writes(heads: pd.DataFrame, sinks: pd.DataFrame) -> str:
    if sinks.empty:
        if (heads["event_rate"] > 0).any():
            return "No head sinks often enough to sum up what it writes; next: look at the rows of the event table."
        return "There is nothing to explain or to treat; next: if sinks were expected, measure more or longer inputs."
    often = sinks[(sinks["sink_rate"] * sinks["n_inputs"]).round() >= MIN_SINK_INPUTS]
    if often.empty:
        return (
            f"What they write cannot be told, since no head has its sink on {MIN_SINK_INPUTS} inputs; "
            "next: measure more inputs."
        )
    shares = often[["silent", "constant", "content"]].dropna()
    if shares.empty:
        return (
            "What they write cannot be told, since the output projection of none of them was found; "
            "next: see the gaps in the coverage."
        )
    largest = shares.to_numpy().argmax(axis=1)
    says = [
        ("mostly stays silent", "mostly stay silent"),
        ("mostly writes one constant vector", "mostly write one constant vector"),
        ("mostly writes what is in the input", "mostly write what is in the input"),
    ]
    counts = np.bincount(largest, minlength=len(says)).tolist()
    told = [f"{count:,} {_verb(count, *verbs)}" for count, verbs in zip(counts, says, strict=True) if count]
    next_step = (
        "; what edits show comes next"
        if "verdict" in heads
        else ", so next: confirm by causal edits before choosing gates (for silence) or registers (for content)"
    )
    return (
        f"Of {_number(len(shares), 'sink head')} whose write could be measured, {_listed(told)}; these are signatures, "
        f"not causes{next_step}."
    )


def _does(sinks: pd.DataFrame) -> str:
    edited = sinks[sinks["verdict"].notna()]
    counts = edited["verdict"].value_counts().to_dict()
    told = [f"{counts[word]:,} {_verb(counts[word], *verbs)}" for word, verbs in _WORDS.items() if word in counts]
    if not told:
        return f"None of {_number(len(sinks), 'sink head')} was edited."
    decided = edited.loc[edited["verdict"] != "undecided", "confidence"]
    sure = f"; the median confidence of these verdicts is {_percent(decided.median())}" if len(decided) else ""
    rest = len(sinks) - len(edited)
    unseen = f"; {_number(rest, 'sink head')} {_verb(rest, 'was', 'were')} not edited" if rest else ""
    return f"Causal edits of {_number(len(edited), 'sink head')} say: {_listed(told)}{sure}{unseen}."


def _treat(manifest: Mapping[str, Any], heads: pd.DataFrame) -> str:
    groups = treatment_groups(heads, manifest["model"]["modality"])
    named = [f"{_TREATED[name]} {_number(len(group), 'head')}" for name, group in groups.items() if name in _TREATED]
    if not named:
        return "None of these verdicts calls for a treatment."
    return f"They call for {_listed(named)}; reasons, sources and cautions are in the prescription."


def _n_inputs(heads: pd.DataFrame) -> int:
    return int(heads["n_inputs"].max()) if len(heads) else 0


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{_verb(count, '', 's')}"


def _verb(count: int, one: str, many: str) -> str:
    return one if count == 1 else many


def _percent(share: float) -> str:
    return "less than 0.1%" if share < 0.001 else f"{100 * share:.3g}%"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
