"""Progress of toy runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sinkscope._progress import clock, shown
from sinkscope.train import Progress
from sinkscope.train._processes import OnProgress


@contextmanager
def toy_progress() -> Iterator[OnProgress]:
    """A callback for `train_all` that shows runs finished, steps per second and time left."""
    began = time.monotonic()
    with shown("training", "summing up", "starting ...") as tick:

        def on_progress(progress: Progress) -> None:
            # runs may stop before their last step: the end is when all have finished
            done = progress.all_steps if progress.finished == progress.runs else progress.steps
            tick(done, progress.all_steps, _words(progress, began))

        yield on_progress


def _words(progress: Progress, began: float) -> str:
    """Runs finished, and once it is known the pace and the time left."""
    text = f"{progress.finished} of {progress.runs} runs"
    passed = time.monotonic() - began
    if not progress.steps or passed <= 0:
        return text
    pace = progress.steps / passed
    text += f", {pace:,.0f} steps/s"
    seconds = (progress.all_steps - progress.steps) / pace
    return f"{text}, {clock(seconds)} left at most" if round(seconds) else text
