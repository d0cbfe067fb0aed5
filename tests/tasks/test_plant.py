"""Planted heads: the truth is recomputed by the model's own eager attention, nothing but the head changes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.utils import logging

from sinkscope import diagnose, load
from sinkscope._errors import CaptureError, InputError, MissingExtraError, ModelReferenceError, OptionError
from sinkscope.models import Model, make_inputs
from sinkscope.tasks import Plan, Planted, plant, plant_all
from tests.tasks._plantable import FAMILIES, plantable, some_inputs

LAYER, HEAD = 1, 2
HELD_OUT = slice(27, 43)
TOLERANCE = 1e-4
VALUE_NAMES = ("v_proj", "value")
OUT_NAMES = ("o_proj", "output.dense")


def planted(family: str, mechanism: str, **options: Any) -> Planted:
    model = plantable(family)
    return plant(model, LAYER, HEAD, mechanism, inputs=some_inputs(model), **options)


def inputs_of(model: Model) -> dict[str, Tensor]:
    batches = list(some_inputs(model).batches())
    name = "pixel_values" if model.modality == "vision" else "input_ids"
    return {name: torch.cat([batch.args[0] if batch.args else batch.kwargs[name] for batch in batches])}


def seen(model: Model) -> tuple[Tensor, Tensor]:
    """Attention weights and writes u_j of the planted head on held-out inputs, by transformers' own eager attention in
    float64: weights as it returns them, writes through the value map and the output map of the layer."""
    module: Any = model.module.double()
    module.set_attn_implementation("eager")
    layer = f".{LAYER}."
    parts = {name: part for name, part in module.named_modules() if layer in f"{name}."}
    value = next(part for name, part in parts.items() if name.endswith(VALUE_NAMES))
    out: Any = next(part for name, part in parts.items() if name.endswith(OUT_NAMES) and "att" in name)
    scale = next((part.lambda1 for name, part in parts.items() if name.endswith("layer_scale1")), torch.ones(()))
    values: list[Tensor] = []
    hook = value.register_forward_hook(lambda _module, _args, found: values.append(found))
    arguments = {name: x.double() if x.is_floating_point() else x for name, x in inputs_of(model).items()}
    with torch.no_grad():
        attention = module(**arguments, output_attentions=True).attentions[LAYER][:, HEAD]
    hook.remove()
    width = module.config.hidden_size // module.config.num_attention_heads
    rows = slice(HEAD * width, (HEAD + 1) * width)
    return attention[HELD_OUT], (values[0][..., rows] @ out.weight[:, rows].T * scale).detach()[HELD_OUT]


def shares(attention: Tensor, writes: Tensor, causal: bool) -> tuple[float, Tensor]:
    """Mean mass of the sinks; silent, constant and content, pair by pair."""
    n = attention.shape[1]
    queries = torch.arange(n, 0, -1).double() if causal else torch.full((n,), float(n))
    masses = attention.sum(1) / queries
    masses[:, queries < max(8, n / 4)] = -1
    mass, sink = masses.max(1)
    chosen = [number for number in range(len(mass)) if mass[number] >= 0.3]
    own = torch.stack([writes[number, sink[number]] for number in chosen])
    others = [torch.cat([writes[i, : sink[i]], writes[i, sink[i] + 1 :]]).square().sum(1).mean() for i in chosen]
    usual = torch.stack(others).mean()
    pairs = [own[i] @ own[j] for i in range(len(own)) for j in range(len(own)) if i != j]
    constant, energy = torch.stack(pairs).mean() / usual, own.square().sum(1).mean() / usual
    return float(mass.mean()), torch.stack([(1 - energy).clamp(min=0), constant, energy - constant])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("mechanism", "options"),
    [("nop", {}), ("bias", {"mass": 0.5}), ("mixture", {"shares": (0.5, 0.5, 0.0), "mass": 0.7})],
)
def test_the_sink_hands_out_what_was_asked(family: str, mechanism: str, options: dict[str, Any]) -> None:
    made = planted(family, mechanism, **options)
    assert made.faithful
    assert made.truth.sink == ("first" if family in ("bert", "llama") else "cls")
    mass, found = shares(*seen(made.model), causal=family == "llama")
    assert made.truth.mass == pytest.approx(mass, rel=TOLERANCE)
    assert made.truth.shares == pytest.approx(tuple(found.tolist()), abs=TOLERANCE)
    asked = made.truth.shares_asked
    assert asked is not None and tuple(found.tolist()) == pytest.approx(asked, abs=0.15)
    assert mass == pytest.approx(options.get("mass", 0.9), abs=0.1)


@pytest.mark.parametrize(("family", "sink"), [("dinov2", "patch"), ("bert", "word"), ("llama", "word")])
def test_a_token_with_most_of_a_feature_broadcasts_content(family: str, sink: str) -> None:
    made = planted(family, "broadcast", sink=sink)
    mass, found = shares(*seen(made.model), causal=family == "llama")
    assert made.truth.mass == pytest.approx(mass, rel=TOLERANCE)
    assert made.truth.shares == pytest.approx(tuple(found.tolist()), abs=TOLERANCE)
    silent, constant, content = found.tolist()
    assert content > 0.4 and content > 2 * constant, (silent, constant, content)
    assert made.truth.at_sink == 1


def test_a_register_can_be_the_sink() -> None:
    made = planted("registers", "nop", sink="register")
    attention, _ = seen(made.model)
    assert made.faithful
    assert float(attention[:, :, 1].mean()) == pytest.approx(0.9, abs=0.05)


def test_an_adaptive_head_parks_only_some_queries() -> None:
    made = planted("dinov2", "nop", parked=0.6)
    at_sink = seen(made.model)[0][:, :, 0]
    assert made.faithful
    assert float((at_sink > 0.5).double().mean()) == pytest.approx(0.6, abs=0.1)
    assert float(at_sink[at_sink > 0.5].mean()) == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_that_are_no_sinks(family: str) -> None:
    uniform, diagonal, dead = (planted(family, name, mass=0.6) for name in ("uniform", "diagonal", "dead"))
    assert uniform.faithful and diagonal.faithful and dead.faithful
    attention = seen(uniform.model)[0]
    shown = attention > 0
    torch.testing.assert_close(attention, shown / shown.sum(2, keepdim=True).double(), rtol=1e-6, atol=0)
    weight = float(seen(diagonal.model)[0].diagonal(dim1=1, dim2=2).mean())
    assert weight == pytest.approx(0.6, abs=0.1) and diagonal.truth.diagonal == pytest.approx(weight, rel=TOLERANCE)
    assert float(seen(dead.model)[1].abs().max()) == 0
    assert {made.truth.sink for made in (uniform, diagonal, dead)} == {None}


@pytest.mark.parametrize("family", ["dinov2", "vit", "bert"])
def test_an_inert_head_has_mass_and_writes_but_no_function(family: str) -> None:
    made = planted(family, "inert")
    attention, writes = seen(made.model)
    assert float(attention[:, :, 0].mean()) == pytest.approx(0.9, abs=0.1)
    assert float(writes.square().sum(2).mean().sqrt()) > 0.01
    assert made.faithful
    inputs = inputs_of(made.model)
    with torch.no_grad():
        before = made.model.module.float()(**inputs)[0]
        out: Any = next(
            part
            for name, part in made.model.module.named_modules()
            if f".{LAYER}." in name and name.endswith(OUT_NAMES) and "att" in name
        )
        width = made.model.module.config.hidden_size // 5  # type: ignore[union-attr, operator]
        out.weight[:, HEAD * width : (HEAD + 1) * width] = 0
        after = made.model.module(**inputs)[0]
    assert float((after - before).norm() / before.norm()) < 1e-5


@pytest.mark.parametrize("family", ["dinov2", "vit", "bert"])
def test_nothing_but_the_rows_of_the_head_changes(family: str) -> None:
    before, made = plantable(family), planted(family, "mixture", shares=(0.5, 0.5, 0.0))
    width = made.model.module.config.hidden_size // 5  # type: ignore[union-attr, operator]
    rows = set(range(HEAD * width, (HEAD + 1) * width))
    after = dict(made.model.module.named_parameters())
    changed = 0
    for name, parameter in before.module.named_parameters():
        places = torch.nonzero(parameter != after[name])
        if len(places):
            changed += 1
            of_out = ".".join(name.split(".")[:-1]).endswith(OUT_NAMES)
            assert f".{LAYER}." in name and set(places[:, 1 if of_out else 0].tolist()) <= rows
    assert changed >= 3


def test_heads_that_share_keys_and_values_get_their_own_first() -> None:
    model, made = plantable("llama"), planted("llama", "dead")
    inputs = inputs_of(model)
    config: Any = made.model.module.config
    assert (config.num_key_value_heads, model.module.config.num_key_value_heads) == (6, 2)  # type: ignore[union-attr]
    out: Any = model.module.model.layers[LAYER].self_attn.o_proj  # type: ignore[union-attr, index]
    with torch.no_grad():
        out.weight[:, HEAD * 10 : (HEAD + 1) * 10] = 0  # what a dead head amounts to
        expected, found = model.module(**inputs)[0], made.model.module(**inputs)[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_several_heads_in_one_copy_are_each_what_they_are_alone() -> None:
    model = plantable("dinov2")
    plans = [Plan(0, 1, "nop"), Plan(2, 3, "bias", mass=0.5)]
    both = plant_all(model, plans, some_inputs(model))
    first = plant(model, 0, 1, "nop", inputs=some_inputs(model))
    second = plant(first.model, 2, 3, "bias", mass=0.5, inputs=some_inputs(model))
    for made, alone in zip(both.truths, (first.truth, second.truth), strict=True):
        assert made.mass == pytest.approx(alone.mass, rel=TOLERANCE)
        assert made.shares == pytest.approx(alone.shares, abs=TOLERANCE)
    for name, parameter in second.model.module.named_parameters():
        torch.testing.assert_close(dict(both.model.module.named_parameters())[name], parameter, rtol=1e-4, atol=1e-5)


def test_a_copy_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    made = planted("llama", "nop")
    folder = made.save(tmp_path / "planted")
    loaded = load(str(folder))
    assert loaded.weights_sha256() == made.model.weights_sha256() and loaded.notes == ()
    (row,) = json.loads((folder / "planted.json").read_text())
    assert (row["mechanism"], row["layer"], row["head"], row["faithful"]) == ("nop", LAYER, HEAD, True)
    assert row["mass"] == made.truth.mass


@pytest.mark.zoo
@pytest.mark.parametrize(("mechanism", "kind"), [("bias", "sink"), ("uniform", "uniform")])
def test_a_real_checkpoint_from_plant_to_diagnosis(mechanism: str, kind: str, tmp_path: Path) -> None:
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = load("zoo:minilm-l6")
    except (ModelReferenceError, MissingExtraError) as error:
        pytest.skip(str(error))
    ids = torch.randint(1999, 29000, (40, 29), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[:, -1] = 101, 102  # [CLS], [SEP]
    made = plant(model, 3, 7, mechanism, inputs=make_inputs(model, ids), sink="sep", mass=0.7)
    assert made.faithful
    heads = diagnose(str(made.save(tmp_path / "planted")), ids[25:], tmp_path / "diagnosis").heads
    (found,) = heads.query("layer == 3 and head == 7").to_dict("records")
    assert found["kind"] == kind
    if made.truth.shares is not None:
        assert found["role"] == "sep"
        assert tuple(found[name] for name in ("silent", "constant", "content")) == pytest.approx(
            made.truth.shares, abs=1e-3
        )


def test_the_change_of_the_output_is_stated() -> None:
    model = plantable("dinov2")
    made = plant(model, LAYER, HEAD, "nop", inputs=some_inputs(model))
    with torch.no_grad():
        before, after = (m.module(**inputs_of(m))[0][HELD_OUT].double() for m in (model, made.model))
    assert made.truth.output_change == pytest.approx(float((after - before).norm() / before.norm()), rel=TOLERANCE)
    assert math.isfinite(made.truth.output_change) and made.truth.output_change > 0


def test_a_head_that_misses_is_not_called_faithful() -> None:
    truth = planted("dinov2", "nop").truth
    assert truth.faithful
    for change in (
        {"mass": truth.mass - 0.2},
        {"at_sink": 0.89},
        {"sink_inputs": 0.4},
        {"shares": (0.91, 0.09, 0.0)},
        {"mechanism": "inert", "function": 0.0011},
        {"mechanism": "uniform"},
        {"mechanism": "diagonal"},
        {"mechanism": "dead"},
    ):
        assert not replace(truth, **change).faithful
    asked = replace(truth, mechanism="mixture", shares_asked=(0.5, 0.25, 0.25))
    for shares, holds in (
        ((0.3, 0.35, 0.35), True),
        ((0.0, 0.51, 0.51), False),
        ((0.8, 0.1, 0.1), False),
        ((0.5, 0.11, 0.39), False),
    ):
        assert replace(asked, shares=shares).faithful is holds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mechanism": "noop"}, "mechanism 'noop'; expected one of nop, broadcast, bias, mixture"),
        ({"mass": 0.0}, "mass is 0.0; expected a share above 0"),
        ({"parked": 1.5}, "parked is 1.5"),
        ({"shares": (1, 0, 0)}, "shares for nop; expected shares with mechanism mixture only"),
        ({"mechanism": "mixture"}, "shares None of a mixture; expected silent, constant, content"),
        ({"mechanism": "mixture", "shares": (0.5, 0.2, 0.2)}, "that add up to 1"),
        ({"sink": "corner"}, "sink 'corner'; expected auto or one of cls"),
        ({"layer": 3}, "head 3.2; expected layers 0 to 2, heads 0 to 4"),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], message: str) -> None:
    model = plantable("dinov2")
    chosen = {"layer": LAYER, "head": HEAD, "mechanism": "nop", **options}
    with pytest.raises(OptionError) as caught:
        plant(model, inputs=some_inputs(model), **chosen)
    assert message in str(caught.value)


def test_two_heads_of_one_layer_are_refused() -> None:
    model = plantable("dinov2")
    with pytest.raises(OptionError, match="2 heads to plant in 1 layers"):
        plant_all(model, [Plan(0, 1, "nop"), Plan(0, 2, "nop")], some_inputs(model))


def test_inputs_that_do_not_do() -> None:
    model = plantable("dinov2")
    with pytest.raises(InputError, match="23 inputs to plant with; expected 24 or more"):
        plant(model, LAYER, HEAD, "nop", inputs=some_inputs(model, 23))
    with pytest.raises(InputError, match="an input without a token of role register"):
        plant(model, LAYER, HEAD, "nop", inputs=some_inputs(model), sink="register")


def test_attention_of_another_kind_is_refused() -> None:
    model = plantable("bert")
    attention: Any = model.module.bert.encoder.layer[LAYER].attention.self  # type: ignore[union-attr, index]
    attention.register_forward_hook(lambda _module, _args, found: (found[0] * 1.1, *found[1:]))
    with pytest.raises(CaptureError, match=r"that is not softmax\(q k\) v of linear maps \(output off by"):
        plant(model, LAYER, HEAD, "nop", inputs=some_inputs(model))
    with pytest.raises(CaptureError, match="Linear, in which no head can be planted"):
        plant(replace(model, module=torch.nn.Linear(3, 3)), LAYER, HEAD, "nop", inputs=some_inputs(model))
