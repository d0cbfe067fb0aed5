from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from safetensors.numpy import load_file

from sinkscope._errors import ArtifactError, ResourceError
from sinkscope.artifact import EVENT_COLUMNS, GalleryItem, attach_run, head_columns, open_artifact, open_run
from tests.artifact import _build as build


def _started(out: Path, **options: Any) -> Any:
    run = open_run(out, build.manifest(**options))
    run.record_capture(build.COVERAGE, build.gram())
    return run


def _heads() -> pd.DataFrame:
    frame = {column.name: [1.0, 2.0] for column in head_columns()} | {"role": ["cls", None], "kind": ["sink", "none"]}
    return pd.DataFrame(frame).astype({"layer": int, "head": int, "n_inputs": int})


def test_events_come_back_as_written(tmp_path: Path) -> None:
    build.write_run(open_run(tmp_path / "deep" / "out", build.manifest()))
    events = open_artifact(str(tmp_path / "deep" / "out")).events()
    wanted = pd.concat([pd.DataFrame(build.events(index, size)) for index, size in enumerate((2, 2, 3))])
    assert list(events.columns) == [column.name for column in EVENT_COLUMNS]
    assert len(events) == 7 * build.LAYERS * build.HEADS
    for name in events.columns:
        for found, want in zip(events[name], wanted[name], strict=True):
            if isinstance(want, list):
                assert list(found) == want
            else:
                assert (pd.isna(found) and pd.isna(want)) or found == want, name


def test_missing_is_null_in_the_file_and_integers_stay_integers(tmp_path: Path) -> None:
    build.write_run(open_run(tmp_path, build.manifest()))
    table = pa.parquet.read_table(tmp_path / "events" / "part-00000.parquet")
    assert table["update_ratio"].null_count == table["mass"].null_count == table["sink"].null_count == 1
    events = open_artifact(tmp_path).events(["sink", "layer", "update_ratio"])
    assert [str(kind) for kind in events.dtypes] == ["Int32", "int32", "float32"]
    assert events["sink"].isna().sum() == events["update_ratio"].isna().sum() == 3


def test_vectors_are_the_parts_in_order_with_rows_counted_from_the_first_input(tmp_path: Path) -> None:
    sizes = (2, 0, 3)
    build.write_run(open_run(tmp_path, build.manifest()), sizes)
    parts = [build.vectors(index, size) for index, size in enumerate(sizes)]
    found = load_file(tmp_path / "vectors.safetensors")
    for name in ("energy", "sink_value", "sink_energy", "ordinary_energy"):
        np.testing.assert_array_equal(found[name], np.concatenate([part[name] for part in parts]))
    offsets = [0, 2, 2]
    rows = [part["rows"] + [offset, 0, 0] for part, offset in zip(parts, offsets, strict=True)]
    np.testing.assert_array_equal(found["rows"], np.concatenate(rows))
    np.testing.assert_array_equal(found["gram"], build.gram().astype(np.float32))
    for layer in range(build.LAYERS):
        for head in range(build.HEADS):
            mine = (found["rows"][:, 1] == layer) & (found["rows"][:, 2] == head)
            assert found["sink_value_count"][layer, head] == mine.sum() > 0
            wanted = found["sink_value"][mine].astype(np.float64).sum(axis=0)
            np.testing.assert_allclose(found["sink_value_sum"][layer, head], wanted, rtol=1e-12)
    assert {name: str(array.dtype) for name, array in found.items()} == {
        "energy": "float32",
        "rows": "int32",
        "sink_value": "float32",
        "sink_energy": "float32",
        "ordinary_energy": "float32",
        "gram": "float32",
        "sink_value_sum": "float64",
        "sink_value_count": "int64",
    }
    vectors = open_artifact(tmp_path).vectors
    assert set(vectors) == set(found) and len(vectors) == len(found)
    np.testing.assert_array_equal(vectors["sink_value_sum"], found["sink_value_sum"])
    with pytest.raises(KeyError):
        vectors["nothing"]


def test_a_model_without_projections_has_nan_gram_matrices(tmp_path: Path) -> None:
    run = open_run(tmp_path, build.manifest())
    run.record_capture(build.COVERAGE, None)
    build.write_part(run, 0, 2)
    run.finish()
    gram = open_artifact(tmp_path).vectors["gram"]
    assert gram.shape == (build.LAYERS, build.HEADS, build.DIM, build.DIM) and np.isnan(gram).all()


def test_finish_completes_the_manifest(tmp_path: Path) -> None:
    begun = build.manifest()
    run = open_run(tmp_path, begun)
    assert json.loads((tmp_path / "manifest.json").read_text())["finished"] is None
    build.write_run(run)
    manifest = open_artifact(tmp_path).manifest
    assert manifest["finished"] >= manifest["created"] == begun["created"]
    assert (manifest["n_inputs"], manifest["n_tokens"], manifest["seconds"]) == (7, [11, 15], 0.75)
    assert manifest["coverage"] == build.COVERAGE | {"bad_inputs": {"broken-1.jpg": "truncated"}}
    assert manifest["packages"].keys() >= {"numpy", "pyarrow", "torch"}
    text = (tmp_path / "manifest.json").read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n"


def test_finishing_again_changes_no_byte(tmp_path: Path) -> None:
    run = open_run(tmp_path, build.manifest())
    run.write_gallery(0, GalleryItem("x.jpg", "none", np.zeros((1, 1, 2))))
    build.write_run(run)
    run.write_heads(_heads())
    before, manifest = build.tables(tmp_path), (tmp_path / "manifest.json").read_bytes()
    assert len(before) == 12
    again = open_run(tmp_path, build.manifest())
    build.write_run(again)
    assert (build.tables(tmp_path), (tmp_path / "manifest.json").read_bytes()) == (before, manifest)


def test_a_part_is_done_when_both_of_its_files_are_there(tmp_path: Path) -> None:
    run = _started(tmp_path)
    for index in (0, 2, 123456):
        build.write_part(run, index, 2)
    assert attach_run(tmp_path).done() == {0, 2, 123456}
    (tmp_path / "vectors" / "part-00002.safetensors").unlink()
    (tmp_path / "events" / "part-00000.parquet").unlink()
    assert run.done() == {123456}
    (tmp_path / "vectors" / "capture.safetensors").unlink()
    assert run.done() == frozenset()


def test_every_difference_to_the_run_in_the_folder_is_named(tmp_path: Path) -> None:
    open_run(tmp_path, build.manifest(batch_size=8, limit=None))
    other = build.manifest(batch_size=4, length=[1, 2])
    other["model"]["weights_sha256"] = "ff"
    other["inputs"]["sha256"] = "ee"
    other["rule"]["event"] = "routed >= 0.5"
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ArtifactError) as error:
        open_run(tmp_path, other)
    assert error.value.found == (
        f"{tmp_path} belongs to another run (weights_sha256: ab12 there, ff here; inputs.sha256: cd34 there, ee here; "
        "rule.event: routed >= 0.9 there, routed >= 0.5 here; batch_size: 8 there, 4 here; "
        "limit: null there, absent here; length: absent there, [1, 2] here)"
    )
    assert "choose another folder with --out" in error.value.next_step
    assert "sinkscope diagnose zoo:tiny" in error.value.next_step
    assert (tmp_path / "manifest.json").read_bytes() == before


def test_a_run_may_go_on_elsewhere_and_faster(tmp_path: Path) -> None:
    build.write_part(_started(tmp_path), 0, 2)
    assert open_run(tmp_path, build.manifest(device="cuda:0", num_workers=4)).done() == {0}


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    (tmp_path / "zebra").mkdir()
    with pytest.raises(ArtifactError, match=r"belongs to something else \(it holds thesis.tex and 1 more\)") as error:
        open_run(tmp_path, build.manifest())
    assert "--out" in error.value.next_step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex", "zebra"]
    with pytest.raises(ArtifactError, match=r"thesis.tex is a file; expected a folder"):
        open_run(tmp_path / "thesis.tex", build.manifest())
    with pytest.raises(ArtifactError, match=r"manifest.json could not be written \(Not a directory\)"):
        open_run(tmp_path / "thesis.tex" / "out", build.manifest())


def test_finishing_with_a_missing_part_names_it(tmp_path: Path) -> None:
    run = _started(tmp_path)
    with pytest.raises(ArtifactError, match="lacks 1 of 1 parts, the first is number 0"):
        run.finish()
    build.write_part(run, 0, 2)
    build.write_part(run, 3, 2)
    with pytest.raises(ArtifactError, match="lacks 2 of 4 parts, the first is number 1"):
        run.finish()
    with pytest.raises(ArtifactError, match="lacks 3 of 5 parts") as error:
        run.finish(5)
    assert "run the same command again: sinkscope diagnose zoo:tiny" in error.value.next_step


def test_attaching_needs_a_run(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no manifest.json"):
        attach_run(tmp_path)


def test_a_full_disk_keeps_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _started(tmp_path)
    build.write_part(run, 0, 2)
    before = build.tables(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as error:
        build.write_part(run, 1, 2)
    assert error.value.found.startswith(f"the disk is full, {tmp_path / 'vectors'}")
    assert "what is finished is kept" in error.value.expected
    assert "run the same command again" in error.value.next_step
    assert build.tables(tmp_path) == before and run.done() == {0}


def test_sampled_runs_have_standard_errors(tmp_path: Path) -> None:
    run = _started(tmp_path, queries=64)
    with pytest.raises(ArtifactError, match="the event part lacks mass_se"):
        run.write_part(0, build.events(0, 2), build.vectors(0, 2))
    events = build.events(0, 2)
    run.write_part(0, events | {"mass_se": np.full(len(events["mass"]), 0.01)}, build.vectors(0, 2))
    run.finish()
    assert open_artifact(tmp_path).events(["mass_se"])["mass_se"].eq(np.float32(0.01)).all()


def test_parts_take_arrow_tables_too(tmp_path: Path) -> None:
    run = _started(tmp_path)
    build.write_part(run, 0, 3)
    mine = pa.parquet.read_table(tmp_path / "events" / "part-00000.parquet").replace_schema_metadata()
    floats = mine.schema.get_field_index("mass")
    shuffled = mine.set_column(floats, "mass", mine["mass"].cast("float64")).select(mine.column_names[::-1])
    run.write_part(1, shuffled, build.vectors(0, 3))
    assert pa.parquet.read_table(tmp_path / "events" / "part-00001.parquet").equals(mine)


def test_parts_that_do_not_fit_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    run = open_run(tmp_path, build.manifest())
    events, vectors = build.events(0, 2), build.vectors(0, 2)
    with pytest.raises(ArtifactError, match=r"call Run.record_capture first"):
        run.write_part(0, events, vectors)
    run.record_capture(build.COVERAGE, build.gram())
    before = build.tables(tmp_path)
    rows = vectors["rows"]
    for bad_events, bad_vectors, message in (
        (events | {"colour": events["mass"]}, vectors, "the event part has the unknown colour"),
        ({k: v for k, v in events.items() if k != "mass"} | {"a": []}, vectors, "lacks mass and has the unknown a"),
        (events | {"layer": ["x"] * len(rows)}, vectors, "the event part does not fit its columns"),
        (events | {"sink": events["sink"][1:]}, vectors, "the event part does not fit its columns"),
        (events | {"input": ["\udcff"] * len(events["mass"])}, vectors, "the event part does not fit its columns"),
        (build.events(0, 3), vectors, "part 0 has 2 inputs in its vectors, and heads with 3 to 3 event rows"),
        (build.events(0, 0), vectors, "heads with 0 to 0 event rows"),
        (events, vectors | {"extra": rows}, "exactly energy, ordinary_energy, rows, sink_energy, sink_value"),
        (events, vectors | {"rows": rows[:, :2]}, r"the array rows of a part has shape .*expected \(rows, 3\)"),
        (events, vectors | {"sink_energy": np.zeros(len(rows) + 1)}, "the array sink_energy of a part has shape"),
    ):
        with pytest.raises(ArtifactError, match=message):
            run.write_part(0, bad_events, bad_vectors)
    assert build.tables(tmp_path) == before


def test_parts_of_unlike_models_are_not_merged(tmp_path: Path) -> None:
    run = _started(tmp_path)
    build.write_part(run, 0, 2)
    vectors = build.vectors(1, 2)
    run.write_part(1, build.events(1, 2), vectors | {"sink_value": vectors["sink_value"][:, 1:]})
    with pytest.raises(ArtifactError, match=r"part-00001.safetensors has 2 layers, 3 heads and head size 4"):
        run.finish()
    build.write_part(run, 1, 2)
    run.record_capture(build.COVERAGE, build.gram()[:1])
    with pytest.raises(ArtifactError, match=r"Gram matrices have shape \(1, 3, 5, 5\); expected \(2, 3, 5, 5\)"):
        run.finish()


def test_a_manifest_must_be_json(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot be written \(Out of range float values are not JSON compliant"):
        build.manifest(limit=float("nan"))
    with pytest.raises(ArtifactError, match="not JSON serializable"):
        build.manifest(limit=tmp_path)


def test_heads_come_back_as_written(tmp_path: Path) -> None:
    run = open_run(tmp_path, build.manifest())
    build.write_run(run)
    heads = _heads()
    heads["nop"] = pd.array([3, None], dtype="Int64")
    run.write_heads(heads)
    found = open_artifact(tmp_path).heads
    assert found["nop"].tolist() == [3, pd.NA]
    assert found["role"].isna().tolist() == [False, True]
    names = [column.name for column in head_columns()]
    pd.testing.assert_frame_equal(found.drop(columns="role"), heads[names].drop(columns="role"), check_dtype=False)
    for wrong, message in ((heads.drop(columns="kind"), "lacks kind"), (heads.assign(x=1), "has the unknown x")):
        with pytest.raises(ArtifactError, match=f"the head table {message}"):
            run.write_heads(wrong)


def test_the_gallery_shows_the_first_inputs_in_order(tmp_path: Path) -> None:
    run = _started(tmp_path)
    rng = np.random.default_rng(3)
    masses = rng.random((8, build.LAYERS, build.HEADS, 7)).astype(np.float32)
    pictures = [Image.fromarray(rng.integers(0, 256, (5, 3, 3), dtype=np.uint8)) for _ in range(2)]
    roles = ("cls", *["patch"] * 6)
    run.write_gallery(7, GalleryItem("seventh", "none", masses[7]))
    run.write_gallery(1, GalleryItem("b", "picture", masses[1], None, 2, 3, 1, None, roles), pictures[1])
    run.write_gallery(0, GalleryItem("a", "picture", masses[0], None, 2, 3, 1, None, roles), pictures[0])
    run.write_gallery(2, GalleryItem("2", "text", masses[2], tokens=tuple("abcdé字</"), roles=None))
    for number in (3, 4, 6):
        run.write_gallery(number, GalleryItem(str(number), "none", masses[number]))
    build.write_run(run)
    gallery = open_artifact(tmp_path).gallery
    assert [item.input for item in gallery] == ["a", "b", "2", "3", "4", "6"]
    first, text = gallery[0], gallery[2]
    assert (first.kind, first.rows, first.cols, first.prefix, first.roles) == ("picture", 2, 3, 1, roles)
    assert first.picture is not None
    with Image.open(first.picture) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(pictures[0]))
    assert (text.kind, text.picture, text.rows, text.roles, text.tokens) == (
        "text",
        None,
        None,
        None,
        tuple("abcdé字</"),
    )
    np.testing.assert_allclose(gallery[5].mass, masses[6], atol=3e-4)


def test_a_run_without_gallery_has_an_empty_one(tmp_path: Path) -> None:
    build.write_run(open_run(tmp_path, build.manifest()))
    assert open_artifact(tmp_path).gallery == []
