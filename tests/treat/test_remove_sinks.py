"""Removed sinks and heads against their definition, written out on full matrices of weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

import sinkscope
from sinkscope._errors import OptionError
from sinkscope.treat import (
    AttentionBias,
    Gate,
    HeadNorm,
    LearnedSink,
    PrefixKV,
    RemoveHeads,
    RemoveSinks,
    Treatment,
    anatomy_of,
)
from tests.treat._models import DECODERS, LAYERS, example, learned, model, output
from tests.treat.test_running import generated

HOW = ("mask", "redirect", "zero")
BATCH, HEADS, KV, TOKENS, DIM = 2, 6, 3, 11, 5


def weights_of(made: Any, x: Tensor, **kwargs: Any) -> list[Tensor]:
    """Per layer (batch, heads, queries, keys) as a capture sees them; they make the outputs."""
    with torch.no_grad(), sinkscope.capture(made) as calls:
        output(made, x, **kwargs)
    calls.coverage.require()
    own = [call for call in calls if call.kind == "self"]
    for call in own:
        values = call.v.repeat_interleave(call.shape[1] // call.v.shape[1], 1)
        torch.testing.assert_close(call.attention_weights() @ values, call.out, rtol=1e-3, atol=1e-5)
    return [call.attention_weights() for call in own]


@pytest.mark.parametrize(
    ("family", "how"),
    [*product(("vit", "llama", "timm-vit"), HOW), *product(("bert", "gpt2", "mistral", "siglip-vision"), ["mask"])],
)
def test_first_token_in_every_family(family: str, how: Any) -> None:
    """The first layer of the treated model reads its input as before, the first token excepted."""
    plain, x = model(family), example(family)
    before = weights_of(plain, x)[0]
    found = weights_of(sinkscope.treat(plain, RemoveSinks(how)), x)
    assert len(found) == LAYERS
    for weights in found:
        assert float(weights[:, :, 1:, 0].abs().max()) == 0
    own = torch.eye(before.shape[-1])
    left = before.clone()
    left[:, :, 1:, 0] = 0
    if how == "mask":
        left = left / left.sum(-1, keepdim=True)
    elif how == "redirect":
        left = left + (before - left).sum(-1, keepdim=True) * own
    torch.testing.assert_close(found[0], left, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["dinov2-registers", "timm-vit", "bert"])
def test_roles(family: str) -> None:
    plain, x = model(family), example(family)
    cls = weights_of(sinkscope.treat(plain, RemoveSinks(which="cls")), x)[1]
    assert float(cls[:, :, 1:, 0].abs().max()) == 0 and float(cls[:, :, :, 1].min()) > 0
    if family == "bert":
        return
    registers = weights_of(sinkscope.treat(plain, RemoveSinks(which="register")), x)[1]
    assert float(registers[:, :, 3:, 1:3].abs().max()) == 0 and float(registers[..., 0].min()) > 0
    torch.testing.assert_close(weights_of(sinkscope.treat(plain, RemoveSinks(which=(1, 2))), x)[1], registers)


def test_separators() -> None:
    plain, ids = model("bert"), example("bert")
    ids[0, 4] = ids[0, 9] = ids[1, 7] = 97
    ids[1, 2] = 98
    treated = sinkscope.treat(plain, RemoveSinks(which="sep", tokens=(97, 98)))
    for weights in weights_of(treated, ids):
        others = ~torch.eye(ids.shape[1], dtype=torch.bool)
        for at, keys in enumerate(((4, 9), (2, 7))):
            gone = (weights[at] * others).sum((0, 1)) == 0
            assert gone.nonzero().flatten().tolist() == list(keys)
    with pytest.raises(OptionError, match=r"remove-sinks: separators among embeddings; expected token ids"):
        treated(inputs_embeds=plain.embeddings.word_embeddings(ids))
    untouched = torch.where(ids >= 97, 5, ids)
    torch.testing.assert_close(output(treated, untouched), output(plain, untouched), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["dinov2", "llama", "bert"])
def test_largest_mass(family: str) -> None:
    """In the first layer, whose input no treatment has changed: the largest column sums of the untouched weights."""
    plain, x = model(family), example(family)
    kwargs: dict[str, Any] = {}
    if family == "bert":
        mask = torch.ones_like(x)
        mask[1, 7:] = 0
        kwargs = {"attention_mask": mask}
    before = weights_of(plain, x, **kwargs)[0]
    if kwargs:
        before = before * mask[:, None, :, None]
    found = weights_of(sinkscope.treat(plain, RemoveSinks(which="mass", count=2)), x, **kwargs)
    for batch, head in torch.cartesian_prod(*map(torch.arange, before.shape[:2])).tolist():
        top = before[batch, head].sum(0).topk(2).indices
        left = found[0][batch, head].clone()
        left.fill_diagonal_(0)
        assert float(left[:, top].abs().max()) == 0
    assert len(found) == LAYERS


@pytest.mark.parametrize("which", ["first", "mass", (2, 5)])
def test_random_control_has_the_same_budget(which: Any) -> None:
    plain, x = model("dinov2"), example("dinov2")

    def gone(treatment: RemoveSinks, pictures: Tensor) -> list[Tensor]:
        found = weights_of(sinkscope.treat(plain, treatment), pictures)
        return [(weights - weights.diagonal(dim1=2, dim2=3).diag_embed()).sum(2) == 0 for weights in found]

    sinks = gone(RemoveSinks(which=which, count=2), x)
    control = gone(RemoveSinks(which=which, count=2, random=True), x)
    again = gone(RemoveSinks(which=which, count=2, random=True), x)
    other = gone(RemoveSinks(which=which, count=2, random=True, seed=1), x)
    alone = gone(RemoveSinks(which=which, count=2, random=True), x[1:])
    assert torch.equal(sinks[0].sum(-1), control[0].sum(-1)) and not (sinks[0] & control[0]).any()
    assert torch.equal(torch.stack(control), torch.stack(again))
    assert not torch.equal(torch.stack(control), torch.stack(other))
    if which != "mass":
        assert torch.equal(control[0][1:], alone[0]) and torch.equal(control[0], control[2])  # one for the whole model
        assert bool((control[0] == control[0][:, :1]).all())
    else:
        assert not torch.equal(control[0], control[1])


def test_chosen_heads() -> None:
    plain, x = model("llama"), example("llama")
    treated = sinkscope.treat(plain, RemoveSinks(heads=((0, 1), (0, 4))))
    before, after = weights_of(plain, x)[0], weights_of(treated, x)[0]
    others = [0, 2, 3, 5]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=1e-4, atol=1e-6)
    assert float(after[:, [1, 4], 1:, 0].abs().max()) == 0
    assert sinkscope.treat.treatments_of(treated)[0].plain()["heads"] == ((0, 1), (0, 4))
    container = anatomy_of(treated).sites
    assert [hasattr(site.attention, "sinkscope") for site in container] == [True, False, False]


@pytest.mark.parametrize("beside", [AttentionBias(layers=(0,)), PrefixKV(3, layers=(0,))], ids=repr)
def test_chosen_heads_that_share_keys(beside: Treatment) -> None:
    """What belongs to key-value heads, a form's own keys and values included, is told apart by query heads."""
    x = example("llama")
    heads = ((0, 1), (0, 2), (0, 5))

    def outputs(*treatments: Treatment) -> Tensor:
        treated = learned(sinkscope.treat(model("llama"), [beside, *treatments], probe=x))
        with torch.no_grad(), sinkscope.capture(treated) as calls:
            output(treated, x)
        return calls[0].out

    some, every, none = outputs(RemoveSinks("zero", heads=heads)), outputs(RemoveSinks("zero")), outputs()
    torch.testing.assert_close(some[:, [1, 2, 5]], every[:, [1, 2, 5]], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(some[:, [0, 3, 4]], none[:, [0, 3, 4]], rtol=1e-4, atol=1e-6)
    assert (every - none)[:, :, 1:].abs().amax((0, 2, 3)).min() > 1e-3


def test_graph_is_captured_whole() -> None:
    treated, x = sinkscope.treat(model("llama"), [RemoveSinks(), RemoveHeads(((1, 1),))]), example("llama")
    torch._dynamo.reset()
    compiled = torch.compile(treated, backend="eager", fullgraph=True)
    torch.testing.assert_close(output(compiled, x), output(treated, x), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("family", DECODERS)
def test_generation_and_padding(family: str, how: Any) -> None:
    """Left padding is no first token, and a cache changes nothing."""
    plain, ids = model(family), example(family)
    if family == "mistral":
        plain.config.sliding_window = 1000  # else its cache drops first tokens, see below
    treated = sinkscope.treat(plain, [RemoveSinks(how), Gate()])
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    both = generated(treated, ids, attention_mask=mask)
    assert torch.equal(both, generated(treated, ids, attention_mask=mask, use_cache=False))
    assert torch.equal(both[1:], generated(treated, ids[1:, 3:]))
    assert not torch.equal(both, generated(plain, ids, attention_mask=mask))


def test_a_static_cache() -> None:
    treated, ids = sinkscope.treat(model("llama"), RemoveSinks("zero")), example("llama")
    assert torch.equal(generated(treated, ids, cache_implementation="static"), generated(treated, ids))


def test_what_a_cache_does_not_keep() -> None:
    ids = example("llama")
    for treatment in (RemoveSinks(which="mass"), RemoveSinks(random=True), RemoveSinks(which="sep", tokens=(5,))):
        treated = sinkscope.treat(model("llama"), treatment)
        with pytest.raises(OptionError, match=r"with 1 queries and 12 keys; .*; next: pass use_cache=False"):
            generated(treated, ids)
        assert generated(treated, ids, use_cache=False).shape == (2, 7)
    with pytest.raises(OptionError, match="of first with 1 queries and 5 keys"):
        generated(sinkscope.treat(model("mistral"), RemoveSinks()), ids)


@pytest.mark.parametrize("how", HOW)
def test_beside_all_other_treatments(how: Any) -> None:
    x = example("llama")
    beside = [Gate("elementwise"), HeadNorm(), Gate(position="value"), LearnedSink()]
    treated = learned(sinkscope.treat(model("llama"), [RemoveHeads(((1, 2),)), *beside, RemoveSinks(how)], probe=x))
    alone = sinkscope.treat(model("llama"), [RemoveSinks(how), RemoveHeads(((1, 2),))])
    assert list(treated.model.layers[1].self_attn.sinkscope.parts) == "values removal form heads norm gate".split()
    fresh = sinkscope.treat(model("llama"), [RemoveHeads(((1, 2),)), *beside, RemoveSinks(how)], probe=x)
    torch.testing.assert_close(output(fresh, x), output(alone, x), rtol=1e-3, atol=1e-4)
    assert (output(treated, x) - output(alone, x)).abs().max() > 1e-2
    output(treated, x).sin().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in treated.parameters() if p.grad is not None)


def test_undo_save_load(tmp_path: Any) -> None:
    plain, x = model("gpt2"), example("gpt2")
    chosen = [RemoveSinks("zero", (0, 3), heads=((0, 1), (2, 0)), random=True), RemoveHeads(((1, 1),))]
    treated = sinkscope.treat(plain, chosen)
    sinkscope.treat.save(treated, tmp_path)
    again = sinkscope.treat.load(plain, tmp_path)
    assert sinkscope.treat.treatments_of(again) == tuple(chosen)
    assert torch.equal(output(again, x), output(treated, x))
    assert not torch.equal(output(again, x), output(plain, x))
    assert torch.equal(output(sinkscope.treat.undo(again), x), output(plain, x))


@pytest.mark.parametrize(("family", "width"), [("vit", 7), ("llama", 10), ("timm-vit", 7)])
def test_removed_heads_are_columns_of_the_projection(family: str, width: int) -> None:
    plain, x = model(family), example(family)
    treated = sinkscope.treat(plain, RemoveHeads(((0, 2), (1, 0))))
    sites = anatomy_of(plain).sites
    with torch.no_grad():
        for layer, head in ((0, 2), (1, 0)):
            weight: Any = sites[layer].projection.weight
            weight[:, head * width : (head + 1) * width] = 0
    torch.testing.assert_close(output(treated, x), output(plain, x), rtol=1e-4, atol=1e-5)
    found = weights_of(treated, x)
    assert float(found[0][:, 2].abs().max()) == 0 == float(found[1][:, 0].abs().max())
    torch.testing.assert_close(found[0][:, 1].sum(-1), torch.ones_like(found[0][:, 1, :, 0]))


def test_random_heads() -> None:
    plain = model("llama")
    chosen = ((0, 1), (1, 3), (2, 5), (2, 0))

    def removed(seed: int) -> set[tuple[int, int]]:
        treated = sinkscope.treat(plain, RemoveHeads(chosen, random=True, seed=seed))
        parts = [(site.index, getattr(site.attention, "sinkscope", None)) for site in anatomy_of(treated).sites]
        return {(layer, head) for layer, container in parts if container is not None
                for head in (~container.heads.kept).nonzero().flatten().tolist()}  # fmt: skip

    draws = [removed(seed) for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1] and len({frozenset(draw) for draw in draws}) == 3
    assert all(len(draw) == 4 and not draw & set(chosen) for draw in draws)
    many = tuple((layer, head) for layer in range(LAYERS) for head in range(4))
    with pytest.raises(OptionError, match=r"12 of 18 heads, which leaves 6 for a control; expected at most half"):
        sinkscope.treat(plain, RemoveHeads(many, random=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RemoveSinks("drop"), "how is 'drop'; expected mask, redirect or zero"),  # type: ignore[arg-type]
        (lambda: RemoveSinks(which="bos"), "which is 'bos'; expected first, cls"),  # type: ignore[arg-type]
        (lambda: RemoveSinks(which=()), r"which is \(\); expected first"),
        (lambda: RemoveSinks(which=(-1,)), r"which is \(-1,\); expected first"),
        (lambda: RemoveSinks(which="mass", count=0), "count is 0; expected 1 or more"),
        (lambda: RemoveHeads(()), r"heads are \(\); expected one or more different pairs"),
        (lambda: RemoveHeads(((0, 1), (0, 1))), "expected one or more different pairs"),
        (lambda: RemoveHeads((3,)), r"heads are \(3,\); expected pairs of layer and head"),  # type: ignore[arg-type]
        (lambda: RemoveSinks(heads=((0, 1),), layers=(0,)), "with heads and layers; expected one of them"),
    ],
)
def test_options_that_do_not_exist(make: Callable[[], object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(
    ("family", "treatment", "message"),
    [
        ("llama", RemoveSinks(heads=((0, 6), (3, 0))), r"no head \(0, 6\), \(3, 0\) .*layers 0 to 2, heads 0 to 5"),
        ("llama", RemoveSinks(which="cls"), "has no cls token here; expected first, mass, positions; next"),
        ("dinov2", RemoveSinks(which="register"), "Dinov2 has no register token here; expected .* or cls|cls; next"),
        ("bert", RemoveSinks(which="sep"), "configuration names no separator; .* pass tokens="),
        ("vit", RemoveSinks(which="sep", tokens=(1,)), "separators of pictures; expected a model of text"),
        ("vit", RemoveHeads(((0, 3),)), r"no head \(0, 3\)"),
    ],
)
def test_models_that_have_no_such_sink(family: str, treatment: Any, message: str) -> None:
    plain = model(family)
    with pytest.raises(OptionError, match=message):
        sinkscope.treat(plain, treatment, inplace=True)
    assert not any(hasattr(module, "sinkscope") for module in plain.modules())


def test_inputs_that_have_no_such_position() -> None:
    treated = sinkscope.treat(model("bert"), RemoveSinks(which=(3, 11)))
    with pytest.raises(OptionError, match="no position 11 in an input of 11 tokens; expected positions from 0 to 10"):
        output(treated, example("bert"))


def test_redirect_beside_values_of_no_token() -> None:
    x = example("bert")
    with pytest.raises(OptionError, match="remove-sinks: redirect around kv-bias; expected mask or zero"):
        sinkscope.treat(model("bert"), [RemoveSinks("redirect"), AttentionBias()], probe=x)
    for how in ("mask", "zero"):
        treated = sinkscope.treat(model("bert"), [RemoveSinks(how), AttentionBias()], probe=x)
        alone = sinkscope.treat(model("bert"), RemoveSinks(how))
        torch.testing.assert_close(output(treated, x), output(alone, x), rtol=1e-3, atol=1e-4)
