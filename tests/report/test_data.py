"""What the figures are drawn from, against plain loops over the event rows."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

import pytest

from sinkscope.artifact import open_artifact
from sinkscope.report._data import ReportData, read_data
from tests.report.conftest import Artifacts


def _read(artifact: Artifacts, **properties: Any) -> tuple[ReportData, list[dict[str, Any]]]:
    opened = open_artifact(artifact(**properties))
    return read_data(opened), opened.events().to_dict("records")  # type: ignore[return-value]


def test_counts_of_rows_sinks_and_events(artifact: Artifacts) -> None:
    data, rows = _read(artifact)
    assert data.rows == len(rows) == 11 * 5 * 13
    assert data.sinks == sum(row["mass"] >= 0.3 for row in rows)
    assert data.events == sum(row["routed"] >= 0.9 for row in rows)
    assert 0 < data.events < data.sinks < data.rows


def test_roles_count_sink_rows_by_layer(artifact: Artifacts) -> None:
    data, rows = _read(artifact)
    counts = Counter((row["layer"], row["role"]) for row in rows if row["mass"] >= 0.3)
    assert {role for _, role in counts} == {"cls", "patch"}
    for layer in range(11):
        assert data.roles.loc[layer, "rows"] == 5 * 13
        assert data.roles.loc[layer, "events"] == sum(r["layer"] == layer and r["routed"] >= 0.9 for r in rows)
        for role in ("cls", "patch"):
            assert data.roles.loc[layer, role] == counts[layer, role]


def test_sinks_without_a_role_count_as_unknown(artifact: Artifacts) -> None:
    data, _ = _read(artifact, roles=False, inputs=3)
    assert data.roles["unknown"].sum() == data.sinks > 0


def test_scatter_holds_every_event_with_its_class(artifact: Artifacts) -> None:
    data, rows = _read(artifact)
    events = [row for row in rows if row["routed"] >= 0.9]
    nop = [row for row in events if row["update_ratio"] <= 0.2]
    broadcast = [row for row in events if row["update_ratio"] >= 0.5 and row["stable_rank"] <= 1.5]
    assert Counter(data.scatter["label"]) == Counter(
        {"nop": len(nop), "broadcast": len(broadcast), "other": len(events) - len(nop) - len(broadcast)}
    )
    assert sorted(data.scatter["ratio"]) == sorted(row["update_ratio"] for row in events)
    assert data.unplaced == 0


def test_scatter_falls_back_to_sink_rows_where_nothing_is_an_event(artifact: Artifacts) -> None:
    data, rows = _read(artifact, routed=0.5)
    assert data.events == 0
    assert set(data.scatter["label"]) == {"sink"}
    assert len(data.scatter) == data.sinks == sum(row["mass"] >= 0.3 for row in rows)


def test_rows_without_projection_cannot_be_placed_and_are_counted(artifact: Artifacts) -> None:
    data, _ = _read(artifact, projection=False, roles=False)
    assert data.scatter.empty
    assert data.unplaced == data.events > 0


def test_the_ratio_is_the_one_the_rule_looks_at(artifact: Artifacts) -> None:
    data, rows = _read(artifact, rule="fesser-counts")
    assert data.ratio == "value_ratio"
    assert sorted(data.scatter["ratio"]) == sorted(row["value_ratio"] for row in rows if row["routed"] >= 0.9)


def test_norms_are_quartiles_over_sink_rows_and_over_inputs(artifact: Artifacts) -> None:
    data, rows = _read(artifact)
    layer = 7
    sink = [row["hidden_norm"] for row in rows if row["layer"] == layer and row["mass"] >= 0.3]
    other = {row["input"]: row["hidden_norm_median"] for row in rows if row["layer"] == layer}
    for group, values in (("sink", sink), ("other", list(other.values()))):
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        found = data.norms.loc[layer]
        assert [found[f"{group}_{q}"] for q in (25, 50, 75)] == pytest.approx([low, middle, high], rel=1e-6)
        assert found[f"{group}_n"] == len(values)


def test_a_model_without_sinks_has_no_sink_norms(artifact: Artifacts) -> None:
    data, _ = _read(artifact, strength=0.0)
    assert data.sinks == data.events == 0
    assert data.norms["sink_50"].isna().all() and (data.norms["sink_n"] == 0).all()
    assert data.norms["other_50"].notna().all()


def test_the_standard_error_is_there_only_for_sampled_queries(artifact: Artifacts) -> None:
    assert _read(artifact)[0].mass_se is None
    assert _read(artifact, queries=64, inputs=3)[0].mass_se == pytest.approx(0.0173)
