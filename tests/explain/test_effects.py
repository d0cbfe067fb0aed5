from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from sinkscope.explain._effects import LEAST_BUDGET, HeadEffects, effect_table, head_effects
from sinkscope.explain._resamples import resample_weights


def _edits(rows: list[dict[str, object]]) -> pd.DataFrame:
    base = {
        "layer": 1, "head": 2, "sink": 0, "mass": 0.5, "draw": 0, "donor": None, "budget": np.nan, "write": np.nan,
        "final": np.nan, "final_norm": np.nan, "common": np.nan, "donor_cosine": np.nan, "output_kl": np.nan,
        "output_top1": np.nan, "output_loss": np.nan,
    }  # fmt: skip
    return pd.DataFrame([base | row for row in rows])


def _table(edits: pd.DataFrame) -> dict[tuple[str, str], dict[str, Any]]:
    """Numbers by edit and measure."""
    (head,) = head_effects(edits)
    table = effect_table(head, resample_weights(len(head.inputs), 199, 0))
    return {
        (row["edit"], row["measure"]): {str(name): x for name, x in row.items()} for row in table.to_dict("records")
    }


def test_draws_are_averaged_before_inputs_and_squares_before_roots() -> None:
    rows: list[dict[str, object]] = [
        {"input": "a", "edit": "donor", "draw": 0, "final": 1.0, "common": 0.2},
        {"input": "a", "edit": "donor", "draw": 1, "final": 7.0, "common": 0.4},
        {"input": "b", "edit": "donor", "draw": 0, "final": 3.0, "common": np.nan},
        {"input": "c", "edit": "donor", "draw": 0, "final": 4.0, "common": 0.6},
    ]
    table = _table(_edits(rows))
    assert list(table) == [("donor", "final"), ("donor", "common")]
    row = table["donor", "final"]
    assert row["value"] == pytest.approx(np.sqrt(((1 + 49) / 2 + 9 + 16) / 3))
    assert row["n"] == 3
    assert row["low"] == pytest.approx(3)
    assert row["high"] == pytest.approx(5)
    row = table["donor", "common"]
    assert row["value"] == pytest.approx((0.3 + 0.6) / 2)
    assert row["n"] == 2
    assert np.isnan(row["low"])
    assert np.isnan(row["high"])


def test_controls_are_scaled_to_the_full_mass() -> None:
    rows: list[dict[str, object]] = [
        {"input": "a", "edit": "control", "draw": 0, "budget": 0.5, "final": 1.0},
        {"input": "a", "edit": "control", "draw": 1, "budget": 1.0, "final": 4.0},
        {"input": "a", "edit": "control", "draw": 2, "budget": LEAST_BUDGET / 2, "final": 9.0},
        {"input": "b", "edit": "control", "draw": 0, "budget": LEAST_BUDGET / 2, "final": 9.0},
    ]
    (head,) = head_effects(_edits(rows))
    np.testing.assert_allclose(head["full_control", "final"], [(2**2 + 4**2) / 2, np.nan])
    np.testing.assert_allclose(head["control", "final"], [(1 + 16 + 81) / 3, 81])
    assert ("full_control", "final") not in _table(_edits(rows))


def test_heads_come_in_order_each_with_its_own_inputs() -> None:
    rows: list[dict[str, object]] = [
        {"layer": 1, "head": 1, "input": "b", "edit": "zero", "final": 2.0},
        {"layer": 0, "head": 3, "input": "z", "edit": "zero", "final": 1.0, "final_norm": 5.0},
        {"layer": 1, "head": 1, "input": "a", "edit": "zero", "final": 3.0},
    ]
    found = list(head_effects(_edits(rows)))
    assert [(head.layer, head.head, head.inputs) for head in found] == [(0, 3, ("z",)), (1, 1, ("a", "b"))]
    assert [head.final_measure for head in found] == ["final_norm", "final"]
    np.testing.assert_array_equal(found[1]["zero", "final"], [9, 4])
    assert np.isnan(found[1]["mean", "final"]).all()


def test_edits_do_not_depend_on_the_order_or_index_of_rows() -> None:
    rng = np.random.default_rng(0)
    rows: list[dict[str, object]] = [
        {"input": name, "edit": edit, "final": rng.random(), "write": rng.random()}
        for name in "abcdefghijk"
        for edit in ("zero", "mean", "noop")
    ]
    edits = _edits(rows)
    shuffled = edits.sample(frac=1, random_state=1)
    shuffled.index = pd.Index(np.zeros(len(shuffled), dtype=int))
    assert _table(edits) == _table(shuffled)


def test_no_edits_no_heads() -> None:
    assert list(head_effects(_edits([{"input": "a", "edit": "zero"}]).head(0))) == []


def test_unknown_measures_are_known_as_such() -> None:
    head = HeadEffects(0, 0, ("a", "b"), {("zero", "final"): np.array([1.0, np.nan])})
    assert head.knows("final")
    assert not head.knows("write")
