"""The offline HTML page: one file, no network."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from sinkscope.explain import summarise
from sinkscope.report._data import ReportData
from sinkscope.report._figure import FigureSpec, render
from sinkscope.report._figures import figures, heatmaps
from sinkscope.report._format import count, head_name, missing, number, percent
from sinkscope.report._gallery import LEAST_MASS, MOST_TOKENS, gallery_data
from sinkscope.report._heads import Row, TableColumn, card_lines, records, sort_value, table_columns
from sinkscope.report._rule import classes_text, event_text
from sinkscope.report._style import NARROW, VERDICT_COLOURS, WIDE
from sinkscope.report._svg import finish_svg
from sinkscope.report._verdict_page import effect_data, verdict_page
from sinkscope.report._words import BIBTEX, GLOSSARY, VERDICT_GLOSSARY

_FIRST = ("measured", "What was measured"), ("summary", "Summary")
_MAP, _PRESCRIPTION, _VERDICTS = (
    ("heads-map", "Layer by head"),
    ("prescription", "Prescription"),
    ("verdicts", "Verdicts"),
)
_LAST = ("gallery", "Gallery"), ("heads", "All heads"), ("rule", "Rule and citation")


def build_page(data: ReportData) -> str:
    """The page as text; equal artifacts give equal pages.

    **Raises:** `MissingExtraError` without matplotlib, `ArtifactError` where the gallery is damaged.
    """
    templates = resources.files("sinkscope.report") / "templates"
    css, script = ((templates / name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    template = environment.from_string((templates / "report.html.jinja").read_text(encoding="utf-8"))
    rows = records(data.heads)
    gallery = gallery_data(data.artifact.gallery, data.gallery_rows)
    ranked = sorted(rows, key=_prominence)
    maps, others, verified = heatmaps(data), figures(data), data.verified
    columns = table_columns(verified=verified is not None)
    sentences = summarise(data.manifest, data.heads, data.artifact.events(["sink", "role", "mass"]))
    before = (*_FIRST, _PRESCRIPTION, _MAP, _VERDICTS) if verified else (*_FIRST, _MAP)
    return template.render(
        policy=_policy(script),
        css=Markup(css),
        script=Markup(script),
        data=_json(_script_data(data, rows, gallery, _key(ranked[0]))),
        summary=sentences,
        summary_title=f"In {'five' if len(sentences) == 5 else 'three'} sentences",
        heat=[_shown(spec, data) for spec in maps],
        measure="verdict" if verified else "event_rate" if data.events else "sink_rate",
        figures=[_shown(spec, data) for spec in others],
        verified=verified and verdict_page(verified),
        sections=[*before, *((spec.name, spec.title) for spec in others), *_LAST],
        gallery_count=len(gallery),
        has_text=any(item["tokens"] for item in gallery),
        least_mass=f"{LEAST_MASS:g}",
        choices=[(_key(row), _choice(row)) for row in rows],
        picks=[(_key(row), head_name(row["layer"], row["head"])) for row in ranked[:5]],
        columns=columns,
        kinds=sorted({str(row["kind"]) for row in rows}),
        verdicts=[word for word in VERDICT_COLOURS if verified and (data.heads["verdict"] == word).any()],
        rows=[_table_row(row, columns) for row in rows],
        table_note=_table_note(data),
        rule={"name": data.rule.name, "source": data.rule.source, "text": event_text(data.rule)},
        classes_note=classes_text(data.rule),
        bibtex=BIBTEX.format(version=data.manifest["sinkscope"]),
        glossary=(*GLOSSARY, *(VERDICT_GLOSSARY if verified else ())),
        **_measured(data),
    )


def _policy(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


def _json(value: Any) -> Markup:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _shown(spec: FigureSpec, data: ReportData) -> dict[str, Any]:
    caption = spec.caption(data)
    drawings: dict[str, Markup] = {}
    for layout in (WIDE, NARROW):
        drawing, files = render(spec, data, layout, "svg")
        fits_both = layout is WIDE and drawing.width <= NARROW.width
        drawings["both" if fits_both else layout.name] = Markup(
            finish_svg(
                files["svg"],
                name=spec.name,
                title=spec.title,
                description=caption,
                marks=drawing.marks,
                page=f"{layout.name}-",
            )
        )
        if fits_both:
            break
    return {"name": spec.name, "title": spec.title, "caption": caption, "drawings": drawings.items()}


def _script_data(data: ReportData, rows: Sequence[Row], gallery: list[dict[str, Any]], start: str) -> dict[str, Any]:
    verdicts = {_key(row): row for row in records(data.verified.verdicts)} if data.verified else None
    cards = {_key(row): card_lines(row, None if verdicts is None else verdicts.get(_key(row), {})) for row in rows}
    return {
        "start": start,
        "card": [{"title": title, "names": [name for name, _ in lines]} for title, lines in cards[start]],
        "heads": {key: [[text for _, text in lines] for _, lines in card] for key, card in cards.items()},
        "effects": effect_data(data.verified) if data.verified else None,
        "gallery": gallery,
        "mostTokens": MOST_TOKENS,
    }


def _key(row: Row) -> str:
    return f"{row['layer']}-{row['head']}"


def _prominence(row: Row) -> tuple[float, ...]:
    return tuple(0.0 if missing(row[name]) else -row[name] for name in ("event_rate", "sink_rate", "mass_median"))


def _choice(row: Row) -> str:
    name, events, sinks = head_name(row["layer"], row["head"]), percent(row["event_rate"]), percent(row["sink_rate"])
    return f"{name}: events {events}, sinks {sinks}"


def _table_row(row: Row, columns: Sequence[TableColumn]) -> dict[str, Any]:
    cells = [(column.text(row), sort_value(row, column), column.left) for column in columns]
    return {"key": _key(row), "cells": cells}


def _table_note(data: ReportData) -> str:
    n_inputs = int(data.heads["n_inputs"].max())
    edits = " Effects are changes of the final tokens under each edit." if data.verified else ""
    return (
        f"Medians and rates over {count(n_inputs, 'input')}; classes count events under {data.rule.name}.{edits} "
        "A heading sorts, a row chooses its head. Intervals and the remaining columns stand in the card of the head "
        "and in heads.parquet."
    )


def _measured(data: ReportData) -> dict[str, Any]:
    manifest = data.manifest
    model, inputs, coverage, options = (manifest[name] for name in ("model", "inputs", "coverage", "options"))
    heads = data.heads.groupby("layer").size()
    shape = f"{count(len(heads), 'layer')} × {_span(sorted(heads.unique()))} {'head' if heads.max() == 1 else 'heads'}"
    n_inputs, tokens = count(int(manifest["n_inputs"]), "input"), _span(manifest["n_tokens"] or [])
    facts = [
        ("Model", f"{model['class']}, {model['modality']}", False),
        ("Parameters", f"{model['parameters']:,} ({model['dtype']})", False),
        ("Attention", shape, False),
        ("Inputs", f"{n_inputs} ({inputs['kind']})", False),
        ("Tokens per input", tokens or "not known", False),
        ("Rule", data.rule.name, False),
        ("Measured", _when(manifest), False),
        ("sinkscope", manifest["sinkscope"], False),
        ("Command", manifest["command"], True),
        ("Input location", inputs.get("location") or "given in Python", True),
        ("Weights, SHA-256", model["weights_sha256"], True),
        ("Inputs, SHA-256", inputs.get("sha256") or "not known", True),
    ]
    plain = {**options, **manifest["packages"]}
    return {
        "reference": model["reference"],
        "version": manifest["sinkscope"],
        "lead": f"{n_inputs} of {tokens or 'an unknown number of'} tokens, {shape}, rule {data.rule.name}.",
        "coverage_line": coverage["line"],
        "notes": data.manifest["model"]["notes"],
        "gaps": coverage["gaps"],
        "bad_inputs": list(coverage["bad_inputs"].items()),
        "layers": coverage["layers"],
        "facts": facts,
        "details": [(name, "none" if value is None else value) for name, value in plain.items()],
        "sampled": _sampled(data, options),
    }


def _sampled(data: ReportData, options: dict[str, Any]) -> str:
    if data.mass_se is None:
        return ""
    return (
        f"Masses and all that follows from them are estimates from {options['queries']} queries per input, not exact; "
        f"the median standard error of mass is {number(data.mass_se)}. Intervals are over inputs and do not include it."
    )


def _span(values: Sequence[int]) -> str:
    if not len(values):
        return ""
    return f"{values[0]:,}" if values[0] == values[-1] else f"{values[0]:,} to {values[-1]:,}"


def _when(manifest: dict[str, Any]) -> str:
    created = pd.Timestamp(manifest["created"]).strftime("%Y-%m-%d %H:%M %Z")
    return f"{created}, {number(manifest['seconds'])} s"
