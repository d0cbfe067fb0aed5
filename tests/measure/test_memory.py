"""Memory grows with the number of tokens, not with its square: peak of a process of its own, coarse bounds."""

from __future__ import annotations

import subprocess
import sys

import pytest

_CHILD = """
import resource, sys
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from sinkscope.capture import capture
from sinkscope.measure import _kernels, measure_call, write_geometry

if sys.argv[1] == "torch":
    _kernels._library = lambda: None
torch.set_num_threads(1)

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        return x + self.out(scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))

def on_call(call):
    geometry = write_geometry(call.projection, 2, torch.float32)
    measured.append(measure_call(call, torch.ones(1, call.shape[2], dtype=torch.bool), geometry).mass)

def run(tokens):
    with torch.inference_mode(), capture(model, on_call):
        model(torch.randn(1, tokens, 32))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

model, measured = nn.Sequential(*(Attention() for _ in range(2))), []
before = run(64)
print(run(4096) - before, run(8192) - before, len(measured))
"""


@pytest.mark.parametrize("form", ["native", "torch"])
def test_memory_is_linear_in_tokens(form: str) -> None:
    """MiB above a pass over 64 tokens. One matrix of two heads has 128 MiB at 4096 tokens and 512 MiB at 8192."""
    child = [sys.executable, "-c", _CHILD, form]
    done = subprocess.run(child, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large, measured = map(float, done.stdout.split())
    assert measured == 6
    assert small < 100, small
    assert large - small < 60, (small, large)
