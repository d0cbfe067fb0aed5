"""Losses against the same by hand, in float64, from what models return."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sinkscope import treat
from sinkscope._errors import InputError, OptionError
from sinkscope.models import Batch, Model, load
from sinkscope.models._placement import seeded
from sinkscope.train.tuning import final_tokens
from sinkscope.train.tuning._objectives import Distill, NextToken, OwnHead, Probe, Terms
from sinkscope.train.tuning._supply import Drawn, make_supply
from sinkscope.train.tuning._teacher import untouched
from sinkscope.treat import Gate, OffByOne, Registers
from tests.train.tuning._tuned import INPUTS, SHORT, base, one_batch, short, treated
from tests.treat._models import BUILD, DECODERS, VISIONS, example, learned

ROWS = 5


def exact(made: Model) -> Model:
    """In float64."""
    return load(made.module.double())


def drawn(batch: Batch) -> Drawn:
    return Drawn(batch, tuple(range(len(batch.names))))


def padded(family: str, side: str) -> dict[str, Tensor]:
    """Token ids of different lengths; what is padded is garbage."""
    ids = example(family, ROWS)
    lengths = torch.tensor([2, 11, 7, 5, 3])
    places = torch.arange(ids.shape[1])
    mask = places < lengths[:, None]
    if side == "left":
        mask = mask.flip(1)
    return {"input_ids": ids, "attention_mask": mask.long()}


def by_hand(made: Model, x: Any) -> Tensor:
    """Final tokens as the model itself returns them."""
    module: Any = made.module
    given = x if isinstance(x, dict) else {"pixel_values": x}
    with torch.no_grad():
        if hasattr(module, "forward_features"):
            found: Tensor = module.forward_features(x)
            return found
        trunk = getattr(module, "base_model", module)
        found = trunk(**given).last_hidden_state
        return found


@pytest.mark.parametrize("family", BUILD)
def test_distillation_is_the_relative_squared_error_of_final_tokens(family: str) -> None:
    treatments = (OffByOne(),) if family in DECODERS else (OffByOne(), Registers(3))
    made = exact(learned(treated(family, *treatments, Gate())))
    plain = exact(base(family))
    text = family not in VISIONS
    x: Any = padded(family, "right") if text else example(family, ROWS).double()
    batch = one_batch(made, x)
    with Distill(made, untouched(made)) as objective:
        terms = objective(drawn(batch))
    own, wanted = by_hand(made, x), by_hand(plain, x)
    assert own.shape == wanted.shape  # registers are gone
    counted = x["attention_mask"].bool() if text else torch.ones(wanted.shape[:2], dtype=torch.bool)
    expected = [
        float(
            (own[row][counted[row]] - wanted[row][counted[row]]).pow(2).sum() / wanted[row][counted[row]].pow(2).sum()
        )
        for row in range(ROWS)
    ]
    assert min(expected) > 1e-6
    torch.testing.assert_close(terms.sums, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)
    assert terms.weights.tolist() == [1.0] * ROWS
    assert terms.loss.item() == pytest.approx(sum(expected) / ROWS)


def test_padding_counts_in_no_loss() -> None:
    made = exact(learned(treated("bert", OffByOne(), Registers(2))))
    batch = one_batch(made, padded("bert", "right"))
    with Distill(made, untouched(made)) as objective:
        together = objective(drawn(batch)).sums
        for row, length in enumerate([2, 11, 7, 5, 3]):
            alone = {name: value[row : row + 1, :length] for name, value in padded("bert", "right").items()}
            torch.testing.assert_close(
                objective(drawn(one_batch(made, alone))).sums[0], together[row], rtol=1e-9, atol=0
            )


@pytest.mark.parametrize("side", ["right", "left", "none"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_of_a_language_model_is_the_cross_entropy_of_the_next_token(family: str, side: str) -> None:
    made = exact(learned(treated(family, Gate())))
    x = padded(family, "right" if side == "none" else side)
    if side == "none":
        x = {"input_ids": x["input_ids"]}
    with NextToken(made) as objective:
        terms = objective(drawn(one_batch(made, x)))
        assert objective.floor == pytest.approx(torch.tensor(101.0).log().item())
    with torch.no_grad():
        log = made.module(**x).logits.log_softmax(-1)
    counted = x.get("attention_mask", torch.ones_like(x["input_ids"])).bool()
    sums, counts = [0.0] * ROWS, [0] * ROWS
    for row in range(ROWS):
        places = counted[row].nonzero()[:, 0].tolist()
        for place, following in pairwise(places):
            sums[row] -= float(log[row, place, x["input_ids"][row, following]])
            counts[row] += 1
    torch.testing.assert_close(terms.sums, torch.tensor(sums, dtype=torch.float64), rtol=1e-9, atol=0)
    assert terms.weights.tolist() == counts
    assert terms.loss.item() == pytest.approx(sum(sums) / sum(counts))


@pytest.mark.parametrize("family", ["vit", "timm-vit"])
def test_a_model_with_classes_is_judged_by_its_own_head(family: str) -> None:
    made = exact(learned(treated(family, Gate())))
    x, labels = example(family, ROWS).double(), [0, 1, 1, 0, 1]
    with OwnHead(made, labels, 2) as objective:
        terms = objective(Drawn(one_batch(made, x), (4, 3, 2, 1, 0)))
    with torch.no_grad():
        out: Any = made.module(x)
    logits = out if isinstance(out, Tensor) else out.logits
    wanted = torch.tensor(labels[::-1])
    torch.testing.assert_close(terms.sums, -logits.log_softmax(-1)[range(ROWS), wanted], rtol=1e-9, atol=0)
    assert terms.hits is not None and terms.hits.tolist() == (logits.argmax(-1) == wanted).tolist()


@pytest.mark.parametrize("family", ["dinov2", "bert", "siglip-vision", "llama"])
def test_a_probe_reads_the_class_token_or_else_the_mean_of_all(family: str) -> None:
    """BERT's ids have no roles here, for want of a tokenizer, so that its mean is taken."""
    made = exact(learned(treated(family, Gate())))
    text = family in ("bert", "llama")
    x: Any = padded(family, "right") if text else example(family, ROWS).double()
    tokens = by_hand(made, x)
    if text:
        counted = x["attention_mask"][..., None].double()
        pooled = (tokens * counted).sum(1) / counted.sum(1)
    else:
        pooled = tokens[:, 0] if family == "dinov2" else tokens.mean(1)
    with Probe(made, [2, 0, 1, 0, 2], 3) as objective, seeded(3), torch.no_grad():
        objective.weight.normal_()
        objective.bias.normal_()
        terms: Terms = objective(drawn(one_batch(made, x)))
    logits = pooled.float() @ objective.weight.T + objective.bias
    expected = -logits.log_softmax(-1)[range(ROWS), [2, 0, 1, 0, 2]]
    torch.testing.assert_close(terms.sums, expected.detach(), rtol=1e-4, atol=1e-6)


def test_a_probe_is_compared_with_the_same_on_the_untouched_model() -> None:
    x = example("dinov2", INPUTS)
    x[::2, 0] += 3.0
    labels = [row % 2 for row in range(INPUTS)]
    made = treated("dinov2", Gate())
    found = short(made, x, "task", labels=labels, lr=3e-2, steps=29)
    assert found.probe is not None and {name: tuple(value.shape) for name, value in found.probe.items()} == {
        "weight": (2, 21),
        "bias": (2,),
    }
    assert found.loss_before == pytest.approx(torch.tensor(2.0).log().item())  # of a probe that starts at 0
    assert found.loss_after < 0.5 * found.loss_before and found.reference_loss < 0.5 * found.loss_before
    assert found.accuracy_after == found.reference_accuracy == 1.0
    supply = make_supply(_inputs(made, x), SHORT["batch_size"], SHORT["held_out"], 0)
    rows = list(supply.held_out)
    cls = by_hand(made, x[rows])[:, 0]
    logits = cls @ found.probe["weight"].T + found.probe["bias"]
    loss = -logits.log_softmax(-1)[range(len(rows)), [labels[row] for row in rows]].mean()
    assert found.loss_after == pytest.approx(float(loss), rel=1e-4)


def test_the_untouched_model_shares_its_weights_and_nothing_else() -> None:
    made = learned(treated("dinov2", OffByOne(), Registers(2), Gate()))
    plain = untouched(made)
    x = example("dinov2", 3)
    with torch.no_grad():
        assert torch.equal(plain.module(x)[0], base("dinov2").module(x)[0])
        treat.undo(treat.treat(plain, Gate(), inplace=True))
        assert not torch.equal(made.module(x)[0], plain.module(x)[0])
    own = {name: value.data_ptr() for name, value in made.module.named_parameters()}
    assert all(own[name] == value.data_ptr() for name, value in plain.module.named_parameters())
    assert len(treat.treatments_of(made)) == 3 and treat.treatments_of(plain) == ()


def test_hooks_for_final_tokens_are_taken_off_again() -> None:
    made = base("dinov2")
    with final_tokens(made.module) as found:
        with pytest.raises(OptionError, match="without final tokens"):
            _ = found.tokens
        made.run(one_batch(made, example("dinov2", 2)))
        assert found.tokens.shape == (2, 10, 21)
    made.run(one_batch(made, example("dinov2", 2)))
    with pytest.raises(OptionError, match="without final tokens"):
        _ = found.tokens


def test_objectives_that_a_model_cannot_have() -> None:
    with pytest.raises(OptionError, match="lm for BERT, whose tokens see those behind them; expected a decoder"):
        short(treated("bert", Gate()), example("bert", INPUTS), "lm")
    trunk = treat.treat(load(base("llama").module.model), Gate())  # type: ignore[arg-type]  # module is typed loosely
    with pytest.raises(OptionError, match="lm for LlamaModel, which has no language head"):
        short(trunk, example("llama", INPUTS), "lm")
    with pytest.raises(InputError, match="inputs of one token"):
        short(treated("llama", Gate()), example("llama", INPUTS)[:, :1], "lm")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "inputs without labels, and the objective task"),
        ([0, 1], "2 labels from 0 on, and 23 inputs"),
        ([-1, *[0] * 22], "23 labels from -1 on"),
        ([2, *[0] * 22], "the label 2 for module:ViTForImageClassification, which tells 2 classes apart"),
    ],
)
def test_labels_have_to_fit(labels: list[int] | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        short(treated("vit", Gate()), example("vit", INPUTS), "task", labels=labels)
    assert message in str(caught.value)


def _inputs(made: Model, x: Tensor) -> Any:
    from sinkscope.models import make_inputs

    return make_inputs(made, x)
