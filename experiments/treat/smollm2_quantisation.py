"""Does a quantised model profit from having its sink out of the sequence? SmolLM2-135M in 8 bits.

    python experiments/treat/smollm2_quantisation.py --data FOLDER [--quick]

The loss of the language model on 16 windows of 256 tokens, behind a prefix of one or four tokens drawn from the text:
`in the sequence`, where the first token is massive, or `moved out`, into prefix key-values that were filled in full
precision (`PrefixKV`, `fill_prefix`), which in full precision gives the same function. Both are run in full precision
and simulated 8 bits with one scale per tensor, and, for reference, per token and per channel; and the model without a
prefix. Three draws of the prefix; differences are paired by window and draw, with bootstrap intervals over windows.
Written to results/treat-smollm2-quantisation: `rows.parquet` (one row per window), `activations.csv` (inputs of the
linear layers), `findings.md`, `activations.svg`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Clock, Study, markdown, nats, panels, parser, shown, spans, token_ids
from torch import Tensor, nn

import sinkscope
from sinkscope.models import Model
from sinkscope.report._style import BLUE, INK, VERMILLION
from sinkscope.treat import PrefixKV, Quantise, fill_prefix

GRANULARITIES = ("none", "tensor", "token", "channel")
COUNTS = (1, 4)
DRAWS = 3
PLACES = {"no prefix": INK, "in the sequence": VERMILLION, "moved out": BLUE}


def main() -> None:
    given = parser(__doc__).parse_args()
    texts, length = (4, 64) if given.quick else (16, 256)
    study = Study(given, "smollm2-quantisation", ("place", "count", "draw", "scales"), texts=texts, length=length)
    if not given.tables:
        model = sinkscope.load("zoo:smollm2-135m")
        ids = token_ids(model, given.data / "text.txt")
        windows = spans(ids, texts, length)
        for key, prefix in cases(ids, 1 if given.quick else DRAWS):
            scales = [name for name in GRANULARITIES if not study.has(**key, scales=name)]
            placed = in_place(model, key["place"], prefix) if scales else model
            for name in scales:
                clock = Clock()
                rounded = placed if name == "none" else sinkscope.treat(placed, Quantise(8, name))
                if name == "none":
                    study.add_to("activations.csv", activations(rounded, windows[:4], key["place"], prefix), **key)
                found = losses(rounded, windows, key["place"], prefix)
                study.add(({"text": text, "loss": loss} for text, loss in enumerate(found)), **key, scales=name)
                study.say(f"{key}, scales per {name}: {found.mean():.3f} nats, {clock.seconds():.0f} s")
    write(study)


def cases(ids: Tensor, draws: int) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """Where the prefix is, and its tokens."""
    yield {"place": "no prefix", "count": 0, "draw": 0}, ids[:0]
    for count in COUNTS:
        for draw in range(draws):
            start = int(np.random.default_rng([count, draw]).integers(len(ids) - count))
            for place in ("in the sequence", "moved out"):
                yield {"place": place, "count": count, "draw": draw}, ids[start : start + count]


def in_place(model: Model, place: str, prefix: Tensor) -> Model:
    """The model, with the prefix in its key-values where it is moved out."""
    if place != "moved out":
        return model
    treated = sinkscope.treat(model, PrefixKV(len(prefix)), probe=prefix[None])
    fill_prefix(treated, prefix[None])
    return treated


def losses(model: Model, windows: Tensor, place: str, prefix: Tensor) -> np.ndarray:
    """Nats per token of every window, its first token left out."""
    module: Any = model.module
    found = []
    with torch.inference_mode():
        for part in windows.split(8):
            ids, kwargs = placed(part, place, prefix)
            logits = module(ids, use_cache=False, **kwargs).logits[:, -part.shape[1] : -1]
            found.append(nats(logits, part[:, 1:]).mean(1))
    return torch.cat(found).double().numpy()


def placed(windows: Tensor, place: str, prefix: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What the model is given."""
    if place == "in the sequence":
        return torch.cat([prefix.expand(len(windows), -1), windows], 1), {}
    return windows, {"position_ids": torch.arange(windows.shape[1])[None] + len(prefix)}


def activations(model: Model, windows: Tensor, place: str, prefix: Tensor) -> list[dict[str, Any]]:
    """The largest and the median magnitude that goes into every linear layer of the blocks."""
    found: dict[str, dict[str, Any]] = {}
    ids, kwargs = placed(windows, place, prefix)
    module: Any = model.module
    with torch.inference_mode(), watched(module, found):
        module(ids, use_cache=False, logits_to_keep=1, **kwargs)
    return list(found.values())


@contextmanager
def watched(module: nn.Module, found: dict[str, dict[str, Any]]) -> Iterator[None]:
    def note(name: str, x: Tensor) -> None:
        size = x.abs().flatten()
        block = int(name.split(".layers.")[1].split(".", maxsplit=1)[0])
        largest, median = float(size.max()), float(size.median())
        found[name] = {"block": block, "layer": name.rpartition(".")[2], "largest": largest, "median": median}

    handles = [
        part.register_forward_pre_hook(lambda _module, args, name=name: note(name, args[0]))
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and ".layers." in name
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def write(study: Study) -> None:
    table = study.table()
    means = table.groupby(["place", "count", "scales", "text"], sort=False)["loss"].mean().unstack("text")
    rows = []
    for (place, count, scales), losses in means.iterrows():
        if scales == "none":
            continue
        full = means.loc[(place, count, "none")]
        saved = "–"
        if place == "moved out":
            saved = shown(means.loc[("in the sequence", count, scales)].to_numpy() - losses.to_numpy())
        more = shown(losses.to_numpy() - full.to_numpy())
        rows.append([count, place, scales, f"{np.exp(full.mean()):.2f}", f"{np.exp(losses.mean()):.2f}", more, saved])
    head = ["tokens of prefix", "prefix", "one scale per", "perplexity, full precision", "8 bits"]
    head += ["more nats by 8 bits, 95%", "of these saved by moving it out"]
    largest = study.further("activations.csv")
    largest["ratio"] = largest["largest"] / largest["median"]
    inputs = largest.groupby(["place", "count", "layer"], sort=False)[["largest", "ratio"]].max().reset_index()
    study.findings(
        "### 8-bit weights and activations, SmolLM2-135M",
        markdown(head, rows),
        "### The largest activation that goes into a linear layer, over all blocks",
        markdown(
            ["prefix", "tokens", "layer", "largest", "largest / median"],
            ((r.place, r.count_, r.layer, f"{r.largest:.4g}", f"{r.ratio:.3g}") for r in renamed(inputs)),
        ),
    )
    draw(study, largest)


def renamed(table: pd.DataFrame) -> Iterator[Any]:
    """Rows as tuples, whose method `count` is in the way of the column."""
    return table.rename(columns={"count": "count_"}).itertuples(index=False)


def draw(study: Study, largest: pd.DataFrame) -> None:
    names = list(dict.fromkeys(largest["layer"]))
    figure, axes = panels(len(names), 2.6, 2.8)
    for panel, name in zip(axes, names, strict=True):
        for place, colour in PLACES.items():
            of = largest[(largest["layer"] == name) & (largest["place"] == place)].groupby("block")["largest"].max()
            panel.plot(of.index, of, color=colour, lw=1.2, label=place)
        panel.set(title=name, yscale="log", xlabel="block")
    axes[0].set_ylabel("largest |input|")
    axes[0].legend(fontsize=8)
    study.figure("activations", figure)


if __name__ == "__main__":
    main()
