"""Progress of a diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinkscope._progress import Pace, shown
from sinkscope.models import Batch

OnBatch = Callable[[Batch, int | None], None]


@contextmanager
def batch_progress(quiet: bool = False) -> Iterator[OnBatch | None]:
    """A callback for `diagnose(on_batch=...)` that shows batches done, inputs per second and time left.

    Numbers of batches count, and not the calls: so a run that goes on counts what was done before, and processes that
    share the batches count each other's.
    """
    if quiet:
        yield None
        return
    pace, inputs, batches = Pace(), 0, 0
    with shown("measuring", "summing up") as tick:

        def on_batch(batch: Batch, n_batches: int | None) -> None:
            nonlocal inputs, batches
            done, inputs, batches = batch.index + 1, inputs + len(batch.names), batches + 1
            words = f"batch {done}" if n_batches is None else f"batch {done} of {n_batches}"
            per_second = pace.per_second(done)
            if per_second is not None:
                words += f", {per_second * inputs / batches:.1f} inputs/s"
            if n_batches is not None:
                words += pace.left(done, n_batches)
            tick(done, n_batches, words)

        yield on_batch
