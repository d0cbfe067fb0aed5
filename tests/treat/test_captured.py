"""What a capture, and a diagnosis, see of treated models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sinkscope
from sinkscope.treat import ClippedSoftmax, Form, Gate, GlobalPathway, LearnedSink, OffByOne, Treatment
from tests.treat._models import BUILD, DECODERS, LAYERS, example, learned, model, output, sinks

GATES: list[Treatment] = [Gate(), Gate("elementwise"), Gate(position="value")]
FORMS: list[Treatment] = [LearnedSink(), OffByOne(), ClippedSoftmax()]


@pytest.mark.parametrize("family", BUILD)
def test_all_attention_is_seen(family: str) -> None:
    extra = [] if family in DECODERS else [GlobalPathway()]
    treated, x = learned(sinkscope.treat(model(family), [*sinks(), *extra], probe=example(family))), example(family)
    with torch.no_grad():
        plain = output(treated, x)
        with sinkscope.capture(treated) as calls:
            seen = output(treated, x)
    assert torch.equal(seen, plain)
    calls.coverage.require()
    own = [call for call in calls if call.kind == "self"]
    assert len(own) == LAYERS and {call.route for call in own} == {"form"}


@pytest.mark.parametrize("treatment", GATES + FORMS, ids=repr)
@pytest.mark.parametrize("family", ["vit", "llama"])
def test_weights_and_values_make_the_output(family: str, treatment: Treatment) -> None:
    x = example(family)
    x = x.double() if x.is_floating_point() else x
    treated = sinkscope.treat(model(family).double(), treatment, probe=x)
    learned(treated)
    with torch.no_grad(), sinkscope.capture(treated) as calls:
        output(treated, x)
    for call in calls:
        values = call.v.repeat_interleave(call.shape[1] // call.v.shape[1], 1)
        made = call.attention_weights(torch.float64) @ values
        if treatment == Gate("elementwise"):  # which no weights can express: the gate comes behind
            assert call.projection is None and "goes through aten.mul before a projection" in (
                call.projection_gap or ""
            )
        else:
            assert call.projection is not None
        torch.testing.assert_close(made, call.out, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("family", ["vit", "llama", "timm-vit"])
def test_a_headwise_gate_scales_weights(family: str) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, Gate(input_dependent=False))
    with torch.no_grad():
        for name, parameter in sinkscope.treat.added(treated).items():
            assert name.endswith("gate_bias")
            parameter[1] = -1.0
        with sinkscope.capture(plain) as before:
            output(plain, x)
        with sinkscope.capture(treated) as after:
            output(treated, x)
    factor = 2 * torch.sigmoid(torch.tensor(-1.0))
    old, new = before[0].attention_weights(), after[0].attention_weights()
    torch.testing.assert_close(new[:, 1], factor * old[:, 1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(new[:, 0], old[:, 0], rtol=1e-4, atol=1e-6)
    assert after[0].rows == "any"


def test_diagnosis(tmp_path: Path) -> None:
    plain, x = sinkscope.load(model("vit")), example("vit", 5)
    before = sinkscope.diagnose(plain, [x], tmp_path / "before")
    treated = sinkscope.treat(plain, [Gate(), LearnedSink()], probe=x)
    after = sinkscope.diagnose(treated, [x], tmp_path / "after")
    columns = ["mass", "value_ratio", "update_ratio", "stable_rank"]
    old, new = before.events, after.events
    assert len(new) == len(old) == 5 * LAYERS * 3
    assert abs(new[columns] - old[columns]).max().max() < 1e-3
    assert any("treated with Gate" in note for note in treated.notes)


def test_forms_by_name_are_named() -> None:
    treated, x = sinkscope.treat(model("bert"), Form("softpick")), example("bert")
    with torch.no_grad(), sinkscope.capture(treated) as calls:
        output(treated, x)
    assert [call.form.name for call in calls if call.form is not None] == ["softpick"] * LAYERS
