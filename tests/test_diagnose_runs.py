"""Runs that are killed, interrupted, repeated, changed, or spread over processes end in the same table."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import sinkscope
from sinkscope._errors import ArtifactError
from sinkscope.models import Batch
from tests._tables import same
from tests.families.registry import FAMILIES
from tests.models._tiny import picture, save, save_processor

ROOT = Path(__file__).parents[1]
_CHILD = """
import os, signal, sys
sys.path.insert(0, {root!r})
import torch
import sinkscope
from tests.families.registry import FAMILIES

family, out, moment = FAMILIES["hand-imported"], sys.argv[1], sys.argv[2]
torch.set_num_threads(1)
model, forwards = family.build(), 0

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def in_forward(*_):
    global forwards
    forwards += 1
    if forwards == 4:
        die()

def after_batch(batch, n_batches):
    assert n_batches == 6
    if moment == "between" and batch.index == 2:
        die()

if moment == "within":
    model.get_submodule("blocks.1").register_forward_hook(in_forward)
sinkscope.diagnose(model, family.example(11).args[0], out, batch_size=2, on_batch=after_batch)
"""


@pytest.mark.parametrize("moment", ["within", "between"])
def test_a_killed_run_goes_on_to_the_table_of_an_undisturbed_one(moment: str, tmp_path: Path) -> None:
    family = FAMILIES["hand-imported"]
    model, x, out = family.build(), family.example(11).args[0], tmp_path / "killed"
    child = [sys.executable, "-c", _CHILD.format(root=str(ROOT)), str(out), moment]
    done = subprocess.run(child, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL, done.stderr
    parts = sorted(path.name for path in (out / "events").glob("*.parquet"))
    assert parts == [f"part-0000{number}.parquet" for number in range(3)]
    with pytest.raises(ArtifactError):
        sinkscope.open(out)
    ran: list[int] = []
    sinkscope.diagnose(model, x, out, batch_size=2, on_batch=lambda batch, _n: ran.append(batch.index))
    assert ran == [3, 4, 5]
    undisturbed = sinkscope.diagnose(model, x, tmp_path / "whole", batch_size=2)
    opened = sinkscope.open(out)
    same(opened.events, undisturbed.events)
    same(opened.heads, undisturbed.heads)
    for name in ("vectors.safetensors", "gallery/mass.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_ctrl_c_keeps_what_is_done(tmp_path: Path) -> None:
    family = FAMILIES["vit"]
    model, x, out = family.build(), family.example(7).args[0], tmp_path / "out"

    def interrupt(batch: Batch, _n_batches: int | None) -> None:
        if batch.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sinkscope.diagnose(model, x, out, batch_size=2, on_batch=interrupt)
    assert len(list((out / "events").glob("part-*.parquet"))) == 2
    assert torch.backends.mha.get_fastpath_enabled()
    ran: list[int] = []
    diagnosis = sinkscope.diagnose(model, x, out, batch_size=2, on_batch=lambda batch, _n: ran.append(batch.index))
    assert ran == [2, 3]
    same(diagnosis.events, sinkscope.diagnose(model, x, tmp_path / "whole", batch_size=2).events)


def test_a_finished_run_is_not_measured_again(tmp_path: Path) -> None:
    family = FAMILIES["vit"]
    model, x, out = family.build(), family.example(3).args[0], tmp_path / "out"
    first = sinkscope.diagnose(model, x, out)
    ran: list[int] = []
    second = sinkscope.diagnose(model, x, out, on_batch=lambda batch, _n: ran.append(batch.index))
    assert ran == []
    same(first.events, second.events)
    same(first.heads, second.heads)
    assert first.manifest["finished"] == second.manifest["finished"]


def test_another_run_in_the_folder_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    family = FAMILIES["vit"]
    model, x, out = family.build(), family.example(3).args[0], tmp_path / "out"
    sinkscope.diagnose(model, x, out, batch_size=2)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = family.build()
    with torch.no_grad():
        other.get_parameter("layers.0.mlp.fc1.bias")[0] += 1
    for named, changes in (
        ("batch_size", {"batch_size": 3}),
        ("queries", {"queries": 7}),
        ("rule", {"rule": "fesser-counts"}),
        ("weights_sha256", {"model": other}),
        ("inputs", {"inputs": x + 1}),
    ):
        arguments: dict[str, Any] = {"model": model, "inputs": x, "out": out, "batch_size": 2, **changes}
        with pytest.raises(ArtifactError) as error:
            sinkscope.diagnose(**arguments)
        assert "belongs to another run" in error.value.found
        assert named in error.value.found, named
        assert "--out" in error.value.next_step
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_two_processes_make_the_table_of_one(tmp_path: Path) -> None:
    save("vit", tmp_path / "model")
    save_processor(tmp_path / "model")
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(7):
        picture(33, 47, number).save(folder / f"{number}.png")
    out = tmp_path / "two"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sinkscope",
        "diagnose", str(tmp_path / "model"), "--images", str(folder), "--out", str(out), "--batch-size", "2",
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    one = sinkscope.diagnose(str(tmp_path / "model"), folder, tmp_path / "one", batch_size=2)
    opened = sinkscope.open(out)
    same(opened.events, one.events, 1e-6)
    same(opened.heads, one.heads, 1e-5)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["n_inputs"] == 7
    assert manifest["coverage"]["line"] == one.manifest["coverage"]["line"]
