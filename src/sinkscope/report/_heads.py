"""The head table and the card of one head, as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinkscope.report._format import NONE, count, head_name, interval, missing, number, percent

Row = dict[str, Any]


@dataclass(frozen=True)
class TableColumn:
    """One column of the head table: its heading, what it means, its text, the column it sorts by, and its side."""

    label: str
    meaning: str
    text: Callable[[Row], str]
    sort: str
    left: bool = False


def _plain(name: str) -> Callable[[Row], str]:
    return lambda row: NONE if missing(row[name]) else str(row[name])


def _median(name: str) -> Callable[[Row], str]:
    return lambda row: number(row[f"{name}_median"])


def _share(name: str) -> Callable[[Row], str]:
    return lambda row: percent(row[name])


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: number(row[name])


def _with_interval(name: str, form: Callable[[Any], str]) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        span = interval(row[f"{name}_low"], row[f"{name}_high"], form)
        return f"{form(row[name])} ({span})" if span else form(row[name])

    return text


def table_columns() -> tuple[TableColumn, ...]:
    """The columns of the head table, in order."""
    medians = (
        ("mass", "attention the sink receives"),
        ("routed", "share of queries that give the sink half of their weight or more"),
        ("value_ratio", "norm of the sink’s value over that of the other keys"),
        ("update_ratio", "norm of the sink’s write over that of the other keys"),
        ("stable_rank", "stable rank of the head’s write"),
        ("diagonal", "weight of tokens on themselves"),
        ("entropy_share", "entropy of the weights over the largest possible"),
        ("virtual_mass", "attention that learned or virtual sinks take"),
    )
    shares = (
        ("silent", "what is missing to an ordinary token"),
        ("constant", "the same on every input"),
        ("content", "what differs from input to input"),
    )
    return (
        TableColumn("head", "layer and query head", lambda row: head_name(row["layer"], row["head"]), "order", True),
        TableColumn("kind", "what the head is: sink, uniform, diagonal, dead or none", _plain("kind"), "kind", True),
        TableColumn("role", "most frequent role of the sink token", _plain("role"), "role", True),
        TableColumn(
            "event rate", "share of inputs that are an event under the rule", _share("event_rate"), "event_rate"
        ),
        TableColumn("sink rate", "share of inputs with mass ≥ 0.3", _share("sink_rate"), "sink_rate"),
        *(
            TableColumn(name.replace("_", " "), f"median: {text}", _median(name), f"{name}_median")
            for name, text in medians
        ),
        *(TableColumn(name, f"events of class {name}", _plain(name), name) for name in ("nop", "broadcast", "other")),
        *(TableColumn(name, f"energy (ordinary token = 1): {text}", _number(name), name) for name, text in shares),
    )


_CARD: tuple[tuple[str, str, Callable[[Any], str], tuple[str, ...]], ...] = (
    ("Rates", "", percent, ("event_rate", "sink_rate")),
    (
        "Medians over inputs",
        "_median",
        number,
        (
            "mass", "routed", "min_mass", "value_ratio", "update_ratio", "stable_rank", "diagonal", "entropy",
            "entropy_share", "hidden_norm", "hidden_norm_median", "virtual_mass",
        ),
    ),
    ("What the sink writes: energy, ordinary token = 1", "", number, ("silent", "constant", "content")),
    ("Of that energy", "", percent, ("content_share",)),
)  # fmt: skip
_UNITS = {"entropy": " nat"}


def card_lines(row: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything `heads.parquet` says about one head, in groups of (name, text), with its intervals."""
    n, share = int(row["n_inputs"]), percent(row["role_share"])
    groups = [
        (
            "Head",
            [
                ("kind", _plain("kind")(row)),
                ("sink token", NONE if missing(row["role"]) else f"{row['role']} on {share} of {count(n, 'input')}"),
                ("classes", _classes(row)),
            ],
        )
    ]
    for title, suffix, form, names in _CARD:
        lines = [(name, _with_interval(name + suffix, form)(row) + _UNITS.get(name, "")) for name in names]
        groups.append((title, lines))
    return groups


def _classes(row: Row) -> str:
    names = ("nop", "broadcast", "other")
    return "not known" if missing(row["nop"]) else ", ".join(f"{row[name]:,} {name}" for name in names)


def records(heads: pd.DataFrame) -> list[Row]:
    """The rows of `heads` as dicts of plain Python values."""
    return [{str(key): value for key, value in row.items()} for row in heads.to_dict("records")]


def sort_value(row: Row, column: TableColumn) -> str:
    """What the page sorts a cell by: a number or a word, empty for no value."""
    if column.sort == "order":
        return f"{row['layer'] * 10_000 + row['head']}"
    value = row[column.sort]
    return "" if missing(value) else f"{value:.6g}" if isinstance(value, float) else str(value)
