"""Edits that are killed, interrupted, repeated or asked for otherwise end in the same verdicts, or in an error."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sinkscope
from sinkscope._errors import ArtifactError
from tests._tables import same
from tests.test_verify import ARGUMENTS, files, pixels, sharp, verify

ROOT = Path(__file__).parents[1]
_CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from tests.test_verify import verify

def killed(done, parts):
    assert parts == 3
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

verify(Path(sys.argv[1]), on_part=killed)
"""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return sinkscope.diagnose(sharp(), pixels(13), tmp_path / "out", batch_size=4).path


def parts(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "edits").glob("part-*.parquet"))


def test_killed_edits_go_on_to_the_verdicts_of_undisturbed_ones(out: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(out, tmp_path / "whole"))
    child = [sys.executable, "-c", _CHILD.format(root=str(ROOT)), str(out)]
    done = subprocess.run(child, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert parts(out) == ["part-001-00000.parquet", "part-001-00001.parquet"]
    assert not (out / "verdicts.parquet").exists()
    told: list[tuple[int, int]] = []
    diagnosis = verify(out, on_part=lambda *done: told.append(done))
    assert told == [(3, 3)]
    undisturbed = verify(whole)
    same(diagnosis.verdicts, undisturbed.verdicts, 1e-6)
    same(diagnosis.effects, undisturbed.effects, 1e-6)
    same(diagnosis.heads, undisturbed.heads, 1e-6)


def test_ctrl_c_keeps_what_is_done(out: Path) -> None:
    def interrupt(done: int, _parts: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        verify(out, on_part=interrupt)
    assert len(parts(out)) == 1
    assert json.loads((out / "edits" / "verification.json").read_text())["finished"] is None
    verify(out)
    assert len(parts(out)) == 3


def test_finished_edits_are_judged_again_without_the_model(out: Path) -> None:
    first = verify(out)
    edits = {name: content for name, content in files(out).items() if name.startswith("edits/")}
    told: list[tuple[int, int]] = []
    second = sinkscope.open(out).verify(**ARGUMENTS, on_part=lambda *done: told.append(done))
    assert told == []
    same(second.verdicts, first.verdicts)
    assert {name: content for name, content in files(out).items() if name.startswith("edits/")} == edits


def test_the_batch_size_changes_no_effect(out: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(out, tmp_path / "again"))
    same(verify(out, batch_size=4).effects, verify(again).effects, 1e-4)


def test_other_options_are_refused_and_the_difference_named(out: Path) -> None:
    verify(out)
    before = files(out)
    for changes, named in (
        ({"donors": 2}, "donors: 1 there, 2 here"),
        ({"inputs": 9, "seed": 3}, "inputs: 8 there, 9 here; seed: 0 there, 3 here"),
        ({"freeze_all": True}, "freeze_all: false there, true here"),
    ):
        with pytest.raises(ArtifactError) as error:
            verify(out, **changes)
        assert error.value.found == f"{out / 'edits'} holds other edits ({named})"
        assert error.value.next_step.startswith("begin anew with --again, or repeat the old command: sinkscope.open(")
    assert files(out) == before
    shutil.rmtree(out / "edits")
    assert verify(out, donors=2).heads["n_verified"].notna().sum() == 2
