"""What the documentation says of treatments."""

from __future__ import annotations

from pathlib import Path

from docs.tables import treatments as page
from sinkscope.treat import FAMILIES, ORDER, TREATMENTS

TEXT = (Path(__file__).parents[2] / "docs" / "treatments.md").read_text(encoding="utf-8")


def test_every_treatment_has_a_row_a_place_and_a_section() -> None:
    overview, sections, order = page.overview(), page.sections(), page.order()
    for name, kind in TREATMENTS.items():
        row = next(line for line in overview.splitlines() if f"| `{name}` |" in line)
        assert f"[`{kind.__name__}`](#{name})" in row and ("| unchanged |" in row) != ("| changed |" in row)
        assert f"### {kind.__name__} {{ #{name} }}" in sections
        assert (f"(#{name})" in order) == (name != "quantise")
    assert "| [`Gate`](#gate) | `gate` | the gate of head outputs | unchanged | no |" in overview
    assert (
        "| [`LearnedSink`](#learned-sink) | `learned-sink` | the softmax, or what replaces it | unchanged | yes |"
        in overview
    )
    assert "| `how` | `'mask'` | mask, the sink" in sections.replace("`mask`", "mask")


def test_the_order_is_that_of_the_slots() -> None:
    lines = [line.split(". ", 1)[1] for line in page.order().splitlines()]
    places = [line.split(":")[0] for line in lines]
    known = [page._PLACES[slot] for slot in ORDER]
    assert places == [place for place in known if place in places] and len(places) >= 7
    assert "RemoveSinks" in next(line for line in lines if line.startswith("what can be seen"))


def test_every_family_and_mark() -> None:
    assert all(f"| {family.title} | `{family.name}` |" in page.families() for family in FAMILIES)
    for mark in ("overview", "families", "order", "sections"):
        assert f"<!-- treatments: {mark} -->" in TEXT


def test_every_option_is_explained() -> None:
    for line in page.sections().splitlines():
        if line.startswith("| `"):
            assert len(line.split("|")[3].strip()) > 3, line
