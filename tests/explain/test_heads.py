from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from sinkscope.artifact import MEDIAN_COLUMNS, Artifact, head_columns, open_artifact, open_run
from sinkscope.explain import Condition, Rule, build_heads, get_rule, sink_shares
from tests.explain._plant import DIM, floats, plant

FESSER = get_rule("fesser")
N, LAYERS, HEADS = 23, 2, 3
NAN = float("nan")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Random rows; one head of layer 1 has no projection, and some rows have no candidate key."""
    rng = np.random.default_rng(1)
    columns = {name: rng.random((N, LAYERS, HEADS)).astype(np.float32) for name in MEDIAN_COLUMNS}
    columns["routed"] = rng.choice([0.5, 0.9, 1.0], (N, LAYERS, HEADS)).astype(np.float32)
    columns["stable_rank"] += 1
    columns["sink"] = np.where(rng.random((N, LAYERS, HEADS)) < 0.1, NAN, 3)
    columns["role"] = rng.choice(["cls", "patch", ""], (N, LAYERS, HEADS))
    columns["update_ratio"][:, 1, 2] = columns["stable_rank"][:, 1, 2] = NAN
    columns["mass"][:, 0, 1] *= 0.4
    columns["mass"] = np.where(np.isnan(columns["sink"]), NAN, columns["mass"])
    return plant(tmp_path_factory.mktemp("heads"), columns, values=rng.standard_normal((N, LAYERS, HEADS, DIM)))


def _pairs(artifact: Artifact, heads: pd.DataFrame) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Every head's row with its event rows."""
    events = artifact.events()
    rows: list[dict[str, Any]] = heads.to_dict("records")  # type: ignore[assignment]
    return [(row, events.query(f"layer == {row['layer']} and head == {row['head']}")) for row in rows]


def test_the_columns_are_the_schemas(artifact: Artifact) -> None:
    heads = build_heads(artifact, FESSER)
    assert list(heads.columns) == [column.name for column in head_columns()]
    kinds = {column.name: {"string": "str"}.get(column.kind, column.kind) for column in head_columns()}
    assert {name: str(kind).lower() for name, kind in heads.dtypes.items()} == kinds
    assert heads[["layer", "head"]].to_numpy().tolist() == [[layer, head] for layer in (0, 1) for head in (0, 1, 2)]
    assert (heads["n_inputs"] == N).all()


def test_rates_and_medians_of_every_head(artifact: Artifact) -> None:
    for found, rows in _pairs(artifact, build_heads(artifact, FESSER)):
        n_events = int((rows["routed"].ge(np.float32(0.9)) & rows["sink"].notna()).sum())
        n_sinks = int(rows["mass"].ge(np.float32(0.3)).sum())
        assert 0 < n_events < N and 0 < n_sinks < N
        for name, count in (("event_rate", n_events), ("sink_rate", n_sinks)):
            interval = binomtest(count, N).proportion_ci(method="wilson")
            wanted = [count / N, interval.low, interval.high]
            np.testing.assert_allclose([found[name], found[f"{name}_low"], found[f"{name}_high"]], wanted)
        for name in MEDIAN_COLUMNS:
            median, low, high = (found[f"{name}_median{end}"] for end in ("", "_low", "_high"))
            assert median == pytest.approx(rows[name].astype(float).median(), nan_ok=True)
            if rows[name].notna().any():
                assert rows[name].min() <= low <= median <= high <= rows[name].max()
                assert low < high or name == "routed"


def test_classes_are_counted_and_null_where_they_cannot_be_told(artifact: Artifact) -> None:
    total = 0
    for found, rows in _pairs(artifact, build_heads(artifact, FESSER)):
        counts = [found[name] for name in ("nop", "broadcast", "other")]
        if (found["layer"], found["head"]) == (1, 2):
            assert pd.isna(counts).all()
            continue
        events = rows[rows["routed"].ge(np.float32(0.9)) & rows["sink"].notna()]
        nop = int((events["update_ratio"] <= 0.2).sum())
        broadcast = int(((events["update_ratio"] >= 0.5) & (events["stable_rank"] <= 1.5)).sum())
        total += nop * broadcast
        assert counts == [nop, broadcast, len(events) - nop - broadcast]
    assert total > 0


def test_roles_are_those_of_most_inputs(artifact: Artifact) -> None:
    for found, rows in _pairs(artifact, build_heads(artifact, FESSER)):
        counts = rows["role"].value_counts().to_dict()
        assert counts[found["role"]] == max(counts.values())
        assert found["role_share"] == max(counts.values()) / N


def test_shares_are_the_heads_own(artifact: Artifact) -> None:
    shares = sink_shares(artifact.vectors, seed=5)
    heads = build_heads(artifact, FESSER, seed=5).set_index(["layer", "head"])[shares.columns]
    few = heads.drop(shares.index)
    assert len(few) > 0 and few.isna().all().all()
    pd.testing.assert_frame_equal(heads.loc[shares.index], shares, check_index_type=False)


def test_the_table_is_written_and_read_unchanged(artifact: Artifact) -> None:
    heads = build_heads(artifact, FESSER)
    manifest = artifact.manifest | {"finished": None}
    open_run(artifact.path, manifest).write_heads(heads)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(open_artifact(artifact.path).heads, heads)


def _planted(tmp_path: Path, energy: np.ndarray | None = None, **columns: object) -> pd.DataFrame:
    return build_heads(plant(tmp_path, {name: np.asarray(column) for name, column in columns.items()}, energy), FESSER)


def test_look_alikes_are_labelled_as_what_they_are(tmp_path: Path) -> None:
    """Heads, in order: sink on one input in ten, on one in eleven or so, uniform, diagonal, none, dead, sink that is
    also diagonal."""
    n = 20
    mass = np.zeros((n, 1, 7), dtype=np.float32)
    mass[:2, 0, 0], mass[:1, 0, 1], mass[:, 0, 6] = 0.3, 0.9, 0.8
    energy = np.ones((n, 1, 7, 4))
    energy[:, 0, 5, 1:] = 0.05
    heads = _planted(
        tmp_path,
        energy,
        mass=mass,
        entropy_share=floats(0.5, 0.5, 0.95, 0.949, 0.5, 0.99, 0.5),
        diagonal=floats(0.1, 0.1, 0.6, 0.5, 0.49, 0.1, 0.6),
    )
    assert heads["kind"].tolist() == ["sink", "none", "uniform", "diagonal", "none", "dead", "sink"]


def test_dead_heads_are_measured_against_their_layer(tmp_path: Path) -> None:
    """Largest writes 0.05 and 0.06 against a layer that writes 1, and 5 in a layer that writes 100."""
    energy = np.ones((7, 2, 5, 4))
    energy[:, 0, 0, 1:], energy[:, 0, 1, 1:] = 0.05, 0.06
    energy[:, 1] = 100.0
    energy[:, 1, 3, 1:] = 5.0
    heads = _planted(tmp_path, energy, mass=np.zeros((7, 2, 5)), diagonal=np.zeros(1), entropy_share=np.zeros(1))
    assert heads[heads["kind"] == "dead"][["layer", "head"]].to_numpy().tolist() == [[0, 0], [1, 3]]


def test_one_rare_large_write_does_not_keep_a_head_alive_but_many_do(tmp_path: Path) -> None:
    energy = np.ones((7, 1, 5, 4))
    energy[:, 0, :2, 1:] = 0.01
    energy[:3, 0, 0, 2], energy[:4, 0, 1, 2] = 1.0, 1.0
    heads = _planted(tmp_path, energy, mass=np.zeros((7, 1, 5)), diagonal=np.zeros(1), entropy_share=np.zeros(1))
    assert heads["kind"].tolist() == ["dead", "none", "none", "none", "none"]


def test_a_single_head_is_measured_against_the_other_layers(tmp_path: Path) -> None:
    energy = np.ones((7, 5, 1, 4))
    energy[:, 3, 0, 1:] = 0.01
    heads = _planted(tmp_path, energy, mass=np.zeros((7, 5, 1)), diagonal=np.zeros(1), entropy_share=np.zeros(1))
    assert heads["kind"].tolist() == ["none", "none", "none", "dead", "none"]


def test_values_stand_in_where_there_is_no_projection(tmp_path: Path) -> None:
    energy = np.ones((7, 1, 5, 4))
    energy[..., 1:] = NAN
    energy[:, 0, 2, 0] = 0.02
    heads = _planted(tmp_path, energy, mass=np.zeros((7, 1, 5)), diagonal=np.zeros(1), entropy_share=np.zeros(1))
    assert heads["kind"].tolist() == ["none", "none", "dead", "none", "none"]


def test_a_layer_that_writes_nothing_is_dead(tmp_path: Path) -> None:
    heads = _planted(tmp_path, np.zeros((7, 1, 2, 4)), mass=np.full((7, 1, 2), 0.9))
    assert heads["kind"].tolist() == ["dead", "dead"]


def test_unknown_roles_leave_the_role_null(tmp_path: Path) -> None:
    heads = _planted(tmp_path, role=np.array([["", "bos"]]))
    assert heads["role"].isna().tolist() == [True, False]
    assert heads["role_share"].isna().tolist() == [True, False]


def test_equally_frequent_roles_go_by_the_alphabet(tmp_path: Path) -> None:
    heads = _planted(tmp_path, role=np.array(["sep", "bos", "", "sep", "bos"])[:, None, None])
    assert (heads.loc[0, "role"], heads.loc[0, "role_share"]) == ("bos", 2 / 5)


def test_a_rule_that_cannot_decide_gives_null_rates(tmp_path: Path) -> None:
    """Entropies of a causal head: no whole number of keys."""
    artifact = plant(tmp_path, {"entropy": floats(1.3, 1.7), "entropy_share": floats(0.41, 0.62)}, rule="dlm")
    heads = build_heads(artifact, get_rule("dlm"))
    assert heads[["event_rate", "event_rate_low", "event_rate_high", "nop", "broadcast", "other"]].isna().all().all()
    assert (heads["sink_rate"] == 1).all()


def test_a_rule_of_the_users_own(tmp_path: Path) -> None:
    artifact = plant(tmp_path, {"mass": floats(0.2, 0.4, 0.6, 0.8, 1.0)[:, None, None]})
    heads = build_heads(artifact, Rule("half", "me", (Condition("mass", ">=", 0.6),)))
    assert heads[["event_rate", "nop", "broadcast", "other"]].to_numpy().tolist() == [[0.6, 0, 0, 3]]


def test_medians_of_missing_columns_are_null(tmp_path: Path) -> None:
    heads = _planted(tmp_path, update_ratio=floats(NAN))
    assert heads[["update_ratio_median", "update_ratio_median_low", "update_ratio_median_high"]].isna().all().all()
