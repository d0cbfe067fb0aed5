"""Progress of edits: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sinkscope._progress import ERASE_LINE

OnPart = Callable[[int, int], None]
_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def edit_progress() -> Iterator[OnPart]:
    """A callback for `Diagnosis.verify(on_part=...)` that shows parts done and time left on stderr."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as on_part:
            yield on_part
    else:
        yield _lines()


class _Left:
    """The time left, judged by the parts that were done since the first one of this process."""

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def note(self, done: int, parts: int) -> str:
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        first, began = self._first
        if done == first or done == parts:
            return ""
        seconds = round((now - began) / (done - first) * (parts - done))
        return f", {seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d} left"


@contextmanager
def _bar() -> Iterator[OnPart]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("parts{task.fields[left]}"),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("editing heads", total=None, left="")
    left = _Left()

    def on_part(done: int, parts: int) -> None:
        says = "judging" if done == parts else "editing heads"
        bar.update(task, total=parts, completed=done, left=left.note(done, parts), description=says)
        if not bar.live.is_started:
            sys.stderr.write(ERASE_LINE)
            bar.start()

    # Until the first part is done there is a line only, as downloads may show progress of their own.
    sys.stderr.write("loading the model and the inputs ...")
    sys.stderr.flush()
    try:
        yield on_part
    finally:
        if bar.live.is_started:
            bar.stop()
        else:
            sys.stderr.write(ERASE_LINE)


def _lines() -> OnPart:
    left = _Left()
    last = time.monotonic()

    def on_part(done: int, parts: int) -> None:
        nonlocal last
        text = left.note(done, parts)
        now = time.monotonic()
        if now - last < _SECONDS_BETWEEN_LINES and done < parts:
            return
        last = now
        sys.stderr.write(f"part {done} of {parts}{text}\n")

    return on_part
