"""What every attention form costs against fused softmax attention: time and memory, forward and backward.

    python benchmarks/forms.py [--rounds 7] [--forms NAME,...] [--tokens 256,1024,4096]
                               [--mask all|causal|both] [--results FOLDER]

The same queries, keys and values, six heads of width 64 as in a ViT-S, in batches of 4096 tokens in all. A form is
timed with what it computes from the module's input (gates) and does behind the output projection. Ratios to softmax are
taken within a round; the median over rounds is written with the smallest and largest. Memory is what a forward and
backward pass adds to the resident memory of a child process at its peak, in MB, gradients included; it is read from
/proc, so this runs on Linux only. What forms.json holds of other sizes and masks on the same machine stays there.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _common import in_words, machine, mark_memory, merged, over_rounds, resident, write
from torch import Tensor

from sinkscope import attention
from sinkscope._errors import OptionError
from sinkscope.attention import Shape

HEADS, HEAD_DIM, TOKENS_IN_ALL = 6, 64, 4096
WARM = 16
"""Tokens of the pass a child makes before it notes its memory."""


class Program:
    """One form, its tensors and its parameters at one size."""

    def __init__(self, name: str, tokens: int, causal: bool) -> None:
        torch.manual_seed(0)
        self.form, self.causal = attention.get(name), causal
        width, batch = HEADS * HEAD_DIM, max(1, TOKENS_IN_ALL // tokens) if tokens > WARM else 1
        self.x = torch.randn(batch, tokens, width)
        self.learned = self.form.parameters(Shape(width, HEADS, HEADS, HEAD_DIM))
        for parameter in self.learned.values():
            parameter.requires_grad_()
        key_dim = self.form.key_dim(HEAD_DIM)
        self.leaves = [
            torch.randn(batch, HEADS, tokens, dim, requires_grad=True) for dim in (key_dim, key_dim, HEAD_DIM)
        ]

    def forward(self) -> Tensor:
        q, k, v = self.leaves
        given = self.learned | self.form.context(self.x, self.learned)
        parameters = {name: given[name] for name in self.form.needs}
        out = self.form(q, k, v, causal=self.causal, parameters=parameters)
        return self.form.after(out.transpose(1, 2).flatten(2), self.x, self.learned, None, self.causal)

    def seconds(self) -> tuple[float, float]:
        """Of a forward pass without gradients, and of one with its backward pass."""
        with torch.no_grad():
            began = time.perf_counter()
            self.forward()
            forward = time.perf_counter() - began
        began = time.perf_counter()
        self.train()
        return forward, time.perf_counter() - began

    def train(self) -> None:
        torch.autograd.grad(self.forward().sum(), [*self.leaves, *self.learned.values()], materialize_grads=True)


def runs(name: str, causal: bool) -> bool:
    """Whether the form allows causal attention, or its absence."""
    try:
        Program(name, 16, causal).forward()
    except OptionError as error:
        print(f"{name:20}left out: {error}", flush=True)
        return False
    return True


def time_all(names: list[str], tokens: int, causal: bool, rounds: int) -> list[dict[str, Any]]:
    programs = {name: Program(name, tokens, causal) for name in dict.fromkeys(["softmax", *names])}
    for program in programs.values():
        program.seconds()
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            measured[name].append(program.seconds())
    rows = []
    for name in names:
        row: dict[str, Any] = {"form": name, "tokens": tokens, "causal": causal, "rounds": rounds}
        row["computed"] = attention.cards()[name].computed
        for at, part in enumerate(("forward", "forward and backward")):
            row[part] = over_rounds([a[at] / b[at] for a, b in zip(measured[name], measured["softmax"], strict=True)])
            row[part]["seconds"] = statistics.median(seconds[at] for seconds in measured[name])
        row["memory"] = memory(name, tokens, causal)
        rows.append(row)
        print(
            f"{name:20}{tokens:7}{'causal' if causal else 'all':>8}{in_words(row['forward']):>22}"
            f"{in_words(row['forward and backward']):>22}{row['memory']:10.0f}",
            flush=True,
        )
    return rows


def memory(name: str, tokens: int, causal: bool) -> float:
    """MB of one child process."""
    command = [sys.executable, __file__, "--child", name, str(tokens), str(int(causal))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout)


def child(name: str, tokens: int, causal: bool) -> None:
    Program(name, WARM, causal).train()
    program = Program(name, tokens, causal)
    before = mark_memory()
    program.train()
    print(resident("VmHWM") - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--forms", default="", help="only these, comma separated")
    parser.add_argument("--tokens", default="256,1024,4096")
    parser.add_argument("--mask", choices=("all", "causal", "both"), default="both", help="what tokens attend to")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), help="folder of forms.json")
    parser.add_argument("--child", nargs=3, metavar=("FORM", "TOKENS", "CAUSAL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], int(options.child[1]), bool(int(options.child[2])))
        return
    print(machine())
    names = [name for name in options.forms.split(",") if name] or attention.names()
    print(f"{'form':20}{'tokens':>7}{'mask':>8}{'forward':>22}{'forward and backward':>22}{'peak MB':>10}")
    rows: list[dict[str, Any]] = []
    for causal in {"all": (False,), "causal": (True,), "both": (False, True)}[options.mask]:
        able = [name for name in names if runs(name, causal)]
        for tokens in (int(number) for number in options.tokens.split(",")):
            rows += time_all(able, tokens, causal, options.rounds)
    path: Path = options.results / "forms.json"
    write(path, merged(path, rows, ("form", "tokens", "causal")))


if __name__ == "__main__":
    main()
