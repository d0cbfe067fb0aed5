"""What the commands print when all is well, and what they make of good and bad folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sinkscope
from tests.cli._ended import complaint
from tests.cli.conftest import Cli

HEAVY = {"torch", "transformers", "pandas", "numpy", "pyarrow", "scipy", "matplotlib", "safetensors"}


@pytest.fixture(scope="module")
def finished(vit: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished diagnosis of 7 pictures in 4 parts; not to be changed."""
    return sinkscope.diagnose(str(vit), pictures, tmp_path_factory.mktemp("runs") / "out", batch_size=2).path


def _imported(*arguments: str) -> set[str]:
    """Top modules that a command line has imported when it ends."""
    code = (
        "import sys; from sinkscope.cli import main\n"
        f"sys.argv = ['sinkscope', *{arguments!r}]\n"
        "try: main()\n"
        "except SystemExit: print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [("--help",), ("diagnose", "--help"), ("--version",), ("models",)])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    imported = _imported(*arguments)
    assert "typer" in imported
    assert imported.isdisjoint(HEAVY)


def test_the_package_imports_neither_the_command_line_nor_what_it_prints_with() -> None:
    code = "import sys, sinkscope; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"typer", "rich", *HEAVY}.isdisjoint(done.stdout.split())


def test_help_is_shown_once_and_in_full(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    bare, asked = cli(), cli("--help")
    assert (bare.code, asked.code) == (2, 0)
    assert bare.out.split() == asked.out.split()
    assert bare.out.count("Usage:") == 1
    assert bare.err == asked.err == ""
    for command in ("diagnose", "verify", "show", "report", "models"):
        assert command in asked.out
        assert cli(command, "-h").code == 0
    for option in ("--images", "--text", "--dataset", "--out", "--limit", "--batch-size", "--size", "--length"):
        assert option in cli("diagnose", "--help").out


def test_version(cli: Cli) -> None:
    assert cli("--version") == (0, f"sinkscope {sinkscope.__version__}\n", "")


def test_diagnose_prints_the_summary_and_where_the_report_is(cli: Cli, llama: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = cli("diagnose", llama, "--text", text, "--out", out, "--limit", 11, "--length", 29)
    assert ended.code == 0
    first, *_, last = ended.out.splitlines()
    assert first.startswith("captured 2 of 2 attention modules")
    assert last == f"report: {out / 'report.html'}"
    assert (out / "report.html").is_file()
    assert [line.partition(" ")[0] for line in ended.err.splitlines()] == ["batch"]
    assert cli("show", out).out.startswith(ended.out.rpartition("report:")[0])


def test_json_is_one_object_and_nothing_else(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = json.loads(cli("diagnose", vit, "--images", pictures, "--out", out, "--json").out)
    assert facts["out"] == str(out)
    assert facts["model"] == str(vit)
    assert facts["n_inputs"] == 7
    assert facts["bad_inputs"] == {}
    assert facts["coverage"].startswith("captured 2 of 2")
    assert facts["report"] == str(out / "report.html")
    shown = json.loads(cli("show", out, "--json", "--heads", 3).out)
    assert {name: shown[name] for name in facts if name != "report"} == {
        name: value for name, value in facts.items() if name != "report"
    }
    assert len(shown["heads"]) == 3
    assert shown["heads"][0]["n_inputs"] == 7
    listed = json.loads(cli("models", "--json").out)
    assert [model["name"] for model in listed["zoo"]] == ["dinov2-small-saliency", "minilm-l6", "smollm2-135m"]


def test_models_lists_every_form(cli: Cli) -> None:
    listed = cli("models").out
    for form in ("hf:NAME", "timm:NAME", "open_clip:NAME", "zoo:dinov2-small-saliency", "zoo:smollm2-135m"):
        assert form in listed


def test_without_matplotlib_all_but_the_report_is_there(
    cli: Cli, vit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ended = cli("diagnose", vit, "--images", pictures, "--out", tmp_path / "out", "--json")
    assert ended.code == 0
    assert json.loads(ended.out)["report"] is None
    assert "no report written: " in ended.err
    assert 'pip install "sinkscope[report]"' in ended.err
    assert 'pip install "sinkscope[report]"' in complaint(cli("report", tmp_path / "out"))


def test_show_lists_as_many_heads_as_asked(cli: Cli, finished: Path) -> None:
    def heads(*options: object) -> list[str]:
        return cli("show", finished, *options).out.partition("layer  head")[2].splitlines()[1:]

    assert len(heads()) == len(heads("--heads", 0)) == 4
    assert len(heads("--heads", 99)) == 4
    *listed, more = heads("--heads", 1)
    assert len(listed) == 1
    assert more == "3 more heads; all of them: sinkscope show FOLDER --heads 0"
    assert "--heads" in complaint(cli("show", finished, "--heads", -1))


def test_report_writes_the_page_and_the_figures(cli: Cli, finished: Path, tmp_path: Path, text: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    assert cli("report", folder) == (0, f"{folder / 'report.html'}\n", "")
    page, *figures = cli("report", folder, "--figures", tmp_path / "figures").out.splitlines()
    assert page == str(folder / "report.html")
    assert {Path(figure).suffix for figure in figures} == {".svg", ".png"}
    assert all(Path(figure).stat().st_size > 0 for figure in figures)
    assert f"--figures {text} is a file" in complaint(cli("report", folder, "--figures", text))


def _unfinished(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"finished": None}))


def _newer(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"schema": 99}))


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (shutil.rmtree, ["there is no folder"]),
        (lambda folder: (folder / "manifest.json").unlink(), ["holds no manifest.json"]),
        (lambda folder: (folder / "manifest.json").write_text('{"sch'), ["manifest.json is damaged"]),
        (lambda folder: (folder / "heads.parquet").write_bytes(b"PAR1"), ["heads.parquet is damaged"]),
        (lambda folder: (folder / "heads.parquet").unlink(), ["there is no", "heads.parquet"]),
        (lambda folder: (folder / "events/part-00001.parquet").write_bytes(b""), ["part-00001.parquet is damaged"]),
        (lambda folder: (folder / "events/part-00001.parquet").unlink(), ["has parts of 5 inputs", "of 7 inputs"]),
        (_unfinished, ["is an unfinished run (4 parts done)", "sinkscope.diagnose("]),
        (_newer, ["has schema 99", "pip install --upgrade sinkscope"]),
    ],
)
def test_folders_that_cannot_be_shown(
    damage: Callable[[Path], None], names: list[str], cli: Cli, finished: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    damage(folder)
    for command in ("show", "report"):
        line = complaint(cli(command, folder))
        assert str(folder) in line
        for name in names:
            assert name in line


@pytest.mark.parametrize("name", ["-dash \n line", "ü 日本", "quo'te\" #%?&"])
def test_names_of_any_kind(name: str, cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    model = shutil.copytree(vit, tmp_path / "models" / name.replace("?", ""))  # a ? begins options
    folder = tmp_path / name
    folder.mkdir()
    shutil.copy(pictures / "p0.png", folder / f"{name}.png")
    assert cli("diagnose", "--images", folder, "--out", tmp_path / f"{name} out", "--", model).code == 0
    assert cli("show", "--", tmp_path / f"{name} out").code == 0
    events = sinkscope.open(tmp_path / f"{name} out").events
    assert set(events["input"]) == {f"{name}.png"}
    (folder / f"{name} \x1b[31m.png").write_text("no picture")
    line = complaint(cli("diagnose", model, "--images", folder, "--out", tmp_path / "other"), tmp_path / "other")
    assert " ".join(f"{name} \\x1b[31m.png, which cannot be read".split()) in line
    left_out = cli("diagnose", model, "--images", folder, "--out", tmp_path / "other", "--skip-bad").out
    assert "\x1b" not in left_out


def test_names_that_are_no_text(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    shutil.copy(pictures / "p0.png", folder / "\udcff.png")
    line = complaint(cli("diagnose", vit, "--images", folder, "--out", tmp_path / "out"), tmp_path / "out")
    assert r"the name '\udcff.png'; expected names in UTF-8" in line
