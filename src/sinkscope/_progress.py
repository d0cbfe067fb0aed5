"""Live progress on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_SECONDS_BETWEEN_LINES = 10.0
_ERASE_LINE = "\r\x1b[2K"


class Tick(Protocol):
    """Shows how far the work is."""

    def __call__(self, done: int, total: int | None, words: str) -> None:
        """`done` of `total`, None where the end is unknown, told as `words`; equal numbers are the end."""
        ...


class Pace:
    """How fast the work goes, judged since the first thing done in this process: that one also pays for warming up.

    What was done before this process began counts as done, not as speed.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def per_second(self, done: int) -> float | None:
        """Things done per second; None at the first."""
        now = time.monotonic()
        if self._first is None:
            self._first = done, now
        first, began = self._first
        return None if done == first or now == began else (done - first) / (now - began)

    def left(self, done: int, total: int) -> str:
        """The time left as `, 0:12 left`; nothing at the first and at the last."""
        pace = self.per_second(done)
        return "" if pace is None or done == total else f", {clock((total - done) / pace)} left"


def clock(seconds: float) -> str:
    """As `1:02:03`, or `2:03` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def shown(working: str, closing: str, waiting: str = "loading the model and the inputs ...") -> Iterator[Tick]:
    """A callback that shows work on stderr, as a bar on a terminal, else as a line every ten seconds and at the end.

    **Arguments:**

    - `working`, `closing`: what is done, until the end and after it.
    - `waiting`: what stands there until the callback is first called.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(working, closing, waiting) as tick:
            yield tick
    else:
        yield _lines()


@contextmanager
def _bar(working: str, closing: str, waiting: str) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[words]}"))
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(working, total=None, words="")

    def tick(done: int, total: int | None, words: str) -> None:
        says = closing if done == total else working
        bar.update(task, total=total, completed=done, words=words, description=says)
        if not bar.live.is_started:
            sys.stderr.write(_ERASE_LINE)
            bar.start()

    # Until the first call there is a line only, as downloads may show progress of their own.
    sys.stderr.write(waiting)
    sys.stderr.flush()
    try:
        yield tick
    finally:
        if bar.live.is_started:
            bar.stop()
        else:
            sys.stderr.write(_ERASE_LINE)


def _lines() -> Tick:
    last = time.monotonic()

    def tick(done: int, total: int | None, words: str) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            last = now
            sys.stderr.write(words + "\n")

    return tick
