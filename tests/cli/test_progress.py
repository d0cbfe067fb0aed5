"""Progress: live on a terminal and gone afterwards, plain lines elsewhere, sensible numbers in both."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace

import pytest

from sinkscope._batch_progress import batch_progress
from sinkscope.models import Batch


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def screen(text: str) -> list[str]:
    """The lines of a terminal after `text`: line feeds, carriage returns, lines erased and cursor up."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\x1b\[[?0-9;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token == "\x1b[2K":
            lines[row] = ""
        elif re.fullmatch(r"\x1b\[\d*A", token):
            row -= int(token[2:-1] or 1)
        elif not token.startswith("\x1b"):
            lines[row] = lines[row][:column].ljust(column) + token + lines[row][column + len(token) :]
            column += len(token)
    return lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The progress' own clock, moved by hand."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("sinkscope._progress.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def batch(index: int, inputs: int = 4) -> Batch:
    return Batch(index, tuple(str(number) for number in range(inputs)))


def test_a_terminal_shows_rate_and_time_left_and_is_clean_afterwards(
    clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name, value in {"TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    with batch_progress() as on_batch:
        assert on_batch is not None
        assert screen(terminal.getvalue()) == ["loading the model and the inputs ..."]
        for index in range(33):
            on_batch(batch(index), 1000)
            clock.now += 5.0
    shown = terminal.getvalue()
    assert re.search(r"measuring .*batch 1 of 1000(\x1b|\r)", shown)
    # the frame drawn last: 33 done, 4 inputs in 5 seconds, 967 batches to go
    assert "batch 33 of 1000, 0.8 inputs/s, 1:20:35 left" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is shown again"
    assert [line for line in screen(shown) if line] == []


def test_the_loading_line_goes_when_nothing_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ZeroDivisionError), batch_progress():
        raise ZeroDivisionError
    terminal.write("sinkscope: a line\n")
    assert screen(terminal.getvalue()) == ["sinkscope: a line", ""]


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_plain_lines_at_most_every_ten_seconds(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with batch_progress() as on_batch:
        assert on_batch is not None
        for index in range(7):
            clock.now += 4.0
            on_batch(batch(index), 7)
    assert lines(capsys) == [
        "batch 3 of 7, 1.0 inputs/s, 0:16 left",
        "batch 6 of 7, 1.0 inputs/s, 0:04 left",
        "batch 7 of 7, 1.0 inputs/s",
    ]


def test_a_run_that_goes_on_counts_what_was_done(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with batch_progress() as on_batch:
        assert on_batch is not None
        for index in (90, 91, 92):
            clock.now += 60.0
            on_batch(batch(index), 101)
    assert lines(capsys) == [
        "batch 91 of 101",
        "batch 92 of 101, 0.1 inputs/s, 9:00 left",
        "batch 93 of 101, 0.1 inputs/s, 8:00 left",
    ]


def test_processes_that_share_the_batches_count_each_others(
    clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    with batch_progress() as on_batch:
        assert on_batch is not None
        for index in (0, 2, 4):  # every second one
            clock.now += 16.0
            on_batch(batch(index), 11)
    assert lines(capsys) == [
        "batch 1 of 11",
        "batch 3 of 11, 0.5 inputs/s, 1:04 left",
        "batch 5 of 11, 0.5 inputs/s, 0:48 left",
    ]


def test_without_a_known_end_there_is_no_time_left(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    with batch_progress() as on_batch:
        assert on_batch is not None
        for index in range(2):
            clock.now += 20.0
            on_batch(batch(index), None)
    assert lines(capsys) == ["batch 1", "batch 2, 0.2 inputs/s"]


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with batch_progress(quiet=True) as on_batch:
        assert on_batch is None
    assert lines(capsys) == []
