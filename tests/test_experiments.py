"""Committed findings are what their scripts make of the committed rows: no number in the docs is written by hand."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
RESULTS = EXPERIMENTS / "results"
SCRIPTS = {
    "treat-planted": "planted",
    "treat-minilm": "minilm",
    "treat-dinov2": "dinov2",
    "treat-smollm2-removal": "smollm2_removal",
    "treat-smollm2-recovery": "smollm2_recovery",
    "treat-smollm2-streaming": "smollm2_streaming",
    "treat-smollm2-quantisation": "smollm2_quantisation",
}


@pytest.mark.parametrize("name", [name for name in SCRIPTS if (RESULTS / name / "findings.md").is_file()])
def test_tables_follow_from_rows(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    shutil.copytree(RESULTS / name, folder)
    (folder / "findings.md").unlink()
    script = EXPERIMENTS / "treat" / f"{SCRIPTS[name]}.py"
    command = [sys.executable, script, "--tables", "--results", tmp_path]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert (folder / "findings.md").read_text() == (RESULTS / name / "findings.md").read_text()


def test_data_are_asked_for(tmp_path: Path) -> None:
    script = EXPERIMENTS / "treat" / "minilm.py"
    ended = subprocess.run(
        [sys.executable, str(script), "--results", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.strip()) == (1, "--data is missing")
