"""Live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinkscope.models import Batch

OnBatch = Callable[[Batch, int | None], None]
_SECONDS_BETWEEN_LINES = 10.0
ERASE_LINE = "\r\x1b[2K"


@contextmanager
def batch_progress(quiet: bool = False) -> Iterator[OnBatch | None]:
    """A callback for `diagnose(on_batch=...)` that shows batches done, inputs per second and time left on stderr."""
    if quiet:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _live() as on_batch:
            yield on_batch
    else:
        yield _lines()


class _Pace:
    """How fast batches come, in words. The first one of this process starts the clock: it also pays for warming up.

    Numbers of batches count, and not the calls: so a run that goes on counts what was done before, and processes that
    share the batches count each other's.
    """

    def __init__(self) -> None:
        self._inputs = self._batches = 0
        self._first: tuple[int, float] | None = None

    def note(self, batch: Batch, n_batches: int | None) -> str:
        """Inputs per second and the time left, as far as they are known after this batch."""
        now = time.monotonic()
        self._inputs += len(batch.names)
        self._batches += 1
        if self._first is None:
            self._first = batch.index, now
        index, began = self._first
        if batch.index == index or now == began:
            return ""
        per_second = (batch.index - index) / (now - began)
        rate = f", {per_second * self._inputs / self._batches:.1f} inputs/s"
        if n_batches is None or batch.index + 1 == n_batches:
            return rate
        seconds = round((n_batches - batch.index - 1) / per_second)
        minutes, hours = seconds // 60, seconds // 3600
        left = f"{hours}:{minutes % 60:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"
        return f"{rate}, {left} left"


@contextmanager
def _live() -> Iterator[OnBatch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("batches{task.fields[pace]}"),
    )
    progress = Progress(*columns, console=Console(stderr=True), transient=True)
    task = progress.add_task("measuring", total=None, pace="")
    pace = _Pace()

    def on_batch(batch: Batch, n_batches: int | None) -> None:
        last = batch.index + 1 == n_batches
        progress.update(
            task,
            total=n_batches,
            completed=batch.index + 1,
            pace=pace.note(batch, n_batches),
            description="summing up" if last else "measuring",
        )
        if not progress.live.is_started:
            sys.stderr.write(ERASE_LINE)
            progress.start()

    # Until the first batch is done there is a line only, as downloads may show progress of their own.
    sys.stderr.write("loading the model and the inputs ...")
    sys.stderr.flush()
    try:
        yield on_batch
    finally:
        if progress.live.is_started:
            progress.stop()
        else:
            sys.stderr.write(ERASE_LINE)


def _lines() -> OnBatch:
    pace = _Pace()
    last = time.monotonic()

    def on_batch(batch: Batch, n_batches: int | None) -> None:
        nonlocal last
        text = pace.note(batch, n_batches)
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and batch.index + 1 != n_batches:
            return
        last = now
        of = "" if n_batches is None else f" of {n_batches}"
        sys.stderr.write(f"batch {batch.index + 1}{of}{text}\n")

    return on_batch
