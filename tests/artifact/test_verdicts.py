"""What edits add to an artifact: tables in one form or the other, each whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from sinkscope._errors import ArtifactError
from sinkscope.artifact import (
    EFFECT_COLUMNS,
    HEAD_EFFECTS,
    attach_run,
    head_columns,
    open_artifact,
    open_run,
    read_verification,
    verdict_columns,
    verification,
    with_verdicts,
    without_verdicts,
    write_verdicts,
)
from sinkscope.explain import build_heads, get_rule
from tests.artifact import _build as build

ADDED = ["verdict", "confidence", "n_verified"]
ADDED += [f"effect_{edit}{end}" for edit in HEAD_EFFECTS for end in ("", "_low", "_high")]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A finished artifact of two layers of three heads."""
    run = open_run(tmp_path, build.manifest())
    build.write_run(run)
    run.write_heads(heads_of(tmp_path))
    return tmp_path


def heads_of(out: Path) -> pd.DataFrame:
    return build_heads(open_artifact(out), get_rule("fesser"))


def verdicts_on(*heads: tuple[int, int]) -> pd.DataFrame:
    """A verdict per head, with numbers that differ."""
    rows = []
    for number, (layer, head) in enumerate(heads):
        row: dict[str, Any] = {column.name: number + 0.25 for column in verdict_columns()}
        row |= {"layer": layer, "head": head, "verdict": "bias", "reason": "it writes", "n_verified": 11 + number}
        rows.append(row | {"split_half": None if number else True, "n_needed": None})
    return pd.DataFrame(rows).astype({"n_needed": "Int64", "split_half": "boolean"})


def effects_on(*heads: tuple[int, int]) -> pd.DataFrame:
    rows = [[layer, head, "zero", "final", 0.5, 0.25, 0.75, 11] for layer, head in heads]
    return pd.DataFrame(rows, columns=[column.name for column in EFFECT_COLUMNS])


def test_the_head_table_has_one_form_or_the_other(out: Path) -> None:
    before = open_artifact(out).heads
    assert list(before.columns) == [column.name for column in head_columns()]
    write_verdicts(out, before, verdicts_on((1, 2), (0, 1)), effects_on((1, 2)))
    after = open_artifact(out).heads
    assert list(after.columns) == [*before.columns, *ADDED]
    assert [column.name for column in head_columns(verified=True)] == list(after.columns)
    pd.testing.assert_frame_equal(without_verdicts(after), before)


def test_a_verdict_stands_at_its_head_and_the_others_have_no_numbers(out: Path) -> None:
    heads = open_artifact(out).heads
    heads["kind"] = ["sink", "sink", "none", "uniform", "sink", "sink"]
    write_verdicts(out, heads, verdicts_on((1, 2), (0, 1)), effects_on((1, 2)))
    after = open_artifact(out).heads
    told = after["verdict"].astype(object).where(after["verdict"].notna(), None)
    assert told.tolist() == [None, "bias", "no sink", "no sink", None, "bias"]
    assert after["n_verified"].astype(object).where(after["n_verified"].notna(), None).tolist() == [
        None, 12, None, None, None, 11,
    ]  # fmt: skip
    np.testing.assert_array_equal(after["effect_zero"], [np.nan, 1.25, np.nan, np.nan, np.nan, 0.25])
    assert str(after["n_verified"].dtype) == "Int64"


def test_tables_are_what_was_written(out: Path) -> None:
    verdicts, effects = verdicts_on((1, 2), (0, 1)), effects_on((1, 2))
    write_verdicts(out, open_artifact(out).heads, verdicts, effects)
    opened = open_artifact(out)
    assert opened.verdicts is not None and opened.effects is not None
    assert opened.verdicts.to_dict("list").keys() == verdicts.to_dict("list").keys()
    assert opened.verdicts["verdict"].tolist() == ["bias", "bias"]
    assert opened.verdicts["split_half"].tolist() == [True, pd.NA]
    assert opened.verdicts["n_needed"].isna().all()
    assert opened.effects.to_dict("list") == effects.to_dict("list")
    types = {field.name: str(field.type) for field in pq.read_schema(out / "verdicts.parquet")}
    assert types["split_half"] == "bool" and types["n_needed"] == "int64" and types["layer"] == "int32"


def test_before_edits_there_are_none(out: Path) -> None:
    opened = open_artifact(out)
    assert opened.verdicts is None and opened.effects is None


def test_a_run_that_is_finished_again_keeps_its_verdicts(out: Path) -> None:
    write_verdicts(out, open_artifact(out).heads, verdicts_on((1, 2)), effects_on((1, 2)))
    before = (out / "heads.parquet").read_bytes()
    attach_run(out).write_heads(heads_of(out))
    assert (out / "heads.parquet").read_bytes() == before


def test_verdicts_twice_are_those_of_the_second_time(out: Path) -> None:
    write_verdicts(out, open_artifact(out).heads, verdicts_on((1, 2)), effects_on((1, 2)))
    write_verdicts(out, open_artifact(out).heads, verdicts_on((0, 0)), effects_on((0, 0)))
    assert open_artifact(out).heads["n_verified"].notna().tolist() == [True, *[False] * 5]


@pytest.mark.parametrize(
    ("verdicts", "effects", "message"),
    [
        (verdicts_on((7, 0)), effects_on(), "verdicts on 1 heads that are not in the head table"),
        (verdicts_on((0, 0)).drop(columns="reason"), effects_on(), "the table of verdicts lacks reason"),
        (verdicts_on((0, 0)), effects_on().assign(x=1), "the table of effects has the unknown x"),
        (verdicts_on((0, 0)).assign(confidence="much"), effects_on(), "the table of verdicts does not fit its columns"),
    ],
)
def test_tables_that_do_not_fit_change_nothing(
    verdicts: pd.DataFrame, effects: pd.DataFrame, message: str, out: Path
) -> None:
    before = build.tables(out)
    with pytest.raises(ArtifactError) as error:
        write_verdicts(out, open_artifact(out).heads, verdicts, effects)
    assert message in str(error.value)
    assert build.tables(out) == before


@pytest.mark.parametrize("name", ["verdicts", "effects"])
def test_a_damaged_table_says_how_to_repair_it(name: str, out: Path) -> None:
    write_verdicts(out, open_artifact(out).heads, verdicts_on((1, 2)), effects_on((1, 2)))
    path = out / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ArtifactError) as error:
        getattr(open_artifact(out), name)
    assert error.value.found.startswith(f"{path} is damaged (")
    assert error.value.next_step == f"delete {path} and run sinkscope verify {out} again"


def test_verdicts_join_whatever_the_order_of_rows(out: Path) -> None:
    heads = open_artifact(out).heads
    some, other = (with_verdicts(heads, verdicts_on((1, 2), (0, 1)).iloc[order]) for order in ([0, 1], [1, 0]))
    pd.testing.assert_frame_equal(some, other)


# -- verification.json ----------------------------------------------------------------


def begin(folder: Path, **changes: Any) -> Any:
    given: dict[str, Any] = {"weights_sha256": "ab12", "heads": ["0.1", "1.2"], "options": {"donors": 2, "seed": 0}}
    return verification(folder, **given | {"command": "sinkscope verify out"} | changes)


def test_edits_are_begun_once_and_finished_once(tmp_path: Path) -> None:
    with begin(tmp_path / "edits") as left:
        assert left.heads == ("0.1", "1.2") and left.number == 0
        there = read_verification(tmp_path / "edits")
        assert there is not None and there["finished"] is None and there["seconds"] is None
    there = read_verification(tmp_path / "edits")
    assert there is not None and there["finished"] is not None and there["seconds"] is not None
    assert there["rounds"] == [["0.1", "1.2"]] and there["command"] == "sinkscope verify out"
    with begin(tmp_path / "edits") as left:
        assert not left.heads


def test_edits_that_never_began_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), begin(tmp_path / "edits"):
        raise RuntimeError
    assert not (tmp_path / "edits").exists()


def test_edits_that_began_are_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), begin(tmp_path / "edits"):
        (tmp_path / "edits" / "part-000-00000.parquet").touch()
        raise KeyboardInterrupt
    with begin(tmp_path / "edits") as left:
        assert left.heads == ("0.1", "1.2")


def test_heads_that_are_asked_for_later_make_a_round_of_their_own(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    with begin(folder):
        (folder / "part-000-00000.parquet").touch()
    before = (folder / "verification.json").read_bytes()
    with pytest.raises(RuntimeError), begin(folder, heads=["0.0", "0.1"]):
        raise RuntimeError
    assert (folder / "verification.json").read_bytes() == before, "no part was done"
    with pytest.raises(RuntimeError), begin(folder, heads=["0.0", "0.1"]) as left:
        assert left.heads == ("0.0",) and left.number == 1
        (folder / "part-000-00000-1.parquet").touch()
        raise RuntimeError
    with pytest.raises(ArtifactError) as error, begin(folder, heads=["2.0", "1.2"]):
        pytest.fail("a round was begun before another was finished")
    assert error.value.found == f"the edits in {folder} are unfinished, and of other heads (0.0 there, 2.0 here)"
    assert error.value.next_step == "repeat the old command: sinkscope verify out; or begin anew with --again"
    with pytest.raises(ArtifactError) as error, begin(folder, heads=[f"2.{head}" for head in range(11)]):
        pytest.fail("a round was begun before another was finished")
    assert error.value.found.endswith("(0.0 there, 11 heads here)")
    with begin(folder, heads=["0.0", "0.1"]) as left:
        assert left.heads == ("0.0",) and left.number == 1
    for heads in (["0.0"], ["0.0", "0.1", "1.2"]):
        with begin(folder, heads=heads) as left:
            assert not left.heads
    there = read_verification(folder)
    assert there is not None and there["rounds"] == [["0.1", "1.2"], ["0.0"]]


def test_edits_can_begin_anew(tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    with begin(folder):
        (folder / "part-000-00000.parquet").touch()
    with begin(folder, options={"donors": 3}, again=True) as left:
        assert left.number == 0 and not list(folder.glob("part-*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"options": {"donors": 3, "seed": 0}}, "donors: 2 there, 3 here"),
        ({"weights_sha256": "cd34"}, "weights_sha256: ab12 there, cd34 here"),
    ],
)
def test_other_edits_are_refused_and_the_difference_named(changes: dict[str, Any], named: str, tmp_path: Path) -> None:
    folder = tmp_path / "edits"
    with begin(folder):
        pass
    before = (folder / "verification.json").read_bytes()
    with pytest.raises(ArtifactError) as error, begin(folder, **changes):
        pytest.fail("other edits have begun")
    assert error.value.found == f"{folder} holds other edits ({named})"
    assert error.value.next_step == "begin anew with --again, or repeat the old command: sinkscope verify out"
    assert (folder / "verification.json").read_bytes() == before


@pytest.mark.parametrize(("text", "reason"), [("{", "Expecting property name"), ("{}", "it lacks command"), ("[]", "")])
def test_a_damaged_verification_is_named(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "verification.json").write_text(text)
    with pytest.raises(ArtifactError, match=rf"verification.json is damaged \(.*{reason}") as error, begin(tmp_path):
        pytest.fail("damaged edits have begun")
    assert error.value.next_step == f"delete {tmp_path} and verify again"


def test_parts_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    (tmp_path / "part-000-00000.parquet").touch()
    with pytest.raises(ArtifactError, match=r"has parts but no verification\.json") as error, begin(tmp_path):
        pytest.fail("edits of unknown origin have begun")
    assert error.value.next_step == f"delete {tmp_path}"
