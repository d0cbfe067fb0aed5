"""What causal edits cost: against the number of edited heads, and against one forward pass per edit and batch.

    python benchmarks/verify.py [--rounds 3] [--heads 1,2,4,8] [--inputs 8] [--cases NAME,...] [--results FOLDER]

Heads are spread over the layers of the model; every one is edited on every input at its key of largest mass, with all
edits of `sinkscope verify`. The plain way runs the whole model once per edit, head and batch of the same inputs, with
a hook on the attention's output projection that changes the head's columns: it is timed on forward passes that change
nothing, as many as it would need. Both run in turn, round after round, in one process; ratios are taken within a round,
the median over rounds is written with the smallest and largest. A row is one input under one edit of one head. Written:
`verify.json`, and `verify.svg` with both ways against the number of heads.
What verify.json holds of other cases on the same machine stays there.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import torch
from _common import in_words, machine, merged, over_rounds, write

import sinkscope
from sinkscope.artifact import read_edits
from sinkscope.capture import AttentionCall, capture
from sinkscope.explain.edits import EditOptions, edit_heads
from sinkscope.measure import measure_call
from sinkscope.models import Batch, Model


@dataclass(frozen=True)
class Case:
    """A model and a shape of input: a side in pixels, or a number of tokens."""

    name: str
    reference: str
    size: int


CASES = (
    Case("dinov2-s 224 px", "zoo:dinov2-small-saliency", 224),
    Case("minilm 128 tokens", "zoo:minilm-l6", 128),
    Case("smollm2 128 tokens", "zoo:smollm2-135m", 128),
)


class Fixed:
    """Random inputs in batches of eight."""

    def __init__(self, model: Model, size: int, inputs: int) -> None:
        torch.manual_seed(0)
        self.identity: dict[str, Any] = {}
        self.made = []
        for index, start in enumerate(range(0, inputs, 8)):
            count = min(8, inputs - start)
            pictures = model.modality == "vision"
            x = torch.randn(count, 3, size, size) if pictures else torch.randint(1000, 20000, (count, size))
            self.made.append(Batch(index, tuple(str(start + row) for row in range(count)), (x,)))

    @property
    def n_batches(self) -> int:
        return len(self.made)

    def batches(self, *, skip: frozenset[int] = frozenset(), rank: int = 0, world: int = 1) -> Iterator[Batch]:
        return (batch for batch in self.made if batch.index not in skip)


def events(model: Model, inputs: Fixed) -> pd.DataFrame:
    """The key of largest mass of every head on every input."""
    rows: list[dict[str, Any]] = []
    names: list[tuple[str, ...]] = []

    def on_call(call: AttentionCall) -> None:
        valid = torch.ones(call.shape[0], call.shape[2], dtype=torch.bool)
        found = measure_call(call, valid, None)
        for row, name in enumerate(names[-1]):
            for head in range(call.shape[1]):
                sink, mass = int(found.sink[row, head]), float(found.mass[row, head])
                rows.append({"input": name, "layer": call.layer, "head": head, "sink": sink, "mass": mass})

    with capture(model.module, on_call) as calls:
        for batch in inputs.batches():
            names.append(batch.names)
            model.run(batch)
            calls.settle()
    return pd.DataFrame(rows)


def spread(found: pd.DataFrame, count: int) -> pd.DataFrame:
    """`count` heads at even distances among all of them."""
    heads = found[["layer", "head"]].drop_duplicates().sort_values(["layer", "head"]).to_numpy().tolist()
    if count > len(heads):
        raise SystemExit(f"--heads {count}: the model has {len(heads)}")
    picked = [heads[(2 * number + 1) * len(heads) // (2 * count)] for number in range(count)]
    return found.set_index(["layer", "head"]).loc[[tuple(head) for head in picked]].reset_index()


def edit(model: Model, inputs: Fixed, chosen: pd.DataFrame, freeze_all: bool) -> tuple[float, pd.DataFrame]:
    """Seconds and the edits."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        edit_heads(model, inputs, chosen, Path(folder), EditOptions(freeze_all=freeze_all))
        return time.perf_counter() - began, read_edits(folder)


def plain_seconds(model: Model, inputs: Fixed) -> float:
    """Of one forward pass over all inputs."""
    began = time.perf_counter()
    for batch in inputs.batches():
        model.run(batch)
    return time.perf_counter() - began


def measured(case: Case, heads: list[int], n_inputs: int, rounds: int, freeze_all: bool) -> list[dict[str, Any]]:
    model = sinkscope.load(case.reference)
    inputs = Fixed(model, case.size, n_inputs)
    found = events(model, inputs)
    seconds: dict[int, list[float]] = {count: [] for count in heads}
    ratios: dict[int, list[float]] = {count: [] for count in heads}
    made: dict[int, pd.DataFrame] = {}
    for _ in range(rounds):
        for count in heads:
            before = plain_seconds(model, inputs)
            took, made[count] = edit(model, inputs, spread(found, count), freeze_all)
            forward = (before + plain_seconds(model, inputs)) / 2
            passes = len(made[count][["layer", "head", "edit", "draw"]].drop_duplicates())
            seconds[count].append(took)
            ratios[count].append(passes * forward / took)
    rows = []
    for count in heads:
        row: dict[str, Any] = {"case": case.name, "heads": count, "inputs": n_inputs, "frozen": freeze_all}
        row |= {"rounds": rounds, "rows": len(made[count]), "seconds": statistics.median(seconds[count])}
        row["milliseconds per row"] = 1000 * row["seconds"] / row["rows"]
        row["times faster than the plain way"] = over_rounds(ratios[count])
        rows.append(row)
        later = "frozen" if freeze_all else "responding"
        print(
            f"{case.name:20}{later:>12}{count:7}{row['rows']:8}{row['seconds']:10.1f}"
            f"{row['milliseconds per row']:12.1f}{in_words(row['times faster than the plain way']):>22}",
            flush=True,
        )
    return rows


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Seconds against edited heads, both ways."""
    names = list(dict.fromkeys(row["case"] for row in rows))
    with matplotlib.rc_context({"svg.hashsalt": "sinkscope"}):
        figure, axes = plt.subplots(1, len(names), figsize=(3.8 * len(names), 3.2), layout="constrained", squeeze=False)
        for panel, name in zip(axes[0], names, strict=True):
            own = [row for row in rows if row["case"] == name]
            heads, seconds = [row["heads"] for row in own], [row["seconds"] for row in own]
            times = [row["times faster than the plain way"]["median"] for row in own]
            panel.plot(heads, [a * b for a, b in zip(seconds, times, strict=True)], "s--", label="one forward per edit")
            panel.plot(heads, seconds, "o-", label="sinkscope")
            panel.set(title=name, xlabel="edited heads", ylim=(0, None))
        axes[0][0].set_ylabel("seconds")
        axes[0][0].legend()
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--heads", default="1,2,4,8", help="numbers of edited heads, comma separated")
    parser.add_argument("--inputs", type=int, default=8)
    parser.add_argument("--cases", default="", help="only these, comma separated")
    parser.add_argument("--freeze-all", action="store_true", help="with frozen attention in later layers")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of verify.json")
    options = parser.parse_args()
    print(machine())
    print(f"{'case':20}{'later layers':>12}{'heads':>7}{'rows':>8}{'seconds':>10}{'ms per row':>12}{'faster':>22}")
    heads = [int(number) for number in options.heads.split(",")]
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if not options.cases or case.name in options.cases.split(","):
            rows += measured(case, heads, options.inputs, options.rounds, options.freeze_all)
    path: Path = options.results / "verify.json"
    rows = merged(path, rows, ("case", "heads", "inputs", "frozen"))
    write(path, rows)
    draw(rows, options.results / "verify.svg")


if __name__ == "__main__":
    main()
