"""The page of a comparison: whole, offline, escaped, and right in a real Chromium."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from playwright.sync_api import Browser

import sinkscope
from sinkscope.artifact import COMPARED_INPUT_COLUMNS, read_comparison, write_comparison
from sinkscope.report import cell_text, change_text, share, write_comparison_page
from tests._verdicts import WORDS
from tests.report._fake import Fake, write_fake

EVIL = '<script>alert("x")</script>&"\''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of three invented diagnoses, two of them verified and one of other inputs, with hostile names."""
    root = tmp_path_factory.mktemp("fakes")
    fakes = (
        Fake(layers=5, inputs=16, verdicts=WORDS, reference=f"zoo:{EVIL}"),
        Fake(layers=5, inputs=16, verdicts=WORDS[::-1], strength=0.7, seed=4),
        Fake(layers=5, inputs=9, strength=0.5),
    )
    paths = [write_fake(root / name, fake) for name, fake in zip(("a", "b", "c"), fakes, strict=True)]
    found = sinkscope.compare(*paths, outputs=False, out=root / "out")
    rows = [
        {"model": 1, "input": f"{EVIL}{n}", "final_change": n / 10, "final_cosine": 0.9, "output_kl": None}
        for n in range(14)
    ]
    inputs = pd.DataFrame(rows, columns=[column.name for column in COMPARED_INPUT_COLUMNS])
    kinds = {c.name: {"int32": "int32", "string": "object"}.get(c.kind, "float64") for c in COMPARED_INPUT_COLUMNS}
    write_comparison(found.path, dataclasses.replace(found.tables, inputs=inputs.astype(kinds)))
    return found.path


def test_the_page_escapes_what_it_did_not_write(folder: Path, tmp_path: Path) -> None:
    text = write_comparison_page(folder, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in text and "alert(" in text
    assert "&lt;script&gt;" in text
    assert 'http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;' in text
    assert "src=" not in text.replace("data:", "") and 'href="http' not in text


def test_equal_comparisons_give_equal_pages(folder: Path, tmp_path: Path) -> None:
    one, two = (write_comparison_page(folder, tmp_path / name).read_bytes() for name in ("one.html", "two.html"))
    assert one == two


def test_all_of_it_is_there(folder: Path) -> None:
    text = write_comparison_page(folder).read_text(encoding="utf-8")
    tables = read_comparison(folder)
    notes = tables.facts["notes"]
    starts = (
        "B has the weights of A",
        "the inputs of C are not known",
        "C has the weights",
        "no heads were edited in C",
    )
    assert all(note.startswith(start) for note, start in zip(notes, starts, strict=True))
    assert text.count('<p class="coverage warn">') == len(notes)
    for part in ("heads-B", "heads-C", "hidden", "inputs", "sides", "how"):
        assert f'<section id="{part}">' in text
    assert "The 12 inputs of 14 that differ most" in text
    heads = tables.heads[tables.heads["model"] == 1]
    assert {"nop", "undecided"} <= set(heads["before"])
    for wide in ("wide", "narrow"):
        drawing = text[text.index('<svg xmlns="http://www.w3.org/2000/svg"', text.index(f'class="drawing {wide}"')) :]
        root = ElementTree.fromstring(drawing[: drawing.index("</svg>") + 6])
        assert root.get("role") == "img"


def test_transitions_are_those_of_the_table(folder: Path) -> None:
    text = write_comparison_page(folder).read_text(encoding="utf-8")
    section = text[text.index('<section id="heads-C">') :]
    table = section[section.index('<table class="transitions">') : section.index("</table>")]
    frame = ElementTree.fromstring(f"{table}</table>")
    cells = [int(cell.text) for cell in frame.iter("td") if cell.text]
    heads = read_comparison(folder).heads
    assert sum(cells) == (heads["model"] == 2).sum() == 25


@pytest.mark.parametrize(
    ("unit", "value", "change", "texts"),
    [
        ("share", 0.3364, -0.0961, ("33.6% (10.0% to 50.0%)", "−9.6")),
        ("heads", 32.0, 5.0, ("32 (0 to 0)", "+5")),
        ("ratio", 0.02692, 0.0, ("0.0269 (0.1 to 0.5)", "0")),
        ("nat", 1234.5, -0.25, ("1,234 (0.1 to 0.5)", "−0.25")),
        ("cosine", 0.69881, 0.1, ("0.6988 (0.1000 to 0.5000)", "+0.1000")),
    ],
)
def test_numbers_are_told_in_their_unit(unit: str, value: float, change: float, texts: tuple[str, str]) -> None:
    cell = {"unit": unit, "value": value, "low": 0.1, "high": 0.5, "layer": None, "change": change}
    assert (cell_text(cell), change_text(cell | {"change_low": None, "change_high": None})) == texts
    assert cell_text(cell | {"layer": 3}).endswith(" in layer 3")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0%"), (1, "100%"), (0.0001, "<0.1%"), (0.9999, ">99.9%"), (-0.25, "−25.0%"), (None, "–")]
)
def test_shares_are_only_round_when_they_are(value: float | None, text: str) -> None:
    assert share(value) == text


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 360])
def test_the_page_fits_and_asks_for_nothing(folder: Path, chromium: Browser, width: int, tmp_path: Path) -> None:
    path = write_comparison_page(folder, tmp_path / "page.html")
    context = chromium.new_context(viewport={"width": width, "height": 900})
    page, complaints, requests = context.new_page(), list[str](), list[str]()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    for name in ("mass-B", "hidden"):
        drawn = page.locator(f"figure[data-figure={name}] svg:visible")
        assert drawn.count() == 1
        box = drawn.bounding_box()
        assert box is not None and box["width"] > 200
    assert page.locator("#heads-B .maps svg:visible").count() == 2
    context.close()
    assert complaints == [] and {url for url in requests if not url.startswith("data:")} == {path.as_uri()}
