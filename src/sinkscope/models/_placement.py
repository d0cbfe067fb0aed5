"""Where a model goes and in which number type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from sinkscope._errors import OptionError

_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Placement:
    """Device and number type of a model to load.

    - `device`: a torch device, for instance "cpu" or "cuda:1".
    - `dtype`: "float64", "float32", "bfloat16" or "float16"; None keeps the type of the checkpoint.
    - `device_map`, `tp_plan`: as transformers takes them, for models too large for one device.
    - `trust_remote_code`: run Python code that comes with the weights.
    """

    device: str = "cpu"
    dtype: str | None = None
    device_map: Any = None
    tp_plan: Any = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in _DTYPES:
            raise OptionError(f"dtype '{self.dtype}'", f"one of {', '.join(_DTYPES)}", "--dtype float32")
        try:
            kind = torch.device(self.device).type
        except RuntimeError:
            raise OptionError(
                f"device '{self.device}'", "a torch device such as cpu or cuda:0", "--device cpu"
            ) from None
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        present = ["cpu"] if accelerator is None else ["cpu", accelerator.type]
        if kind not in present:
            raise OptionError(f"device '{self.device}'", f"one of {', '.join(present)}", "--device cpu")

    @property
    def torch_dtype(self) -> torch.dtype | None:
        """The torch type of `dtype`."""
        return None if self.dtype is None else _DTYPES[self.dtype]

    @property
    def spread(self) -> bool:
        """Whether transformers places the model, on several devices."""
        return self.device_map is not None or self.tp_plan is not None


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights are drawn from `seed`, and torch's own random state is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
