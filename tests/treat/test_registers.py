"""Learned tokens in encoders: inert at the start, the published registers when they weigh as much as other tokens."""

from __future__ import annotations

import copy
import io
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.treat import (
    ClippedSoftmax,
    Gate,
    GlobalPathway,
    HeadNorm,
    KeyBias,
    LearnedSink,
    Registers,
    RemoveSinks,
    Treatment,
)
from tests.treat._models import BUILD, DECODERS, LAYERS, TOKENS, VOCABULARY, example, learned, model, output

ENCODERS = tuple(name for name in BUILD if name not in DECODERS)
COUNT = 3


def equal_to_tokens(made: Any, tokens: torch.Tensor | None = None) -> Any:
    """Gives the keys of registers no logit: exp(b) = exp(unit) (exp(w^2) - 1) is 1."""
    with torch.no_grad():
        for name, value in made.state_dict().items():
            if name.endswith("registers.column.unit"):
                value.zero_()
            elif name.endswith("registers.column.root"):
                value.fill_(log(2) ** 0.5)
            elif tokens is not None and name.endswith("sinkscope_registers.tokens"):
                value.copy_(tokens)
    return made


@pytest.mark.parametrize("family", ENCODERS)
def test_outputs_are_unchanged_and_gradients_alive(family: str) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, Registers(COUNT), probe=example(family, seed=1))
    before, after = output(plain, x), output(treated, x)
    assert after.shape == before.shape
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    with torch.no_grad():
        assert (output(treated, x) - before).abs().max() <= 1e-5 * before.abs().max()
    after.sin().sum().backward()
    added = treat.added(treated)
    assert len(added) == LAYERS + 1
    for name, parameter in added.items():
        least = 1e-7 if name.endswith("root") else 1e-10
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > least, name
    with torch.no_grad():
        assert (output(equal_to_tokens(treated), x) - before).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.parametrize("family", ENCODERS)
def test_unweighed_they_are_the_published_ones(family: str) -> None:
    plain, x = model(family), example(family)
    published = sinkscope.treat(plain, Registers(COUNT, weighed=False))  # in need of no probe
    (tokens,) = treat.added(published).values()
    weighed = equal_to_tokens(sinkscope.treat(plain, Registers(COUNT), probe=x), tokens)
    torch.testing.assert_close(output(published, x), output(weighed, x), rtol=1e-4, atol=1e-5)
    output(published, x).sin().sum().backward()
    assert tokens.grad is not None and float(tokens.grad.abs().max()) > 1e-6
    with pytest.raises(OptionError, match="registers without a probe"):
        sinkscope.treat(plain, Registers(COUNT, like=0, weighed=False))


@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("like", [0, -1])
def test_they_start_as_copies_of_a_token(family: str, like: int) -> None:
    plain, probe = model(family), example(family, seed=1)
    states: list[torch.Tensor] = []
    anatomy = treat.anatomy_of(plain)
    handle = anatomy.sites[0].block.register_forward_pre_hook(
        lambda _block, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        before = output(plain, probe)
    handle.remove()
    treated = sinkscope.treat(plain, Registers(COUNT, like=like), probe=probe)
    wanted = states[0][:, like].double().mean(0)
    (tokens,) = (p for name, p in treat.added(treated).items() if name.endswith("sinkscope_registers.tokens"))
    noise = (tokens.detach().double() - wanted) / wanted.square().mean().sqrt()
    assert 0.012 < float(noise.std()) < 0.03 and float(noise.abs().max()) < 0.12
    assert (output(treated, probe) - before).abs().max() <= 1e-5 * before.abs().max()
    for text in ("like is 99, and the probe has", "like is -99, and the probe has"):
        position = int(text.split()[2].rstrip(","))
        with pytest.raises(OptionError, match=f"{text} .* tokens; expected one of them; next: correct like"):
            sinkscope.treat(plain, Registers(COUNT, like=position), probe=probe)


def test_a_copy_takes_the_place_of_a_hidden_token() -> None:
    """A copy of [CLS] collects what [CLS] collects, so in the last block it hands the same to patches."""
    plain, x, last = model("dinov2").double(), example("dinov2").double(), (LAYERS - 1,)
    masked = sinkscope.treat(plain, RemoveSinks("mask", "cls", layers=last))
    wanted = output(plain, x)[:, 1:].detach()
    errors = []
    for like in (None, 0):
        made = sinkscope.treat(masked, Registers(1, like=like, weighed=False, layers=last), probe=x)
        errors.append(float((output(made, x)[:, 1:].detach() - wanted).square().mean()))
    assert errors[1] < 0.01 * errors[0]


def test_without_a_logit_they_are_published_registers() -> None:
    """A DINOv2 with registers of its own, and one that is given the same tokens."""
    own, x = model("dinov2-registers").double(), example("dinov2").double()
    plain = model("dinov2").double()
    missing = plain.load_state_dict(own.state_dict(), strict=False)
    assert missing.unexpected_keys == ["embeddings.register_tokens"] and not missing.missing_keys
    treated = sinkscope.treat(plain, Registers(2), probe=x)
    equal_to_tokens(treated, own.embeddings.register_tokens[0])
    expected = output(own, x)
    expected = torch.cat([expected[:, :1], expected[:, 3:]], 1)  # class token, two registers, patches
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(output(treated, x), expected, rtol=1e-9, atol=1e-9)


def test_gradients_are_those_of_published_registers() -> None:
    own, x = model("dinov2-registers").double(), example("dinov2").double()
    plain = model("dinov2").double()
    plain.load_state_dict(own.state_dict(), strict=False)
    treated = equal_to_tokens(sinkscope.treat(plain, Registers(2), probe=x), own.embeddings.register_tokens[0])
    output(treated, x)[:, 0].sin().sum().backward()
    output(own, x)[:, 0].sin().sum().backward()
    torch.testing.assert_close(treated.sinkscope_registers.tokens.grad, own.embeddings.register_tokens.grad[0])


@pytest.mark.parametrize("family", ["vit", "bert", "timm-vit"])
def test_weights_and_values_make_the_output(family: str) -> None:
    x = example(family)
    x = x.double() if x.is_floating_point() else x
    treated = learned(sinkscope.treat(model(family).double(), [Registers(COUNT), Gate()], probe=x))
    with torch.no_grad(), sinkscope.capture(treated) as calls:
        output(treated, x)
    assert len(calls) == LAYERS and {call.kind for call in calls} == {"self"}
    calls.coverage.require()
    for call in calls:
        assert call.projection is not None and call.hidden_norms is not None
        assert call.hidden_norms.shape[1] == call.shape[2] == call.shape[3]
        torch.testing.assert_close(call.attention_weights(torch.float64) @ call.v, call.out, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("family", ENCODERS)
def test_with_other_treatments(family: str) -> None:
    plain, x = model(family), example(family)
    several: list[Treatment] = [
        LearnedSink(), Registers(2), Gate("elementwise", position="value"), HeadNorm(), Gate(), GlobalPathway()
    ]  # fmt: skip
    treated = sinkscope.treat(plain, several, probe=x)
    before = output(plain, x)
    assert (output(treated, x) - before).abs().max() <= 1e-5 * before.abs().max()
    assert (output(equal_to_tokens(treated), x) - before).abs().max() > 1e-3 * before.abs().max()
    treat.undo(treated)
    assert torch.equal(output(treated, x), before) and treated.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("form", [LearnedSink(start=-90.0), KeyBias(), ClippedSoftmax(alpha=0.0)])
def test_a_form_weighs_registers_as_the_softmax_does(form: Treatment) -> None:
    """Forms that are a softmax as long as nothing is learned."""
    x = example("vit").double()
    plain = model("vit").double()
    with_form = sinkscope.treat(plain, [Registers(COUNT), form], probe=x)
    without = sinkscope.treat(plain, Registers(COUNT), probe=x)
    for made in (with_form, without):
        torch.manual_seed(0)
        for parameter in (p for name, p in treat.added(made).items() if ".form." not in name):
            nn.init.normal_(parameter)
    torch.testing.assert_close(output(with_form, x), output(without, x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_padding_of_bert_changes_nothing(implementation: str) -> None:
    plain, ids = model("bert"), example("bert")
    plain.set_attn_implementation(implementation)
    treated = equal_to_tokens(sinkscope.treat(plain, [Registers(2), Gate()], probe=ids))
    padded = torch.cat([ids, torch.randint(3, VOCABULARY, (2, 5))], 1)
    mask = torch.cat([torch.ones_like(ids), torch.zeros(2, 5, dtype=torch.long)], 1)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            out = output(treated, padded, attention_mask=mask)[:, :TOKENS]
            torch.testing.assert_close(out, output(treated, ids), rtol=1e-4, atol=1e-5)


def test_blocks_that_do_not_see_them() -> None:
    plain, x = model("vit"), example("vit")
    treated = equal_to_tokens(sinkscope.treat(plain, Registers(COUNT, layers=(1,)), probe=x))
    assert [name for name in treat.added(treated) if name.endswith("root")] == [
        "vit.layers.1.attention.sinkscope.registers.column.root"
    ]
    with torch.no_grad(), sinkscope.capture(treated) as calls:
        output(treated, x)
    seen = [float(call.attention_weights()[..., -COUNT:].sum()) for call in calls]
    assert seen[0] == seen[2] == 0 and seen[1] > 0


def test_roles_reach_a_diagnosis(tmp_path: Path) -> None:
    """Registers whose keys weigh e^9 times as much as others are the sinks, and are called registers."""
    plain, x = sinkscope.load(model("timm-vit")), example("timm-vit", 5)
    treated = sinkscope.treat(plain, Registers(1), probe=x)
    equal_to_tokens(treated.module)
    for name, value in treated.module.state_dict().items():
        if name.endswith("registers.column.unit"):
            value.fill_(9.0)
    found = sinkscope.diagnose(treated, [x], tmp_path / "run")
    events = found.events
    sinks = events[events["mass"] > 0.5]
    assert len(sinks) > LAYERS and set(sinks["role"]) == {"register"} and set(sinks["sink"]) == {3 + 9}
    found.report(tmp_path / "report.html")


def test_valid_tokens_of_text_are_as_many_as_attention_sees() -> None:
    from sinkscope.models import make_inputs

    treated = sinkscope.treat(sinkscope.load(model("bert")), Registers(2), probe=example("bert"))
    assert treated.modality == "text"
    mask = torch.ones(2, TOKENS, dtype=torch.long)
    mask[1, 7:] = 0
    (batch,) = make_inputs(treated, {"input_ids": example("bert"), "attention_mask": mask}).batches()
    assert batch.valid is not None and batch.valid.shape == (2, TOKENS + 2)
    assert batch.valid.sum(1).tolist() == [TOKENS + 2, 7 + 2]
    found = sinkscope.diagnose(treated, {"input_ids": example("bert"), "attention_mask": mask})
    assert len(found.events) > 0
    assert batch.kwargs["attention_mask"].shape == (2, TOKENS)


@pytest.mark.parametrize("family", ["bert", "timm-vit"])
def test_gradient_checkpointing(family: str) -> None:
    treated = equal_to_tokens(sinkscope.treat(model(family), Registers(2), probe=example(family)))
    gradients = []
    for checkpointed in (False, True):
        if checkpointed and family == "timm-vit":
            treated.set_grad_checkpointing()
        elif checkpointed:
            treated.activation_checkpointing_enable({"use_reentrant": False})
        treated.train().zero_grad()
        output(treated, example(family)).sin().sum().backward()
        gradients.append([p.grad.clone() for p in treat.added(treated).values() if p.grad is not None])
    assert len(gradients[0]) == LAYERS + 1
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["vit", "timm-vit"])
def test_graph_is_captured_whole(family: str) -> None:
    treated, x = equal_to_tokens(sinkscope.treat(model(family), Registers(2), probe=example(family))), example(family)
    torch._dynamo.reset()
    compiled = torch.compile(treated, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, x), output(treated, x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_copies(dtype: torch.dtype) -> None:
    x = example("dinov2")
    treated = equal_to_tokens(sinkscope.treat(model("dinov2"), Registers(2), probe=x))
    half = copy.deepcopy(treated).to(dtype)
    out, wanted = output(half, x.to(dtype)), output(treated, x)
    assert out.dtype == dtype and (out.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        cast = output(treated, x)
    assert (cast.float() - wanted).abs().max() < 0.1 * wanted.abs().max()
    file = io.BytesIO()
    torch.save(treated, file)
    file.seek(0)
    assert torch.equal(output(torch.load(file, weights_only=False), x), wanted)
    sinkscope.treat(model("dinov2").to(dtype), Registers(2), probe=x.to(dtype))  # harmless there too


@pytest.mark.parametrize("registers", [Registers(2), Registers(2, like=0), Registers(2, like=0, weighed=False)])
def test_they_are_tuned_saved_and_loaded(registers: Registers, tmp_path: Path) -> None:
    plain, x = model("clip-vision").requires_grad_(False), example("clip-vision")
    treated = sinkscope.treat(plain, registers, probe=x)
    optimiser = torch.optim.Adam(treat.added(treated).values(), lr=5e-2)
    losses = []
    for _ in range(40):
        loss = output(treated, x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.97 * losses[0]
    treat.save(treated, tmp_path)
    again = treat.load(plain, tmp_path)
    assert treat.treatments_of(again) == (registers,)
    assert torch.equal(output(again, x), output(treated, x))


def test_wrong_use() -> None:
    with pytest.raises(OptionError, match="registers: count is 0; expected a whole number from 1 on"):
        Registers(0)
    with pytest.raises(
        OptionError, match=r"registers for Llama.*, of kind decoder; expected vision or encoder; .*Prefix"
    ):
        sinkscope.treat(model("llama"), Registers(), probe=example("llama"))
    plain, x = model("vit"), example("vit")
    with pytest.raises(OptionError, match="registers without a probe"):
        sinkscope.treat(plain, Registers())
    treated = sinkscope.treat(plain, Registers(2), probe=x)
    with pytest.raises(OptionError, match=r"registers and registers at vit\.layers\.0\.attention; expected one"):
        sinkscope.treat(treated, Registers(1), probe=x)
