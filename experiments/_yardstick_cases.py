"""Which heads of which models the yardstick plants: balanced over mechanisms, masses, sinks; by a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from sinkscope.tasks import Plan

PARTS = {"fit": 0, "score": 1}
"""Even layers are for fitting thresholds, odd ones are only scored."""

MASSES = (0.95, 0.5, 0.9, 0.35, 0.75, 0.6, 0.99, 0.4)
MIXTURES = ((0.5, 0.5, 0.0), (0.2, 0.5, 0.3), (0.2, 0.2, 0.6), (0.5, 0.0, 0.5), (0.8, 0.1, 0.1), (0.0, 0.5, 0.5))
MECHANISMS = (
    "nop", "broadcast", "bias", "mixture", "nop", "broadcast", "bias", "inert", "nop", "broadcast", "bias", "uniform",
    "adaptive", "broadcast", "bias", "diagonal", "nop", "broadcast", "mixture", "dead",
)  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model to plant in.

    - `fixed`: sinks at a fixed place, for what needs no content; from layer `fixed_from` on.
    - `feature`: the sink that can hand out content in every layer.
    - `content`: fixed sinks whose content a linear map can tell, from layer `content_from` on.
    - `inert`: has LayerNorms, so that a head can be inert; an RMSNorm takes nothing off.
    - `copies`: how many copies per part.
    """

    reference: str
    data: str
    layers: int
    heads: int
    fixed: tuple[str, ...]
    feature: str
    copies: int
    fixed_from: int = 0
    content: tuple[str, ...] = ()
    content_from: int = 0
    inert: bool = True


SUBJECTS = {
    "dinov2": Subject("zoo:dinov2-small-saliency", "images", 12, 6, ("cls",), "patch", 10, 0, ("cls",), 7),
    "minilm": Subject("zoo:minilm-l6", "text.txt", 6, 12, ("cls", "sep"), "word", 20, 0, ("sep",), 2),
    "smollm2": Subject("zoo:smollm2-135m", "text.txt", 30, 9, ("first",), "word", 4, 3, inert=False),
}


def copies(name: str, part: str) -> Iterator[tuple[int, list[Plan]]]:
    """Number of a copy, and the heads to plant in it: one in every layer of the part."""
    subject = SUBJECTS[name]
    random = np.random.default_rng([list(SUBJECTS).index(name), PARTS[part]])
    layers = range(PARTS[part], subject.layers, 2)
    slots = subject.copies * len(layers)
    mechanisms = iter(random.permutation(np.resize(MECHANISMS, slots)).tolist())
    masses = iter(random.permutation(np.resize(MASSES, slots)).tolist())
    for number in range(subject.copies):
        yield number, [_plan(subject, layer, next(mechanisms), next(masses), random) for layer in layers]


def _plan(subject: Subject, layer: int, mechanism: str, mass: float, random: np.random.Generator) -> Plan:
    head, seed = int(random.integers(subject.heads)), int(random.integers(2**31))
    fixed = str(random.choice(subject.fixed)) if layer >= subject.fixed_from else None
    told = [*(subject.content if layer >= subject.content_from else ()), subject.feature, subject.feature]
    sink = str(random.choice(told))
    mixture = MIXTURES[int(random.integers(len(MIXTURES)))]
    if mechanism in ("uniform", "diagonal", "dead"):
        return Plan(layer, head, mechanism, mass=max(mass, 0.5), seed=seed)
    if mechanism == "inert" and not subject.inert:
        mechanism = "nop"
    if fixed is None and mechanism in ("nop", "bias", "inert", "adaptive"):
        mechanism = "broadcast"  # the first token cannot be told from others yet, and words cannot be silenced
    if mechanism == "adaptive":
        return Plan(layer, head, "nop", str(fixed), 0.9, parked=float(random.uniform(0.45, 0.8)), seed=seed)
    if mechanism == "mixture":
        place = sink if mixture[2] > 0 or fixed is None else str(fixed)
        return Plan(layer, head, "mixture", place, mass, mixture, seed=seed)
    return Plan(layer, head, mechanism, sink if mechanism == "broadcast" else str(fixed), mass, seed=seed)
