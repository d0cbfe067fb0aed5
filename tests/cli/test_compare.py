"""`sinkscope compare` as its users meet it: what it prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import sinkscope
from tests.cli._ended import complaint
from tests.cli.conftest import Cli


@pytest.fixture(scope="module")
def folders(vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Diagnoses of a vision model and of one with sharper queries, on the same pictures; not to be changed."""
    root = tmp_path_factory.mktemp("compare")
    sharp = Path(shutil.copytree(vit, root / "sharp"))
    weights = load_file(sharp / "model.safetensors")
    save_file(
        {name: 300 * w if name.endswith("query.weight") else w for name, w in weights.items()},
        sharp / "model.safetensors",
        {"format": "pt"},
    )
    before = sinkscope.diagnose(str(vit), pictures, root / "before").path
    return before, sinkscope.diagnose(str(sharp), pictures, root / "after").path


def test_it_prints_numbers_side_by_side_and_where_the_page_is(cli: Cli, folders: tuple[Path, Path]) -> None:
    ended = cli("compare", *folders)
    assert ended.code == 0, ended.err
    out = folders[1] / "compare-before"
    assert ended.out.splitlines()[-2:] == [f"tables: {out}", f"page: {out / 'compare.html'}"]
    assert {path.name for path in out.iterdir()} == {
        "compare.html", "comparison.json", "comparison.parquet", "heads.parquet", "inputs.parquet",
    }  # fmt: skip
    found = sinkscope.open_comparison(out)
    assert ended.out.startswith(found.summary())
    lines = {line.split("  ")[1].strip(): line for line in ended.out.splitlines() if line.startswith("  ")}
    heads = [int((sinkscope.open(folder).heads["kind"] == "sink").sum()) for folder in folders]
    cells = lines["sink heads"].split()
    assert cells[2] == str(heads[0]) and f"{heads[1] - heads[0]:+d}" in cells
    assert "change of final tokens" in lines and "largest activation" in lines
    assert "heads that are something else in B:" in ended.out
    assert ended.err.splitlines()[-1] == "model B: input 7 of 7"
    assert found.facts["command"] == f"sinkscope compare {folders[0]} {folders[1]}"


def test_json_is_one_object(cli: Cli, folders: tuple[Path, Path], tmp_path: Path) -> None:
    ended = cli("compare", *folders, "--no-outputs", "--out", tmp_path / "out", "--json")
    facts = json.loads(ended.out)
    assert facts["out"] == str(tmp_path / "out") and facts["report"] == str(tmp_path / "out" / "compare.html")
    assert [one["letter"] for one in facts["models"]] == ["A", "B"]
    assert {row["group"] for row in facts["measures"]} >= {"sinks", "roles", "kinds", "norms"}
    assert all(row["before"] != row["after"] for row in facts["changed_heads"])
    assert facts["sentences"][0]


def test_a_model_that_is_gone_leaves_the_tables(cli: Cli, folders: tuple[Path, Path], tmp_path: Path) -> None:
    after = Path(shutil.copytree(folders[1], tmp_path / "after"))
    manifest = json.loads((after / "manifest.json").read_text())
    manifest["model"]["reference"] = str(tmp_path / "gone")
    (after / "manifest.json").write_text(json.dumps(manifest))
    ended = cli("compare", folders[0], after, "--limit", 2, "--out", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert "note: the model of B was not run: " in ended.out and "sink heads" in ended.out
    assert "change of final tokens" not in ended.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "limit is 0; expected a whole number from 1 on; next: correct --limit"),
        (["--seed", "-1"], "seed is -1"),
        (["--with"], "No such option"),
    ],
)
def test_options_that_cannot_be(
    options: list[str], message: str, cli: Cli, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert message in complaint(cli("compare", *folders, "--out", out, *options), out)


def test_folders_that_are_no_diagnoses(cli: Cli, folders: tuple[Path, Path], tmp_path: Path) -> None:
    assert "1 diagnosis to compare; expected 2 to 26" in complaint(cli("compare", folders[0]))
    (tmp_path / "empty").mkdir()
    message = complaint(cli("compare", folders[0], tmp_path / "empty"))
    assert "empty holds no manifest.json; expected a folder that sinkscope diagnose has written" in message
    message = complaint(cli("compare", folders[0], folders[1], "--out", folders[0]))
    assert "is a folder that holds no comparison; expected a new folder, or one of a comparison" in message
