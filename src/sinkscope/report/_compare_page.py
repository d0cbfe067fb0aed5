"""The offline page of a comparison: one file, no network, no script."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from sinkscope.artifact import write_text
from sinkscope.explain import GROUPS, STATES, is_changed, side_by_side, transitions
from sinkscope.report._compare_data import STATE_COLOURS, CompareData, read_compared
from sinkscope.report._compare_figures import HALF, head_map, mass_scatter, norms_by_layer, outliers_by_layer
from sinkscope.report._compare_text import cell_text, change_text, clear, share, value_text
from sinkscope.report._figure import Drawing, rendered
from sinkscope.report._format import NONE, count, head_name, missing
from sinkscope.report._heads import records
from sinkscope.report._style import NARROW, WIDE, Layout
from sinkscope.report._svg import finish_svg

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_INPUTS_SHOWN = 12
_INPUT_UNITS = {
    "final_change": ("change of final tokens", "change"),
    "final_cosine": ("cosine", "cosine"),
    "output_kl": ("KL, nats", "nat"),
    "output_top1": ("same first choice", "share"),
    "loss": ("loss", "nat"),
    "accuracy": ("right", "share"),
}


def write_comparison_page(folder: Path, path: Path | None = None) -> Path:
    """Writes the page of the comparison in `folder` as one HTML file that needs no network, and returns its path.

    **Arguments:**

    - `path`: where to write; None for `compare.html` in the folder.

    **Raises:** `ArtifactError` where the folder holds no comparison or the file cannot be written, `MissingExtraError`
    without matplotlib, `ResourceError` where the disk is full.
    """
    target = folder / "compare.html" if path is None else path
    write_text(target, build_comparison_page(read_compared(folder)))
    return target


def build_comparison_page(data: CompareData) -> str:
    """The page as text; equal comparisons give equal pages. **Raises:** `MissingExtraError` without matplotlib."""
    templates = resources.files("sinkscope.report") / "templates"
    css = "".join((templates / name).read_text(encoding="utf-8") for name in ("report.css", "compare.css"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((templates / "compare.html.jinja").read_text(encoding="utf-8"))
    facts = data.tables.facts
    letters = [data.letter(model) for model in range(len(data.models))]
    return template.render(
        policy=_POLICY,
        css=Markup(css),
        version=facts["sinkscope"],
        command=facts["command"],
        rule=facts["rule"],
        models=[_model(data, number) for number in range(len(data.models))],
        letters=letters,
        notes=facts["notes"],
        sentences=list(zip(letters[1:], facts["sentences"], strict=True)),
        groups=_groups(data),
        heads=[_heads(data, model) for model in data.matched],
        layers=_layer_figures(data),
        inputs=[part for model in range(1, len(letters)) if (part := _inputs(data, model)) is not None],
        paired=[model["same_inputs"] for model in data.models[1:]],
        ran=[model["not_run"] is None for model in data.models[1:]],
    )


def _model(data: CompareData, number: int) -> dict[str, Any]:
    model = data.models[number]
    return {
        **model,
        "colour": data.colour(number),
        "verdicts": "yes" if model["verified"] else "no",
        "location": model["inputs"].get("location") or "given in Python",
        "ran": "yes" if model["not_run"] is None else "no",
        "paired": "base" if number == 0 else "same as A" if model["same_inputs"] else "others",
    }


def _groups(data: CompareData) -> list[dict[str, Any]]:
    """The big table, group by group."""
    groups: list[dict[str, Any]] = []
    for line in side_by_side(data.tables.measures, len(data.models)):
        if not groups or groups[-1]["name"] != line.group:
            groups.append({"name": line.group, "title": GROUPS[line.group], "lines": []})
        cells = [{"text": NONE if cell is None else cell_text(cell), "sure": False} for cell in line.cells[:1]]
        for cell in line.cells[1:]:
            cells.append({"text": NONE if cell is None else cell_text(cell), "sure": False})
            cells.append(
                {"text": NONE if cell is None else change_text(cell), "sure": cell is not None and clear(cell)}
            )
        groups[-1]["lines"].append({"label": line.label, "meaning": line.meaning, "cells": cells})
    return groups


def _heads(data: CompareData, model: int) -> dict[str, Any]:
    heads, letter, names = data.heads(model), data.letter(model), data.state_names(model)
    counts = transitions(heads)
    before = [word for word in STATES if (heads["before"] == word).any()]
    after = [word for word in STATES if (heads["after"] == word).any()]
    cells = {(row["before"], row["after"]): row["heads"] for row in records(counts)}
    changed = is_changed(heads)
    moved, shown = int(changed.sum()), heads[changed | _clear(heads)]
    ranked = shown.reindex(shown["mass_change"].abs().sort_values(ascending=False, kind="stable").index)
    return {
        "letter": letter,
        "maps": [
            _figure(
                f"map-{data.letter(0)}-{letter}",
                f"Heads of {data.letter(0)}",
                "",
                partial(head_map, data, model, "before"),
                HALF,
            ),
            _figure(f"map-{letter}", f"Heads of {letter}", "", partial(head_map, data, model, "after"), HALF),
        ],
        "map_caption": f"{count(moved, 'head')} of {len(heads):,} {'is' if moved == 1 else 'are'} something else in "
        f"{letter}; {'it is' if moved == 1 else 'they are'} framed in its map.",
        "after": [names[word] for word in after],
        "transitions": [
            (
                names[word],
                [_transition(cells.get((word, other), 0), word, other, len(heads)) for other in after],
            )
            for word in before
        ],
        "scatter": _figure(
            f"mass-{letter}",
            f"Mass on the sink, {data.letter(0)} against {letter}",
            f"One point per head: mean mass on its sink over the inputs of {data.letter(0)} and over those of "
            f"{letter}. On the line nothing changes.",
            partial(mass_scatter, data, model),
            Layout("wide", 520),
        ),
        "rows": [_head_row(row, names) for row in records(ranked)],
        "rows_note": (
            f"{count(len(ranked), 'head')} of {len(heads):,}: those that are something else in {letter}, and those "
            "whose mass changes clearly (the 95% interval of the change, of one head by itself, leaves out 0). All "
            "heads, with all intervals, are in heads.parquet."
        ),
    }


def _clear(heads: pd.DataFrame) -> pd.Series:
    return (heads["mass_change_low"] > 0) | (heads["mass_change_high"] < 0)


def _transition(n: int, before: str, after: str, total: int) -> dict[str, Any]:
    strength = 0.0 if n == 0 else 0.15 + 0.75 * (n / total) ** 0.5
    return {"text": f"{n:,}" if n else "", "strength": f"{strength:.2f}", "same": before == after}


def _head_row(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    def told(name: str) -> tuple[str, str, str]:
        cell = {"unit": "share", **{end: row[f"{name}_{end}"] for end in ("change", "change_low", "change_high")}}
        return share(row[f"{name}_before"]), share(row[f"{name}_after"]), change_text(cell)

    return {
        "name": head_name(row["layer"], row["head"]),
        "states": [(names[word], STATE_COLOURS[word]) for word in (row["before"], row["after"])],
        "cells": [text for name in ("mass", "sink_rate", "event_rate") for text in told(name)],
    }


def _layer_figures(data: CompareData) -> list[dict[str, Any]]:
    found = []
    if data.layers("outliers", "largest"):
        caption = (
            "What each block reads, before any norm; the last point is what the last block writes. Means over inputs "
            "with 95% bootstrap intervals. Largest activation: the largest |x| of an input (Bondarenko et al. 2023). "
            "Kurtosis: of all activations of an input, 3 for a normal distribution. Kurtosis of channels: of the root "
            "mean squares of channels (He et al. 2024), 1 when all are alike. Tokens that a treatment has added are "
            "left out, or dotted."
        )
        found.append(_figure("outliers", "Outliers by layer", caption, partial(outliers_by_layer, data), WIDE))
    if data.layers("norms", "hidden_ratio"):
        caption = (
            "L2 norm of what the block reads, at the sink over the median token: median over the rows of an input with "
            "a sink, mean over inputs with 95% bootstrap interval, each model on the inputs of its own diagnosis. "
            "Layers without a sink have no point."
        )
        found.append(_figure("hidden", "Norm of the sink by layer", caption, partial(norms_by_layer, data), WIDE))
    return found


def _inputs(data: CompareData, model: int) -> dict[str, Any] | None:
    """Inputs on which a model differs most from the base."""
    table = data.tables.inputs
    own = table[table["model"] == model]
    by = next((name for name in ("final_change", "output_kl") if own[name].notna().any()), None)
    if by is None:
        return None
    ranked = own.sort_values(by, ascending=False, kind="stable").head(_INPUTS_SHOWN)
    names = [name for name in _INPUT_UNITS if own[name].notna().any()]
    rows = []
    for row in records(ranked):
        texts = [NONE if missing(row[name]) else value_text(row[name], _INPUT_UNITS[name][1]) for name in names]
        rows.append((row["input"], texts))
    return {
        "letter": data.letter(model),
        "columns": [_INPUT_UNITS[name][0] for name in names],
        "rows": rows,
        "note": f"The {count(len(ranked), 'input')} of {len(own):,} that differ most; all are in inputs.parquet.",
    }


def _figure(name: str, title: str, caption: str, draw: Callable[[Layout], Drawing], wide: Layout) -> dict[str, Any]:
    drawings: dict[str, Markup] = {}
    for layout in (wide, NARROW):
        drawing, files = rendered(partial(draw, layout), "svg")
        fits_both = layout is wide and drawing.width <= NARROW.width
        kind = "both" if fits_both else "narrow" if layout is NARROW else "wide"
        page = f"{kind}-{name}-"
        svg = finish_svg(
            files["svg"], name=name, title=title, description=caption or title, marks=drawing.marks, page=page
        )
        drawings[kind] = Markup(svg)
        if fits_both:
            break
    return {"name": name, "title": title, "caption": caption, "drawings": drawings.items()}
