"""The time course as drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from sinkscope.train import RunOptions, RunRecord, read_run, save_run, train, write_figures
from sinkscope.train._figures import _labels
from tests.train._runs import tiny

pytest.importorskip("matplotlib", reason="the extra report is not installed")

DIVERGED = tiny(9, optimizer="sgd", lr=1e30, init_std=0.5)


def _records(folder: Path, *runs: RunOptions) -> list[RunRecord]:
    for run in runs:
        save_run(folder / run.name, train(run))
    return [read_run(folder / run.name) for run in runs]


def _texts(path: Path) -> list[str]:
    return ["".join(element.itertext()) for element in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def test_one_figure_per_task_and_form_with_a_line_per_run(tmp_path: Path) -> None:
    records = _records(tmp_path, tiny(0), tiny(1), DIVERGED, tiny(0, form="off-by-one"))
    paths = write_figures(records, tmp_path / "figures")
    names = ["trigger-softmax.svg", "trigger-softmax.png", "trigger-off-by-one.svg", "trigger-off-by-one.png"]
    assert [path.name for path in paths] == names
    assert _texts(paths[0])[-1] == "Trigger-conditional mean, softmax: 3 runs, 0 solved, 1 diverged"
    assert _texts(paths[2])[-1] == "Trigger-conditional mean, off-by-one: 1 run, 0 solved"
    lines = [paths[0].read_text().count(colour) for colour in ("#0072b2", "#d55e00")]
    assert lines[0] >= 2 * 6
    assert lines[1] == 0
    with Image.open(paths[1]) as picture:
        assert picture.width > 2000


def test_equal_runs_give_equal_files(tmp_path: Path) -> None:
    records = _records(tmp_path, tiny(0))
    some, others = (write_figures(records, tmp_path / name) for name in ("some", "others"))
    assert [path.read_bytes() for path in some] == [path.read_bytes() for path in others]


def test_runs_that_differ_in_more_than_the_seed_are_told_apart(tmp_path: Path) -> None:
    (record,) = _records(tmp_path, tiny(0))
    others = [replace(record, options=run) for run in (tiny(1), tiny(0, position=7), tiny(0, lr=0.002))]
    records = [record, *others]
    assert _labels(records) == ["lr 0.001, position 0"] * 2 + ["lr 0.001, position 7", "lr 0.002, position 0"]
    texts = _texts(write_figures(records, tmp_path / "figures")[0])
    assert {"lr 0.001, position 0", "lr 0.001, position 7", "lr 0.002, position 0"} <= set(texts)


def test_more_settings_than_colours_have_a_scale(tmp_path: Path) -> None:
    (record,) = _records(tmp_path, tiny(0))
    records = [replace(record, options=tiny(0, lr=10.0**-power)) for power in range(9)]
    texts = _texts(write_figures(records, tmp_path / "figures")[0])
    assert set(_labels(records)) <= set(texts)


def test_only_diverged_runs_make_a_figure_that_says_so(tmp_path: Path) -> None:
    paths = write_figures(_records(tmp_path, DIVERGED), tmp_path)
    assert _texts(paths[0])[-1] == "Trigger-conditional mean, softmax: 1 run, 0 solved, 1 diverged"
