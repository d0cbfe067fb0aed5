"""Live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinkscope.models import Batch

OnBatch = Callable[[Batch, int | None], None]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def batch_progress(quiet: bool = False) -> Iterator[OnBatch | None]:
    """A callback for `diagnose(on_batch=...)` that shows batches done, inputs per second and time left on stderr."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        with _live() as on_batch:
            yield on_batch
    else:
        yield _lines()


@contextmanager
def _live() -> Iterator[OnBatch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("measuring"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches, {task.fields[rate]:.1f} inputs/s, left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("measure", total=None, rate=0.0)
        began, inputs = time.monotonic(), 0

        def on_batch(batch: Batch, n_batches: int | None) -> None:
            nonlocal inputs
            inputs += len(batch.names)
            done = None if n_batches is None else batch.index + 1
            progress.update(
                task, total=n_batches, completed=done, rate=inputs / max(time.monotonic() - began, 1e-9)
            )

        yield on_batch


def _lines() -> OnBatch:
    began = last = time.monotonic()
    inputs = done = 0

    def on_batch(batch: Batch, n_batches: int | None) -> None:
        nonlocal inputs, done, last
        inputs += len(batch.names)
        done += 1
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and batch.index + 1 != n_batches:
            return
        last = now
        rate = inputs / max(now - began, 1e-9)
        of = "" if n_batches is None else f" of {n_batches}"
        left = ""
        if n_batches is not None:
            left = f", about {(n_batches - batch.index - 1) * (now - began) / done:.0f} s left"
        sys.stderr.write(f"batch {batch.index + 1}{of}: {rate:.1f} inputs/s{left}\n")

    return on_batch
