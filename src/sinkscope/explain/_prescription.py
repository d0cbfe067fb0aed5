"""From verdicts to advice: what to do about the sinks of a model, on which evidence, and with which caution."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import pandas as pd

from .._errors import OptionError
from ._kinds import has_sink
from ._treatments import TREATMENTS

MINOR = 0.1
"""Gates and registers are advised together where each mechanism has at least this share of the heads of the two."""
PARKED = 0.95
"""A nop head is dormant if its sink holds this much of the attention in the median, on this share of the inputs."""

_GENERAL = (
    "Verdicts say what the sinks do on these inputs. Whether a treatment helps a task is not measured here, each of "
    "them needs training or changes the model, and a sink that harms nothing needs no cure."
)
_NAMED = 12
_EDITS = (
    ("zero", "nothing in place of what the sink hands out"),
    ("mean", "its mean over other inputs"),
    ("donor", "another input’s sink value"),
    ("ordinary", "an ordinary value"),
    ("redirect", "attention redirected to the other tokens"),
    ("control", "other keys of the same mass removed"),
)

Head = tuple[int, int]


@dataclass(frozen=True)
class Advice:
    """One treatment, for whom and why.

    - `treatment`: `gate`, `registers`, `both`, `attention bias`, `learned sink`, `prune` or `nothing`.
    - `heads`: (layer, head) of every head concerned.
    - `title`, `text`: what to do and why, in plain words.
    - `evidence`: what was measured on these heads, in numbers.
    - `sources`: the papers, and what they found.
    - `cautions`: what may go wrong.
    """

    treatment: str
    heads: tuple[Head, ...]
    title: str
    text: str
    evidence: tuple[str, ...]
    sources: tuple[str, ...]
    cautions: tuple[str, ...]


@dataclass(frozen=True)
class Prescription:
    """What to do about the sinks of a model. `str` gives it as text, a notebook shows it as HTML.

    - `reference`: the model.
    - `advice`: treatments, that for most heads first.
    - `undecided`: what is not known yet, and what would decide it.
    - `caution`: what holds for all of it.
    """

    reference: str
    advice: tuple[Advice, ...]
    undecided: tuple[str, ...]
    caution: str = _GENERAL

    def __str__(self) -> str:
        lines = [f"Prescription for {self.reference}"]
        for number, advice in enumerate(self.advice, start=1):
            lines += ["", *_wrapped(f"{number}. ", advice.title, 3), *_wrapped("   ", advice.text, 3)]
            for label, texts in _labelled(advice):
                lines += [line for text in texts for line in _wrapped(f"   {label}: ", text, 5)]
        for label, text in (*(("Open", text) for text in self.undecided), ("Caution", self.caution)):
            lines += ["", *_wrapped(f"{label}: ", text, 2)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        items = []
        for advice in self.advice:
            rows = "".join(
                f"<dt>{label}</dt>" + "".join(f"<dd>{escape(text)}</dd>" for text in texts)
                for label, texts in _labelled(advice)
                if texts
            )
            text = f"<p>{escape(advice.text)}</p>"
            items.append(
                f'<li><p><strong>{escape(advice.title)}</strong></p>{text}<dl class="reasons">{rows}</dl></li>'
            )
        rest = "".join(f"<p><strong>Open.</strong> {escape(text)}</p>" for text in self.undecided)
        return (
            f'<div class="prescription"><ol>{"".join(items)}</ol>{rest}'
            f"<p><strong>Caution.</strong> {escape(self.caution)}</p></div>"
        )


def prescribe(manifest: Mapping[str, Any], heads: pd.DataFrame, verdicts: pd.DataFrame) -> Prescription:
    """What to do about the sinks of a model whose sink heads were edited.

    A head that is `nop` calls for gates, `broadcast` for registers, `bias` for an attention bias; `inert` heads, and
    `nop` heads that are parked on nearly every input, are candidates for pruning. Broadcasts whose sink is a register
    already need none. Every treatment carries the measured effects and shares of its heads and the paper it is from.

    **Arguments:**

    - `manifest`: the model's `reference` and `modality` are used.
    - `heads`: the table of heads, with verdict columns.
    - `verdicts`: the table of verdicts, one row per edited head.

    **Raises:** `OptionError` where `heads` has no verdict columns.
    """
    _require_verdicts(heads)
    model, n_sinks = manifest["model"], int(has_sink(heads).sum())
    groups = treatment_groups(heads, model["modality"])
    advice = tuple(_advice(name, group, verdicts, model["modality"], n_sinks) for name, group in groups.items())
    return Prescription(model["reference"], advice or (_nothing(heads),), _undecided(heads, verdicts))


def treatment_groups(heads: pd.DataFrame, modality: str) -> dict[str, pd.DataFrame]:
    """The heads each treatment is for, most heads first, the alternative of gates and pruning last."""
    nop, broadcast, bias, inert = (heads[heads["verdict"] == word] for word in ("nop", "broadcast", "bias", "inert"))
    served = broadcast[broadcast["role"] == "register"]
    broadcast = broadcast.drop(served.index)
    groups = {"gate": nop, "registers": broadcast, "attention bias": bias}
    fewer, both = sorted((len(nop), len(broadcast)))[0], len(nop) + len(broadcast)
    if fewer and fewer >= MINOR * both:
        groups = {"both": pd.concat([nop, broadcast]), "attention bias": bias}
    ranked = dict(sorted(groups.items(), key=lambda group: -len(group[1])))
    if modality == "text" and not (heads["virtual_mass_median"] > 0).any():
        ranked["learned sink"] = nop
    ranked["prune"] = pd.concat([inert, _dormant(nop)])
    ranked["nothing"] = served
    return {name: group for name, group in ranked.items() if len(group)}


def _dormant(nop: pd.DataFrame) -> pd.DataFrame:
    return nop[(nop["mass_median"] >= PARKED) & (nop["sink_rate"] >= PARKED)]


def _require_verdicts(heads: pd.DataFrame) -> None:
    if "verdict" not in heads:
        raise OptionError(
            "the heads have no verdicts", "a diagnosis whose sink heads were edited", "run `sinkscope verify DIR`"
        )


def _advice(name: str, group: pd.DataFrame, verdicts: pd.DataFrame, modality: str, n_sinks: int) -> Advice:
    treatment = TREATMENTS[name]
    text = treatment.text
    if name == "nothing":
        text = "These heads hand out what this input is about, and their sink is a register already."
    return Advice(
        treatment=name,
        heads=_pairs(group),
        title=f"{treatment.title} {_count(len(group))}: {_names(group)}",
        text=text,
        evidence=() if name == "learned sink" else _evidence(group, verdicts),
        sources=treatment.sources,
        cautions=(*treatment.cautions, *_own_cautions(name, group, modality, n_sinks)),
    )


def _own_cautions(name: str, group: pd.DataFrame, modality: str, n_sinks: int) -> list[str]:
    found = []
    if name in ("registers", "both") and modality == "text":
        found.append("The evidence for registers is from vision models; this is a text model.")
    if name == "gate" and modality == "text" and group["role"].isin(["bos", "word", "punctuation"]).any():
        found.append(
            "Until it is treated, keep the sink in the cache: a cache that drops the first tokens takes it from the "
            "heads (StreamingLLM, arXiv:2309.17453, keeps the first four)."
        )
    if name in ("gate", "registers", "attention bias") and len(group) < MINOR * n_sinks:
        found.append(
            f"This is about {len(group):,} of {_count(n_sinks, 'sink head')}: it may not be worth the training."
        )
    return found


def _evidence(group: pd.DataFrame, verdicts: pd.DataFrame) -> tuple[str, ...]:
    lines = []
    shares = verdicts.set_index(["layer", "head"])
    for word, heads in group.groupby("verdict", sort=False):
        effects = [(f"effect_{edit}", text) for edit, text in _EDITS]
        told = [f"{text} {_percent(heads[name].median())}" for name, text in effects if heads[name].notna().any()]
        lines.append(
            f"{_count(len(heads))} {_verb(len(heads))} {word} (confidence {_span(heads['confidence'], _percent)}, "
            f"{_span(heads['n_verified'], str)} inputs each); median change of the final tokens: {', '.join(told)}."
        )
        own = shares.loc[shares.index.intersection(pd.Index(_pairs(heads))), ["silent", "constant", "content"]].dropna()
        if len(own) and word != "inert":
            told = [f"{name} {_percent(own[name].median())}" for name in own]
            lines.append(f"Handed out there, an ordinary token being 100%: {', '.join(told)} (medians).")
    dormant = len(_dormant(group[group["verdict"] == "nop"]))
    if dormant:
        lines.append(
            f"{_count(dormant)} {_verb(dormant)} dormant on these inputs: at least {_percent(PARKED)} of the attention "
            f"on a silent sink, on {_percent(PARKED)} of the inputs or more."
        )
    return tuple(lines)


def _nothing(heads: pd.DataFrame) -> Advice:
    sinks = heads[has_sink(heads)]
    if sinks.empty:
        text = "There is no sink head."
    else:
        text = f"None of {_count(len(sinks), 'sink head')} has a verdict that calls for a treatment."
    return Advice("nothing", (), "Nothing to treat", text, (), (), ())


def _undecided(heads: pd.DataFrame, verdicts: pd.DataFrame) -> tuple[str, ...]:
    found = []
    rates = heads[["layer", "head", "sink_rate", "n_inputs"]]
    open_heads = verdicts[verdicts["verdict"] == "undecided"].merge(rates, on=["layer", "head"])
    if len(open_heads):
        text = f"{_count(len(open_heads))} {_verb(len(open_heads))} undecided, {_names(open_heads)}."
        found.append(" ".join([text, *_what_decides(open_heads)]))
    unseen = heads[has_sink(heads) & heads["verdict"].isna()]
    if len(unseen):
        found.append(
            f"{_count(len(unseen), 'sink head')} {_verb(len(unseen), 'was', 'were')} not edited, {_names(unseen)}."
        )
    return tuple(found)


def _what_decides(open_heads: pd.DataFrame) -> list[str]:
    """More of the inputs that were measured, more inputs than were measured, or something else."""
    needed = open_heads["n_needed"].astype("Float64")
    there = (needed <= (open_heads["sink_rate"] * open_heads["n_inputs"]).round()).fillna(False)
    more = needed.notna() & ~there
    told = []
    if there.any():
        told.append(
            f"For {_of(int(there.sum()), len(open_heads))}: "
            f"sinkscope verify DIR --again --inputs {int(needed[there].max())}."
        )
    if more.any():
        inputs = math.ceil(float((needed[more] / open_heads["sink_rate"][more]).max()))
        told.append(
            f"For {_of(int(more.sum()), len(open_heads))}: diagnose about {inputs:,} inputs, since no verdict can be "
            "had from the few on which they have a sink."
        )
    rest = int((~there & ~more).sum())
    if rest:
        told.append(
            f"For {_of(rest, len(open_heads))}: more inputs will not help, the table of verdicts says what may."
        )
    return told


def _labelled(advice: Advice) -> tuple[tuple[str, Sequence[str]], ...]:
    return ("Measured", advice.evidence), ("Source", advice.sources), ("Caution", advice.cautions)


def _wrapped(lead: str, text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=lead, subsequent_indent=" " * indent, break_on_hyphens=False)


def _pairs(heads: pd.DataFrame) -> tuple[Head, ...]:
    return tuple((int(layer), int(head)) for layer, head in zip(heads["layer"], heads["head"], strict=True))


def _names(heads: pd.DataFrame) -> str:
    names = [f"L{layer}.H{head}" for layer, head in sorted(_pairs(heads))]
    more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
    return " ".join([", ".join(names[:_NAMED]), *more])


def _count(n: int, noun: str = "head") -> str:
    return f"{n:,} {noun}{_verb(n, '', 's')}"


def _verb(n: int, one: str = "is", many: str = "are") -> str:
    return one if n == 1 else many


def _of(n: int, total: int) -> str:
    return _verb(total, "this", "these") if n == total else f"{n:,} of them"


def _span(values: pd.Series, form: Any) -> str:
    low, high = form(values.min()), form(values.max())
    return low if low == high else f"{low} to {high}"


def _percent(share: float) -> str:
    percent = 100 * share
    if 0 <= percent < 0.01:
        return "under 0.01%"
    if 99.5 <= percent < 100:
        return "over 99%"
    return f"{percent:.0f}%" if abs(percent) >= 9.95 else f"{percent:.{1 if abs(percent) >= 0.995 else 2}f}%"
