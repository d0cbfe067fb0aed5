"""The treatments of pretrained models, and the families that take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from sinkscope.treat import (
    FAMILIES,
    ORDER,
    TREATMENTS,
    AttentionTreatment,
    Form,
    Quantise,
    RemoveHeads,
    Treatment,
)

from .docstring import meanings, prose
from .markdown import plain, table

_EXAMPLES: Mapping[type[Treatment], Callable[[], Treatment]] = {
    Form: lambda: Form("softpick"),
    RemoveHeads: lambda: RemoveHeads(((3, 5),)),
}
"""Treatments that cannot be made without options."""

_PLACES = {
    "registers": "the sequence",
    "prefix": "keys and values",
    "values": "the values",
    "removal": "what can be seen",
    "form": "the softmax, or what replaces it",
    "heads": "which heads are left",
    "norm": "the norm of head outputs",
    "gate": "the gate of head outputs",
    "pathway": "beside attention",
}

_ELSEWHERE: Mapping[type[Treatment], str] = {Quantise: "linear layers"}


def overview() -> str:
    """Where each acts, and how it starts."""
    header = ["treatment", "named", "acts on", "at the start", "needs a probe", "source"]
    return table(header, [_row(kind) for kind in TREATMENTS.values()])


def order() -> str:
    """The places in the order in which they act, with the treatments that take them."""
    by_place: dict[str, list[str]] = {place: [] for place in ORDER}
    for kind in TREATMENTS.values():
        made = _example(kind)
        if isinstance(made, AttentionTreatment):
            by_place[made.slot].append(_link(kind))
    taken = [(place, kinds) for place, kinds in by_place.items() if kinds]
    return "\n".join(f"{at}. {_PLACES[place]}: {', '.join(kinds)}" for at, (place, kinds) in enumerate(taken, 1))


def families() -> str:
    """Whose models can be treated."""
    rows = [[family.title, f"`{family.name}`", family.kind, family.library] for family in FAMILIES]
    return table(["models", "family", "kind", "library"], rows)


def sections() -> str:
    """One section per treatment."""
    return "\n\n".join(_section(kind) for kind in TREATMENTS.values())


def _row(kind: type[Treatment]) -> list[str]:
    made = _example(kind)
    place = _PLACES[made.slot] if isinstance(made, AttentionTreatment) else _ELSEWHERE[kind]
    start = "unchanged" if made.harmless else "changed"
    return [_link(kind), f"`{kind.name}`", place, start, "yes" if made.needs_probe else "no", plain(kind.source)]


def _section(kind: type[Treatment]) -> str:
    told = meanings(kind)
    rows = [
        [f"`{option.name}`", _default(option), plain(told.get(option.name, ""))] for option in dataclasses.fields(kind)
    ]
    parts = [
        f"### {kind.__name__} {{ #{kind.name} }}",
        plain(prose(kind)),
        table(["option", "default", "meaning"], rows),
        f"Source: {plain(kind.source)}.",
    ]
    return "\n\n".join(parts)


def _default(option: dataclasses.Field[Any]) -> str:
    return "" if option.default is dataclasses.MISSING else f"`{option.default!r}`"


def _example(kind: type[Treatment]) -> Treatment:
    return _EXAMPLES.get(kind, kind)()


def _link(kind: type[Treatment]) -> str:
    return f"[`{kind.__name__}`](#{kind.name})"
