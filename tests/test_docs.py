"""What the documentation makes of the code and of committed results."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from docs.tables import columns, costs, findings, forms, papers, results, tasks as pages, verdicts
from docs.tables.docstring import meanings, prose
from docs.tables.markdown import MISSING, number, plain, spread, table
from docs.tables.results import EXPERIMENTS, Experiment, edits, experiments, outcomes, settings, signatures
from sinkscope import artifact, attention, explain, tasks
from sinkscope.train import (
    CURVE_COLUMNS,
    EDIT_COLUMNS,
    EDITS,
    EXTRA_COLUMNS,
    HEAD_COLUMNS,
    RUN_COLUMNS,
    make_options,
    open_folder,
    run_folder,
    save_run,
    train,
    write_edits,
    write_tables,
)

SWEEP = """# Is it so?
# sinkscope toy sweep experiments/nop.toml --out results/nop
# Three runs. Smaller than the paper: everything.
task = "nop"
seeds = 3
dim = 8
length = 5
batch = 4
steps = 3
"""
TINY = {"dim": 8, "length": 5, "batch": 4, "steps": 3}


def rows(markdown: str) -> list[list[str]]:
    """Cells of a table, its header and all."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [line for line in cells if set(line) != {"---"}]


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """Two of three runs done, one of which has diverged."""
    (tmp_path / "nop.toml").write_text(SWEEP)
    made = Experiment("nop", tmp_path)
    open_folder(made.results, "sinkscope toy sweep nop.toml")
    for seed, lr in ((0, 3e-3), (1, 1e30)):
        options = make_options("nop", seed, {**TINY, "lr": lr})
        save_run(run_folder(made.results, options), train(options))
    write_tables(made.results)
    return made


def run_table(**varying: list[Any]) -> pd.DataFrame:
    """Runs that are alike but for these columns."""
    length = len(next(iter(varying.values())))
    same: dict[str, Any] = dict.fromkeys((*RUN_COLUMNS, *EXTRA_COLUMNS), 1.0)
    same |= {"task": "nop", "form": "softmax", "layers": 1, "heads": 1, "optimizer": "adam", "form_options": "{}"}
    same |= {"solved": True, "diverged": False}
    frame = {name: [value] * length for name, value in same.items()}
    return pd.DataFrame(frame | {"run": [f"run-{i}" for i in range(length)]} | varying)


# -- markdown ---------------------------------------------------------------------------------------------------------


def test_formulas_in_prose_stay_as_they_are_written() -> None:
    assert plain("x_j* R with <x_j, u>, `a_b * c`") == r"x\_j\* R with &lt;x\_j, u>, `a_b * c`"


def test_papers_become_links() -> None:
    assert plain("arXiv:2606.08105, Eq. 3") == "[arXiv:2606.08105](https://arxiv.org/abs/2606.08105), Eq. 3"


def test_a_pipe_in_a_cell_does_not_end_it() -> None:
    assert table(["a"], [["|v|"]]).splitlines()[-1] == r"| \|v\| |"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "–"),
        ([None], "–"),
        ([0.12345], "0.123"),
        ([2.0, 2.0], "2"),
        ([3.0, None, 1.0, 2.0], "2<br><small>1 – 3</small>"),
    ],
)
def test_spread_is_the_median_with_its_range(values: list[float | None], expected: str) -> None:
    assert spread(values) == expected


@pytest.mark.parametrize(
    ("value", "text"), [(0.00012345, "0.000123"), (22345.6, "22,346"), (7, "7"), (-1234, "-1,234")]
)
def test_numbers_have_three_digits_or_are_counted_out(value: float, text: str) -> None:
    assert number(value) == text


# -- docstrings -------------------------------------------------------------------------------------------------------


class _Base:
    """A base.

    - `length`, `width`: of it,
      in metres.
    - `kept`: from here.
    """


class _Kind(_Base):
    """What it is.

    - a step;

    More of it.

    - `width`: its own.

    **Raises:** nothing.
    """


def test_bullets_of_bases_count_unless_said_anew() -> None:
    assert meanings(_Kind) == {"length": "of it, in metres.", "width": "its own.", "kept": "from here."}


def test_prose_leaves_bullets_and_errors_out() -> None:
    assert prose(_Kind) == "What it is.\n\n- a step;\n\nMore of it."


def test_options_of_a_form_are_explained_also_where_a_base_has_them() -> None:
    told = meanings(type(attention.get("gate-output")))
    assert {field.name for field in dataclasses.fields(attention.OutputGate)} <= set(told)
    assert told["shared"] == "all heads have the same gate."


@pytest.mark.parametrize("name", tasks.names())
def test_every_parameter_of_a_task_is_explained(name: str) -> None:
    kind = type(tasks.get(name))
    assert {field.name for field in dataclasses.fields(kind)} <= set(meanings(kind))


def test_every_column_of_toy_runs_is_explained() -> None:
    everything = {*RUN_COLUMNS, *EXTRA_COLUMNS, *HEAD_COLUMNS, *CURVE_COLUMNS, *EDIT_COLUMNS}
    assert all(columns.meaning(name) for name in everything)
    assert set(columns.MEANINGS) <= everything
    assert set(columns.EDIT_MEANINGS) == set(EDITS)


# -- pages ------------------------------------------------------------------------------------------------------------


def test_every_form_has_a_section_and_a_row_that_links_to_it() -> None:
    sections, overview = forms.sections(), forms.overview()
    for name in attention.names():
        assert f"{{ #{name} }}" in sections
        assert f"](#{name})" in overview


def test_every_task_has_a_page_in_the_documentation() -> None:
    folder = Path(__file__).parents[1] / "docs" / "tasks"
    for name in tasks.names():
        page = (folder / f"{name}.md").read_text(encoding="utf-8")
        assert f"<!-- task: {name} -->" in page and f"<!-- results: {name} -->" in page


def test_a_page_tells_parameters_recipe_and_smallest_loss() -> None:
    page = rows(pages.facts("trigger"))
    assert ["`length`", "`16`", "width and number of tokens."] in page
    told = {row[0]: row[1] for row in page if len(row) == 2}
    assert told["needs"] == "nop"
    assert told["**Smallest loss**"].startswith("0. The target is a function of the input.")
    assert told["**Reference recipe**"].startswith("Adam, learning rate 0.001, batch 128, 50,000 steps at most")


def test_every_edit_word_and_threshold_is_explained() -> None:
    assert [row[0] for row in rows(verdicts.edits())[1:]] == [f"`{name}`" for name in artifact.EDITS]
    assert [row[0] for row in rows(verdicts.words())[1:]] == [f"`{word}`" for word in explain.CONDITIONS]
    told = {row[0]: row[1:] for row in rows(verdicts.thresholds())[1:]}
    assert list(told) == [f"`{field.name}`" for field in dataclasses.fields(explain.Thresholds)]
    assert told["`nop_strength`"][0] == number(explain.Thresholds().nop_strength)


def test_findings_stand_in_the_page_with_their_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(findings, "_RESULTS", tmp_path)
    assert "Not run yet" in findings.findings("real")
    assert list(findings.figures()) == []
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "findings.md").write_text("### Verdicts\n\nText.\n")
    (tmp_path / "real" / "layers.svg").write_text("<svg/>")
    assert findings.findings("real") == "### Verdicts\n\nText.\n\n![layers](results/real/layers.svg)"
    assert list(findings.figures()) == [("results/real/layers.svg", tmp_path / "real" / "layers.svg")]


def test_costs_stand_in_the_page(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(costs, "RESULTS", tmp_path)
    assert "Not measured yet" in costs.edits() + costs.treatments() + costs.stream()
    ratio = {"median": 1.25, "low": 1.0, "high": 1.5}
    edited = {"case": "vit", "heads": 3, "rows": 1234, "seconds": 5.67, "milliseconds per row": 4.6}
    rows_of = [edited | {"times faster than the plain way": ratio}]
    (tmp_path / "verify.json").write_text(json.dumps({"machine": "a chip", "rows": rows_of}))
    (tmp_path / "verify.svg").write_text("<svg/>")
    gate = {"treatment": "gate", "aim": 1.03, "forward": ratio, "forward and backward": ratio}
    norm = gate | {"treatment": "norm", "aim": None}
    treated = [gate | {"case": "vit"}, gate | {"case": "gpt"}, norm | {"case": "gpt"}]
    kept = [{"tokens": 2048, "cache_mb": 45.0, "peak_mb": 1100.4}]
    (tmp_path / "treat.json").write_text(json.dumps({"machine": "a chip", "rows": treated, "stream": kept}))
    assert rows(costs.edits())[1] == ["vit", "3", "1,234", "5.7", "4.6", "1.2<br><small>1.0 – 1.5</small>"]
    shown = "1.25<br><small>1.00 – 1.50</small>"
    assert rows(costs.treatments())[1:] == [["gate", "1.03", *[shown] * 4], ["norm", "", "–", shown, "–", shown]]
    assert rows(costs.stream())[1] == ["2,048", "45.00", "1,100"]
    assert list(costs.figures()) == [("results/benchmarks/verify.svg", tmp_path / "verify.svg")]


# -- results ----------------------------------------------------------------------------------------------------------


def test_every_sweep_says_what_it_asks_and_how_to_run_it() -> None:
    for experiment in experiments():
        assert experiment.question.endswith("?") or experiment.question.endswith(".")
        assert experiment.command.startswith(f"sinkscope toy sweep experiments/{experiment.name}.toml --out ")
        assert str(experiment.asked) in experiment.note


def test_the_main_experiment_of_a_task_comes_first_and_that_of_all_forms_last() -> None:
    order = [experiment.name for experiment in experiments() if experiment.task == "nop"]
    assert (order[0], order[-1]) == ("nop", "forms-nop")
    listed = [experiment.task for experiment in experiments()]
    assert listed == sorted(listed, key=tasks.names().index)


def test_the_confusion_table_stands_under_a_heading_of_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(results, "EXPERIMENTS", tmp_path)
    assert "Not run yet" in results.confusion()
    path = tmp_path / "results" / "confusion" / "confusion.md"
    path.parent.mkdir(parents=True)
    path.write_text("# Names\n\nText.\n\n## Softmax\n\n| a |\n| --- |\n")
    assert results.confusion() == "Text.\n\n### Softmax\n\n| a |\n| --- |"


def test_an_experiment_without_results_says_so(tmp_path: Path) -> None:
    (tmp_path / "nop.toml").write_text(SWEEP)
    experiment = Experiment("nop", tmp_path)
    assert (experiment.task, experiment.asked, experiment.state) == ("nop", 3, "0 of 3")
    assert experiment.question == "Is it so?"
    assert experiment.note == "Three runs. Smaller than the paper: everything."
    section = pages.experiment_section(experiment)
    assert "Not run yet" in section and not rows(section)
    (line,) = rows(papers.beside(experiment) or "")[1:]
    assert line[-1] == MISSING


def test_results_count_what_was_solved_and_what_diverged(experiment: Experiment) -> None:
    assert experiment.state == "2 of 3"
    runs = experiment.runs
    assert runs is not None
    alive, lost = rows(outcomes(runs))[1:]
    assert alive[:3] == ["0.003", "0 of 1", number(runs.loc[runs["seed"] == 0, "loss"].item())]
    assert lost[1:4] == ["0 of 1, 1 diverged", "–", "–"]
    section = pages.experiment_section(experiment)
    assert "Not finished: 2 of 3 runs" in section


def test_signatures_are_of_the_runs_that_have_some(experiment: Experiment) -> None:
    assert experiment.runs is not None and experiment.heads is not None
    header, line = rows(signatures(experiment.runs, experiment.heads))
    told = dict(zip(header, line, strict=True))
    (head,) = experiment.heads.itertuples()
    assert told["`lr`"] == "0.003"
    assert told["mass of the sink"] == number(float(head.sink_mass))  # type: ignore[arg-type]
    assert "its raw weight" not in header  # a softmax has no other


def test_edits_stand_beside_those_of_the_paper(experiment: Experiment) -> None:
    assert experiment.runs is not None
    table, _ = write_edits(experiment.results)
    assert experiment.edits is not None
    header, *lines = rows(edits(experiment.runs, experiment.edits))
    assert [line[header.index("edit")] for line in lines] == list(EDITS)
    redirected = dict(zip(header, lines[EDITS.index("redirect")], strict=True))
    loss = table.loc[table["edit"] == "redirect", "loss"].item()
    assert redirected["loss"] == f"{number(loss)}<br><small>paper 0.144</small>"
    assert "edited" in pages.experiment_section(experiment)


def test_numbers_of_a_paper_stand_beside_ours(experiment: Experiment) -> None:
    (line,) = rows(papers.beside(experiment) or "")[1:]
    assert experiment.runs is not None
    assert line[1:3] == ["loss at the end", "0.0187 (one seed, authors' notebook)"]
    assert line[3] == number(experiment.runs["loss"].dropna().item())


def test_claims_look_at_the_layer_and_setting_they_name() -> None:
    heads = pd.DataFrame(
        {"layer": [0, 0, 1, 1], "source_mass": [0.1, 0.3, 0.5, 0.7], "sink_mass": [0.2, 0.2, 0.6, 0.6]}
    )
    loss, first, second, *_, largest = papers.CLAIMS["broadcast"]
    runs = run_table(loss=[0.25, 0.35])
    assert loss.ours(runs, heads) == "0.3<br><small>0.25 – 0.35</small>"
    assert first.ours(runs, heads) == "0.2<br><small>0.1 – 0.3</small>"
    assert second.ours(runs, heads) == "0.6<br><small>0.5 – 0.7</small>"
    assert largest.ours(runs, heads) == "0.6"
    damped, _ = papers.CLAIMS["nop-gamma"]
    runs = run_table(gamma=[0.0, 0.1, 1.0], sink_mass=[0.9, 0.5, 0.1])
    assert damped.ours(runs, heads) == "0.5"


def test_settings_are_what_varies_and_does_not_follow_from_the_rest() -> None:
    same = run_table(seed=[0, 1], loss=[0.1, 0.2])
    assert settings(same) == []
    sized = run_table(layers=[1, 2, 4], heads=[1, 2, 4], lr=[1e-3, 1e-4, 1e-4], form=["relu"] * 3)
    assert settings(sized) == ["layers × heads"]
    grid = run_table(optimizer=["adam", "sgd", "sgd"], lr=[1e-3, 1e-1, 1e-2])
    assert settings(grid) == ["optimizer", "lr"]
    named = run_table(form=["relu", "softmax"], form_options=['{"uncounted": 1}', "{}"])
    assert settings(named) == ["form"]


def test_forms_stand_in_the_order_of_the_registry() -> None:
    runs = run_table(form=["relu", "softmax", "relu"], loss=[1.0, 2.0, 3.0])
    assert [line[:3] for line in rows(outcomes(runs))[1:]] == [
        ["softmax", "1 of 1", "2"],
        ["relu", "2 of 2", "2<br><small>1 – 3</small>"],
    ]


def test_the_first_sink_is_counted_where_there_is_one() -> None:
    line = rows(outcomes(run_table(onset=[None, 10.0, 30.0])))[1]
    assert line[-1] == "20<br><small>10 – 30</small><br><small>2 of 3 runs</small>"


@pytest.mark.parametrize(("heads", "expected"), [(2, [["1", "0.8"], ["2", "0.2"]]), (5, [["0.9"]])])
def test_of_many_heads_the_strongest_is_shown(heads: int, expected: list[list[str]]) -> None:
    masses = [0.2, 0.8] if heads == 2 else [0.1, 0.9, 0.2, 0.3, 0.4]
    found = pd.DataFrame({name: [1.0] * heads for name in HEAD_COLUMNS})
    found = found.assign(run="run-0", layer=0, head=range(heads), sink_mass=masses, mass_raw=masses)
    lines = rows(signatures(run_table(heads=[heads], loss=[1.0]), found))[1:]
    assert [line[: len(expected[0])] for line in lines] == expected


def test_forms_without_results_are_not_measured_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_results(monkeypatch, tmp_path)
    assert MISSING in forms.speed().lower()
    assert MISSING in forms.sinks().lower() and not rows(forms.sinks())
    assert all(line[4:] == [MISSING] * 4 for line in rows(forms.overview())[1:])


def test_a_form_has_a_sink_where_its_median_mass_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_results(monkeypatch, tmp_path)
    runs = run_table(form=["softmax", "softmax", "softmax", "relu"], null_mass=[0.9, 0.4, 0.1, 0.2], loss=[0.5] * 4)
    runs.loc[0, "solved"] = False
    path = tmp_path / "results" / "forms-trigger" / "runs.parquet"
    path.parent.mkdir(parents=True)
    runs.to_parquet(path)
    told = {line[0]: line[4] for line in rows(forms.overview())}
    assert told["[Softmax](#softmax)"] == "sink, 0.40<br><small>solved 2 of 3</small>"
    assert told["[ReLU / n](#relu)"] == "no sink, 0.20<br><small>solved 1 of 1</small>"
    assert told["[Softpick](#softpick)"] == MISSING
    (line,) = [line for line in rows(forms.sinks()) if line[0] == "[Softmax](#softmax)"]
    assert line[1:5] == ["2 of 3", "0.5", "1", "0.4<br><small>0.1 – 0.9</small>"]


def without_results(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """The sweeps as they are, and nothing measured."""
    for sweep in EXPERIMENTS.glob("*.toml"):
        (folder / sweep.name).write_bytes(sweep.read_bytes())
    monkeypatch.setattr(forms, "Experiment", partial(Experiment, folder=folder))
    monkeypatch.setattr(forms, "SPEED", folder / "forms.json")


def test_speed_is_read_from_the_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ratio = {"median": 1.234, "low": 1.1, "high": 1.5, "seconds": 0.1}
    row = {"form": "relu", "tokens": 4096, "causal": False, "forward": ratio, "forward and backward": ratio}
    path = tmp_path / "forms.json"
    path.write_text(json.dumps({"machine": "a machine", "rows": [row | {"memory": 1234.5}]}))
    monkeypatch.setattr(forms, "SPEED", path)
    text = forms.speed()
    assert "Measured on a machine." in text and "Causal" not in text
    told = {line[0]: line[1:] for line in rows(text)}
    shown = "1.23<br><small>1.10 – 1.50</small>"
    assert told["[ReLU / n](#relu)"] == [MISSING, MISSING, shown, MISSING, MISSING, shown, "1,234"]
    assert told["[Softmax](#softmax)"] == [MISSING] * 7
