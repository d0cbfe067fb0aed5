"""Artifacts of invented models, written with the project's own writer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from sinkscope.artifact import GalleryItem, build_manifest, open_artifact, open_run
from sinkscope.explain import build_heads, get_rule
from tests._verdicts import fabricate

DIM = 7
GRID = 7
WORDS = ("the", " cat", " sat", ",", "\n", " on", " a", " mat", ".", " It", " slept", " well", "!")


@dataclass(frozen=True)
class Fake:
    """What an invented model and its run are like; `strength` scales every sink's mass (0: no sinks at all)."""

    layers: int = 11
    heads: int = 5
    inputs: int = 13
    text: bool = False
    wordpiece: bool = False
    strength: float = 1.0
    routed: float = 1.0
    projection: bool = True
    roles: bool = True
    queries: str | int = "all"
    rule: str = "fesser"
    reference: str = "zoo:invented"
    names: tuple[str, ...] = ()
    gallery: bool = True
    gaps: tuple[tuple[str, str], ...] = ()
    bad_inputs: tuple[tuple[str, str], ...] = ()
    seed: int = 3
    batch: int = 0
    verdicts: tuple[str, ...] = ()
    """Words of the sink heads, in turn; none: no head was edited."""
    everything: bool = False

    def name(self, index: int) -> str:
        if index < len(self.names):
            return self.names[index]
        return f"window-{index:04d}" if self.text else f"picture-{index:04d}.jpg"


def write_fake(folder: Path, fake: Fake | None = None) -> Path:
    """Writes the artifact of `fake` into `folder`, complete with heads and gallery."""
    fake = fake or Fake()
    rng = np.random.default_rng(fake.seed)
    rule = get_rule(fake.rule)
    manifest = build_manifest(
        model={
            "reference": fake.reference,
            "class": "InventedModel",
            "modality": "text" if fake.text else "vision",
            "weights_sha256": "0123456789abcdef" * 4,
            "parameters": 22_056_577,
            "dtype": "float32",
            "notes": [],
        },
        inputs={
            "kind": "text" if fake.text else "images",
            "location": "here",
            "count": fake.inputs,
            "sha256": "ab" * 32,
        },
        options={"batch_size": 8, "limit": None, "queries": fake.queries, "seed": 0, "device": "cpu", "skip_bad": True},
        rule=rule.to_dict(),
        command=f"sinkscope diagnose {fake.reference} --out {folder.name}",
    )
    manifest["created"] = "2026-01-02T03:04:05+00:00"
    run = open_run(folder, manifest)
    projection = "proj" if fake.projection else None
    run.record_capture(
        {
            "attention_modules": fake.layers + len(fake.gaps),
            "captured_modules": fake.layers,
            "calls": fake.layers,
            "layers": [
                {
                    "layer": layer,
                    "module": f"encoder.layer.{layer}.attention",
                    "route": "fused",
                    "heads": fake.heads,
                    "head_dim": DIM,
                    "projection": projection,
                    "layer_scale": False,
                }
                for layer in range(fake.layers)
            ],
            "gaps": [{"module": module, "reason": reason} for module, reason in fake.gaps],
            "line": f"captured {fake.layers} of {fake.layers + len(fake.gaps)} attention modules",
        },
        np.tile(np.eye(DIM), (fake.layers, fake.heads, 1, 1)) if fake.projection else None,
    )
    common = rng.normal(size=(fake.layers, fake.heads, DIM)) / np.sqrt(DIM)
    batch = fake.batch or fake.inputs
    for part, start in enumerate(range(0, fake.inputs, batch)):
        indices = range(start, min(start + batch, fake.inputs))
        events, vectors = _rows(fake, indices, common, rng)
        if fake.gallery and part == 0:
            for index in indices[:3]:
                run.write_gallery(index, *_gallery(fake, index, events, rng))
        run.write_part(
            part,
            events,
            vectors,
            n_tokens=(_tokens(fake), _tokens(fake)),
            bad_inputs=dict(fake.bad_inputs),
            seconds=1.5,
        )
    run.finish()
    run.write_heads(build_heads(open_artifact(folder), rule))
    if fake.verdicts:
        fabricate(folder, words=fake.verdicts, inputs=fake.inputs, everything=fake.everything)
    return folder


def _tokens(fake: Fake) -> int:
    return 53 if fake.text else 1 + GRID**2


def _plan(fake: Fake) -> dict[str, np.ndarray]:
    """Per (layer, head): sink mass, update ratio, stable rank, share of constant, whether a patch or word sinks."""
    depth = np.linspace(0, 1, fake.layers)[:, None] if fake.layers > 1 else np.zeros((1, 1))
    kind = np.broadcast_to(np.arange(fake.heads) % 5, (fake.layers, fake.heads))
    early, late = np.exp(-3 * depth), 1 / (1 + np.exp(-9 * (depth - 0.5)))
    mass = np.choose(
        kind, [0.35 + 0.6 * early, 0.96 * late + 0.02, 0.25 + 0.4 * late, 0.03 + 0 * depth, 0.04 + 0 * depth]
    )
    return {
        "mass": fake.strength * mass.clip(0.02, 0.97),
        "update": np.choose(kind, [1.3, 0.06, 0.8, 1.0, 1.0]),
        "rank": np.choose(kind, [1.1, 5.0, 1.4, 1.05, 8.0]),
        "constant": np.choose(kind, [0.2, 0.5, 0.95, 0.5, 0.5]),
        "moved": np.where(kind == 1, 1.0, late * (kind != 2)),
        "diagonal": np.choose(kind, [0.05, 0.02, 0.1, 0.03, 0.8]),
        "entropy": np.choose(kind, [0.4, 0.1, 0.5, 0.985, 0.3]),
    }


def _rows(
    fake: Fake, indices: range, common: np.ndarray, rng: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    plan, n = _plan(fake), _tokens(fake)
    shape = (len(indices), fake.layers, fake.heads)

    def noisy(values: np.ndarray | float, spread: float) -> np.ndarray:
        return cast(np.ndarray, values * np.exp(spread * rng.normal(size=shape)))

    mass = (plan["mass"] + 0.08 * plan["mass"] * rng.normal(size=shape)).clip(0.01, 0.995)
    moved = rng.random(shape) < plan["moved"]
    sink = np.where(moved, rng.integers(1, n // 2, size=shape), 0)
    routed = fake.routed * np.clip(1.25 * mass - 0.1 + 0.05 * rng.normal(size=shape), 0, 1)
    patch = (sink > 0) & (not fake.text)
    role = np.where(sink == 0, "bos" if fake.text else "cls", "word" if fake.text else "patch").astype(object)
    role[(sink % 3 == 2) & fake.text] = "punctuation"
    values = {
        "input": np.broadcast_to(np.array([fake.name(i) for i in indices], object)[:, None, None], shape),
        "layer": np.broadcast_to(np.arange(fake.layers)[:, None], shape),
        "head": np.broadcast_to(np.arange(fake.heads), shape),
        "sink": sink,
        "role": role if fake.roles else np.full(shape, None, object),
        "row": _where(patch & fake.roles, (sink - 1) // GRID),
        "col": _where(patch & fake.roles, (sink - 1) % GRID),
        "mass": mass,
        "routed": routed,
        "min_mass": 0.5 * mass,
        "value_ratio": noisy(plan["update"], 0.3) * 1.4,
        "update_ratio": noisy(plan["update"], 0.35) if fake.projection else np.full(shape, np.nan),
        "stable_rank": 1 + noisy(plan["rank"] - 1, 0.3) if fake.projection else np.full(shape, np.nan),
        "diagonal": noisy(plan["diagonal"], 0.05),
        "entropy": plan["entropy"] * np.log(n) * np.ones(shape),
        "entropy_share": plan["entropy"] * np.ones(shape),
        "hidden_norm": noisy(np.where(mass >= 0.3, 9 + 900 * _late(fake), 11), 0.2),
        "hidden_norm_median": noisy(11 + 20 * _late(fake), 0.1)[:, :, :1] * np.ones(shape),
        "virtual_mass": np.zeros(shape),
        **({"mass_se": np.full(shape, 0.0173)} if fake.queries != "all" else {}),
    }
    events: dict[str, Any] = {name: list(column.reshape(-1)) for name, column in values.items()}
    events["top_sinks"] = [[key, key + 1, key + 2, key + 3] for key in sink.reshape(-1).tolist()]
    events["top_masses"] = [[m, 0.004, 0.003, 0.002] for m in mass.reshape(-1).tolist()]
    rows = np.argwhere(mass >= 0.3) if fake.projection else np.zeros((0, 3), int)
    _, layer, head = rows.T
    share = plan["constant"][layer, head][:, None]
    size = plan["update"][layer, head][:, None]
    own = rng.normal(size=(len(rows), DIM)) / np.sqrt(DIM)
    value = size * (np.sqrt(share) * common[layer, head] + np.sqrt(1 - share) * own)
    energy = np.broadcast_to(np.array([1.0, 1.0, 2.0, 1.0]), (*shape, 4)).copy()
    if not fake.projection:
        energy[..., 1:] = np.nan
    return events, {
        "energy": energy,
        "rows": rows,
        "sink_value": value,
        "sink_energy": (value**2).sum(axis=1),
        "ordinary_energy": np.ones(len(rows)),
    }


def _where(holds: np.ndarray, values: np.ndarray) -> np.ndarray:
    placed = values.astype(object)
    placed[~holds] = None
    return placed


def _late(fake: Fake) -> np.ndarray:
    return (np.linspace(0, 1, fake.layers) ** 4)[:, None]


def _gallery(
    fake: Fake, index: int, events: dict[str, Any], rng: np.random.Generator
) -> tuple[GalleryItem, Image.Image | None]:
    n, per_input = _tokens(fake), fake.layers * fake.heads
    at = slice(index * per_input, (index + 1) * per_input)
    sinks, masses = np.array(events["sink"][at], int), np.array(events["mass"][at])
    mass = rng.dirichlet(np.full(n, 0.3), size=per_input) * (1 - masses[:, None])
    mass[np.arange(per_input), sinks] = masses
    words = ("it", "slept", "##s", ".") if fake.wordpiece else WORDS
    item = GalleryItem(
        input=fake.name(index),
        kind="text" if fake.text else "picture",
        mass=mass.reshape(fake.layers, fake.heads, n).astype(np.float32),
        rows=None if fake.text else GRID,
        cols=None if fake.text else GRID,
        prefix=0 if fake.text else 1,
        tokens=("<s>", *(words[i % len(words)] for i in range(n - 1))) if fake.text else None,
        roles=(("bos", *["word"] * (n - 1)) if fake.text else ("cls", *["patch"] * (n - 1))) if fake.roles else None,
    )
    if fake.text:
        return item, None
    y, x = np.mgrid[0:112, 0:112] / 112
    wave = [np.sin(8 * x * (index + 1) + k) * np.cos(5 * y + k) for k in range(3)]
    return item, Image.fromarray(np.uint8(127 + 120 * np.stack(wave, axis=-1)))
