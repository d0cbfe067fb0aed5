"""Treating copies and originals, undoing bit for bit, copies of treated models."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.models import Model
from sinkscope.treat import Gate, GlobalPathway, HeadNorm, LearnedSink, OffByOne
from tests.treat._models import BUILD, DECODERS, LAYERS, example, learned, model, output, sinks


def anatomy(made: nn.Module) -> dict[str, Any]:
    """Everything that a treatment may touch."""
    return {
        "state": {name: value.clone() for name, value in made.state_dict().items()},
        "text": str(made),
        "parts": {
            name: (
                id(part),
                type(part),
                set(vars(part)),
                list(part._forward_hooks.values()),
                list(part._forward_pre_hooks.values()),
                list(part._forward_hooks_with_kwargs.values()),
                list(part._forward_pre_hooks_with_kwargs.values()),
                id(getattr(part, "config", None)),
                part.training,
            )
            for name, part in made.named_modules()
        },
        "implementation": getattr(getattr(made, "config", None), "_attn_implementation", None),
        "gradients": {name: parameter.requires_grad for name, parameter in made.named_parameters()},
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    states = one.pop("state"), other.pop("state")
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert one == other


@pytest.mark.parametrize("family", BUILD)
def test_undo_restores_bit_for_bit(family: str) -> None:
    made, x = model(family), example(family)
    made.requires_grad_(False)
    before, out = anatomy(made), output(made, x)
    extra = [] if family in DECODERS else [GlobalPathway()]
    assert sinkscope.treat(made, [*sinks(), *extra], inplace=True, probe=x) is made
    learned(made)
    assert not torch.equal(output(made, x), out)
    assert treat.undo(made) is made
    assert_same(anatomy(made), before)
    assert torch.equal(output(made, x), out)
    with pytest.raises(OptionError, match="is not treated"):
        treat.undo(made)


@pytest.mark.parametrize("family", ["bert", "timm-vit"])
def test_a_copy_is_treated_by_default(family: str) -> None:
    made, x = model(family), example(family)
    before = anatomy(made)
    treated = sinkscope.treat(made, sinks(), probe=x)
    assert treated is not made and type(treated) is type(made)
    learned(treated)
    assert_same(anatomy(made), before)


@pytest.mark.parametrize("family", BUILD)
def test_copies_of_treated_models_are_their_own(family: str) -> None:
    made, x = model(family), example(family)
    treated = learned(sinkscope.treat(made, sinks(), probe=x))
    twin = copy.deepcopy(treated)
    out = output(treated, x)
    assert torch.equal(output(twin, x), out)
    learned(twin)
    assert torch.equal(output(treated, x), out) and not torch.equal(output(twin, x), out)
    treat.undo(twin)
    assert torch.equal(output(twin, x), output(made, x)) and twin.state_dict().keys() == made.state_dict().keys()
    assert torch.equal(output(treated, x), out)


def test_treatments_are_added_to_those_there() -> None:
    made, x = model("vit"), example("vit")
    treated = sinkscope.treat(made, Gate())
    sinkscope.treat(treated, LearnedSink(), inplace=True, probe=x)
    assert treat.treatments_of(treated) == (Gate(), LearnedSink())
    assert len(treat.added(treated)) == LAYERS * (2 + 1)
    with pytest.raises(OptionError, match=r"gate and gate at vit\.layers\.0\.attention; expected one treatment"):
        sinkscope.treat(treated, [HeadNorm(), Gate("elementwise")], inplace=True)
    assert treat.treatments_of(treated) == (Gate(), LearnedSink())
    assert len(treat.added(treated)) == LAYERS * (2 + 1)
    treat.undo(treated)
    assert torch.equal(output(treated, x), output(made, x)) and treat.treatments_of(treated) == ()


def test_conflicts_leave_the_model_as_it_was() -> None:
    made, x = model("gpt2"), example("gpt2")
    before = anatomy(made)
    with pytest.raises(OptionError, match=r"off-by-one and learned-sink at transformer\.h\.0\.attn; .* its form"):
        sinkscope.treat(made, [Gate(), LearnedSink(), OffByOne()], inplace=True, probe=x)
    assert_same(anatomy(made), before)


def test_different_layers_may_have_different_forms() -> None:
    made, x = model("llama"), example("llama")
    treated = sinkscope.treat(made, [LearnedSink(layers=(0, 2)), OffByOne(layers=(1,)), Gate(layers=(2,))], probe=x)
    names = sorted({name.removeprefix("model.layers.").split(".")[0] for name in treat.added(treated)})
    assert names == ["0", "2"]
    assert not torch.equal(output(treated, x), output(made, x))


def test_added_are_the_parameters_that_are_new() -> None:
    made, x = model("bert"), example("bert")
    treated = sinkscope.treat(made, sinks(), probe=x)
    names = treat.added(treated).keys()
    assert names == dict(treated.named_parameters()).keys() - dict(made.named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in treat.added(treated).values())
    assert "encoder.layer.0.attention.self.sinkscope.gate.learned.gate_weight" in names


def test_model_of_sinkscope_keeps_its_type_and_gets_notes() -> None:
    plain, x = sinkscope.load(model("vit")), example("vit")
    treated = sinkscope.treat(plain, Gate("elementwise", layers=(1,)), probe=x)
    assert type(treated) is Model and treated.module is not plain.module
    assert treated.notes[: len(plain.notes)] == plain.notes
    told = "treated with Gate(layers=(1,), kind='elementwise') (outputs unchanged until tuned)"
    assert treated.notes[-1] == told
    assert treat.undo(treated).notes == plain.notes
    assert treated.weights_sha256() == plain.weights_sha256()


def test_whole_models_can_be_pickled() -> None:
    for family in ("gpt2", "timm-vit"):
        treated, x = learned(sinkscope.treat(model(family), sinks(), probe=example(family))), example(family)
        file = io.BytesIO()
        torch.save(treated, file)
        file.seek(0)
        again = torch.load(file, weights_only=False)
        assert torch.equal(output(again, x), output(treated, x))
        treat.undo(again)
        assert torch.equal(output(again, x), output(model(family), x))


def test_state_dicts_move_between_treated_models() -> None:
    x = example("clip-vision")
    one = learned(sinkscope.treat(model("clip-vision"), sinks(), probe=x))
    other = sinkscope.treat(model("clip-vision", seed=5), sinks(), probe=x)
    assert other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(output(other, x), output(one, x))


def test_undone_parts_are_freed() -> None:
    made = model("vit")
    sinkscope.treat(made, Gate(), inplace=True)
    added = weakref.ref(made.vit.layers[0].attention.sinkscope)
    treat.undo(made)
    gc.collect()
    assert added() is None


def test_two_models_of_one_configuration() -> None:
    """The configuration is shared, and one of them is treated."""
    import transformers

    one, x = model("llama"), example("llama")
    other: Any = transformers.LlamaForCausalLM(one.config)
    other.eval()
    before = output(other, x)
    sinkscope.treat(one, OffByOne(), inplace=True)
    assert torch.equal(output(other, x), before)
