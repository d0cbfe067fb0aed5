"""The head table and the card of one head, as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sinkscope.report._format import NONE, change, count, head_name, interval, missing, number, percent

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


def _change(name: str) -> Callable[[Row], str]:
    return lambda row: change(row[name])


def _number(name: str) -> Callable[[Row], str]:
    return lambda row: number(row[name])


def _with_interval(name: str, form: Callable[[Any], str]) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        span = interval(row[f"{name}_low"], row[f"{name}_high"], form)
        return f"{form(row[name])} ({span})" if span else form(row[name])

    return text


def _confidence(row: Row) -> str:
    return percent(row["confidence"])


_EDITS = {
    "zero": "the sink hands out nothing",
    "mean": "it hands out the head’s mean over other inputs",
    "donor": "it hands out another input’s sink value",
    "ordinary": "it hands out a value that is no sink’s",
    "redirect": "attention goes to the other tokens",
    "control": "other keys of up to the same mass hand out nothing",
}


def table_columns(*, verified: bool) -> tuple[TableColumn, ...]:
    """The columns of the head table, in order; `verified` with verdicts and effects."""
    words = (
        TableColumn("verdict", "what edits say the sink does", _plain("verdict"), "verdict", True),
        TableColumn("confidence", "share of resamples that give the same word", _confidence, "confidence"),
    )
    effects = tuple(
        TableColumn(edit, f"change of the final tokens if {text}", _change(f"effect_{edit}"), f"effect_{edit}")
        for edit, text in _EDITS.items()
    )
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
        *(words if verified else ()),
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
        *(effects if verified else ()),
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


def card_lines(row: Row, verdict: Row | None = None) -> list[tuple[str, list[tuple[str, str]]]]:
    """Everything `heads.parquet` says about one head, in groups of (name, text), with its intervals; with its row of
    `verdicts.parquet`, which is empty for a head that was not edited, also what that adds."""
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
    return groups if verdict is None else [*groups[:2], *_verdict_lines(row, verdict), *groups[2:]]


def _verdict_lines(row: Row, verdict: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    found = {name: NONE for name in (*_SHARES, "specific", "split_half", "q_value", "reason")}
    if verdict:
        found |= {name: _with_interval(name, percent)(verdict) for name in _SHARES}
        found["specific"] = _with_interval("specific", number)(verdict)
        found["split_half"] = NONE if missing(verdict["split_half"]) else "yes" if verdict["split_half"] else "no"
        found["q_value"] = number(verdict["q_value"])
        found["reason"] = NONE if missing(verdict["reason"]) else str(verdict["reason"])
    n = row["n_verified"]
    judged = [
        ("verdict", NONE if missing(row["verdict"]) else str(row["verdict"])),
        ("confidence", percent(row["confidence"])),
        ("edited on", NONE if missing(n) else count(int(n), "input")),
        ("halves agree", found["split_half"]),
        ("adjusted p", found["q_value"]),
        ("why", found["reason"]),
    ]
    effects = [(edit, _with_interval(f"effect_{edit}", change)(row)) for edit in _EDITS]
    return [
        ("Verdict, from edits", judged),
        ("Change of the final tokens", [*effects, ("zero / control", found["specific"])]),
        ("Handed out, by the edits: ordinary token = 100%", [(name, found[name]) for name in _SHARES]),
    ]


_SHARES = ("silent", "constant", "content", "content_share")


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
