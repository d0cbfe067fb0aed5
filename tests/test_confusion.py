"""experiments/confusion.py: the naming rule, and that it names what is planted in networks known to do one thing."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from sinkscope.train import save_run, train
from tests.train._runs import tiny

SCRIPT = Path(__file__).parents[1] / "experiments" / "confusion.py"


@pytest.fixture(scope="module")
def confusion() -> ModuleType:
    spec = spec_from_file_location("confusion", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules["confusion"] = module
    spec.loader.exec_module(module)
    return module


def head(**changes: Any) -> dict[str, Any]:
    return {"kind": "sink", "sink_rate": 1.0, "constant": 0.0, "content": 0.0} | changes


@pytest.mark.parametrize(
    ("row", "name"),
    [
        (head(), "nop"),
        (head(constant=0.24, content=0.24), "nop"),
        (head(constant=0.25), "bias"),
        (head(constant=2.0, content=0.24), "bias"),
        (head(constant=2.0, content=0.25), "broadcast"),
        (head(constant=-0.1, content=0.25), "broadcast"),
        (head(content=float("nan")), "undecided"),
        (head(constant=float("nan")), "undecided"),
        (head(sink_rate=0.33, content=1.0), "none"),
        (head(sink_rate=0.34, content=1.0), "broadcast"),
        (head(kind="dead"), "none"),
        (head(kind="uniform"), "none"),
    ],
)
def test_the_naming_rule(row: dict[str, Any], name: str, confusion: ModuleType) -> None:
    assert confusion.mechanism(row) == name


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"sink_rate": 0.34, "verdict": "bias"}, "bias"),
        ({"sink_rate": 0.33, "verdict": "bias"}, "none"),
        ({"sink_rate": 1.0, "verdict": "no sink"}, "none"),
        ({"sink_rate": 1.0, "verdict": None}, "none"),
    ],
)
def test_the_name_by_verdict(row: dict[str, Any], name: str, confusion: ModuleType) -> None:
    assert confusion.by_verdict(row) == name


@pytest.mark.parametrize(
    ("counts", "name"), [((5, 2, 1), "nop"), ((0, 2, 3), "other"), ((0, 0, 0), "no event"), ((None,) * 3, "no event")]
)
def test_fessers_class_is_that_of_most_events(counts: Any, name: str, confusion: ModuleType) -> None:
    assert confusion.fesser(dict(zip(("nop", "broadcast", "other"), counts, strict=True))) == name


@pytest.mark.parametrize(
    ("heads", "name"),
    [
        ([], "none"),
        (["nop", "nop"], "nop"),
        (["broadcast", "nop"], "mixed"),
        (["broadcast", "bias", "none"], "bias + broadcast"),
        (["none"], "none"),
    ],
)
def test_networks_are_called_by_their_heads(heads: list[str], name: str, confusion: ModuleType) -> None:
    assert confusion.named(heads) == name


def test_written_down_networks_are_called_what_they_are(confusion: ModuleType) -> None:
    heads, runs = confusion.tables(confusion.constructed(64))
    assert dict(zip(runs["task"], runs["named"], strict=True)) == {
        "nop": "nop",
        "broadcast": "broadcast",
        "mixed": "mixed",
        "trigger": "nop",
        # The tag's energy is a multiple of nothing, since other tokens write exact zeros: no share of it is known.
        "catch-tag-release": "undecided",
    }
    assert runs["verdict"].tolist() == ["nop", "broadcast", "mixed", "nop", "bias"]
    assert heads.loc[heads["task"] == "broadcast", "mechanism"].tolist() == ["broadcast", "none"]
    assert heads.loc[heads["task"] == "mixed", "mechanism"].tolist() == ["nop", "broadcast"]


def test_the_tables_are_written(
    confusion: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        save_run(tmp_path / "sweep" / "runs" / tiny(seed).name, train(tiny(seed)))
    diverged = tiny(optimizer="sgd", lr=1e30, init_std=0.5)
    save_run(tmp_path / "sweep" / "runs" / diverged.name, train(diverged))
    monkeypatch.setattr(sys, "argv", ["confusion.py", str(tmp_path / "sweep"), "--limit", "41", "--out", str(tmp_path)])
    confusion.main()
    text = (tmp_path / "confusion.md").read_text()
    assert capsys.readouterr().out == text + "\n"
    assert "| sweep | trigger, softmax | nop | False | 0 | 0 | 0 | 0 | 2 |" in text.splitlines()
    runs = pd.read_csv(tmp_path / "runs.csv")
    assert runs["from"].tolist() == ["constructed"] * 5 + ["sweep"] * 2
    assert runs["named"].tolist()[-2:] == ["none"] * 2
    heads = pd.read_csv(tmp_path / "heads.csv")
    assert heads.loc[heads["from"] == "sweep", "mechanism"].tolist() == ["none"] * 2


def test_a_folder_without_runs_is_told(
    confusion: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["confusion.py", str(tmp_path), "--limit", "9", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        confusion.main()
    assert f"{tmp_path} holds no finished run; expected an --out folder of `sinkscope toy`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
