"""Inputs that are missing, broken, too small or of the wrong kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.cli._ended import complaint
from tests.cli.conftest import Cli


@pytest.mark.parametrize("option", ["--images", "--text"])
def test_a_missing_path_is_told_before_anything_is_loaded(option: str, cli: Cli, tmp_path: Path) -> None:
    line = complaint(cli("diagnose", tmp_path, option, tmp_path / "nope", "--out", tmp_path / "out"), tmp_path / "out")
    assert f"{option} {tmp_path / 'nope'}, which does not exist" in line
    assert line.endswith("next: check the spelling")


def test_exactly_one_kind_of_input(cli: Cli, vit: Path, pictures: Path, text: Path, tmp_path: Path) -> None:
    for given, found in (
        (["--images", pictures, "--text", text], "--images and --text"),
        (["--text", text, "--dataset", "some/data"], "--text and --dataset"),
        ([], "no inputs"),
    ):
        line = complaint(cli("diagnose", vit, *given, "--out", tmp_path / "out"), tmp_path / "out")
        assert line.startswith(f"{found}; expected exactly one of --images, --text and --dataset")


def test_the_wrong_kind_of_input(cli: Cli, vit: Path, bert: Path, pictures: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = complaint(cli("diagnose", vit, "--text", text, "--out", out), out)
    assert "text inputs for" in line
    assert line.endswith("next: --images FOLDER")
    line = complaint(cli("diagnose", bert, "--images", pictures, "--out", out), out)
    assert "vision inputs for" in line
    assert line.endswith("next: --text FILE")
    line = complaint(cli("diagnose", bert, "--text", pictures, "--out", out), out)
    assert f"the folder {pictures} as text" in line
    line = complaint(cli("diagnose", bert, "--dataset", text, "--out", out), out)
    assert f"no parquet file in {text}" in line


def test_a_folder_without_pictures(cli: Cli, vit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "readme.md").write_text("nothing to see")
    line = complaint(cli("diagnose", vit, "--images", folder, "--out", tmp_path / "out"), tmp_path / "out")
    assert f"no pictures in {folder} (1 other files)" in line


@pytest.fixture
def partly_bad(pictures: Path, tmp_path: Path) -> Path:
    """Seven pictures, two of which are broken."""
    folder = shutil.copytree(pictures, tmp_path / "partly bad")
    (folder / "p1.png").write_text("no picture")
    (folder / "p2.png").write_bytes((pictures / "p2.png").read_bytes()[:900])
    return folder


def test_a_broken_picture_is_named_and_counted(cli: Cli, vit: Path, partly_bad: Path, tmp_path: Path) -> None:
    line = complaint(cli("diagnose", vit, "--images", partly_bad, "--out", tmp_path / "out"), tmp_path / "out")
    assert f"{partly_bad / 'p1.png'}, which cannot be read as a picture" in line
    assert "(2 bad inputs of 7 in batch 0)" in line
    assert line.endswith("next: replace it, or leave it out with --skip-bad")


def test_bad_pictures_are_skipped_and_named_on_request(cli: Cli, vit: Path, partly_bad: Path, tmp_path: Path) -> None:
    ended = cli("diagnose", vit, "--images", partly_bad, "--out", tmp_path / "out", "--skip-bad")
    assert ended.code == 0
    lines = ended.out.splitlines()
    at = lines.index("left out 2 of 7 inputs:")
    assert lines[at + 1].startswith("  p1.png: ")
    assert lines[at + 2].startswith("  p2.png: ")
    ended = cli("diagnose", vit, "--images", partly_bad, "--out", tmp_path / "out", "--skip-bad", "--json")
    facts = json.loads(ended.out)
    assert facts["n_inputs"] == 5
    assert sorted(facts["bad_inputs"]) == ["p1.png", "p2.png"]


def test_a_batch_of_nothing_but_bad_pictures(cli: Cli, vit: Path, partly_bad: Path, tmp_path: Path) -> None:
    """The batch of p1 and p2 gets a part without rows, also when it is the only one left to do."""
    (partly_bad / "p0.png").rename(partly_bad / "p3b.png")
    arguments = ["diagnose", vit, "--images", partly_bad, "--out", tmp_path / "out", "--batch-size", 2, "--skip-bad"]
    assert cli(*arguments).code == 0
    facts = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert facts["n_inputs"] == 5
    (tmp_path / "out" / "events" / "part-00000.parquet").unlink()
    assert cli(*arguments).code == 0
    assert sorted(json.loads((tmp_path / "out" / "manifest.json").read_text())["coverage"]["bad_inputs"]) == [
        "p1.png",
        "p2.png",
    ]


def test_nothing_but_bad_pictures(cli: Cli, vit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "x.png").write_text("no picture")
    line = complaint(
        cli("diagnose", vit, "--images", folder, "--out", tmp_path / "out", "--skip-bad"), tmp_path / "out"
    )
    assert "no input can be read, the first is x.png" in line


@pytest.mark.parametrize(
    ("side", "mode", "names"),
    [
        (20_000, "1", ["a picture too large to be read safely", "at most 89478485 pixels"]),
        (1, "RGB", ["a picture of 1 x 1 pixels", "at least one patch of 7 x 7 pixels"]),
    ],
)
def test_a_picture_that_is_too_large_or_too_small(
    side: int, mode: str, names: list[str], cli: Cli, vit: Path, tmp_path: Path
) -> None:
    Image.new(mode, (side, side)).save(tmp_path / "it.png")
    line = complaint(cli("diagnose", vit, "--images", tmp_path / "it.png", "--out", tmp_path / "out"), tmp_path / "out")
    for name in ("it.png", "--skip-bad", *names):
        assert name in line


def test_a_text_shorter_than_one_window(cli: Cli, llama: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "short.txt", tmp_path / "out"
    path.write_text("the cat sat")
    line = complaint(cli("diagnose", llama, "--text", path, "--out", out, "--length", 17), out)
    assert f"a text of 3 tokens ({path})" in line
    assert "at least one window of 16 tokens and 1 special ones" in line
    assert "--length 4, or a longer text" in line
    path.write_text("")
    assert "a text of 0 tokens" in complaint(cli("diagnose", llama, "--text", path, "--out", out), out)
    path.write_bytes(bytes(range(256)))
    assert f"{path}, which is not UTF-8" in complaint(cli("diagnose", llama, "--text", path, "--out", out), out)
