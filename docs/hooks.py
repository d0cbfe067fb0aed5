"""Fills the pages' `<!-- table: NAME -->` marks from the code, so that they cannot drift from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import partial

import typer.cli
import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from tables import columns as toy_columns, costs, findings, forms, tasks as task_pages, treatments, tuning, verdicts
from tables.markdown import table
from tables.papers import beside
from tables.results import confusion, experiments

import sinkscope
from sinkscope import tasks
from sinkscope.artifact import (
    COMPARED_HEAD_COLUMNS,
    COMPARED_INPUT_COLUMNS,
    EDIT_COLUMNS,
    EFFECT_COLUMNS,
    EVENT_COLUMNS,
    MEASURE_COLUMNS,
    ROW_COLUMNS,
    SAMPLED_COLUMNS,
    SCHEMA_VERSION,
    Column,
    head_columns,
    verdict_columns,
)
from sinkscope.cli import app
from sinkscope.explain import COMPARED_MEASURES, rules
from sinkscope.models import zoo_models


def columns(listed: Iterable[Column]) -> str:
    rows = [[f"`{c.name}`", f"`{c.kind}`", c.meaning + (f" [{c.unit}]" if c.unit else "")] for c in listed]
    return table(["column", "type", "meaning"], rows)


def rules_table() -> str:
    parts = ("event", "nop", "broadcast")
    rows = [
        [f"`{name}`", *(rule.thresholds.get(part, "–") for part in parts), rule.source]
        for name, rule in rules().items()
    ]
    return table(["rule", *parts, "source"], rows)


def zoo_table() -> str:
    return table(
        ["reference", "what", "wheel", "licence"],
        [[f"`zoo:{m.name}`", m.description, f"`{m.wheel}`", m.licence] for m in zoo_models()],
    )


def command_line() -> str:
    command = typer.main.get_command(app)
    text = typer.cli.get_docs_for_click(obj=command, ctx=typer.Context(command), name="sinkscope")
    text = text.removeprefix("# `sinkscope`")
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+", "", text)  # cut short by typer; the sections below say it whole


def experiments_table() -> str:
    return table(
        ["sweep", "what it asks", "task", "runs done", "sizes and time"],
        [[f"[`{e.name}`]({e.page})", e.question, f"`{e.task}`", e.state, e.note] for e in experiments()],
    )


MARKS: dict[str, Callable[[], str]] = {
    "table: events": lambda: columns(EVENT_COLUMNS),
    "table: sampled": lambda: columns(SAMPLED_COLUMNS),
    "table: heads": lambda: columns(head_columns()),
    "table: verified heads": lambda: columns(head_columns(verified=True)[len(head_columns()) :]),
    "table: verdicts": lambda: columns(verdict_columns()),
    "table: effects": lambda: columns(EFFECT_COLUMNS),
    "table: edit parts": lambda: columns(EDIT_COLUMNS),
    "table: comparison": lambda: columns(MEASURE_COLUMNS),
    "table: compared measures": lambda: table(
        ["group", "measure", "on the page", "meaning"],
        [[f"`{g}`", f"`{name}`", label, meaning] for (g, name), (label, meaning) in COMPARED_MEASURES.items()],
    ),
    "table: compared heads": lambda: columns(COMPARED_HEAD_COLUMNS),
    "table: compared inputs": lambda: columns(COMPARED_INPUT_COLUMNS),
    "table: rows": lambda: columns(ROW_COLUMNS),
    "table: rules": rules_table,
    "table: zoo": zoo_table,
    "value: schema": lambda: str(SCHEMA_VERSION),
    "value: version": lambda: sinkscope.__version__,
    "cli": command_line,
    "forms: overview": forms.overview,
    "forms: sinks": forms.sinks,
    "forms: speed": forms.speed,
    "forms: sections": forms.sections,
    "treatments: overview": treatments.overview,
    "treatments: families": treatments.families,
    "treatments: order": treatments.order,
    "treatments: sections": treatments.sections,
    "tuning: objectives": tuning.objectives,
    "tuning: options": tuning.options,
    "tasks: overview": task_pages.overview,
    **{f"task: {name}": partial(task_pages.facts, name) for name in tasks.names()},
    **{f"results: {name}": partial(task_pages.results, name) for name in tasks.names()},
    "experiments": experiments_table,
    "confusion": confusion,
    "papers": lambda: beside(*experiments()) or "",
    "table: runs": toy_columns.run_columns,
    "table: toy heads": toy_columns.head_columns_of_runs,
    "table: curves": toy_columns.curve_columns,
    "table: edits": toy_columns.edits,
    "table: edit columns": toy_columns.edit_columns,
    "verdicts: edits": verdicts.edits,
    "verdicts: words": verdicts.words,
    "verdicts: thresholds": verdicts.thresholds,
    "costs: edits": costs.edits,
    "costs: treatments": costs.treatments,
    "costs: stream": costs.stream,
    **{f"findings: {name}": partial(findings.findings, name) for name in findings.FINDINGS},
}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Figures of committed results become files of the site."""
    for experiment in experiments():
        for figure in experiment.figures:
            name = f"results/{experiment.name}/{figure.name}"
            files.append(File.generated(config, name, abs_src_path=str(figure)))
    for name, figure in (*findings.figures(), *costs.figures()):
        files.append(File.generated(config, name, abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    return re.sub(r"<!-- (.+?) -->", lambda mark: MARKS[mark[1]](), markdown)
