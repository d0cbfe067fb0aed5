"""Does a decoder run past its window? A window of keys alone, against the same window with the first tokens kept.

    python experiments/treat/smollm2_streaming.py --data FOLDER [--window 1024] [--quick]

SmolLM2-135M reads three parts of 16,384 tokens of one text (of 46,538 tokens: each shares 1,307 with the next). `dense`
keeps all keys (the model was trained on texts of up to 8,192 tokens); the others keep `window` keys in a `SinkCache`,
of which 0, 1 or 4 are the first tokens of the text; `window + other 4` keeps tokens 8 to 11 in their place, from when
the window is full, a control of equal size. Text goes in by 128 tokens at a time. Every run is a process of its own,
whose peak memory is read from /proc.
Reference: Xiao et al. 2024, arXiv:2309.17453, Figure 3 and Table 1. Written to results/treat-smollm2-streaming:
`rows.parquet` (one row per text, cache and range of positions), `findings.md`, `perplexity.svg`, `memory.svg`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from _common import Clock, Study, markdown, nats, panels, parser, spans, token_ids
from matplotlib.ticker import FixedLocator, FuncFormatter
from transformers import DynamicCache

import sinkscope
from sinkscope.report._style import BLUE, GREEN, INK, ORANGE, VERMILLION
from sinkscope.treat import SinkCache

CACHES = {"dense": None, "window": 0, "window + 1": 1, "window + 4": 4, "window + other 4": 4}
COLOURS = dict(zip(CACHES, (INK, VERMILLION, ORANGE, BLUE, GREEN), strict=True))
LENGTH, TEXTS, CHUNK = 16384, 3, 128
FORGOTTEN = 8
EDGES = (0, 512, 1024, 2048, 4096, 8192, 16384)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--window", type=int, default=1024)
    options.add_argument("--child", nargs=2, metavar=("CACHE", "TEXT"), help=argparse.SUPPRESS)
    given = options.parse_args()
    length, texts = (1024, 2) if given.quick else (LENGTH, TEXTS)
    window = 256 if given.quick else given.window
    if given.child:
        print(json.dumps(child(given.data, given.child[0], int(given.child[1]), length, texts, window)))  # noqa: T201 - read by the parent
        return
    study = Study(given, "smollm2-streaming", ("cache", "text"), window=window, length=length, texts=texts)
    for text in range(texts):
        for cache in CACHES:
            if given.tables or study.has(cache=cache, text=text):
                continue
            command = [sys.executable, __file__, "--data", str(given.data), "--window", str(window)]
            command += ["--child", cache, str(text), *(["--quick"] if given.quick else [])]
            rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            study.add(rows, cache=cache, text=text)
            last = rows[-1]
            study.say(
                f"text {text}, {cache}: perplexity {np.exp(last['loss']):.1f} at {last['first']} to {last['last']}, "
                f"cache {last['cache_mb']:.0f} MB, peak {last['peak_mb']:.0f} MB, {last['seconds']:.0f} s"
            )
    write(study)


def child(data: Path, name: str, text: int, length: int, texts: int, window: int) -> list[dict[str, Any]]:
    """One cache on one text: a row per range of positions."""
    model = sinkscope.load("zoo:smollm2-135m")
    module: Any = model.module
    ids = spans(token_ids(model, data / "text.txt"), texts, length, overlap=True)[text]
    kept = CACHES[name]
    cache: Any = DynamicCache() if kept is None else SinkCache(model, window, kept)
    with torch.inference_mode():
        module(ids[None, :CHUNK], use_cache=False)  # weights are read from their file when they are first used
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew, from what is resident now
    losses = torch.zeros(length)  # small tensors made one by one would keep freed logits from being given back
    clock, loaded, rows = Clock(), resident("VmRSS"), []
    with torch.inference_mode():
        for start in range(0, length, CHUNK):
            logits = module(ids[None, start : start + CHUNK], past_key_values=cache).logits[0]
            targets = ids[start + 1 : start + CHUNK + 1]
            losses[start : start + len(targets)] = nats(logits[: len(targets)], targets)
            end = start + CHUNK
            if name == "window + other 4" and end == window:
                forget_first(cache)
            if end in EDGES:
                first = max(edge for edge in EDGES if edge < end)
                part = losses[first : min(end, length - 1)]
                rows.append(
                    {
                        "first": first,
                        "last": end,
                        "loss": float(part.mean()),
                        "cache_mb": size(cache) / 2**20,
                        "peak_mb": resident("VmHWM"),
                        "loaded_mb": loaded,
                        "seconds": clock.seconds(),
                    }
                )
    return rows


def forget_first(cache: SinkCache) -> None:
    """Drops the first tokens of a cache, so that the next ones stand in their place and are kept."""
    for layer in cache.layers:
        layer.keys = layer._turned(layer.keys[..., FORGOTTEN:, :], -FORGOTTEN)
        layer.values = layer.values[..., FORGOTTEN:, :]
        layer.seen -= FORGOTTEN


def size(cache: Any) -> int:
    """Bytes of keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def resident(kind: str) -> float:
    """Resident memory in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def write(study: Study) -> None:
    table = study.table()
    parts = list(dict.fromkeys(zip(table["first"], table["last"], strict=True)))
    head = ["keys kept", *(f"{first} to {last}" for first, last in parts)]
    perplexity, memory = [], []
    for cache, of in table.groupby("cache", sort=False):
        columns = [of[of["last"] == last] for _, last in parts]
        perplexity.append([cache, *(span(np.exp(column["loss"])) for column in columns)])
        memory.append(
            [cache, *(f"{c['cache_mb'].mean():.1f} / {(c['peak_mb'] - c['loaded_mb']).max():.0f}" for c in columns)]
        )
    study.findings(
        "### Perplexity at positions of the text, mean over texts (smallest to largest)",
        markdown(head, perplexity),
        "### Memory up to there: keys and values / peak of the process beyond the loaded model, MB",
        markdown(head, memory),
    )
    draw(study, table, "perplexity", lambda row: np.exp(row["loss"]), "perplexity")
    draw(study, table, "memory", lambda row: row["cache_mb"], "keys and values, MB")


def span(values: pd.Series) -> str:
    """Mean and range over texts."""
    return f"{values.mean():.1f} ({values.min():.1f} to {values.max():.1f})"


def draw(study: Study, table: pd.DataFrame, name: str, value: Callable[[pd.DataFrame], pd.Series], title: str) -> None:
    figure, (panel,) = panels(1, 6.4)
    for cache, of in table.groupby("cache", sort=False):
        for text, row in of.groupby("text"):
            panel.plot(row["last"], value(row), color=COLOURS[cache], lw=1.2, label=cache if text == 0 else None)
    panel.set(xscale="log", yscale="log", xlabel="tokens read", ylabel=title)
    panel.xaxis.set_major_locator(FixedLocator(sorted(set(table["last"]))))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda tokens, _: f"{tokens:g}"))
    panel.minorticks_off()
    panel.legend(fontsize=9)
    study.figure(name, figure)


if __name__ == "__main__":
    main()
