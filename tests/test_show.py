"""The table of heads in the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from sinkscope._show import head_lines
from sinkscope.artifact import open_artifact
from tests._verdicts import fabricate
from tests.report._fake import Fake, write_fake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fake(tmp_path_factory.mktemp("show") / "run", Fake(layers=2, heads=5, inputs=11, gallery=False))


def test_verdicts_stand_in_the_table_once_there_are_some(folder: Path) -> None:
    before = head_lines(open_artifact(folder).heads, 0).splitlines()
    assert before[0].split()[-1] == "content"
    heads = open_artifact(fabricate(folder, words=("nop",), inputs=11)).heads
    header, *rows = head_lines(heads, 0).splitlines()
    assert header.split()[-2:] == ["verdict", "confidence"]
    assert len(rows) == len(heads) == 10
    shown = [(*row.split()[:2], *row.split()[-2:]) for row in rows]
    for row in heads.to_dict("records"):
        sink = row["verdict"] == "nop"
        confidence = f"{row['confidence']:.2f}" if sink else "-"
        assert (str(row["layer"]), str(row["head"]), "nop" if sink else "sink", confidence) in shown
