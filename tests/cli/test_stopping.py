"""Runs that are ended from outside, and pipes that close."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sinkscope
from sinkscope.models import Batch, Model
from tests._tables import same
from tests.cli._ended import complaint
from tests.cli.conftest import Cli


def _signal_at(batch: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process gets the signal when the model is about to run a batch."""
    run = Model.run

    def stopped(self: Model, given: Batch) -> object:
        if given.index == batch:
            os.kill(os.getpid(), number)
        return run(self, given)

    monkeypatch.setattr(Model, "run", stopped)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_done_is_kept_and_the_line_says_how_to_go_on(
    number: int, cli: Cli, vit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)
    arguments = ["diagnose", vit, "--images", pictures, "--out", out, "--batch-size", 2]
    _signal_at(0, number, monkeypatch)
    line = complaint(cli(*arguments), out)
    assert line == "stopped, no batch was done, nothing is kept; next: run the same command again"
    monkeypatch.undo()
    _signal_at(3, number, monkeypatch)
    line = complaint(cli(*arguments))
    assert (
        line == f"stopped, batches done and kept in {out}: 3; next: run the same command again, it goes on from there"
    )
    assert "is an unfinished run (3 parts done)" in complaint(cli("show", out))
    monkeypatch.undo()
    ended = cli(*arguments)
    assert ended.code == 0
    assert ended.err == "batch 4 of 4\n"
    undisturbed = sinkscope.diagnose(str(vit), pictures, tmp_path / "undisturbed", batch_size=2)
    same(sinkscope.open(out).events, undisturbed.events)
    same(sinkscope.open(out).heads, undisturbed.heads)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
def test_a_process_of_its_own_prints_nothing_of_the_libraries(vit: Path, pictures: Path, tmp_path: Path) -> None:
    """With the warnings, logs and progress bars that libraries show by default."""
    command = [sys.executable, "-m", "sinkscope", "diagnose", str(vit), "--images", str(pictures)]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr == "batch 1 of 1\n"
    assert done.stdout.startswith("captured 2 of 2 attention modules")


def test_a_pipe_that_closes_is_no_mistake() -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sinkscope", "models"], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1
