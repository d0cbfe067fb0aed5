"""Fills the pages' `<!-- table: NAME -->` marks from the code, so that they cannot drift from it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import typer.cli
import typer.main

import sinkscope
from sinkscope.artifact import EVENT_COLUMNS, SAMPLED_COLUMNS, SCHEMA_VERSION, Column, head_columns
from sinkscope.cli import app
from sinkscope.explain import rules
from sinkscope.models import zoo_models


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


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


MARKS: dict[str, Callable[[], str]] = {
    "table: events": lambda: columns(EVENT_COLUMNS),
    "table: sampled": lambda: columns(SAMPLED_COLUMNS),
    "table: heads": lambda: columns(head_columns()),
    "table: rules": rules_table,
    "table: zoo": zoo_table,
    "value: schema": lambda: str(SCHEMA_VERSION),
    "value: version": lambda: sinkscope.__version__,
    "cli": command_line,
}


def on_page_markdown(markdown: str, **_: object) -> str:
    return re.sub(r"<!-- (.+?) -->", lambda mark: MARKS[mark[1]](), markdown)
