"""Register neurons: found where they were planted, and moved exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sinkscope
from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.attention import KVBias
from sinkscope.treat import AttentionBias, Gate, Registers, TestTimeRegisters, find_register_neurons
from tests.treat._models import LAYERS, VISIONS, example, learned, model, output

BLOCK, NEURON, OUTLIERS = 1, 5, 4
MOVED = ((1, 3), (1, 17), (2, 0))


def planted(family: str, batches: list[Tensor]) -> Any:
    """A neuron of block 1 that fires on the 4 patches, of all pictures, that excite it most, and writes much there."""
    made = model(family).double()
    site = treat.anatomy_of(made).sites[BLOCK]
    mlp = site.block.get_submodule("mlp")
    up: Any = mlp.fc1
    down: Any = site.neurons
    excited: list[Tensor] = []
    handle = up.register_forward_hook(lambda _module, _args, out: excited.append(out[..., NEURON]))
    prefix = len(treat.anatomy_of(made).prefix)
    with torch.no_grad():
        for x in batches:
            output(made, x.double())
        handle.remove()
        best = torch.cat([batch[:, prefix:].flatten() for batch in excited]).sort(descending=True).values
        gain = 60 / (best[OUTLIERS - 1] - best[OUTLIERS])
        shift = (best[OUTLIERS - 1] + best[OUTLIERS]) / 2
        up.weight[NEURON] *= gain
        up.bias[NEURON] = gain * (up.bias[NEURON] - shift)
        down.weight[:, NEURON] = 10 * torch.randn(len(down.weight), dtype=torch.float64)
    return made


def watched(made: Any, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What goes into the last layer of every MLP, and what comes out of the last block."""
    seen: list[Tensor] = []
    last: list[Tensor] = []
    sites = treat.anatomy_of(made).sites
    handles = [site.neurons.register_forward_pre_hook(lambda _module, args: seen.append(args[0])) for site in sites]
    handles.append(sites[-1].block.register_forward_hook(lambda _module, _args, out: last.append(out)))
    with torch.no_grad():
        output(made, x)
    for handle in handles:
        handle.remove()
    return seen, last[0]


@pytest.mark.parametrize("family", VISIONS)
def test_planted_neurons_are_found(family: str) -> None:
    batches = [example(family, 2).double(), example(family, 3, seed=1).double()]
    made = planted(family, batches)
    found = find_register_neurons(made, batches, threshold=100.0, layer=LAYERS - 1)
    assert int(found.outliers.sum()) == OUTLIERS and len(found.norms) == 5 * 9 and found.pictures == 5
    assert found.neurons(1) == ((BLOCK, NEURON),) and found.appears == BLOCK and found.ratio > 10
    assert f"{OUTLIERS} of 45 patches are outliers" in str(found) and "appear behind block 1" in str(found)
    by_rule = find_register_neurons(made, batches)
    assert by_rule.threshold == pytest.approx(float(by_rule.norms.mean() + 3 * by_rule.norms.std()))
    assert by_rule.neurons(1) == found.neurons(1)
    before = find_register_neurons(sinkscope.load(made), batches[0], threshold=0.0, layer=0)
    assert int(before.outliers.sum()) == len(before.norms) == 2 * 9


def test_scores_are_means_over_pictures_of_means_over_outliers() -> None:
    """By hand, from the activations of every picture alone."""
    batches = [example("dinov2", 2).double(), example("dinov2", 3, seed=1).double()]
    made = planted("dinov2", batches)
    found = find_register_neurons(made, batches, threshold=100.0)
    scores: list[Tensor] = []
    quiet: list[Tensor] = []
    for picture in torch.split(torch.cat(batches), 1):
        activations, out = watched(made, picture)
        outlier = out[0].norm(dim=-1) > 100.0
        outlier[0] = False
        quiet.append(torch.stack([(x[0].abs() < 0.5).double().mean(0) for x in activations]))
        if bool(outlier.any()):
            scores.append(torch.stack([x[0][outlier].abs().mean(0) for x in activations]))
    assert 0 < len(scores) == found.with_outliers
    torch.testing.assert_close(found.scores, torch.stack(scores).mean(0))
    torch.testing.assert_close(found.quiet, torch.stack(quiet).mean(0))


def test_choice_of_neurons() -> None:
    x = example("vit", 3)
    found = find_register_neurons(model("vit"), x, threshold=0.0)
    chosen = found.neurons(7, layers=(0, 1))
    assert len(set(chosen)) == 7 and {layer for layer, _ in chosen} <= {0, 1}
    scores = [float(found.scores[pair]) for pair in chosen]
    left = found.scores[:2].flatten().sort(descending=True).values
    assert scores == left[:7].tolist()
    sparse = found.neurons(3, layers=(0, 2), sparsity=0.5)
    assert all(float(found.quiet[pair]) >= 0.5 for pair in sparse)
    control = found.random(chosen, seed=3)
    assert control == found.random(chosen, seed=3) != found.random(chosen, seed=5)
    assert not set(control) & set(chosen) and len(set(control)) == 7
    assert sorted(layer for layer, _ in control) == sorted(layer for layer, _ in chosen)
    with pytest.raises(OptionError, match="88 register neurons; expected 1 to 87, as many as these layers"):
        found.neurons(88, layers=(0, 2))
    with pytest.raises(OptionError, match=r"blocks 0 to 3; expected some of 0 to 2"):
        found.neurons(layers=(0, 3))
    with pytest.raises(OptionError, match="15 of 29 neurons of block 0; expected at most half"):
        found.random([(0, n) for n in range(15)], seed=0)


def by_hand(made: Any, picture: Tensor, neurons: tuple[tuple[int, int], ...], count: int) -> Tensor:
    """timm's own forward, block by block, of one picture with zero tokens at its end."""
    x = made.norm_pre(made._pos_embed(made.patch_embed(picture)))
    x = torch.cat([x, torch.zeros(1, count, x.shape[-1], dtype=x.dtype)], 1)
    for layer, block in enumerate(made.blocks):
        x = x + block.ls1(block.attn(block.norm1(x)))
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(x)))
        for neuron in (n for at, n in neurons if at == layer):
            own = hidden[0, : len(hidden[0]) - count, neuron].tolist()
            hidden[0, :, neuron] = 0
            if count:
                hidden[0, -count:, neuron] = max(own, key=abs)
        x = x + block.ls2(block.mlp.fc2(hidden))
    out: Tensor = made.forward_head(made.norm(x[:, : x.shape[1] - count]))
    return out


@pytest.mark.parametrize("count", [1, 2])
def test_activations_are_moved(count: int) -> None:
    plain, x = model("timm-vit").double(), example("timm-vit", 3).double()
    treated = sinkscope.treat(plain, TestTimeRegisters(MOVED, count))
    with torch.no_grad():
        expected = torch.cat([by_hand(plain, picture, MOVED, count) for picture in torch.split(x, 1)])
        torch.testing.assert_close(output(treated, x), expected, rtol=1e-9, atol=1e-9)
        assert (expected - output(plain, x)).abs().max() > 1e-3
    treat.undo(treated)
    assert torch.equal(output(treated, x), output(plain, x))


@pytest.mark.parametrize("family", VISIONS)
def test_batches_and_prefixes_of_every_family(family: str) -> None:
    plain, x = model(family).double(), example(family, 3).double()
    treated = sinkscope.treat(plain, [TestTimeRegisters(MOVED), Gate()])
    out = output(treated, x)
    assert out.shape == output(plain, x).shape
    torch.testing.assert_close(
        torch.cat([output(treated, one) for one in torch.split(x, 1)]), out, rtol=1e-8, atol=1e-9
    )
    seen = watched(treated, x)[0][1]
    assert bool((seen[:, :-1, [3, 17]] == 0).all()) and bool((seen[:, -1, [3, 17]] != 0).all())
    assert bool((seen[:, -1, 3] != seen[:, -1, 17]).all())
    with torch.no_grad(), sinkscope.capture(treated) as calls:
        output(treated, x)
    assert [call.kind for call in calls][:LAYERS] == ["self"] * LAYERS


def test_no_neurons_is_a_control() -> None:
    plain, x = model("vit"), example("vit")
    treated = sinkscope.treat(plain, TestTimeRegisters())
    assert not torch.equal(output(treated, x), output(plain, x)) and not treat.added(treated)


def test_fixed_key_and_value() -> None:
    """k' and v' are means over pictures, and what is left is a key-value bias with the neurons silenced."""
    plain, probe, x = model("timm-vit").double(), example("timm-vit", 5).double(), example("timm-vit", 2, 1).double()
    treated = sinkscope.treat(plain, TestTimeRegisters(MOVED, fixed=True), probe=probe)
    with_token = sinkscope.treat(plain, TestTimeRegisters(MOVED))
    with torch.no_grad(), sinkscope.capture(with_token) as calls:
        output(with_token, probe)
    biased = sinkscope.treat(plain, AttentionBias(weighed=False))
    for layer, call in enumerate(calls):
        assert call.k is not None
        found = treated.blocks[layer].attn.sinkscope.form
        torch.testing.assert_close(found.key, call.k[:, :, -1].mean(0))
        torch.testing.assert_close(found.value, call.v[:, :, -1].mean(0))
        with torch.no_grad():
            biased.blocks[layer].attn.sinkscope.form.learned["key"].copy_(found.key)
            biased.blocks[layer].attn.sinkscope.form.learned["value"].copy_(found.value)
    with torch.no_grad():
        expected = torch.cat([by_hand(biased, picture, MOVED, 0) for picture in torch.split(x, 1)])
        torch.testing.assert_close(output(treated, x), expected, rtol=1e-8, atol=1e-9)
        with sinkscope.capture(treated) as after:
            output(treated, x)
    assert {call.shape[3] for call in after} == {3 + 9}
    assert {call.form.name for call in after if call.form is not None} == {KVBias().card.name}


@pytest.mark.parametrize("treatment", [TestTimeRegisters(MOVED, 2), TestTimeRegisters(MOVED, fixed=True)])
def test_saved_and_loaded(treatment: TestTimeRegisters, tmp_path: Path) -> None:
    plain, x = model("dinov2"), example("dinov2")
    treated = learned(sinkscope.treat(plain, [treatment, Gate()], probe=x))
    treat.save(treated, tmp_path)
    again = treat.load(plain, tmp_path)
    assert treat.treatments_of(again) == (treatment, Gate())
    assert torch.equal(output(again, x), output(treated, x))


def test_roles_reach_a_diagnosis() -> None:
    treated = sinkscope.treat(sinkscope.load(model("dinov2")), TestTimeRegisters(MOVED))
    from sinkscope.models import make_inputs

    (batch,) = make_inputs(treated, example("dinov2")).batches()
    assert batch.layouts[0] is not None
    assert batch.layouts[0].roles == ("cls", *("patch",) * 9, "register")
    assert "changes the outputs from the start" in treated.notes[-1]
    fixed = sinkscope.treat(sinkscope.load(model("dinov2")), TestTimeRegisters(fixed=True), probe=example("dinov2"))
    (batch,) = make_inputs(fixed, example("dinov2")).batches()
    assert batch.layouts[0] is not None and len(batch.layouts[0]) == 1 + 9


def test_no_outliers_says_what_norms_were_seen() -> None:
    x = example("siglip-vision")
    with pytest.raises(OptionError) as caught:
        find_register_neurons(model("siglip-vision"), x, threshold=1e6)
    assert "no outlier tokens: norms of 18 patches: median" in caught.value.found
    assert "largest" in caught.value.found and "behind block 2" in caught.value.found
    assert caught.value.expected == "some norms above 1e+06" and "threshold" in caught.value.next_step


def test_wrong_use() -> None:
    with pytest.raises(OptionError, match=r"\(1, -2\) as a neuron; expected pairs of block and neuron"):
        TestTimeRegisters(((1, -2),))
    with pytest.raises(OptionError, match="a neuron twice"):
        TestTimeRegisters(((1, 2), (1, 2)))
    with pytest.raises(OptionError, match="2 fixed keys; expected one"):
        TestTimeRegisters(MOVED, 2, fixed=True)
    with pytest.raises(OptionError, match="blocks given with their neurons"):
        TestTimeRegisters(MOVED, layers=(1,))
    plain, x = model("vit"), example("vit")
    with pytest.raises(OptionError, match=r"neuron \(3, 0\); expected blocks 0 to 2"):
        sinkscope.treat(plain, TestTimeRegisters(((3, 0),)))
    with pytest.raises(OptionError, match=r"neuron \(0, 29\); expected neurons 0 to 28 in block 0"):
        sinkscope.treat(plain, TestTimeRegisters(((0, 29),)))
    with pytest.raises(OptionError, match="test-time-registers without a probe"):
        sinkscope.treat(plain, TestTimeRegisters(MOVED, fixed=True))
    with pytest.raises(OptionError, match=r"test-time-registers and registers at .*; expected one treatment"):
        sinkscope.treat(plain, [Registers(), TestTimeRegisters(MOVED)], probe=x)
    with pytest.raises(OptionError, match=r"test-time-registers for BERT, of kind encoder; expected vision"):
        sinkscope.treat(model("bert"), TestTimeRegisters(MOVED))
    with pytest.raises(OptionError, match=r"find_register_neurons for GPT-2"):
        find_register_neurons(model("gpt2"), example("gpt2"))
    treated = sinkscope.treat(plain, TestTimeRegisters(MOVED))
    with pytest.raises(OptionError, match="a model treated with registers; expected one without them"):
        find_register_neurons(treated, x)
    with pytest.raises(OptionError, match="no pictures"):
        find_register_neurons(plain, [])
    with pytest.raises(OptionError, match="layer is 3; expected 0 to 2"):
        find_register_neurons(plain, x, layer=3)
