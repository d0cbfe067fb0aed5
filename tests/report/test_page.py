"""The page as text: order, escaping, isolation from the network, and every edge case."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from sinkscope import SinkError
from sinkscope.artifact import open_artifact
from sinkscope.explain import summarise
from sinkscope.report import write_report
from tests.report.conftest import Artifacts

SECTIONS = [
    "measured", "summary", "heads-map", "sink_roles", "specialisation", "phenotypes", "sink_writes", "hidden_norms",
    "gallery", "heads", "rule",
]  # fmt: skip
HOSTILE = ("<script>alert(1)</script>.jpg", "a\"b'c&d.jpg", "\u202eevil\u05d0\u05d1.jpg" + "x" * 300)


def _data(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_sections_stand_in_their_order_and_are_linked(report: Artifacts) -> None:
    page = report().read_text("utf-8")
    assert re.findall(r'<section id="([\w-]+)">', page) == SECTIONS
    navigation = page[page.index("<nav") : page.index("</nav>")]
    assert re.findall(r'href="#([\w-]+)"', navigation) == SECTIONS


def test_what_was_measured_is_told(report: Artifacts) -> None:
    gaps, bad = (("decoder.cross", "cross attention"),), (("broken.jpg", "truncated"),)
    page = unescape(report(gaps=gaps, bad_inputs=bad, inputs=3).read_text("utf-8"))
    for words in (
        "zoo:invented", "0123456789abcdef" * 4, "22,056,577 (float32)", "captured 11 of 12 attention modules",
        "decoder.cross", "cross attention", "broken.jpg", "truncated", "sinkscope diagnose zoo:invented",
        "2026-01-02 03:04", "3 inputs of 50 tokens, 11 layers × 5 heads, rule fesser.",
        "Fesser, Jacobs, Fel, Keller, Kakade 2026, arXiv:2606.08105", "@software{sinkscope",
    ):  # fmt: skip
        assert words in page, words


def test_the_summary_is_that_of_explain(report: Artifacts, artifact: Artifacts) -> None:
    opened = open_artifact(artifact())
    page = report().read_text("utf-8")
    shown = [unescape(text) for text in re.findall(r'<p class="finding">(.*?)</p>', page)]
    assert shown == summarise(opened.manifest, opened.heads, opened.events(["sink", "role", "mass"]))


def test_the_table_and_the_card_hold_every_head(report: Artifacts, artifact: Artifacts) -> None:
    page, heads = report().read_text("utf-8"), open_artifact(artifact()).heads
    keys = [f"{layer}-{head}" for layer, head in heads[["layer", "head"]].itertuples(index=False)]
    assert re.findall(r'<tr data-head="([\d-]+)">', page) == keys
    data = _data(page)
    assert list(data["heads"]) == keys
    names = [name for group in data["card"] for name in group["names"]]
    texts = [text for group in data["heads"][keys[0]] for text in group]
    assert len(names) == len(texts) == 21
    card = dict(zip(names, texts, strict=True))
    first = heads.iloc[0]
    assert card["kind"] == first["kind"] == "sink"
    assert card["sink token"] == "cls on 100% of 13 inputs"
    assert card["classes"] == f"{first['nop']} nop, {first['broadcast']} broadcast, {first['other']} other"
    assert card["event_rate"].startswith(f"{first['event_rate']:.0%} (")
    assert card["mass"].startswith(f"{first['mass_median']:.2f} (")
    assert card["entropy"].endswith(" nat")


def test_the_page_starts_at_the_head_with_most_events(report: Artifacts, artifact: Artifacts) -> None:
    heads = open_artifact(artifact()).heads
    layer, head = map(int, _data(report().read_text("utf-8"))["start"].split("-"))
    chosen = heads[(heads["layer"] == layer) & (heads["head"] == head)].iloc[0]
    assert chosen["event_rate"] == heads["event_rate"].max() > 0


def test_nothing_is_fetched_and_nothing_else_may_run(report: Artifacts) -> None:
    page = report().read_text("utf-8")
    assert set(re.findall(r'(?:src|href)="([^#"][^"]{0,4})', page)) == {"data:"}
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert "@import" not in page
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert unescape(policy[1]) == (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def test_ids_are_unique(report: Artifacts) -> None:
    page = report().read_text("utf-8")
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) > 150 and len(ids) == len(set(ids))


def test_hostile_names_stay_text(report: Artifacts) -> None:
    reference = 'hf:<img src=x onerror=alert(1)>"\u05d0/' + "very-long-name" * 12
    page = report(names=HOSTILE, reference=reference, bad_inputs=(("<b>bad</b>", "<i>&amp;</i>"),)).read_text("utf-8")
    assert page.count("<script") == 2
    assert "<img" not in page and "<b>" not in page and "<i>&" not in page
    assert reference in unescape(page)
    assert "&lt;i&gt;&amp;amp;&lt;/i&gt;" in page
    assert [item["name"] for item in _data(page)["gallery"]] == list(HOSTILE)


def test_equal_artifacts_give_equal_pages(report: Artifacts, artifact: Artifacts, tmp_path: Path) -> None:
    page = write_report(artifact(), tmp_path / "new" / "page.html")
    assert page.read_bytes() == report().read_bytes()
    assert [path.name for path in page.parent.iterdir()] == ["page.html"]


def test_the_report_stands_in_its_artifact_by_default(tmp_path: Path) -> None:
    from tests.report._fake import Fake, write_fake

    folder = write_fake(tmp_path / "run", Fake(layers=2, heads=3, inputs=2))
    assert write_report(folder) == folder / "report.html"
    assert "Attention sinks of zoo:invented" in (folder / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        (
            {"strength": 0.0},
            "0 of 715 rows (one per input, layer and head; 13 inputs) are events under the rule fesser.",
        ),
        ({"routed": 0.5}, "No row is an event under fesser; in grey 332 rows with mass ≥ 0.3."),
        ({"layers": 1, "heads": 1}, "13 inputs of 50 tokens, 1 layer × 1 head, rule fesser."),
        ({"inputs": 1}, "The first input of the run."),
        ({"projection": False, "roles": False}, "n = 0 of 715 rows."),
        ({"queries": 64, "inputs": 3}, "estimates from 64 queries per input, not exact; the median standard error of"),
        ({"text": True, "roles": False, "inputs": 5}, "In causal models the last tokens are seen by few others"),
        ({"gallery": False, "inputs": 3}, "This artifact holds no gallery."),
        ({"rule": "gu", "inputs": 5}, "This rule has no classes: every event counts as other."),
        ({"rule": "dlm", "inputs": 5}, "is an event if column_excess >\u00a03."),
    ],
)
def test_edge_cases_are_told(report: Artifacts, properties: dict[str, Any], words: str) -> None:
    page = report(**properties).read_text("utf-8")
    assert words in unescape(page)
    assert not re.search(r">\s*(nan|None|NaN|&lt;NA&gt;)\s*<", page)


def test_forty_layers_of_twenty_four_heads_stay_a_few_megabytes(report: Artifacts) -> None:
    page = report(layers=40, heads=24, inputs=11).read_text("utf-8")
    assert page.count("<tr data-head=") == 960
    assert len(page.encode()) < 5_000_000


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SinkError, match="there is no folder"):
        write_report(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


def test_the_room_needs_neither_torch_nor_matplotlib_to_be_imported() -> None:
    code = "import sys, sinkscope.report; print({'torch', 'matplotlib', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
