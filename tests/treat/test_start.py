"""How treatments start: outputs unchanged where that is promised, gradients alive, and said where it is not."""

from __future__ import annotations

import pytest
import torch

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.attention import common_mode_penalty
from sinkscope.treat import (
    AttentionBias,
    ClippedSoftmax,
    Form,
    Gate,
    GlobalPathway,
    HeadNorm,
    KeyBias,
    LearnedSink,
    OffByOne,
    Registers,
    RemoveSinks,
    Treatment,
    branch_outputs,
)
from tests.treat._models import BUILD, DECODERS, HARMLESS, HF, LAYERS, example, learned, model, output, sinks

CHANGING = {
    "off-by-one": OffByOne(),
    "clipped-softmax": ClippedSoftmax(),
    "softpick": Form("softpick"),
    "published sink": LearnedSink(start=0.0),
    "published bias": AttentionBias(weighed=False),
    "published key": KeyBias(weighed=False),
    "published norm": HeadNorm(mixed=False),
}


@pytest.mark.parametrize("family", BUILD)
@pytest.mark.parametrize("name", HARMLESS)
def test_outputs_are_unchanged_and_gradients_alive(family: str, name: str) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, HARMLESS[name], probe=example(family, seed=1))
    before, after = output(plain, x), output(treated, x)
    assert HARMLESS[name].harmless
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    after.sin().sum().backward()
    first = {key: p.grad for key, p in treat.added(treated).items() if key.rpartition(".")[2] in ALIVE}
    assert len(first) >= LAYERS
    for key, grad in first.items():
        assert grad is not None and bool(grad.isfinite().all()) and float(grad.abs().max()) > 1e-8, key


ALIVE = {"gate_weight", "gate_bias", "root", "mix"}
"""What learns from the first step on; keys, values and gains follow once one of these has moved."""


@pytest.mark.parametrize("family", BUILD)
def test_all_at_once(family: str) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, sinks(), probe=x)
    before = output(plain, x)
    assert (output(treated, x) - before).abs().max() <= 1e-5 * before.abs().max()
    assert (output(learned(treated), x) - before).abs().max() > 1e-3 * before.abs().max()


@pytest.mark.parametrize("kind", ["headwise", "elementwise"])
def test_a_gate_at_half_is_exactly_one(kind: str) -> None:
    plain, x = model("llama"), example("llama")
    treated = sinkscope.treat(plain, Gate(kind))  # type: ignore[arg-type]
    torch.testing.assert_close(output(treated, x), output(plain, x), rtol=0, atol=0)


@pytest.mark.parametrize("name", CHANGING)
def test_what_changes_outputs_says_so(name: str) -> None:
    plain, x = sinkscope.load(model("vit")), example("vit")
    treated = sinkscope.treat(plain, CHANGING[name], probe=x)
    assert not CHANGING[name].harmless
    assert "changes the outputs from the start" in treated.notes[-1]
    before = output(plain.module, x)
    assert (output(treated.module, x) - before).abs().max() > 1e-3 * before.abs().max()


def test_clipping_nothing_is_harmless() -> None:
    plain, x = model("bert"), example("bert")
    assert ClippedSoftmax(alpha=0.0).harmless and not ClippedSoftmax(zeta=1.1, alpha=0.0).harmless
    treated = sinkscope.treat(plain, ClippedSoftmax(alpha=0.0), probe=x)
    torch.testing.assert_close(output(treated, x), output(plain, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in BUILD if name not in DECODERS])
def test_global_pathway(family: str) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, GlobalPathway(width=5), probe=x)
    torch.testing.assert_close(output(treated, x), output(plain, x), rtol=0, atol=0)
    with branch_outputs(treated) as outputs:
        out = output(learned(treated), x)
    assert len(outputs) == LAYERS - 1
    (out.sin().sum() + common_mode_penalty(outputs)).backward()
    for key, parameter in treat.added(treated).items():
        assert parameter.grad is not None and float(parameter.grad.abs().max()) > 0, key


def test_branch_outputs_leave_the_pathway_out() -> None:
    treated, x = learned(sinkscope.treat(model("dinov2"), GlobalPathway(), probe=example("dinov2"))), example("dinov2")
    projected: list[torch.Tensor] = []
    last = treated.encoder.layer[-1]
    handle = last.attention.o_proj.register_forward_hook(lambda _module, _args, out: projected.append(out))
    with branch_outputs(treated) as outputs:
        output(treated, x)
        output(treated, x)
    handle.remove()
    assert len(outputs) == LAYERS - 1
    torch.testing.assert_close(outputs[-1], projected[-1] * last.layer_scale1.lambda1)


def test_probe_finds_a_promise_that_is_not_kept() -> None:
    class Liar(OffByOne):
        @property
        def harmless(self) -> bool:
            return True

    plain, x = model("vit"), example("vit")
    with pytest.raises(OptionError, match=r"off-by-one: outputs on the probe change by .*; expected 1e-05"):
        sinkscope.treat(plain, Liar(), probe=x, inplace=True)
    assert not treat.treatments_of(plain)
    assert not any("sinkscope" in name for name in plain.state_dict())


@pytest.mark.parametrize("treatment", [LearnedSink(), AttentionBias(), KeyBias()])
def test_a_probe_is_needed_where_scores_matter(treatment: Treatment) -> None:
    with pytest.raises(OptionError, match=rf"{treatment.name} without a probe; expected an input of the model"):
        sinkscope.treat(model("vit"), treatment)


@pytest.mark.parametrize("shift", [-30.0, 30.0])
def test_start_follows_the_scale_of_scores(shift: float) -> None:
    """Scores of the probe all far from zero: q_i.k_j = +-30 for one direction that all queries and keys share."""
    plain, x = model("vit"), example("vit")
    for layer in plain.vit.layers:
        attention = layer.attention
        with torch.no_grad():
            attention.q_proj.bias.zero_()
            attention.k_proj.bias.zero_()
            attention.q_proj.weight[::7] = 0
            attention.k_proj.weight[::7] = 0
            attention.q_proj.bias[::7] = shift / attention.scaling
            attention.k_proj.bias[::7] = 1.0
    treated = sinkscope.treat(plain, LearnedSink(), probe=x)
    before, after = output(plain, x), output(treated, x)
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    logits = treated.vit.layers[0].attention.sinkscope.form.logit()
    assert bool((logits.sign() == torch.tensor(shift).sign()).all())
    after.sin().sum().backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 1e-8 for p in treat.added(treated).values())


@pytest.mark.parametrize(
    "treatment",
    [LearnedSink(layers=(0,)), AttentionBias(layers=(0,)), Registers(2, layers=(0,))],
    ids=lambda each: each.name,
)
@pytest.mark.parametrize("together", [True, False])
def test_start_knows_that_the_sink_is_gone(treatment: Treatment, together: bool) -> None:
    """Scores of the first token are far above all others, so that what is left without it is e^-40 of each row."""
    plain, x = model("bert"), example("bert")
    x[:, 0] = 1
    attention = plain.encoder.layer[0].attention.self
    with torch.no_grad():
        plain.embeddings.word_embeddings.weight[:, 0] = 0.0
        plain.embeddings.word_embeddings.weight[1, 0] = 30.0
        attention.key.weight[::10] = 0.0
        attention.key.weight[::10, 0] = 1.0
        attention.query.bias[::10] = 40.0
    removal = RemoveSinks("mask", "first", layers=(0,))
    removed = sinkscope.treat(plain, removal)
    treated = sinkscope.treat(*((plain, [removal, treatment]) if together else (removed, treatment)), probe=x)
    before = output(removed, x)
    assert (output(plain, x) - before).abs().max() > 1e-2 * before.abs().max()
    assert (output(treated, x) - before).abs().max() <= 1e-5 * before.abs().max()


def test_further_treatments_leave_starts_alone() -> None:
    """The probe of the second is not the first's: what was tuned stays."""
    plain, x = model("bert"), example("bert")
    tuned = learned(sinkscope.treat(plain, [Registers(2), LearnedSink()], probe=x))
    further = sinkscope.treat(tuned, Gate(), probe=3 + example("bert", seed=5) // 2)
    torch.testing.assert_close(output(further, x), output(tuned, x), rtol=0, atol=0)


def test_random_starts_follow_the_seed() -> None:
    plain, x = model("vit"), example("vit")
    state = torch.random.get_rng_state()
    first, same, other = (
        treat.added(sinkscope.treat(plain, AttentionBias(), probe=x, seed=seed)) for seed in (3, 3, 5)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    keys = [name for name in first if name.endswith("key")]
    assert len(keys) == LAYERS
    assert all(torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name]) for name in keys)


@pytest.mark.parametrize("family", HF)
def test_eager_models_stay_so(family: str) -> None:
    plain, x = model(family), example(family)
    plain.set_attn_implementation("eager")
    treated = sinkscope.treat(plain, sinks(), probe=x)
    before, after = plain(x, output_attentions=True), treated(x, output_attentions=True)
    assert treated.config._attn_implementation == "eager"
    for old, new in zip(before.attentions, after.attentions, strict=True):
        torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)
    assert (after[0] - before[0]).abs().max() <= 1e-5 * before[0].abs().max()
