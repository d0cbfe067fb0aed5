"""An interrupted tuning goes on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sinkscope import treat
from sinkscope._errors import ArtifactError
from sinkscope.models import Model
from sinkscope.train.tuning import Step, Tuned
from sinkscope.train.tuning._learned import Learned
from sinkscope.treat import Gate, OffByOne, Registers, Treatment
from tests.train.tuning._tuned import INPUTS, STEPS, base, short, treated, values
from tests.treat._models import example

TREATED: dict[str, tuple[Treatment, ...]] = {
    "vit": (OffByOne(), Gate()),
    "dinov2": (OffByOne(), Registers(2), Gate("elementwise")),
    "llama": (OffByOne(), Gate()),
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C."""


def stop_at(step: int) -> Callable[[Step], None]:
    def stop(told: Step) -> None:
        if told.step == step:
            raise Interrupted

    return stop


def same(first: Tuned, second: Tuned) -> None:
    """Weights and table, bit for bit; only time may have passed."""
    weights, others = values(first.model), values(second.model)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert first.table.drop(columns="seconds").equals(second.table.drop(columns="seconds"))
    untimed = [{**found.plain(), "seconds": None} for found in (first, second)]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize(
    ("family", "objective", "stops"),
    [("vit", "distill", (1, 4, STEPS)), ("dinov2", "task", (5,)), ("llama", "lm", (7,)), ("dinov2", "distill", (6,))],
)
def test_resumed_is_uninterrupted(family: str, objective: str, stops: tuple[int, ...], tmp_path: Path) -> None:
    x = example(family, INPUTS)
    labels = [row % 3 for row in range(INPUTS)] if objective == "task" else None
    whole = short(treated(family, *TREATED[family]), x, objective, labels=labels)
    for step in stops:
        with pytest.raises(Interrupted):
            short(treated(family, *TREATED[family]), x, objective, labels=labels, out=tmp_path, on_step=stop_at(step))
    told: list[int] = []
    # Another probe gives registers another start: what the checkpoint holds is put in its place.
    made = treated(family, *TREATED[family], probe_seed=8)
    ended = short(made, x, objective, labels=labels, out=tmp_path, on_step=lambda step: told.append(step.step))
    assert told == list(range(stops[-1] + 1, STEPS + 1))
    same(whole, ended)
    fresh = treat.load(base(family), tmp_path)
    state, loaded = made.module.state_dict(), fresh.module.state_dict()
    assert all(torch.equal(state[name], loaded[name]) for name in state)


def test_a_probe_is_resumed_with_its_reference(tmp_path: Path) -> None:
    x, labels = example("dinov2", INPUTS), [row % 3 for row in range(INPUTS)]
    whole = short(treated("dinov2", Gate()), x, "task", labels=labels, out=tmp_path / "whole")
    with pytest.raises(Interrupted):
        short(treated("dinov2", Gate()), x, "task", labels=labels, out=tmp_path / "parts", on_step=stop_at(5))
    ended = short(treated("dinov2", Gate()), x, "task", labels=labels, out=tmp_path / "parts")
    same(whole, ended)
    probes = [(tmp_path / name / "probe.safetensors").read_bytes() for name in ("whole", "parts")]
    assert probes[0] == probes[1]


def test_a_finished_tuning_is_not_done_again(tmp_path: Path) -> None:
    x = example("vit", INPUTS)
    told: list[Step] = []
    first = short(treated("vit", *TREATED["vit"]), x, out=tmp_path)
    again = short(treated("vit", *TREATED["vit"]), x, out=tmp_path, on_step=told.append)
    assert told == []
    same(first, again)
    assert again.table["seconds"].tolist() == first.table["seconds"].tolist()


def test_an_interruption_amid_an_update_goes_back_to_the_last_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x = example("vit", INPUTS)
    whole = short(treated("vit", *TREATED["vit"]), x)
    real, calls = Learned.step, [0]

    def half(self: Learned, rate: float) -> None:
        real(self, rate)
        calls[0] += 1
        if calls[0] == 5:
            raise Interrupted

    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(Learned, "step", half)
        short(treated("vit", *TREATED["vit"]), x, out=tmp_path)
    told: list[int] = []
    ended = short(treated("vit", *TREATED["vit"]), x, out=tmp_path, on_step=lambda step: told.append(step.step))
    assert told[0] == 4  # checkpoints are at steps 0, 3, 6, ...
    same(whole, ended)


def interrupted(folder: Path) -> None:
    with pytest.raises(Interrupted):
        short(treated("vit", *TREATED["vit"]), example("vit", INPUTS), out=folder, on_step=stop_at(2))


def other_gate() -> Model:
    return treated("vit", OffByOne(), Gate("elementwise"))


def other_weights() -> Model:
    made = treated("vit", *TREATED["vit"])
    with torch.no_grad():
        made.module.classifier.bias.add_(1)  # type: ignore[operator, union-attr]  # nn.Module's attributes
    return made


@pytest.mark.parametrize(
    ("change", "made", "seed", "message"),
    [
        ({"lr": 0.5}, None, 0, "lr 0.5 now, 0.01 then"),
        ({"steps": 17, "seed": 3}, None, 0, "steps 17 now, 13 then; seed 3 now, 0 then"),
        ({}, other_gate, 0, "treatments"),
        ({}, other_weights, 0, "sha256"),
        ({}, None, 1, "inputs: sha256"),
    ],
)
def test_another_tuning_is_refused_by_what_differs(
    change: dict[str, Any], made: Callable[[], Model] | None, seed: int, message: str, tmp_path: Path
) -> None:
    interrupted(tmp_path)
    model = treated("vit", *TREATED["vit"]) if made is None else made()
    with pytest.raises(ArtifactError) as caught:
        short(model, example("vit", INPUTS, seed), out=tmp_path, **change)
    assert f"{tmp_path} holds another tuning ({message}" in str(caught.value)
    assert caught.value.found.count(" then") == (2 if len(change) == 2 else 1)


def test_how_often_checkpoints_are_written_may_change(tmp_path: Path) -> None:
    interrupted(tmp_path)
    x = example("vit", INPUTS)
    ended = short(treated("vit", *TREATED["vit"]), x, out=tmp_path, checkpoint_every=5)
    assert ended.steps == STEPS


@pytest.mark.parametrize("name", ["state.safetensors", "options.json"])
def test_damaged_checkpoints_are_told(name: str, tmp_path: Path) -> None:
    interrupted(tmp_path)
    path = tmp_path / "checkpoint" / name
    path.write_bytes(path.read_bytes()[:37])
    with pytest.raises(ArtifactError, match=f"{name} is damaged") as caught:
        short(treated("vit", *TREATED["vit"]), example("vit", INPUTS), out=tmp_path)
    assert f"remove {path.parent}" in caught.value.next_step


def test_checkpoints_are_json_and_safetensors(tmp_path: Path) -> None:
    interrupted(tmp_path)
    asked = json.loads((tmp_path / "checkpoint" / "options.json").read_text())
    assert asked["options"]["objective"] == "distill"
    assert [treatment["name"] for treatment in asked["treatments"]["treatments"]] == ["off-by-one", "gate"]
    assert {path.suffix for path in (tmp_path / "checkpoint").iterdir()} == {".json", ".safetensors"}
