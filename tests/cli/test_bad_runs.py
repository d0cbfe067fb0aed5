"""Options that cannot be, folders that are taken, and machines that run out of memory or disk."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

import sinkscope
from tests._tables import same
from tests.cli._ended import complaint
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (["--queries", "some"], ["--queries is 'some'", "all or a whole number", "--queries 64"]),
        (["--queries", "1"], ["--queries is 1", "a whole number from 2 on"]),
        (["--batch-size", "0"], ["--batch-size is 0", "a whole number from 1 on"]),
        (["--batch-size", "x"], ["--batch-size", "sinkscope diagnose --help"]),
        (["--limit", "0"], ["--limit is 0", "a whole number from 1 on"]),
        (["--size", "-7"], ["--size is -7"]),
        (["--size", "30"], ["a picture of 30 x 30 pixels", "--size 28"]),
        (["--length", "1"], ["--length is 1"]),
        (["--length", "17"], ["length for", "which takes vision", "leave length out"]),
        (["--num-workers", "-1"], ["--num-workers is -1", "a whole number from 0 on"]),
        (["--seed", "-1"], ["--seed is -1", "a whole number from 0 on"]),
        (["--seed", str(2**64)], [f"--seed is {2**64}", "a number up to"]),
        (["--rule", "mine"], ["there is no rule mine", "fesser, ", "correct --rule"]),
        (["--rule", "mine.toml"], ["mine.toml"]),
        (["--dtype", "int8"], ["dtype 'int8'", "float32, bfloat16, float16"]),
        (["--device", "blah"], ["device 'blah'", "--device cpu"]),
        (["--tp-plan", "auto"], ["tp_plan in a single process", "torchrun --nproc-per-node=2 -m sinkscope diagnose"]),
        (["--colour"], ["No such option", "--colour", "sinkscope diagnose --help"]),
    ],
)  # fmt: skip
def test_options_that_cannot_be(
    options: list[str], names: list[str], cli: Cli, vit: Path, pictures: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("sinkscope.models._spread.find_spec", lambda name: True)
    out = tmp_path / "out"
    line = complaint(cli("diagnose", vit, "--images", pictures, "--out", out, *options), out)
    for name in names:
        assert name in line


def test_missing_arguments(cli: Cli, pictures: Path, vit: Path, tmp_path: Path) -> None:
    assert "Missing argument 'REF'" in complaint(cli("diagnose"))
    assert "Missing option '--out'" in complaint(cli("diagnose", vit, "--images", pictures))
    assert "Option '--images' requires an argument" in complaint(cli("diagnose", vit, "--images"))
    assert "Missing argument 'FOLDER'" in complaint(cli("show"))
    assert "No such command 'frobnicate'" in complaint(cli("frobnicate"))


def test_a_folder_of_another_run(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("diagnose", vit, "--images", pictures, "--out", out).code == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    line = complaint(cli("diagnose", vit, "--images", pictures, "--out", out, "--batch-size", 3))
    assert f"{out} belongs to another run (batch_size: 8 there, 3 here)" in line
    assert line.endswith(f"or go on with that run: sinkscope diagnose {vit} --images {pictures} --out {out}")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_none_or_holds_something_else(cli: Cli, vit: Path, pictures: Path, text: Path) -> None:
    line = complaint(cli("diagnose", vit, "--images", pictures, "--out", text))
    assert f"{text} is a file" in line
    line = complaint(cli("diagnose", vit, "--images", pictures, "--out", pictures))
    assert f"{pictures} belongs to something else (it holds p0.png and 6 more)" in line
    line = complaint(cli("diagnose", vit, "--images", pictures, "--out", text / "below"))
    assert f"{text}/below/manifest.json could not be written" in line
    assert "--out" in line


def test_folders_made_for_a_run_that_never_began_are_gone(cli: Cli, vit: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("no picture")
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "a" / "b" / "c", tmp_path / "there"):
        complaint(cli("diagnose", vit, "--images", tmp_path / "x.png", "--out", out))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there", "x.png"]
    assert list((tmp_path / "there").iterdir()) == []


def _accelerator(*_: Any, **__: Any) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def _allocator(*_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(2**60)


def _interpreter(*_: Any, **__: Any) -> NoReturn:
    raise MemoryError


@pytest.mark.parametrize("attention", [_accelerator, _allocator, _interpreter])
def test_out_of_memory(
    attention: Callable[..., Any], cli: Cli, vit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    line = complaint(cli("diagnose", vit, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    assert f"memory ran out in the forward pass of {vit} with a batch of 7" in line
    assert "lower --batch-size" in line


def _full_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes this many flushes and no more."""
    left, flush = writes, os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_leaves_nothing_or_what_is_finished(
    cli: Cli, vit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    arguments = ["diagnose", vit, "--images", pictures, "--out", out, "--batch-size", 2]
    _full_after(0, monkeypatch)
    line = complaint(cli(*arguments), out)
    assert f"the disk is full, {out / 'manifest.json'} could not be written" in line
    monkeypatch.undo()
    _full_after(40, monkeypatch)
    line = complaint(cli(*arguments))
    assert "the disk is full" in line
    assert "run the same command again: it goes on where it stopped" in line
    assert 0 < len(list((out / "events").glob("part-*.parquet"))) < 4
    assert list(out.rglob(".*")) == []
    monkeypatch.undo()
    assert cli(*arguments).code == 0
    undisturbed = sinkscope.diagnose(str(vit), pictures, tmp_path / "undisturbed", batch_size=2)
    same(sinkscope.open(out).events, undisturbed.events)


def test_a_full_disk_behind_standard_output(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("typer.echo", full)
    assert "the disk is full, the output could not be written" in complaint(cli("models"))
