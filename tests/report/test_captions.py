"""What captions say, on numbers made up so that the answer is known."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from sinkscope.artifact import open_artifact
from sinkscope.report._data import ReportData, read_data
from sinkscope.report._figures import FIGURES, HEATMAPS
from tests.report.conftest import Artifacts

CAPTIONS = {spec.name: spec.caption for spec in (*HEATMAPS, *FIGURES)}


@pytest.fixture(scope="module")
def data(artifact: Artifacts) -> ReportData:
    return read_data(open_artifact(artifact()))


def test_runs_of_a_role_break_where_a_layer_has_no_sink(data: ReportData) -> None:
    roles = pd.DataFrame(
        {"rows": [20] * 5, "events": [2, 0, 0, 0, 1], "cls": [9, 0, 7, 6, 0], "patch": [1, 0, 0, 1, 8]},
        index=pd.Index(range(5), name="layer"),
    )
    caption = CAPTIONS["sink_roles"](replace(data, roles=roles, sinks=32, rows=100, events=3))
    assert "in the 32 rows with mass ≥ 0.3 (32% of all 100): cls 69%, patch 31%." in caption
    assert "Most frequent role: cls in layer 0, cls in layers 2 to 3, patch in layer 4." in caption


def test_energies_above_one_and_constants_below_zero_are_told(data: ReportData) -> None:
    heads = data.heads.head(3).assign(
        silent=[0.0, 0.75, 0.5],
        constant=[3.0, 0.25, -0.125],
        content=[1.0, 0.0, 0.625],
        content_low=[0.5, -0.1, 0.5],
        content_high=[2.0, 0.1, 0.75],
    )
    caption = CAPTIONS["sink_writes"](replace(data, heads=heads))
    assert caption.startswith("What the sinks of 3 heads write, relative to an ordinary token")
    assert "In 1 head the sink writes more than an ordinary token (energy above 1, up to 4.00)" in caption
    assert "The unbiased constant dips below 0 in 1 head; it is drawn as 0." in caption
    assert caption.endswith("The largest content is in L0.H2: 50% (50% to 75%).")


def test_the_concentration_of_events_is_over_the_first_tenth_of_the_heads(data: ReportData) -> None:
    heads = pd.concat([data.heads] * 2).head(20).assign(event_rate=[0.6, 0.3, *[0.05] * 2, *[0.0] * 16])
    caption = CAPTIONS["specialisation"](replace(data, heads=heads))
    assert "Share of all events in the first 2 of 20 heads: 90%." in caption


def test_heads_on_which_the_rule_cannot_decide_are_counted(data: ReportData) -> None:
    heads = data.heads.assign(event_rate=[float("nan")] * 2 + [0.5] + [0.0] * (len(data.heads) - 3))
    caption = CAPTIONS["event_rate"](replace(data, heads=heads))
    assert "In 2 heads (grey) the rule cannot decide, since values it needs are missing." in caption
    assert "1 head of 55 at least once, 1 on half of the inputs or more; the highest rate is 50%" in caption


def test_ratios_too_small_for_the_log_axis_are_told(data: ReportData) -> None:
    scatter = pd.DataFrame({"ratio": [0.0, 0.0005, 0.1, 1.0], "rank": [1.0, 2.0, 3.0, 4.0], "label": ["nop"] * 4})
    caption = CAPTIONS["phenotypes"](replace(data, scatter=scatter, unplaced=3, events=7))
    assert "2 points below 0.001 stand at the left edge." in caption
    assert "Not drawn: 3 rows without update_ratio or stable_rank (no output projection found)." in caption


def test_the_widest_gap_of_norms_is_named(data: ReportData) -> None:
    norms = pd.DataFrame(
        {f"{group}_{q}": [1.0, 2.0, 4.0] for group in ("sink", "other") for q in (25, 50, 75)},
        index=pd.Index([0, 1, 2], name="layer"),
    ).assign(sink_50=[3.0, 30.0, 16.0], sink_n=[5, 6, 7], other_n=13)
    caption = CAPTIONS["hidden_norms"](replace(data, norms=norms))
    assert "n = 18 sink rows, 13 inputs per layer." in caption
    assert caption.endswith("largest in layer 1: 30.0 against 2.00, 15.0 times.")
