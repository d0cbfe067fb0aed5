from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from sinkscope.explain import sink_by_key

KEYS = [[0, 5, 3], [0, 5], [7, 0, 5, 2], [], None]
MASSES = [[0.9, 0.3, 0.1], [0.4, 0.29], [0.6, 0.5, 0.4, 0.31], [], None]


def _events(arrow: bool) -> pd.DataFrame:
    if not arrow:
        return pd.DataFrame({"top_sinks": KEYS, "top_masses": MASSES})
    table = {"top_sinks": pa.array(KEYS, pa.list_(pa.int32())), "top_masses": pa.array(MASSES, pa.list_(pa.float32()))}
    frame: pd.DataFrame = pa.table(table).to_pandas(types_mapper=pd.ArrowDtype)
    return frame


@pytest.mark.parametrize("arrow", [False, True])
def test_share_of_heads_per_key_by_hand(arrow: bool) -> None:
    """Five rows, two without candidates; 0.3 itself is no sink."""
    table = sink_by_key(_events(arrow))
    assert table["key"].tolist() == [0, 2, 5, 7]
    assert table["n_rows"].tolist() == [3, 1, 1, 1]
    np.testing.assert_allclose(table["share"], [0.6, 0.2, 0.2, 0.2])
    np.testing.assert_allclose(table["share_high"], [0.6, 0.2, 0.2, 0.2])


def test_keys_that_a_full_row_may_hide_widen_the_upper_share() -> None:
    events = pd.DataFrame({"top_sinks": [[1, 2, 3, 4], [9, 1, 2, 3]], "top_masses": [[0.5] * 4, [0.8, 0.1, 0.1, 0.1]]})
    table = sink_by_key(events)
    assert table["key"].tolist() == [1, 2, 3, 4, 9]
    np.testing.assert_allclose(table["share"], [0.5] * 5)
    np.testing.assert_allclose(table["share_high"], [0.5, 0.5, 0.5, 0.5, 1.0])


def test_no_sinks_make_an_empty_table() -> None:
    assert sink_by_key(_events(True), threshold=0.95).empty
    assert sink_by_key(_events(True).head(0)).empty


def test_gu_et_al_table_from_attention_matrices() -> None:
    """alpha_k of the paper, computed from causal attention, for the first key."""
    rng = np.random.default_rng(0)
    n, heads = 64, 30
    logits = rng.standard_normal((heads, n, n))
    logits[:, :, 0] += rng.uniform(0, 5, heads)[:, None]
    weights = np.exp(np.where(np.tri(n, dtype=bool), logits, -np.inf))
    weights /= weights.sum(axis=2, keepdims=True)
    alpha = weights.sum(axis=1) / np.arange(n, 0, -1)
    top = np.argsort(-alpha[:, :49], axis=1)[:, :4]
    events = pd.DataFrame({"top_sinks": list(top), "top_masses": list(np.take_along_axis(alpha, top, axis=1))})
    first = sink_by_key(events).iloc[0].to_dict()
    wanted = float((alpha[:, 0] > 0.3).mean())
    assert 0.2 < wanted < 0.9
    assert (first["key"], first["share"], first["share_high"]) == (0, wanted, wanted)
