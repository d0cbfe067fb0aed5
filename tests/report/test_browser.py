"""The page in a real Chromium: quiet, offline, usable by mouse, keyboard and phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from sinkscope.artifact import open_artifact
from tests._verdicts import WORDS
from tests.report.conftest import Artifacts
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.browser

Open = Callable[..., Page]
VERIFIED: dict[str, Any] = {"layers": 5, "heads": 5, "inputs": 16, "verdicts": WORDS}
CARD, COUNT = "#card h3", "#filter-count"


@pytest.fixture
def show(chromium: Browser, report: Artifacts) -> Iterator[Open]:
    """Opens the report of an invented model; at the end the page must have said nothing and asked for nothing."""
    complaints: list[str] = []
    requests: list[str] = []
    addresses: set[str] = set()
    contexts = []

    def open_page(*, width: int = 1100, script: bool = True, **properties: Any) -> Page:
        addresses.add(report(**properties).as_uri())
        contexts.append(chromium.new_context(viewport={"width": width, "height": 900}, java_script_enabled=script))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(report(**properties).as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url for url in requests if not url.startswith("data:")} == addresses


def _overflow(page: Page) -> int:
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def _cell(page: Page, layer: int, head: int, measure: str = "event_rate") -> Any:
    return page.locator(f"#wide-{measure}-{layer}-{head}")


def test_every_figure_is_seen_once(show: Open) -> None:
    for width in (1100, 360):
        page = show(width=width)
        for name in ("event_rate", "sink_roles", "specialisation", "phenotypes", "sink_writes", "hidden_norms"):
            drawn = page.locator(f"figure[data-figure={name}] svg:visible")
            assert drawn.count() == 1, (name, width)
            box = drawn.bounding_box()
            assert box and box["width"] > 200 and box["height"] > 150
            assert len(page.locator(f"figure[data-figure={name}] figcaption").inner_text()) > 40


def test_a_click_on_a_head_shows_its_row_everywhere(show: Open, artifact: Artifacts) -> None:
    page = show()
    heads = open_artifact(artifact()).heads
    chosen = heads[(heads["layer"] == 8) & (heads["head"] == 1)].to_dict("records")[0]
    _cell(page, 8, 1).click()
    assert page.locator(CARD).inner_text() == "Layer 8, head 1"
    assert f"{chosen['nop']} nop, 0 broadcast, 0 other" in page.locator("#card").inner_text()
    assert page.locator("#head-table tr.chosen").get_attribute("data-head") == "8-1"
    assert page.locator("#gallery-head").input_value() == "8-1"
    assert _cell(page, 8, 1).get_attribute("aria-selected") == "true"
    assert page.locator("#heads-map svg:visible .frame.kept").count() == 1


def test_pointing_previews_and_leaving_returns(show: Open) -> None:
    page = show()
    chosen = page.locator(CARD).inner_text()
    _cell(page, 2, 3).hover()
    assert page.locator(CARD).inner_text() == "Layer 2, head 3" != chosen
    page.mouse.move(2, 2)
    assert page.locator(CARD).inner_text() == chosen


def test_the_heatmap_is_one_tab_stop_with_arrow_keys(show: Open) -> None:
    page = show()
    assert page.locator("#heads-map svg:visible .mark[tabindex='0']").count() == 1
    _cell(page, 8, 1).click()
    _cell(page, 8, 1).focus()
    for key, expected in (
        ("ArrowRight", "Layer 8, head 2"),
        ("ArrowDown", "Layer 9, head 2"),
        ("ArrowLeft", "Layer 9, head 1"),
        ("ArrowUp", "Layer 8, head 1"),
        ("End", "Layer 8, head 4"),
        ("ArrowRight", "Layer 8, head 4"),
        ("PageUp", "Layer 0, head 4"),
        ("Home", "Layer 0, head 0"),
        ("PageDown", "Layer 10, head 0"),
    ):
        page.keyboard.press(key)
        assert page.locator(CARD).inner_text() == expected, key
        assert page.locator("#heads-map svg:visible .frame.seen").count() == 1
    assert page.locator("#gallery-head").input_value() == "8-1"
    page.keyboard.press("Enter")
    assert page.locator("#gallery-head").input_value() == "10-0"
    page.keyboard.press("Tab")
    assert page.locator("#heads-map .mark:focus").count() == 0
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.id") == "wide-event_rate-10-0"


def test_the_heatmap_switches_to_the_sink_rate(show: Open) -> None:
    page = show()
    page.get_by_label("sink rate", exact=True).check()
    assert page.locator("figure[data-figure=event_rate]").is_hidden()
    _cell(page, 5, 2, "sink_rate").click()
    assert page.locator(CARD).inner_text() == "Layer 5, head 2"


def test_the_other_figures_choose_heads_too(show: Open) -> None:
    page = show()
    page.locator("#wide-writes-content-0-0").click()
    assert page.locator(CARD).inner_text() == "Layer 0, head 0"
    page.locator("#wide-specialisation-7-1").click()
    assert page.locator(CARD).inner_text() == "Layer 7, head 1"


def test_the_table_sorts_filters_and_chooses(show: Open, artifact: Artifacts) -> None:
    page, heads = show(), open_artifact(artifact()).heads
    first = page.locator("#head-table tbody tr:visible th").first
    heading = page.locator("#head-table thead th").filter(has_text="value ratio")
    assert first.inner_text() == "L0.H0"
    heading.get_by_role("button").click()
    ordered = heads.sort_values("value_ratio_median").to_dict("records")
    assert heading.get_attribute("aria-sort") == "descending"
    assert first.inner_text() == f"L{ordered[-1]['layer']}.H{ordered[-1]['head']}"
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "ascending"
    assert first.inner_text() == f"L{ordered[0]['layer']}.H{ordered[0]['head']}"
    page.locator("#filter-text").fill("L1")
    assert page.locator(COUNT).inner_text() == "5 of 55"
    page.locator("#filter-text").fill("l10.h3")
    assert page.locator(COUNT).inner_text() == "1 of 55"
    page.locator("#head-table tbody tr:visible").click()
    assert page.locator(CARD).inner_text() == "Layer 10, head 3"
    page.locator("#filter-text").fill("")
    page.locator("#filter-kind").select_option("uniform")
    assert page.locator(COUNT).inner_text() == f"{(heads['kind'] == 'uniform').sum()} of 55"


def test_empty_cells_sort_last_both_ways(show: Open, artifact: Artifacts) -> None:
    page, heads = show(), open_artifact(artifact()).heads
    last = page.locator("#head-table tbody tr td:last-child").last
    button = page.locator("#head-table thead th").last.get_by_role("button")
    assert heads["content"].isna().any()
    for _ in range(2):
        button.click()
        assert last.inner_text() == "–"


def test_the_gallery_marks_the_sink_of_the_chosen_head(show: Open, artifact: Artifacts) -> None:
    page, events = show(), open_artifact(artifact()).events()
    page.locator("#gallery-head").select_option("10-1")
    assert page.locator(CARD).inner_text() == "Layer 10, head 1"
    rows = events[(events["layer"] == 10) & (events["head"] == 1)].head(3).to_dict("records")
    for item, row in zip(page.locator("#gallery-items .item").all(), rows, strict=True):
        assert f"sink: patch in row {row['row']}, column {row['col']}, mass {row['mass']:.2f}" in item.inner_text()
        frame = item.locator("svg rect.sink").last
        assert (frame.get_attribute("x"), frame.get_attribute("y")) == (str(row["col"]), str(row["row"]))
        assert item.locator("img").evaluate("image => image.naturalWidth") == 112
    page.locator("[data-pick]").nth(1).click()
    assert page.locator("[data-pick]").nth(1).get_attribute("aria-pressed") == "true"


def test_texts_are_shaded_by_received_mass(show: Open, artifact: Artifacts) -> None:
    events = open_artifact(artifact(text=True)).events()
    page = show(text=True)
    _cell(page, 10, 1).click()
    row = events[(events["layer"] == 10) & (events["head"] == 1)].iloc[0]
    tokens = page.locator("#gallery-items .item").first.locator(".token")
    assert tokens.count() == 53
    sink = page.locator("#gallery-items .item").first.locator(".token.sink")
    assert sink.count() == 1
    assert sink.get_attribute("title") == f"position {row['sink']}, mass {round(255 * row['mass']) / 255:.2f}"
    assert tokens.first.inner_text() == "<s>"


def test_word_pieces_are_set_apart(show: Open) -> None:
    page = show(text=True, wordpiece=True, inputs=3)
    text = page.locator("#gallery-items .tokens").first.inner_text()
    assert text.startswith("<s> it slept##s . it slept##s .")


def test_without_events_the_map_starts_with_the_sink_rate(show: Open) -> None:
    page = show(routed=0.5)
    assert page.get_by_label("sink rate", exact=True).is_checked()
    assert page.locator("figure[data-figure=event_rate]").is_hidden()
    assert page.locator("figure[data-figure=sink_rate]").is_visible()


@pytest.mark.parametrize(
    "properties",
    [
        {},
        {"text": True},
        {"strength": 0.0},
        {"projection": False, "roles": False},
        {"layers": 1, "heads": 1},
        {"layers": 40, "heads": 24, "inputs": 11},
        VERIFIED,
        {"names": HOSTILE, "reference": "hf:<script>alert(2)</script>" + "long" * 60},
    ],
)
def test_a_phone_scrolls_only_down(show: Open, properties: dict[str, Any]) -> None:
    page = show(width=360, **properties)
    assert _overflow(page) <= 0
    assert page.locator("#heads-map svg:visible .mark").count() == page.locator("#head-table tbody tr").count()


def test_a_touch_on_a_phone_tells_the_head_beside_the_map(show: Open) -> None:
    page = show(width=360)
    page.locator("#heads-map svg:visible .mark").nth(3).click()
    assert page.locator("#readout").inner_text().startswith("L0.H3: uniform, ")


def test_verdicts_filter_and_show_the_effects_of_a_head(show: Open, artifact: Artifacts) -> None:
    opened = open_artifact(artifact(**VERIFIED))
    page, heads = show(**VERIFIED), opened.heads
    assert page.get_by_label("verdict", exact=True).first.is_checked()
    page.locator("#filter-verdict").select_option("bias")
    assert page.locator(COUNT).inner_text() == f"{(heads['verdict'] == 'bias').sum()} of {len(heads)}"
    row = heads[heads["verdict"] == "bias"].to_dict("records")[0]
    _cell(page, row["layer"], row["head"], "verdict").click()
    assert page.locator("#effects-title").inner_text() == f"Layer {row['layer']}, head {row['head']}: bias"
    rows = page.locator("#effect-rows tbody tr")
    assert rows.count() == 9
    zero, control = rows.nth(0).locator("circle").bounding_box(), rows.nth(5).locator("circle").bounding_box()
    assert zero and control and zero["x"] > control["x"] + 10
    assert f"{100 * row['effect_zero']:.2g}% (" in rows.nth(0).inner_text()
    page.locator("#effect-measure").select_option("donor_cosine")
    assert rows.count() == 1 and rows.nth(0).inner_text().startswith("donor")
    unseen = heads[heads["verdict"].isna()].to_dict("records")[0]
    _cell(page, unseen["layer"], unseen["head"], "verdict").click()
    title = page.locator("#effects-title").inner_text()
    assert title == f"Layer {unseen['layer']}, head {unseen['head']}: not edited"
    assert rows.count() == 0 and page.locator("#effect-measure").is_hidden()


def test_verdicts_can_be_read_without_script(show: Open) -> None:
    page = show(script=False, **VERIFIED)
    assert page.locator("figure svg:visible").count() == 10
    for place in ("#prescription .reasons dd", "figure[data-figure=verdict] figcaption", "#verdicts tbody td"):
        assert page.locator(place).first.is_visible()
    assert page.locator(".script:visible").count() == 0


def test_without_script_the_page_can_still_be_read(show: Open) -> None:
    page = show(script=False)
    assert page.locator("figure svg:visible").count() == 7
    assert page.locator("#head-table tbody tr").count() == 55
    assert page.get_by_text("The gallery is drawn by the script of this page").is_visible()
    assert page.locator(".script:visible").count() == 0
