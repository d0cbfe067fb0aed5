from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sinkscope._errors import OptionError
from sinkscope.explain import Condition, Rule, classify, column_excess, get_rule, is_event

NAN = float("nan")


def _events(**columns: list[float | None]) -> pd.DataFrame:
    """Rows with a sink, float32 as on disk."""
    frame = pd.DataFrame({name: np.array(values, dtype=np.float32) for name, values in columns.items()})
    return frame.assign(sink=pd.array([0] * len(frame), dtype="Int32"))


def test_fesser_by_hand() -> None:
    events = _events(
        routed=[0.9, 0.89, 1.0, 1.0, 1.0, 1.0, 1.0],
        update_ratio=[0.2, 0.0, 0.21, 0.5, 0.5, 0.49, 3.0],
        stable_rank=[7.0, 1.0, 1.0, 1.5, 1.51, 1.0, 1.0],
    )
    wanted = ["nop", None, "other", "broadcast", "other", "other", "broadcast"]
    assert classify(events, get_rule("fesser")).tolist() == wanted
    assert is_event(events, get_rule("fesser")).tolist() == [True, False, True, True, True, True, True]


def test_fesser_counts_looks_at_values_and_at_no_rank() -> None:
    events = _events(routed=[1, 1, 1, 0.5], value_ratio=[0.2, 0.3, 0.5, 0.1])
    assert classify(events, get_rule("fesser-counts")).tolist() == ["nop", "other", "broadcast", None]


def test_fesser_literal_looks_at_the_smallest_weight() -> None:
    events = _events(min_mass=[0.9, 0.899, 1.0], update_ratio=[0.1, 0.1, 1.0], stable_rank=[1, 1, 1])
    assert classify(events, get_rule("fesser-literal")).tolist() == ["nop", None, "broadcast"]


def test_gu_has_a_strict_threshold_and_no_classes() -> None:
    assert classify(_events(mass=[0.3, 0.30001, 0.9]), get_rule("gu")).tolist() == [None, "other", "other"]


@pytest.mark.parametrize("operator", ["<=", "<", ">=", ">"])
def test_thresholds_have_the_precision_of_the_column(operator: str) -> None:
    """Nine in ten, eight in ten and so on are not what float32 makes of them, but they meet `>= 0.9`."""
    for tenths in range(1, 10):
        share = np.float32(tenths) / np.float32(10)
        rule = Rule("x", "test", (Condition("routed", operator, tenths / 10),))
        assert is_event(_events(routed=[float(share)]), rule).tolist() == [operator in ("<=", ">=")]


def test_a_row_without_candidate_key_is_no_event() -> None:
    events = _events(mass=[NAN, 0.9]).assign(sink=pd.array([None, 3], dtype="Int32"))
    assert is_event(events, get_rule("gu")).tolist() == [False, True]
    assert classify(events, get_rule("gu")).tolist() == [None, "other"]


def test_missing_values_leave_open_only_what_they_decide() -> None:
    events = _events(
        routed=[1, 1, 1, 1, 0, NAN],
        update_ratio=[NAN, 0.1, 0.3, 0.7, NAN, 0.1],
        stable_rank=[1, NAN, NAN, NAN, NAN, 1],
    )
    assert classify(events, get_rule("fesser")).tolist() == ["unknown", "nop", "other", "unknown", None, "unknown"]
    event = is_event(events, get_rule("fesser"))
    assert event[:5].tolist() == [True, True, True, True, False] and event[5] is pd.NA


def test_the_index_of_the_events_is_kept() -> None:
    events = _events(mass=[0.1, 0.9]).set_index(pd.Index([17, 5]))
    assert classify(events, get_rule("gu"))[5] == "other"


def test_missing_columns_are_named() -> None:
    with pytest.raises(
        OptionError, match="the events lack update_ratio, stable_rank; expected the columns that rule f"
    ):
        classify(_events(routed=[1.0]), get_rule("fesser"))


def _attention_events(logits: list[np.ndarray], visible: np.ndarray | None = None) -> pd.DataFrame:
    """Event rows of one layer from full attention matrices (heads, n, n), one per input."""
    rows = []
    for number, logit in enumerate(logits):
        mask = np.ones(logit.shape[1:], dtype=bool) if visible is None else visible
        weights = np.exp(np.where(mask, logit, -np.inf))
        weights /= weights.sum(axis=2, keepdims=True)
        for weight in weights:
            entropy = -np.sum(weight * np.log(weight, out=np.zeros_like(weight), where=weight > 0), axis=1)
            keys = mask.sum(axis=1)
            mass = weight.sum(axis=0) / mask.sum(axis=0)
            rows.append(
                {
                    "input": str(number),
                    "layer": 0,
                    "mass": mass.max(),
                    "virtual_mass": 0.0,
                    "entropy": entropy.mean(),
                    "entropy_share": (entropy[keys > 1] / np.log(keys[keys > 1])).mean(),
                    "excess": _excess(weight),
                }
            )
    floats = ["mass", "virtual_mass", "entropy", "entropy_share"]
    return pd.DataFrame(rows).astype(dict.fromkeys(floats, np.float32)).assign(sink=0)


def _excess(weight: np.ndarray) -> float:
    """Rulli et al.'s quantity for the key of largest column sum."""
    sums = np.sort(weight.sum(axis=0))
    return float(sums[-1] - sums[:-1].mean())


def _logits(seed: int, sizes: tuple[int, ...], heads: int, pull: float) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = [rng.standard_normal((heads, n, n)) for n in sizes]
    for logit in logits:
        logit[:, :, 3] += pull * np.arange(heads)[:, None]
    return logits


@pytest.mark.parametrize("heads", [1, 5])
def test_dlm_is_exact_where_all_queries_see_all_keys(heads: int) -> None:
    events = _attention_events(_logits(1, (17, 64, 257, 61), heads, 1.1))
    excess = get_rule("dlm").event[0]
    assert (excess.column, excess.operator, excess.threshold) == ("column_excess", ">", 3.0)
    wanted = (events["excess"] > 3).tolist()
    assert is_event(events, get_rule("dlm")).tolist() == wanted
    if heads > 1:
        assert 0 < sum(wanted) < len(wanted)
    np.testing.assert_allclose(column_excess(events), events["excess"], rtol=1e-4, atol=1e-4)


def test_dlm_counts_what_a_virtual_sink_takes() -> None:
    """Half of every row goes to the virtual sink: column sums and their excess halve."""
    events = _attention_events(_logits(1, (31,), 3, 1.5))
    halved = events.assign(mass=events["mass"] / 2, virtual_mass=np.float32(0.5))
    np.testing.assert_allclose(column_excess(halved), events["excess"] / 2, rtol=1e-4, atol=1e-4)


def test_dlm_is_undecided_under_causal_and_windowed_masks() -> None:
    n = 37
    order = np.subtract.outer(np.arange(n), np.arange(n))
    for mask in (order >= 0, abs(order) < 5):
        for heads in (1, 5):
            events = _attention_events(_logits(2, (n, n, n), heads, 1.1), mask)
            assert is_event(events, get_rule("dlm")).isna().all()
            assert set(classify(events, get_rule("dlm"))) == {"unknown"}


def test_dlm_is_undecided_where_no_entropy_tells_the_number_of_keys() -> None:
    events = _attention_events(_logits(3, (11, 13), 2, 0.0))
    known = is_event(events, get_rule("dlm"))
    silent = events.assign(entropy=np.float32(0), entropy_share=np.float32(0))
    assert known.notna().all() and is_event(silent, get_rule("dlm")).isna().all()
    first_of_each = events.index % 2 == 0
    some = events.assign(**{name: events[name].where(first_of_each, 0) for name in ("entropy", "entropy_share")})
    assert is_event(some, get_rule("dlm")).tolist() == known.tolist()
