"""Parts of edits: written whole, read back as they were, told when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinkscope._errors import ArtifactError
from sinkscope.artifact import EDIT_COLUMNS, EDITS, done_edits, read_edits, write_edits

KINDS = {"string": "a", "int32": 1, "float32": 0.5}


def part(name: str, edits: tuple[str, ...], donor: str | None = None, head: int = 0) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for edit in edits:
        row: dict[str, Any] = {column.name: KINDS[column.kind] for column in EDIT_COLUMNS}
        row |= {"input": name, "head": head, "edit": edit, "draw": 0, "budget": None}
        rows.append(row | {"donor": donor if edit == "donor" else None})
    return pd.DataFrame(rows)


def write(path: Path, layer: int, batch: int, frame: pd.DataFrame, changes: list[list[float]]) -> None:
    rows = np.flatnonzero(frame["edit"].isin(["zero", "donor"]))
    write_edits(path, layer, batch, frame, np.array(changes, dtype=np.float32).reshape(len(rows), 2), rows)


def test_parts_come_back_by_layer_and_batch(tmp_path: Path) -> None:
    write(tmp_path, 2, 0, part("a", ("zero",)), [[1, 0]])
    write(tmp_path, 0, 10, part("c", ("noop", "mean")), [])
    write(tmp_path, 0, 9, part("b", ("zero", "redirect")), [[0, 1]])
    assert done_edits(tmp_path) == {(2, 0), (0, 10), (0, 9)}
    found = read_edits(tmp_path)
    assert found["input"].tolist() == ["b", "b", "c", "c", "a"]
    assert found["edit"].tolist() == ["zero", "redirect", "noop", "mean", "zero"]
    assert list(found.columns) == [*(column.name for column in EDIT_COLUMNS), "donor_cosine"]
    assert found["budget"].isna().all() and found["donor"].isna().all() and found["donor_cosine"].isna().all()
    assert (tmp_path / "edits" / "part-000-00009.parquet").is_file()


def test_the_donor_cosine_is_with_the_donors_payload_minus_the_own(tmp_path: Path) -> None:
    """Under zero, a changes by (-3, 0) and b by (0, -1): a hands out (3, 0) and b (0, 1), in different batches. With
    b's value a should change by (-3, 1), and changes by (0, 2)."""
    write(tmp_path, 0, 0, part("a", ("zero", "donor"), "b"), [[-3, 0], [0, 2]])
    write(tmp_path, 0, 1, part("b", ("zero", "donor"), "elsewhere"), [[0, -1], [1, 1]])
    write(tmp_path, 1, 0, part("b", ("zero",)), [[9, 9]])
    found = read_edits(tmp_path)["donor_cosine"]
    assert found[1] == pytest.approx(1 / 10**0.5)
    assert found.notna().sum() == 1  # no payload is known of elsewhere


def test_a_change_of_nothing_has_no_direction(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, part("a", ("zero", "donor"), "b"), [[0, 1], [0, 0]])
    write(tmp_path, 0, 1, part("b", ("zero",)), [[1, 0]])
    assert read_edits(tmp_path)["donor_cosine"].isna().all()


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"{tmp_path} has no edits; .* next: run sinkscope verify {tmp_path}"):
        read_edits(tmp_path)


def test_damaged_parts_are_named(tmp_path: Path) -> None:
    write(tmp_path, 0, 0, part("a", ("zero",)), [[1, 0]])
    table, arrays = tmp_path / "edits" / "part-000-00000.parquet", tmp_path / "edits" / "part-000-00000.safetensors"
    whole = table.read_bytes()
    table.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match=r"part-000-00000\.parquet is damaged.*delete .* sinkscope verify"):
        read_edits(tmp_path)
    part("a", ("zero",)).drop(columns="mass").to_parquet(table)
    with pytest.raises(ArtifactError, match=r"its columns are input, layer, head, sink, edit"):
        read_edits(tmp_path)
    table.write_bytes(whole)
    kept = arrays.read_bytes()
    write(tmp_path, 0, 1, part("a", ("noop", "zero")), [[1, 0]])
    arrays.write_bytes((tmp_path / "edits" / "part-000-00001.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match=r"rows are not those of the parquet file beside it"):
        read_edits(tmp_path)
    arrays.write_bytes(kept)
    assert len(read_edits(tmp_path)) == 3


def test_a_table_with_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="the part of edits lacks mass"):
        write(tmp_path, 0, 0, part("a", ("zero",)).drop(columns="mass"), [[1, 0]])
    assert done_edits(tmp_path) == frozenset()


def test_every_edit_has_a_name_of_its_own() -> None:
    assert len(set(EDITS)) == 9
