"""What treatments cost: time of each against the untouched model, and the memory of a cache for streaming.

    python benchmarks/treat.py [--rounds 7] [--cases NAME,...] [--treatments "NAME;..."] [--stream 16384]

Every model runs untouched and treated in turn, round after round, in one process and on the same random inputs: a
forward pass without gradients, and one with its backward pass, in which all parameters get gradients. Ratios are taken
within a round, against the mean of the untouched passes before and after; the median over rounds is written with the
smallest and largest. Aims: 1.03 for the headwise gate, 1.05 for 4 registers and for test-time registers, 1.10 for the
learned sink logit, at inference. The test-time registers move ten neurons drawn at random: which ones does not matter
to the cost. A `SinkCache` of 1,024 keys reads `--stream` tokens in parts of 256 in a child process: bytes of keys and
values, and peak memory, read from /proc, so this runs on Linux only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _common import in_words, machine, mark_memory, over_rounds, resident, write
from torch import Tensor, nn

import sinkscope
from sinkscope import treat
from sinkscope.treat import Treatment

WINDOW, SINKS, PART = 1024, 4, 256


@dataclass(frozen=True)
class Case:
    """A model, and the inputs of a batch: a side in pixels, or a number of tokens."""

    name: str
    reference: str
    batch: int
    size: int

    def inputs(self, vision: bool) -> Tensor:
        """Random ones."""
        torch.manual_seed(0)
        if vision:
            return torch.randn(self.batch, 3, self.size, self.size)
        return torch.randint(1000, 20000, (self.batch, self.size))


CASES = (
    Case("dinov2-s 224 px", "zoo:dinov2-small-saliency", 8, 224),
    Case("minilm 128 tokens", "zoo:minilm-l6", 8, 128),
    Case("smollm2 256 tokens", "zoo:smollm2-135m", 1, 256),
)

NEURONS = tuple((layer, 97 * layer) for layer in range(1, 11))
TREATMENTS: dict[str, Callable[[], list[Treatment]]] = {
    "gate headwise": lambda: [treat.Gate("headwise")],
    "gate elementwise": lambda: [treat.Gate("elementwise")],
    "gate values": lambda: [treat.Gate("headwise", "value")],
    "registers 4": lambda: [treat.Registers(4)],
    "prefix-kv 4": lambda: [treat.PrefixKV(4)],
    "gate headwise, registers 4": lambda: [treat.Gate("headwise"), treat.Registers(4)],
    "test-time registers": lambda: [treat.TestTimeRegisters(NEURONS)],
    "test-time registers, fixed": lambda: [treat.TestTimeRegisters(NEURONS, fixed=True)],
    "learned sink": lambda: [treat.LearnedSink()],
    "attention bias": lambda: [treat.AttentionBias()],
    "key bias": lambda: [treat.KeyBias()],
    "off by one": lambda: [treat.OffByOne()],
    "head norm": lambda: [treat.HeadNorm()],
    "clipped softmax": lambda: [treat.ClippedSoftmax()],
    "global pathway": lambda: [treat.GlobalPathway()],
    "sink masked": lambda: [treat.RemoveSinks("mask", "first")],
    "heads removed": lambda: [treat.RemoveHeads(((0, 0), (1, 1)))],
}
VISION_ONLY = ("test-time registers", "test-time registers, fixed")
NOT_DECODERS = ("registers 4", "gate headwise, registers 4", "global pathway")
AIMS = {"gate headwise": 1.03, "registers 4": 1.05, "test-time registers": 1.05, "learned sink": 1.10}


def able(names: list[str], anatomy: treat.Anatomy) -> list[str]:
    """Those that the model can have."""
    kind = anatomy.family.kind
    left = [name for name in names if kind == "vision" or name not in VISION_ONLY]
    return [name for name in left if kind != "decoder" or name not in NOT_DECODERS]


class Program:
    """A model with one input."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x
        self.options = {"use_cache": False} if hasattr(module, "lm_head") else {}
        for parameter in module.parameters():
            parameter.requires_grad_()

    def forward(self) -> Tensor:
        out: Tensor = self.module(self.x, **self.options)[0]
        return out

    def seconds(self) -> tuple[float, float]:
        """Of a forward pass without gradients, and of one with its backward pass."""
        with torch.inference_mode():
            began = time.perf_counter()
            self.forward()
            forward = time.perf_counter() - began
        began = time.perf_counter()
        self.forward().square().mean().backward()
        both = time.perf_counter() - began
        self.module.zero_grad()
        return forward, both


def measured(case: Case, names: list[str], rounds: int) -> list[dict[str, Any]]:
    model = sinkscope.load(case.reference)
    x = case.inputs(model.modality == "vision")
    chosen = able(names, treat.anatomy_of(model.module))
    plain = Program(model.module, x)
    rows = []
    for name in chosen:  # one treated copy at a time: each has all weights
        program = Program(treat.treat(model, TREATMENTS[name](), probe=x).module, x)
        plain.seconds()
        program.seconds()
        passes: list[tuple[tuple[float, float], tuple[float, float]]] = []
        before = plain.seconds()
        for _ in range(rounds):
            own, after = program.seconds(), plain.seconds()
            passes.append((own, ((before[0] + after[0]) / 2, (before[1] + after[1]) / 2)))
            before = after
        row: dict[str, Any] = {"case": case.name, "treatment": name, "rounds": rounds, "aim": AIMS.get(name)}
        row["parameters"] = sum(p.numel() for p in treat.added(program.module).values())
        for at, part in enumerate(("forward", "forward and backward")):
            row[part] = over_rounds([own[at] / reference[at] for own, reference in passes])
            row[part]["seconds"] = statistics.median(own[at] for own, _ in passes)
        rows.append(row)
        aim = "" if row["aim"] is None else f"{row['aim']:.2f}"
        print(
            f"{case.name:20}{name:28}{row['parameters']:>10}{in_words(row['forward']):>20}"
            f"{in_words(row['forward and backward']):>22}{aim:>6}",
            flush=True,
        )
    return rows


def stream(tokens: int) -> list[dict[str, Any]]:
    """Memory of the cache in a child process."""
    command = [sys.executable, __file__, "--child", str(tokens)]
    rows: list[dict[str, Any]] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    for row in rows:
        print(f"{row['tokens']:7} tokens read: keys and values {row['cache_mb']:.2f} MB, peak {row['peak_mb']:.0f} MB")
    return rows


def child(tokens: int) -> list[dict[str, Any]]:
    model = sinkscope.load("zoo:smollm2-135m")
    ids = torch.randint(1000, 20000, (1, tokens), generator=torch.Generator().manual_seed(0))
    module: Any = model.module
    rows = []
    with torch.inference_mode():
        module(ids[:, :PART], use_cache=False, logits_to_keep=1)  # weights are read from their file on their first use
        before = mark_memory()
        cache = treat.SinkCache(model, WINDOW, SINKS)
        for start in range(0, tokens, PART):
            module(ids[:, start : start + PART], past_key_values=cache, logits_to_keep=1)
            end = start + PART
            if end % 1024 == 0 and end & (end - 1) == 0:
                peak = resident("VmHWM") - before
                rows.append({"tokens": end, "cache_mb": cache.nbytes / 2**20, "peak_mb": peak})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cases", default="", help="only these, comma separated")
    parser.add_argument("--treatments", default="", help="only these, semicolon separated")
    parser.add_argument("--stream", type=int, default=16384, help="tokens that the cache reads, 0 to leave it out")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of treat.json")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child)))
        return
    print(machine())
    print(f"{'case':20}{'treatment':28}{'added':>10}{'forward':>20}{'and backward':>22}{'aim':>6}")
    names = [name for name in options.treatments.split(";") if name] or list(TREATMENTS)
    rows: list[dict[str, Any]] = []
    for case in CASES:
        if not options.cases or case.name in options.cases.split(","):
            rows += measured(case, names, options.rounds)
    streamed = stream(options.stream) if options.stream else []
    write(options.results / "treat.json", rows, stream=streamed)


if __name__ == "__main__":
    main()
