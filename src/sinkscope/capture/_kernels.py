"""Process-wide switches that keep attention visible: no C++ fast path, no compiled code."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from threading import Lock
from types import TracebackType

import torch

_COMPILES = frozenset({"torch._dynamo", "torch.nn.attention.flex_attention"})
"""Modules without which nothing compiles. Importing the compiler just to switch it off would cost seconds."""


class PlainKernels:
    """Holds the switches from the first capture that opens to the last that closes, whatever their threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._open = 0
        self._undo = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._open += 1
            if self._open == 1:
                self._undo.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
                torch.backends.mha.set_fastpath_enabled(False)
                if not _COMPILES.isdisjoint(sys.modules):
                    self._undo.enter_context(torch.compiler.set_stance("force_eager"))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._open -= 1
            if not self._open:
                self._undo.close()


PLAIN_KERNELS = PlainKernels()
