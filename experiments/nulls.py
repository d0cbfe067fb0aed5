"""False alarms: how many heads of models without mechanisms get a word that claims one.

    python experiments/nulls.py --data FOLDER --runs FOLDER [--models dinov2,minilm,smollm2] [--seeds 2] [--inputs 24]
                                [--every 1]
    python experiments/nulls.py --runs FOLDER --tables

Three kinds of null, of each model: `random`, the architecture with the weights its configuration starts from;
`permuted`, the pretrained model with the entries of every weight matrix permuted, each matrix on its own, norms, biases
and embeddings of positions left; `shuffled`, the pretrained model on inputs whose tokens are in random order (texts:
ids behind the special token at the start, pictures: patches of 14 pixels). Every head of kind `sink` is verified, as by
default; with `--every K` only every K-th of the pretrained model's on whole or shuffled inputs. The first two have
nothing to find; `shuffled` keeps the mechanisms that need no order, so that its sinks are no false alarms: it is shown
beside the model on its own inputs. Written to experiments/results/nulls: `heads.csv`, `findings.md`.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from _yardstick_cases import SUBJECTS
from torch import Tensor, nn
from yardstick import inputs_of

import sinkscope
from sinkscope.artifact import open_artifact, write_text
from sinkscope.explain import wilson

OUT = Path(__file__).parent / "results" / "nulls"
KINDS = ("random", "permuted", "shuffled", "as it is")
QUIET = ("no sink", "undecided", "inert")
PATCH = 14
MARK = "null.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--models", default=",".join(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--inputs", type=int, default=24)
    parser.add_argument("--every", type=int, default=1, help="verify every K-th sink head of what is no false alarm")
    parser.add_argument("--tables", action="store_true", help="only tables, of what is there")
    given = parser.parse_args()
    if not given.tables:
        if given.data is None:
            parser.error("--data is missing")
        for name in given.models.split(","):
            run(name, given.data, given.runs, given.seeds, given.inputs, given.every)
    write_tables(given.runs)


def run(name: str, data: Path, runs: Path, seeds: int, count: int, every: int) -> None:
    """Diagnose and verify all nulls of a model that are not there yet."""
    model = sinkscope.load(SUBJECTS[name].reference)
    inputs = inputs_of(model, data / SUBJECTS[name].data)[-count:]
    for kind in KINDS:
        for seed in range(1 if kind == "as it is" else seeds):
            out = runs / name / f"{kind.replace(' ', '-')}-{seed}"
            if (out / MARK).is_file():
                continue
            generator = torch.Generator().manual_seed(seed)
            null, given = model, inputs
            if kind == "random":
                null = replace(model, module=restarted(model.module, seed))
            elif kind == "permuted":
                null = replace(model, module=permuted(model.module, generator))
            elif kind == "shuffled":
                given = shuffled(inputs, generator)
            diagnosis = sinkscope.diagnose(null, given, out)
            sinks = diagnosis.heads.query("kind == 'sink'")[["layer", "head"]].to_numpy().tolist()
            if sinks:
                chosen = sinks if kind in ("random", "permuted") else sinks[::every]
                diagnosis.verify(",".join(f"{layer}.{head}" for layer, head in chosen), model=null, data=given)
            (out / MARK).write_text(json.dumps({"model": name, "kind": kind, "seed": seed}), encoding="utf-8")
            print(out, flush=True)  # noqa: T201


def restarted(module: nn.Module, seed: int) -> nn.Module:
    """The same architecture with the weights training starts from."""
    torch.manual_seed(seed)
    fresh: nn.Module = type(module)._from_config(module.config, attn_implementation="sdpa")  # type: ignore[operator]
    return fresh.eval()


def permuted(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """A copy with the entries of every matrix permuted; what is shared stays shared."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for name, parameter in copied.named_parameters():
            if parameter.ndim >= 2 and "position" not in name and "token" not in name.rpartition(".")[2]:
                order = torch.randperm(parameter.numel(), generator=generator)
                parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))
    return copied


def shuffled(inputs: Tensor, generator: torch.Generator) -> Tensor:
    """Inputs with their tokens in random order, another in each."""
    if inputs.ndim == 2:
        orders = [1 + torch.randperm(inputs.shape[1] - 2, generator=generator) for _ in inputs]
        ends = (torch.tensor([0]), torch.tensor([inputs.shape[1] - 1]))
        return torch.stack([row[torch.cat([ends[0], o, ends[1]])] for row, o in zip(inputs, orders, strict=True)])
    patches = nn.functional.unfold(inputs, PATCH, stride=PATCH)
    orders = [torch.randperm(patches.shape[2], generator=generator) for _ in inputs]
    mixed = torch.stack([row[:, order] for row, order in zip(patches, orders, strict=True)])
    return nn.functional.fold(mixed, inputs.shape[-2:], PATCH, stride=PATCH)


def heads(runs: Path) -> Iterator[pd.DataFrame]:
    """All heads of every null that is done, with their word."""
    for folder in sorted(runs.glob("*/*")):
        if not (folder / MARK).is_file():
            continue
        front = json.loads((folder / MARK).read_text(encoding="utf-8"))
        table = open_artifact(folder).heads
        said = table["verdict"] if "verdict" in table else pd.Series("no sink", index=table.index)
        said = said.where(said.notna() | (table["kind"] == "sink"), "no sink")
        confidence = table["confidence"] if "confidence" in table else pd.Series(np.nan, index=table.index)
        found = table[["layer", "head", "kind", "mass_median", "sink_rate"]]
        yield found.assign(said=said, confidence=confidence, **front)


def write_tables(runs: Path) -> None:
    rows = pd.concat(list(heads(runs)), ignore_index=True)
    OUT.mkdir(parents=True, exist_ok=True)
    rows.to_csv(OUT / "heads.csv", index=False, float_format="%.5g")
    words = sorted(set(rows["said"].dropna()))
    lines = [
        "Heads by word. An alarm is any word but no sink, undecided and inert. On random and permuted weights each is "
        "false. The rate is over heads that were judged: sink heads that were not verified are left out.",
        "",
        f"| model | null | seeds | heads | not verified | {' | '.join(words)} | alarms, Wilson 95% |",
        f"|{' --- |' * (len(words) + 6)}",
    ]
    groups = [*rows.groupby(["model", "kind"], sort=False), *((("all", k), g) for k, g in rows.groupby("kind"))]
    for (model, kind), group in groups:
        alarms = int((~group["said"].isin(QUIET) & group["said"].notna()).sum())
        judged = int(group["said"].notna().sum())
        low, high = wilson(np.array([alarms]), np.array([judged]))
        counts = " | ".join(str(int((group["said"] == word).sum())) for word in words)
        rate = f"{alarms} of {judged} = {alarms / judged:.3f} [{low[0]:.3f}, {high[0]:.3f}]"
        front = f"{model} | {kind} | {group['seed'].nunique()} | {len(group)} | {len(group) - judged}"
        lines.append(f"| {front} | {counts} | {rate} |")
    write_text(OUT / "findings.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
