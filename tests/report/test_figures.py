"""Figures as files: complete, agreeing with the tables, reproducible, and honest where there is nothing to draw."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from PIL import Image

from sinkscope import SinkError
from sinkscope.artifact import open_artifact
from sinkscope.report import write_figures
from sinkscope.report._data import read_data
from sinkscope.report._figure import render
from sinkscope.report._figures import FIGURES
from sinkscope.report._style import WIDE
from tests.report.conftest import Artifacts

NAMES = ("event_rate", "sink_rate", "sink_roles", "specialisation", "phenotypes", "sink_writes", "hidden_norms")
SVG = "{http://www.w3.org/2000/svg}"


def _texts(svg: bytes) -> str:
    root = ElementTree.fromstring(svg)
    return " | ".join("".join(element.itertext()) for element in root.iter(f"{SVG}text"))


@pytest.fixture(scope="module")
def figures(artifact: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures") / "made" / "on demand"
    paths = write_figures(artifact(), out)
    assert [path.name for path in paths] == [f"{name}.{form}" for name in NAMES for form in ("svg", "png")]
    return out


def test_every_figure_is_a_described_svg_and_a_png_of_the_same_shape(figures: Path) -> None:
    for name in NAMES:
        root = ElementTree.fromstring((figures / f"{name}.svg").read_bytes())
        labels = [root.find(f"*[@id='{label}']") for label in root.get("aria-labelledby", "").split()]
        assert root.get("role") == "img"
        assert all(label is not None and len(label.text or "") > 8 for label in labels) and len(labels) == 2
        _, _, width, height = map(float, root.get("viewBox", "").split())
        with Image.open(figures / f"{name}.png") as png:
            assert list(png.size) == pytest.approx([width * 200 / 72, height * 200 / 72], abs=1)
        ids = [element.get("id") for element in root.iter() if element.get("id")]
        assert len(ids) == len(set(ids))


def test_heatmap_cells_have_stable_ids_and_the_colour_of_their_rate(figures: Path, artifact: Artifacts) -> None:
    heads = open_artifact(artifact()).heads
    colours = matplotlib.colormaps["Blues"]
    for measure in ("event_rate", "sink_rate"):
        root = ElementTree.fromstring((figures / f"{measure}.svg").read_bytes())
        cells = {cell.get("id"): cell for cell in root.iter(f"{SVG}path") if cell.get("class") == "mark"}
        assert len(cells) == len(heads) == 55
        for row in heads.to_dict("records"):
            cell = cells[f"{measure}-{row['layer']}-{row['head']}"]
            assert f"fill: {matplotlib.colors.to_hex(colours(row[measure]))}" in cell.get("style", "")
            assert cell.findtext(f"{SVG}title", "").startswith(f"L{row['layer']}.H{row['head']}: ")


def test_elements_of_a_head_stand_for_the_heads_drawn(figures: Path, artifact: Artifacts) -> None:
    heads = open_artifact(artifact()).heads
    specialisation = (figures / "specialisation.svg").read_text()
    drawn = heads[(heads["event_rate"] > 0) | (heads["sink_rate"] > 0)]
    ids = re.findall(r'id="specialisation-(\d+)-(\d+)"', specialisation)
    assert sorted((int(a), int(b)) for a, b in ids) == sorted(zip(drawn["layer"], drawn["head"], strict=True))
    shares = heads[heads["content"].notna()]
    for kind in ("silent", "constant", "content"):
        ids = re.findall(rf'id="writes-{kind}-(\d+)-(\d+)"', (figures / "sink_writes.svg").read_text())
        assert sorted((int(a), int(b)) for a, b in ids) == sorted(zip(shares["layer"], shares["head"], strict=True))


def _drawn(folder: Path, name: str) -> str:
    spec = next(spec for spec in FIGURES if spec.name == name)
    return _texts(render(spec, read_data(open_artifact(folder)), WIDE, "svg")[1]["svg"])


def test_boundaries_of_the_rule_are_drawn_and_labelled(figures: Path, artifact: Artifacts) -> None:
    texts = _texts((figures / "phenotypes.svg").read_bytes())
    for words in ("nop", "update_ratio ≤\u00a00.2", "broadcast", "update_ratio ≥\u00a00.5", "stable_rank ≤\u00a01.5"):
        assert words in texts
    assert "value_ratio ≤\u00a00.2" in _drawn(artifact(rule="fesser-counts"), "phenotypes")


def test_equal_artifacts_give_equal_files(figures: Path, artifact: Artifacts, tmp_path: Path) -> None:
    for path in write_figures(artifact(), tmp_path):
        assert path.read_bytes() == (figures / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("properties", "name", "words"),
    [
        ({"strength": 0.0}, "sink_roles", "No sink whose role could be shown."),
        ({"strength": 0.0}, "specialisation", "No head to rank: none has an event, none reaches mass 0.3."),
        ({"strength": 0.0}, "phenotypes", "No event, and no row with mass ≥ 0.3."),
        ({"strength": 0.0}, "sink_writes", "No row has mass ≥ 0.3"),
        ({"projection": False, "roles": False}, "phenotypes", "but update_ratio or stable_rank is null in all of them"),
        ({"projection": False, "roles": False}, "sink_writes", "They need 8 inputs or more with mass ≥ 0.3"),
        ({"routed": 0.5}, "phenotypes", "mass ≥ 0.3, no event"),
    ],
)
def test_what_is_not_there_is_said_in_its_place(
    artifact: Artifacts, properties: dict[str, object], name: str, words: str
) -> None:
    assert words in _drawn(artifact(**properties), name).replace(" | ", " ")


def test_many_events_are_binned(artifact: Artifacts) -> None:
    assert "events per bin" in _drawn(artifact(layers=11, heads=7, inputs=211, gallery=False), "phenotypes")


def test_without_matplotlib_the_extra_is_named(
    artifact: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SinkError) as raised:
        write_figures(artifact(), tmp_path / "out")
    assert raised.value.found == "matplotlib is not installed"
    assert raised.value.next_step == 'pip install "sinkscope[report]"'
    assert not (tmp_path / "out").exists()
