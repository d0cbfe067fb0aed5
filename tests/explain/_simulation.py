"""A head whose truth is known: values are drawn, and every effect follows from o = A v at the residual stream."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

Draw = Callable[[np.random.Generator], np.ndarray]
DIM, WIDTH = 11, 17


def direction(rng: np.random.Generator) -> np.ndarray:
    """A unit vector."""
    vector = rng.standard_normal(DIM)
    return np.asarray(vector / np.linalg.norm(vector))


def constant(rng: np.random.Generator, norm: float = 1.0) -> Draw:
    vector = norm * direction(rng)
    return lambda _: vector


def content(norm: float = 1.0) -> Draw:
    return lambda rng: norm / np.sqrt(DIM) * rng.standard_normal(DIM)


def mixture(rng: np.random.Generator, constant_energy: float, content_energy: float) -> Draw:
    first, second = constant(rng, np.sqrt(constant_energy)), content(np.sqrt(content_energy))
    return lambda rng: first(rng) + second(rng)


@dataclass(frozen=True)
class World:
    """What surrounds the sink.

    - `common`: share of the energy of ordinary values (which is 1) that all of them have in common.
    - `mass`: mean weight of the queries on the sink. `adaptive`: share of queries that attend to it at all.
    - `gain`: what the head's write is multiplied with; 0 for a head without function.
    - `downstream`: from residual stream to final tokens.
    - `spread`: standard deviation of the logarithm of an input's scale, which all its values share.
    """

    n_inputs: int = 64
    n_tokens: int = 23
    common: float = 0.5
    mass: float = 0.9
    adaptive: float = 1.0
    gain: float = 1.0
    downstream: Callable[[np.ndarray], np.ndarray] = lambda tokens: tokens
    spread: float = 0.0
    residual: float = 5.0


@dataclass(frozen=True)
class _Input:
    weights: np.ndarray
    values: np.ndarray
    residual: np.ndarray


def simulate(
    sink: Draw, world: World, seed: int, head: int = 0, shared: np.ndarray | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """Edits as `read_edits` gives them, the head's row of the table of heads, and its true shares.

    The sink is token 0. Ordinary values are shared + their own part.
    """
    rng = np.random.default_rng([seed, head])
    projection = rng.standard_normal((WIDTH, DIM)) / np.sqrt(DIM)
    shared = direction(rng) if shared is None else shared
    inputs = [_draw(sink, world, shared, rng) for _ in range(world.n_inputs)]
    writes = [each.values @ projection.T for each in inputs]
    rows = []
    zeroed = []
    for here, each in enumerate(inputs):
        for row in _edited(here, inputs, world, rng):
            edit, draw, donor, budget, output = row
            change = world.gain * (output - each.weights @ each.values) @ projection.T
            before = world.gain * each.weights @ writes[here]
            plain = world.downstream(each.residual + before)
            moved = (world.downstream(each.residual + before + change) - plain)[1:]
            if edit == "zero":
                zeroed.append(moved.mean(axis=0))
            energy = (before[1:] ** 2).sum()
            rows.append(
                {
                    "input": f"{here:03d}",
                    "layer": 0,
                    "head": head,
                    "sink": 0,
                    "mass": each.weights[:, 0].mean(),
                    "edit": edit,
                    "draw": draw,
                    "donor": None if donor is None else f"{donor:03d}",
                    "budget": budget,
                    "write": np.sqrt((change[1:] ** 2).sum() / energy) if energy else 0.0,
                    "final": np.sqrt((moved**2).sum() / (plain[1:] ** 2).sum()),
                    "final_norm": np.nan,
                    "common": _common(moved),
                    "output_kl": np.nan,
                    "output_top1": np.nan,
                    "output_loss": np.nan,
                    "_moved": moved.mean(axis=0),
                    "_place": (here, donor),
                }
            )
    for entry in rows:
        moved, (here, donor) = entry.pop("_moved"), entry.pop("_place")
        entry["donor_cosine"] = _cosine(moved, zeroed[here] - zeroed[donor]) if entry["edit"] == "donor" else np.nan
    truth = _truth(writes)
    table = pd.DataFrame([{"layer": 0, "head": head, "kind": "sink", "sink_rate": 1.0, **truth}])
    return pd.DataFrame(rows), table, truth


def _draw(sink: Draw, world: World, shared: np.ndarray, rng: np.random.Generator) -> _Input:
    n = world.n_tokens
    own = rng.standard_normal((n, DIM)) * np.sqrt((1 - world.common) / DIM)
    values = np.sqrt(world.common) * shared + own
    values[0] = sink(rng)
    attending = rng.random(n) < world.adaptive
    column = np.where(attending, rng.beta(20 * world.mass, 20 * (1 - world.mass), n).clip(0, 0.9999), 0.02)
    rest = np.exp(rng.standard_normal((n, n - 1)))
    rest *= ((1 - column) / rest.sum(axis=1))[:, None]
    scale = np.exp(world.spread * rng.standard_normal())
    residual = world.residual * rng.standard_normal((n, WIDTH))
    return _Input(np.concatenate([column[:, None], rest], axis=1), scale * values, residual)


def _edited(
    here: int, inputs: list[_Input], world: World, rng: np.random.Generator
) -> list[tuple[str, int, int | None, float, np.ndarray]]:
    """Edit, draw, donor, budget and the head's output after it."""
    each = inputs[here]
    column, sink = each.weights[:, :1], each.values[0]
    plain = each.weights @ each.values
    others = [place for place in range(len(inputs)) if place != here]

    def replaced(value: np.ndarray) -> np.ndarray:
        return np.asarray(plain + column * (value - sink))

    found: list[tuple[str, int, int | None, float, np.ndarray]] = [
        ("noop", 0, None, np.nan, replaced(sink)),
        ("zero", 0, None, np.nan, replaced(np.zeros(DIM))),
        ("redirect", 0, None, np.nan, (plain - column * sink) / (1 - column)),
        ("random", 0, None, np.nan, replaced(np.linalg.norm(sink) * direction(rng))),
    ]
    if others:
        mean = np.mean([inputs[place].values[0] for place in others], axis=0)
        found.append(("mean", 0, None, np.nan, replaced(mean)))
        donors = rng.choice(others, size=2, replace=len(others) < 2)
        for draw, donor in enumerate(donors):
            token = rng.integers(1, world.n_tokens)
            found.append(("donor", draw, int(donor), np.nan, replaced(inputs[donor].values[0])))
            found.append(("ordinary", draw, int(donor), np.nan, replaced(inputs[donor].values[token])))
    for draw in range(3):
        order = 1 + rng.permutation(world.n_tokens - 1)
        total = np.cumsum(each.weights[:, order].mean(axis=0))
        keys = order[: int(np.searchsorted(total, column.mean())) + 1]
        budget = float(each.weights[:, keys].mean(axis=0).sum() / column.mean())
        found.append(("control", draw, None, budget, plain - each.weights[:, keys] @ each.values[keys]))
    return found


def _truth(writes: list[np.ndarray]) -> dict[str, float]:
    """Definition, pair by pair."""
    sinks = np.stack([each[0] for each in writes])
    ordinary = np.mean([(each[1:] ** 2).sum(axis=1).mean() for each in writes])
    products = sinks @ sinks.T
    energy = float(np.diag(products).mean() / ordinary)
    shared = np.nan
    if len(sinks) > 1:
        shared = float((products.sum() - np.trace(products)) / (len(sinks) * (len(sinks) - 1)) / ordinary)
    return {"silent": max(0.0, 1 - energy), "constant": shared, "content": energy - shared}


def _common(moved: np.ndarray) -> float:
    total = (moved**2).sum()
    return float(len(moved) * (moved.mean(axis=0) ** 2).sum() / total) if total else np.nan


def _cosine(first: np.ndarray, second: np.ndarray) -> float:
    norm = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norm) if norm else np.nan
