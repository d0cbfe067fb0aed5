"""What edits add to the page and the figures, and that nothing is added without them."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest

from sinkscope import SinkError
from sinkscope.artifact import Artifact, open_artifact
from sinkscope.explain import prescribe, summarise
from sinkscope.report import write_figures, write_report
from sinkscope.report._data import ReportData, read_data
from sinkscope.report._effects import EFFECTS
from sinkscope.report._format import change
from sinkscope.report._style import VERDICT_COLOURS, VERDICT_LETTERS
from sinkscope.report._ternary import TERNARY
from sinkscope.report._verdict_map import VERDICT_MAP
from tests._verdicts import WORDS
from tests.report.conftest import Artifacts

SVG = "{http://www.w3.org/2000/svg}"
EDITS = ("zero", "mean", "donor", "ordinary", "redirect")
SMALL: dict[str, Any] = {"layers": 5, "heads": 5, "inputs": 16, "verdicts": WORDS}
ADDED = ("prescription", "verdicts", "effects", "causal_shares")


@pytest.fixture(scope="module")
def verified(artifact: Artifacts) -> Artifact:
    return open_artifact(artifact(**SMALL))


@pytest.fixture(scope="module")
def page(report: Artifacts) -> str:
    return report(**SMALL).read_text("utf-8")


@pytest.fixture(scope="module")
def figures(artifact: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    write_figures(artifact(**SMALL), out)
    return out


def _script(page: str) -> dict[str, Any]:
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def _edited(artifact: Artifact) -> pd.DataFrame:
    verdicts = artifact.verdicts
    assert verdicts is not None
    edited: pd.DataFrame = verdicts[verdicts["n_verified"].notna()]
    return edited


def _replaced(artifact: Artifact, **columns: Any) -> ReportData:
    """The data of the page with other verdicts, of edited heads, than the artifact has."""
    from dataclasses import replace

    data = read_data(artifact)
    assert data.verified
    verdicts = data.verified.verdicts.assign(**columns)
    return replace(data, verified=replace(data.verified, verdicts=verdicts))


def test_sections_are_added_in_their_place_and_only_then(page: str, report: Artifacts) -> None:
    sections = re.findall(r'<section id="([\w-]+)">', page)
    assert sections[:7] == ["measured", "summary", "prescription", "heads-map", "verdicts", "effects", "causal_shares"]
    assert re.findall(r'href="#([\w-]+)"', page[page.index("<nav") : page.index("</nav>")]) == sections
    assert "<h2>In five sentences</h2>" in page
    plain = report().read_text("utf-8")
    assert not set(re.findall(r'<section id="([\w-]+)">', plain)) & set(ADDED)
    assert "<h2>In three sentences</h2>" in plain
    assert 'id="filter-verdict"' not in plain and '"effects":null' in plain


def test_summary_and_prescription_are_those_of_explain(page: str, verified: Artifact) -> None:
    shown = [unescape(text) for text in re.findall(r'<p class="finding">(.*?)</p>', page)]
    assert shown == summarise(verified.manifest, verified.heads, verified.events(["sink", "role", "mass"]))
    assert verified.verdicts is not None
    prescription = prescribe(verified.manifest, verified.heads, verified.verdicts)
    assert prescription._repr_html_() in page
    assert len(prescription.advice) > 2


def test_verdicts_are_counted_by_word(page: str, verified: Artifact) -> None:
    table = page[page.index('<section id="verdicts">') : page.index('<section id="effects">')]
    rows = re.findall(r'<tr><th scope="row">(.*?)</tr>', table)
    found = {row.split("</th>")[0]: re.findall(r"<td[^>]*>(.*?)</td>", row)[:-1] for row in rows}
    edited = _edited(verified)
    assert list(found) == [word for word in VERDICT_COLOURS if word in set(edited["verdict"])]
    for word, (heads, _, confidence, inputs, halves) in found.items():
        own = edited[edited["verdict"] == word]
        assert heads == str(len(own)) and inputs == "16"
        assert confidence.rstrip("%") == f"{100 * own['confidence'].median():.0f}"
        assert halves == f"{own['split_half'].sum()} of {len(own)}"
    assert "sinkscope verify run" in table and "edited one at a time in 31.5 s" in table
    assert (
        table.count("the effect of zero lies between those of a nop and a broadcast")
        == (edited["verdict"] == "undecided").sum()
    )


def test_the_table_of_heads_has_verdicts_and_effects(page: str, verified: Artifact) -> None:
    assert (
        '<option value="">all</option>'
        + "".join(f"<option>{word}</option>" for word in VERDICT_COLOURS if word in set(verified.heads["verdict"]))
        in page
    )
    row = verified.heads[verified.heads["verdict"] == "nop"].iloc[0]
    line = page[page.index(f'<tr data-head="{row["layer"]}-{row["head"]}">') :].partition("</tr>")[0]
    cells = [unescape(cell) for cell in re.findall(r">([^<>]*)</td>", line)]
    assert cells[2:4] == ["nop", f"{row['confidence']:.0%}"]
    assert cells[-6:] == [change(row[f"effect_{edit}"]) for edit in (*EDITS, "control")]


def test_the_card_tells_verdict_reason_and_intervals(page: str, verified: Artifact) -> None:
    data, edited = _script(page), _edited(verified)
    row = edited[edited["verdict"] == "broadcast"].iloc[0]
    texts = data["heads"][f"{row['layer']}-{row['head']}"]
    card = {
        (group["title"], name): text
        for group, own in zip(data["card"], texts, strict=True)
        for name, text in zip(group["names"], own, strict=True)
    }
    judged = "Verdict, from edits"
    assert card[judged, "verdict"] == "broadcast"
    assert card[judged, "edited on"] == "16 inputs"
    assert card[judged, "halves agree"] == "yes"
    assert card[judged, "why"] == "the effects are those of <broadcast>"
    assert card["Change of the final tokens", "zero"] == (
        f"{change(row['effect_zero'])} ({change(row['effect_zero_low'])} to {change(row['effect_zero_high'])})"
    )
    assert card["Handed out, by the edits: ordinary token = 100%", "content"].startswith(f"{row['content']:.0%} (")
    assert "<broadcast>" not in page and "\\u003cbroadcast\\u003e" in page


def test_a_head_that_was_not_edited_has_a_card_without_numbers(page: str, verified: Artifact) -> None:
    data = _script(page)
    row = verified.heads[verified.heads["verdict"].isna()].iloc[0]
    key = f"{row['layer']}-{row['head']}"
    group = [group["title"] for group in data["card"]].index("Verdict, from edits")
    assert set(data["heads"][key][group]) == {"–"}
    assert key not in data["effects"]["heads"]


def test_the_script_has_every_effect(page: str, verified: Artifact) -> None:
    effects, given = verified.effects, _script(page)["effects"]
    assert effects is not None
    labels = [measure["name"] for measure in given["measures"]]
    assert labels == [
        "final_norm", "final", "write", "output_kl", "output_loss", "output_top1", "common", "donor_cosine"
    ]  # fmt: skip
    count = 0
    for row in effects.to_dict("records"):
        edit = given["edits"].index(str(row["edit"]).replace("_", " "))
        value, low, high, n = given["heads"][f"{row['layer']}-{row['head']}"][row["measure"]][edit]
        assert [value, low, high] == pytest.approx([row["value"], row["low"], row["high"]], rel=1e-5)
        assert n == row["n"]
        count += 1
    assert count == (9 * 7 + 1) * len(_edited(verified))


def _cells(path: Path, prefix: str) -> dict[tuple[int, int], ElementTree.Element]:
    found = {}
    for element in ElementTree.fromstring(path.read_bytes()).iter():
        match = re.fullmatch(rf"{prefix}-(\d+)-(\d+)", element.get("id") or "")
        if match:
            found[int(match[1]), int(match[2])] = element
    return found


def test_the_map_tells_words_in_colour_and_letter(figures: Path, verified: Artifact) -> None:
    cells = _cells(figures / "verdict.svg", "verdict")
    heads = verified.heads
    assert len(cells) == len(heads)
    for row in heads.to_dict("records"):
        cell, word = cells[row["layer"], row["head"]], row["verdict"]
        title = cell.findtext(f"{SVG}title", "")
        if isinstance(word, str) and word != "no sink":
            assert f"fill: {matplotlib.colors.to_hex(VERDICT_COLOURS[word])}" in cell.get("style", "")
            assert title.startswith(f"L{row['layer']}.H{row['head']}: {word}, confidence ")
        elif not isinstance(word, str):
            assert title.endswith(": sink, not edited")
    root = ElementTree.fromstring((figures / "verdict.svg").read_bytes())
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    for word in WORDS:
        n = int((heads["verdict"] == word).sum())
        assert texts.count(VERDICT_LETTERS[word]) == n > 0
        assert f"{VERDICT_LETTERS[word]} {word} ({n})" in texts


def test_every_edited_head_is_in_every_panel_and_in_the_triangle(figures: Path, verified: Artifact) -> None:
    edited = _edited(verified)
    for word in WORDS:
        own = edited[edited["verdict"] == word]
        pairs = sorted(zip(own["layer"], own["head"], strict=True))
        for edit in EDITS:
            assert sorted(_cells(figures / "effects.svg", f"effects-{edit}-{word}")) == pairs
        assert sorted(_cells(figures / "causal_shares.svg", f"causal_shares-{word}")) == pairs


def test_points_of_the_triangle_lie_at_their_shares(verified: Artifact) -> None:
    from sinkscope.report._figure import render
    from sinkscope.report._style import WIDE

    data = _replaced(verified, silent=0.0, constant=0.0, content=1.0, content_low=0.8, content_high=1.0)
    drawing, _ = render(TERNARY, data, WIDE, "svg")
    (axes,) = drawing.figure.axes
    offsets = [np.asarray(dots.get_offsets()).round(6).tolist() for dots in axes.collections]
    places = {tuple(point) for points in offsets for point in points}
    assert places == {(0.5, round(3**0.5 / 2, 6))}
    assert "Largest share: silent 0, constant 0, content" in TERNARY.caption(data)


def test_captions_compare_with_the_control(verified: Artifact) -> None:
    n = len(_edited(verified))
    effect = {"effect_zero": [0.3] + [0.1] * (n - 1)}
    data = _replaced(
        verified, **effect, effect_zero_low=0.09, effect_zero_high=[0.4] + [0.11] * (n - 1),
        effect_control_low=[0.01, 0.2, *[0.1] * (n - 2)], effect_control_high=[0.02, 0.3, *[0.3] * (n - 2)],
    )  # fmt: skip
    first = data.verified.verdicts.iloc[0] if data.verified else None
    assert first is not None
    caption = EFFECTS.caption(data)
    assert "changes clearly more than the control in 1 head and clearly less in 1 head (intervals apart)" in caption
    assert caption.endswith(f"most in L{first['layer']}.H{first['head']}: 30% (9.0% to 40%).")


def test_the_map_counts_sink_heads_that_were_not_edited(verified: Artifact) -> None:
    caption, heads = VERDICT_MAP.caption(read_data(verified)), verified.heads
    sinks = int((heads["kind"] == "sink").sum())
    assert caption.startswith(f"Verdicts on {sinks - 1} of {sinks} sink heads, from edits of one head at a time: ")
    assert "1 sink head was not edited." in caption and "C stands for bias" in caption


def test_effects_that_are_missing_are_left_out(verified: Artifact) -> None:
    from sinkscope.report._figure import render
    from sinkscope.report._style import NARROW

    n = len(_edited(verified))
    gaps = [float("nan"), *[0.02] * (n - 1)]
    data = _replaced(verified, effect_donor=gaps, effect_mean=float("nan"), effect_zero_low=float("nan"), constant=gaps)
    drawing, _ = render(EFFECTS, data, NARROW, "svg")
    drawn = {
        edit: sum(len(m) for name, m in drawing.marks.items() if name.startswith(f"effects-{edit}-")) for edit in EDITS
    }
    assert drawn == {"zero": n, "mean": 0, "donor": n - 1, "ordinary": n, "redirect": n}
    triangle, _ = render(TERNARY, data, NARROW, "svg")
    assert sum(map(len, triangle.marks.values())) == n - 1


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"verdicts": ("nop",)}, "Gate "),
        ({"verdicts": ("nop",), "strength": 0.0}, "There is no sink head."),
        ({"verdicts": ("nop",), "text": True}, "a learned sink for"),
        ({"verdicts": ("broadcast",), "everything": True}, "no sink head, edited all the same"),
        ({"verdicts": ("bias",), "projection": False, "roles": False}, "Attention bias for"),
    ],
)
def test_edge_cases_are_told(report: Artifacts, properties: dict[str, Any], words: str) -> None:
    page = report(layers=3, heads=5, inputs=11, gallery=False, **properties).read_text("utf-8")
    assert words in unescape(page)
    assert not re.search(r">\s*(nan|None|NaN|&lt;NA&gt;)\s*<", page)


def test_evidence_that_is_not_whole_is_refused(artifact: Artifacts, tmp_path: Path) -> None:
    for name in ("effects.parquet", "edits/verification.json"):
        folder = tmp_path / name.partition(".")[0].replace("/", "-")
        shutil.copytree(artifact(**SMALL), folder)
        (folder / name).unlink()
        with pytest.raises(SinkError) as raised:
            write_report(folder)
        assert raised.value.found.endswith("has verdicts, but their evidence is not whole")
        assert raised.value.next_step == f"run `sinkscope verify {folder}` again"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0%"),
        (0.000001, "<0.001%"),
        (0.000564, "0.056%"),
        (0.0034, "0.34%"),
        (0.0996, "10%"),
        (0.0994, "9.9%"),
        (0.12345, "12%"),
        (1.5, "150%"),
        (12.0, "1,200%"),
        (float("nan"), "–"),
    ],
)
def test_changes_keep_two_digits(share: float, text: str) -> None:
    assert change(share) == text
