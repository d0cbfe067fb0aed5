"""Every edit of every family against the independent program, which runs one input and one edit at a time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from sinkscope.artifact import EDITS, read_edits
from sinkscope.explain.edits import EditOptions, _jobs, _passes, _run, edit_heads
from sinkscope.explain.edits._jobs import Job
from tests.explain.edits._by_hand import Change, Seen, measures, written
from tests.explain.edits._cases import CASES, NAMES, Case, chosen

HEADS = (0, 1)
FROZEN = ("vit", "llama-left", "gpt-oss", "encoder", "hand-plain", "off-by-one", "sequence-first", "memory")
"""One model of every route, mask and way."""
FLOATS = ("final", "final_norm", "common", "output_kl", "output_top1", "output_loss")


@cache
def plain(name: str) -> list[Seen]:
    return CASES[name].plain()


@cache
def chosen_rows(name: str) -> pd.DataFrame:
    return chosen(plain(name), CASES[name].layers, HEADS, CASES[name].valid)


def rows(case: Case) -> pd.DataFrame:
    return chosen_rows(case.name)


def records(frame: pd.DataFrame) -> list[Any]:
    """Rows with their columns as attributes."""
    return [SimpleNamespace(**{str(name): value for name, value in row.items()}) for row in frame.to_dict("records")]


class Spy:
    """The random choices of a run, and the way each pass took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.jobs: dict[tuple[str, int, int, str, int], Job] = {}
        self.ways: set[int] = set()
        attempt = _passes.Passes._attempt

        def listening(*args: Any) -> Any:
            for job in _jobs.jobs(*args):
                t = job.target
                self.jobs[t.input, t.layer, t.head, job.edit, job.draw] = job
                yield job

        def attempting(*args: Any) -> Any:
            edited = attempt(*args)
            self.ways.add(_passes._WAYS.index(args[-1]))
            return edited

        monkeypatch.setattr(_run, "jobs", listening)
        monkeypatch.setattr(_passes.Passes, "_attempt", attempting)


def expected_change(case: Case, row: Any, job: Job | None) -> Change:
    """What an edit is, from its definition and the values of the unedited float64 passes."""
    seen = dict(zip(NAMES, plain(case.name), strict=True))

    def value(name: Any, key: int) -> Tensor:
        values: Tensor = seen[name].values[row.layer][0, row.head, key]
        return values

    own = value(row.input, row.sink)
    of_head = rows(case).query("layer == @row.layer and head == @row.head").set_index("input")
    if row.edit == "noop":
        return Change(row.layer, row.head, {row.sink: own})
    assert job is not None
    if row.edit == "zero":
        return Change(row.layer, row.head, {row.sink: torch.zeros_like(own)})
    if row.edit == "mean":
        others = [value(name, at) for name, at in of_head["sink"].items() if name != row.input]
        return Change(row.layer, row.head, {row.sink: torch.stack(others).mean(0)})
    if row.edit == "donor":
        return Change(row.layer, row.head, {row.sink: value(row.donor, of_head["sink"][row.donor])})
    if row.edit == "ordinary":
        assert job.value is not None and row.donor != row.input
        valid = case.valid(NAMES.index(row.donor))
        places = [i for i in range(len(valid)) if valid[i] and i != of_head["sink"][row.donor]]
        values = torch.stack([value(row.donor, i) for i in places])
        errors = (values - job.value.double()).abs().amax(1)
        assert float(errors.min()) < 1e-4
        return Change(row.layer, row.head, {row.sink: values[int(errors.argmin())]})
    if row.edit == "redirect":
        return Change(row.layer, row.head, hidden=row.sink)
    if row.edit == "control":
        assert job.control is not None
        keys = [int(key) for key in job.control.keys.nonzero()[:, 0]]
        require_budget(case, row, keys)
        return Change(row.layer, row.head, {key: torch.zeros_like(own) for key in keys})
    if row.edit == "random":
        assert job.value is not None
        assert float(job.value.norm()) == pytest.approx(float(own.norm()), rel=1e-4)
        return Change(row.layer, row.head, {row.sink: job.value.double()})
    assert row.edit == "other_head" and job.other is not None and job.other != row.head
    return Change(row.layer, job.other, {row.sink: torch.zeros_like(own)})


def require_budget(case: Case, row: Any, keys: list[int]) -> None:
    """The keys are others that count, their weight is what `budget` says, and either reaches the sink's, no longer
    without any one of them last, or is all there is."""
    number = NAMES.index(row.input)
    valid = case.valid(number)
    sums = plain(case.name)[number].weights[row.layer][0, row.head].numpy()[np.flatnonzero(valid)].__abs__().sum(0)
    others = [i for i in np.flatnonzero(valid) if i != row.sink]
    assert row.sink not in keys and set(keys) <= set(others)
    assert row.budget == pytest.approx(sums[keys].sum() / sums[row.sink], rel=1e-3)
    if set(keys) != set(others):
        assert row.budget >= 1 - 1e-5
        assert sums[keys].sum() - sums[keys].max() < sums[row.sink]


@pytest.mark.parametrize(
    ("name", "freeze_all"),
    [*((name, False) for name in CASES), *((name, True) for name in FROZEN)],
    ids=[*CASES, *(f"{name}-frozen" for name in FROZEN)],
)
def test_edits_are_what_their_definitions_say(
    name: str, freeze_all: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, spy = CASES[name], Spy(monkeypatch)
    options = EditOptions(donors=2, draws=2, seed=3, freeze_all=freeze_all, rows=61)
    edit_heads(case.model, case.inputs, rows(case), tmp_path, options)
    found = read_edits(tmp_path)
    assert spy.ways == {case.way}
    assert set(found["edit"]) == set(EDITS)
    for row in records(found):
        number = NAMES.index(row.input)
        before = plain(name)[number]
        job = spy.jobs.get((row.input, row.layer, row.head, row.edit, row.draw))
        change = expected_change(case, row, job)
        args, kwargs = case.row(number)
        after = case.program.run(args, kwargs, change, before.weights if freeze_all else None)
        valid = case.valid(number)
        ids = args[0][0].numpy() if case.next_token else None
        recipients = valid & visible(case, row.layer, number)[:, row.sink]
        recipients[row.sink] = False
        want = measures(before, after, valid, recipients, row.sink, ids)
        if row.edit == "noop":
            assert row.final < 1e-5 and row.write == 0
            continue
        for column in FLOATS:
            value = getattr(row, column)
            if column not in want:
                assert pd.isna(value), column
                continue
            if column == "common" and want["final"] < 1e-3:
                continue  # rounding, seen relative to next to nothing
            assert value == pytest.approx(want[column], rel=2e-3, abs=3e-6, nan_ok=True), (row, column)
        require_write(case, row, before, after, change.head)


def visible(case: Case, layer: int, number: int) -> Any:
    """(queries, keys): weights that are not 0 by a mask; of a causal model the lower triangle."""
    weights = plain(case.name)[number].weights[layer][0].amax(0).numpy()
    tokens = weights.shape[0]
    causal = case.next_token or case.name == "off-by-one"
    seen = np.tril(np.ones((tokens, tokens), dtype=bool)) if causal else np.ones((tokens, tokens), dtype=bool)
    if case.name in ("gemma2", "gpt-oss") and layer == 0:
        seen &= ~np.tril(np.ones((tokens, tokens), dtype=bool), -11)  # the window
    return seen


def require_write(case: Case, row: Any, before: Seen, after: Seen, head: int) -> None:
    if case.reference is None:
        return
    layer = case.reference(len(NAMES))[row.layer]
    outs = [seen.outs[row.layer][0, head] for seen in (before, after)]
    if layer.projection is None:
        assert pd.isna(row.write)
        return
    want = written(
        outs[0], outs[1], layer.projection, layer.layer_scale, head, case.valid(NAMES.index(row.input)), row.sink
    )
    assert row.write == pytest.approx(want, rel=2e-3, abs=3e-6)


def test_nothing_depends_on_the_rows_of_a_pass_or_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["llama-left"]
    edit_heads(case.model, case.inputs, rows(case), tmp_path / "a", EditOptions(rows=128))
    edit_heads(case.model, case.inputs, rows(case), tmp_path / "b", EditOptions(rows=4))
    monkeypatch.setattr(_passes, "_WAYS", (None,))
    edit_heads(case.model, case.inputs, rows(case), tmp_path / "c", EditOptions(rows=128))
    one = read_edits(tmp_path / "a")
    for other in (read_edits(tmp_path / "b"), read_edits(tmp_path / "c")):
        made = one["edit"] != "noop"  # an edit of nothing changes what rounding makes of it
        pd.testing.assert_frame_equal(one[made], other[made], rtol=2e-3, atol=3e-6)


def test_one_head_alone_has_the_edits_it_has_among_others(tmp_path: Path) -> None:
    case = CASES["vit"]
    edit_heads(case.model, case.inputs, rows(case), tmp_path / "all", EditOptions())
    edit_heads(case.model, case.inputs, rows(case).query("head == 1"), tmp_path / "one", EditOptions())
    together = read_edits(tmp_path / "all").query("head == 1").reset_index(drop=True)
    pd.testing.assert_frame_equal(together, read_edits(tmp_path / "one"), rtol=2e-3, atol=3e-6)


def test_donor_cosine_compares_with_what_both_sinks_hand_out(tmp_path: Path) -> None:
    case = CASES["vit"]
    edit_heads(case.model, case.inputs, rows(case), tmp_path, EditOptions())
    donors = read_edits(tmp_path).query("edit == 'donor'")
    sinks = rows(case).set_index(["input", "layer", "head"])["sink"]
    for row in records(donors):
        places = {name: int(sinks[name, row.layer, row.head]) for name in (row.input, row.donor)}
        donated = plain("vit")[NAMES.index(row.donor)].values[row.layer][0, row.head, places[row.donor]]
        changes = []
        for name, value in ((row.input, donated), (row.input, donated * 0), (row.donor, donated * 0)):
            number, sink = NAMES.index(name), places[name]
            before = plain("vit")[number]
            after = case.program.run(*case.row(number), Change(row.layer, row.head, {sink: value}))
            assert before.normed is not None and after.normed is not None
            moved = (after.normed - before.normed)[[i for i in range(len(before.normed)) if i != sink]]
            changes.append(moved.mean(0))
        if changes[0].norm() == 0:  # the class token of the first layer is the same for all inputs
            assert row.layer == 0 and places[row.input] == places[row.donor] == 0 and np.isnan(row.donor_cosine)
            continue
        want = torch.cosine_similarity(changes[0], changes[1] - changes[2], dim=0)
        assert row.donor_cosine == pytest.approx(float(want), abs=1e-3)
