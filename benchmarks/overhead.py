"""What a diagnosis costs on top of the model's own fused forward, in time and in memory.

    python benchmarks/overhead.py [--rounds 7] [--eager-rounds 3] [--cases NAME,...] [--no-time] [--no-memory]

Each case runs three programs in turn, round after round, in one process: the diagnosis (everything but writing files),
the diagnosis with 64 sampled queries, and the way of today: eager attention with full matrices and the eigenvalues of
every head's U U^T or U^T U, whichever is smaller. Plain forwards run before and after each; a ratio is to the mean of
these two, so that a machine that slows down meanwhile slows both. The median over rounds is quoted
with the smallest and largest. Peak memory is measured in child processes, one per point.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import in_words, machine, over_rounds, write

import sinkscope
from sinkscope.measure import MeasureOptions, measure
from sinkscope.models import Batch, Model

EAGER = "eager, full matrices"
BATCHES = 2  # timed; one more goes before them and pays for what is done once per run


@dataclass(frozen=True)
class Case:
    """A model and a shape of input, with the aims of the project for all queries and for 64."""

    name: str
    reference: str
    batch: int
    size: int
    aim: float
    aim_sampled: float = 1.03


CASES = (
    Case("dinov2-s 224 px batch 8", "zoo:dinov2-small-saliency", 8, 224, 1.10),
    Case("dinov2-s 518 px batch 2", "zoo:dinov2-small-saliency", 2, 518, 1.30),
    Case("smollm2 512 tokens", "zoo:smollm2-135m", 1, 512, 1.25),
    Case("smollm2 2048 tokens", "zoo:smollm2-135m", 1, 2048, 1.40),
)


class Fixed:
    """The same batch a few times."""

    n_batches = BATCHES + 1

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.identity: dict[str, Any] = {}

    def batches(self, **_: Any) -> Iterator[Batch]:
        for index in range(self.n_batches):
            yield Batch(index, self.batch.names, self.batch.args, self.batch.kwargs)


class Nowhere:
    """A run that keeps nothing, so that the disk is not measured."""

    sampled = False

    def __init__(self) -> None:
        self.manifest = {"options": {"batch_size": 8}}

    def done(self) -> frozenset[int]:
        return frozenset()

    def record_capture(self, *_: Any) -> None: ...

    def write_gallery(self, *_: Any) -> None: ...

    def write_part(self, *_: Any, **__: Any) -> None: ...


def make_batch(case_reference: str, batch: int, size: int) -> Batch:
    """Random pictures or token ids; what the weights make of them does not change the cost."""
    names = tuple(str(i) for i in range(batch))
    torch.manual_seed(0)
    if "dinov2" in case_reference:
        return Batch(0, names, kwargs={"pixel_values": torch.randn(batch, 3, size, size)})
    return Batch(0, names, kwargs={"input_ids": torch.randint(5, 40000, (batch, size))})


def plain(model: Model, batch: Batch) -> float:
    """Seconds per batch."""
    began = time.perf_counter()
    for _ in range(BATCHES):
        model.run(batch)
    return (time.perf_counter() - began) / BATCHES


def diagnosed(model: Model, batch: Batch, queries: int | None) -> float:
    """Seconds per batch after the first."""
    stamps: list[float] = []
    measure(
        model,
        Fixed(batch),
        Nowhere(),  # type: ignore[arg-type]
        MeasureOptions(queries=queries),
        lambda _: stamps.append(time.perf_counter()),
    )
    return (stamps[-1] - stamps[0]) / BATCHES


def eager(model: Model, batch: Batch, batches: int = BATCHES) -> float:
    """Full matrices, values by hooks, the singular values of every head's write; seconds per batch."""
    config = model.module.config
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    values: list[torch.Tensor] = []
    projections = [m for n, m in model.module.named_modules() if n.endswith(("attention.v_proj", "self_attn.v_proj"))]
    outs = [m for n, m in model.module.named_modules() if n.endswith(("attention.o_proj", "self_attn.o_proj"))]
    hooks = [m.register_forward_hook(lambda _m, _a, out: values.append(out)) for m in projections]
    previous = config._attn_implementation
    model.module.set_attn_implementation("eager")
    began = time.perf_counter()
    try:
        for _ in range(batches):
            values.clear()
            inputs = Batch(0, batch.names, kwargs={**batch.kwargs, "output_attentions": True})
            attentions = model.run(inputs).attentions
            with torch.inference_mode():
                for weights, value, projection in zip(attentions, values, outs, strict=True):
                    _full_matrix(weights, value, projection.weight, heads, kv_heads)
    finally:
        model.module.set_attn_implementation(previous)
        for hook in hooks:
            hook.remove()
    return (time.perf_counter() - began) / batches


def _full_matrix(weights: Any, value: Any, projection: Any, heads: int, kv_heads: int) -> None:
    v = value.unflatten(-1, (kv_heads, -1)).transpose(1, 2).repeat_interleave(heads // kv_heads, 1)
    mass = weights.mean(-2)
    sink = mass.argmax(-1)
    torch.special.entr(weights).sum(-1).mean(-1)
    weights.diagonal(dim1=-2, dim2=-1).mean(-1)
    column = weights.gather(-1, sink[..., None, None].expand(*weights.shape[:3], 1))
    ((column >= 0.5).float().mean(-2), column.amin(-2))
    u = v @ projection.unflatten(1, (heads, -1)).permute(1, 2, 0)
    (u.norm(dim=-1), v.norm(dim=-1))
    write = weights @ u
    gram = write @ write.mT if write.shape[2] < write.shape[3] else write.mT @ write
    squares = torch.linalg.eigvalsh(gram)
    (squares.sum(-1) / squares[..., -1]).tolist()


def time_case(case: Case, rounds: int, eager_rounds: int) -> dict[str, Any]:
    model = sinkscope.load(case.reference)
    batch = make_batch(case.reference, case.batch, case.size)
    programs: dict[str, Callable[[], float]] = {
        "diagnosed": lambda: diagnosed(model, batch, None),
        "sampled 64": lambda: diagnosed(model, batch, 64),
    }
    if eager_rounds:
        programs[EAGER] = lambda: eager(model, batch)
    for program in programs.values():
        program()
    ratios: dict[str, list[float]] = {name: [] for name in programs}
    plains = [plain(model, batch)]
    for number in range(rounds):
        for name, program in programs.items():
            if name == EAGER and number >= eager_rounds:
                continue
            seconds = program()
            plains.append(plain(model, batch))
            ratios[name].append(2 * seconds / (plains[-2] + plains[-1]))
    row: dict[str, Any] = {"case": case.name, "aim": case.aim, "aim_sampled": case.aim_sampled, "rounds": rounds}
    row["plain_seconds"] = statistics.median(plains)
    for name, found in ratios.items():
        row[name] = over_rounds(found)
    return row


def peak(mode: str, tokens: int) -> float:
    """Peak resident memory in MB of one child process."""
    command = [sys.executable, __file__, "--child", mode, str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else float("nan")


def child(mode: str, tokens: int) -> None:
    model = sinkscope.load("zoo:smollm2-135m")
    batch = make_batch("zoo:smollm2-135m", 1, tokens)
    model.run(make_batch("zoo:smollm2-135m", 1, 16))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if mode == "plain":
        model.run(batch)
    elif mode == "diagnosed":
        Fixed.n_batches = 1
        diagnosed(model, batch, None)
    else:
        eager(model, batch, 1)
    print(loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="folder of time.json, memory.json"
    )
    parser.add_argument("--cases", default="", help="only cases whose name contains one of these, comma separated")
    parser.add_argument("--eager-rounds", type=int, default=3, help="0 leaves today's way out")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("MODE", "TOKENS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]))
        return
    print(machine())
    if not options.no_time:
        wanted = [text for text in options.cases.split(",") if text]
        cases = [case for case in CASES if not wanted or any(text in case.name for text in wanted)]
        write(options.results / "time.json", time_all(cases, options.rounds, options.eager_rounds))
    if not options.no_memory:
        write(options.results / "memory.json", memory_all())


def time_all(cases: Sequence[Case], rounds: int, eager_rounds: int) -> list[dict[str, Any]]:
    print(f"{'case':26}{'plain s':>9}{'diagnosed':>22}{'aim':>6}{'sampled 64':>22}{'aim':>6}{'eager':>8}")
    rows = []
    for case in cases:
        row = time_case(case, rounds, eager_rounds)
        slow = f"{row[EAGER]['median']:.2f}" if eager_rounds else "-"
        print(
            f"{case.name:26}{row['plain_seconds']:9.3f}{in_words(row['diagnosed'], 3):>22}{case.aim:6.2f}"
            f"{in_words(row['sampled 64'], 3):>22}{case.aim_sampled:6.2f}{slow:>8}",
            flush=True,
        )
        rows.append(row)
    return rows


def memory_all() -> list[dict[str, Any]]:
    print("peak resident memory of SmolLM2, MB, whole process; eager at 2048 tokens only")
    rows = []
    for tokens in (2048, 4096, 8192, 16384):
        row: dict[str, Any] = {"tokens": tokens} | {mode: peak(mode, tokens) for mode in ("plain", "diagnosed")}
        row["eager"] = peak("eager", tokens) if tokens == 2048 else None
        row["ratio"] = row["diagnosed"] / row["plain"]
        eager_mb = "-" if row["eager"] is None else f"{row['eager']:.0f}"
        print(
            f"{tokens:6} tokens: plain {row['plain']:.0f}, diagnosed {row['diagnosed']:.0f}, eager {eager_mb}, "
            f"diagnosed / plain {row['ratio']:.2f}",
            flush=True,
        )
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
