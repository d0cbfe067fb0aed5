from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sinkscope._errors import ArtifactError, OptionError
from sinkscope.artifact import GalleryItem, open_artifact, open_run
from tests.artifact import _build as build


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    run = open_run(tmp_path, build.manifest())
    run.write_gallery(0, GalleryItem("x.jpg", "none", np.zeros((1, 1, 2))))
    build.write_run(run)
    return tmp_path


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tables_are_readable_without_sinkscope(finished: Path) -> None:
    plain = pd.read_parquet(finished / "events")
    mine = open_artifact(finished).events()
    assert plain["input"].tolist() == mine["input"].tolist()
    np.testing.assert_array_equal(plain["routed"], mine["routed"])


def test_chosen_columns_come_in_the_order_asked_for(finished: Path) -> None:
    events = open_artifact(finished).events(["mass", "input", "top_masses"])
    assert list(events.columns) == ["mass", "input", "top_masses"]
    with pytest.raises(OptionError, match="have no column colour, size; expected columns among input, layer"):
        open_artifact(finished).events(["mass", "colour", "size"])


def test_parts_keep_their_order_beyond_five_digits(tmp_path: Path) -> None:
    run = open_run(tmp_path, build.manifest())
    build.write_run(run, (1,))
    for index in (100000, 99999):
        build.write_part(run, index, 1)
    _edit(tmp_path / "manifest.json", n_inputs=3)
    names = open_artifact(tmp_path).events(["input"])["input"].unique().tolist()
    assert names == ["picture-0-0.jpg", "picture-99999-0.jpg", "picture-100000-0.jpg"]


def test_a_part_that_is_gone_is_missed(finished: Path) -> None:
    inputs = open_artifact(finished).manifest["n_inputs"]
    (finished / "events" / "part-00001.parquet").unlink()
    with pytest.raises(
        ArtifactError, match=rf"has parts of \d inputs; expected all parts, of {inputs} inputs; next: run"
    ):
        open_artifact(finished).events()


def test_a_missing_folder_and_a_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"there is no folder .*nowhere; expected a folder that sinkscope diagnose"):
        open_artifact(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match=r"holds no manifest.json; .*next: give the folder that was its --out"):
        open_artifact(tmp_path)


def test_an_unfinished_run_says_how_to_go_on(tmp_path: Path) -> None:
    run = open_run(tmp_path, build.manifest())
    run.record_capture(build.COVERAGE, build.gram())
    build.write_part(run, 0, 2)
    with pytest.raises(ArtifactError, match=r"is an unfinished run \(1 parts done\)") as error:
        open_artifact(tmp_path)
    assert error.value.next_step.endswith("sinkscope diagnose zoo:tiny --images pictures --out out")


def test_a_newer_schema_asks_for_an_upgrade(finished: Path) -> None:
    _edit(finished / "manifest.json", schema=2)
    with pytest.raises(ArtifactError, match=r"has schema 2; expected schema 1.*pip install --upgrade sinkscope"):
        open_artifact(finished)
    with pytest.raises(ArtifactError, match="has schema 2"):
        open_run(finished, build.manifest())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "names no schema"),
        ('{"schema": 1, "command": ""}', "it lacks coverage"),
    ],
)
def test_a_damaged_manifest_is_named(finished: Path, text: str, reason: str) -> None:
    (finished / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=rf"manifest.json is damaged \(.*{reason}") as error:
        open_artifact(finished)
    assert error.value.next_step == f"delete {finished} and run sinkscope diagnose again"


def _truncate(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:-100])
    return rf"{path} is damaged \(.*next: delete {path} and run the command of manifest.json again"


def test_a_damaged_part_is_named_and_made_anew(finished: Path) -> None:
    before = build.tables(finished)
    message = _truncate(finished / "events" / "part-00001.parquet")
    with pytest.raises(ArtifactError, match=message):
        open_artifact(finished).events()
    (finished / "events" / "part-00001.parquet").unlink()
    build.write_run(open_run(finished, build.manifest()))
    assert build.tables(finished) == before


def test_damaged_vectors_and_heads_are_named(finished: Path) -> None:
    message = _truncate(finished / "vectors.safetensors")
    with pytest.raises(ArtifactError, match=message):
        _ = open_artifact(finished).vectors["rows"]
    (finished / "heads.parquet").write_bytes(b"PAR1")
    with pytest.raises(ArtifactError, match=r"heads.parquet is damaged"):
        _ = open_artifact(finished).heads
    pd.DataFrame({"x": [1]}).to_parquet(finished / "heads.parquet")
    with pytest.raises(ArtifactError, match=r"heads.parquet is damaged \(its columns are x\)"):
        _ = open_artifact(finished).heads
    (finished / "gallery" / "gallery.json").write_text('[{"input": "x.jpg"}]')
    with pytest.raises(ArtifactError, match=r"gallery.json is damaged \(KeyError: 'kind'\)"):
        _ = open_artifact(finished).gallery


def test_missing_files_are_named_with_the_command_that_makes_them(finished: Path) -> None:
    artifact = open_artifact(finished)
    with pytest.raises(ArtifactError, match=r"there is no .*heads.parquet; .*sinkscope diagnose zoo:tiny"):
        _ = artifact.heads
    (finished / "vectors.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"there is no .*vectors.safetensors"):
        _ = artifact.vectors
    for part in (finished / "events").iterdir():
        part.unlink()
    with pytest.raises(ArtifactError, match="has no event parts"):
        artifact.events()
