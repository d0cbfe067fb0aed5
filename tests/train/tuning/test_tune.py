"""Tuning lowers the loss, touches nothing else, and stops when it goes wrong."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from sinkscope import treat
from sinkscope._errors import NumericsError, OptionError
from sinkscope.attention import common_mode_penalty
from sinkscope.models import load
from sinkscope.train.tuning import COLUMNS, Step, TuneOptions
from sinkscope.treat import (
    ClippedSoftmax,
    Form,
    Gate,
    GlobalPathway,
    HeadNorm,
    LearnedSink,
    OffByOne,
    PrefixKV,
    Registers,
    Treatment,
    branch_outputs,
)
from tests.train.tuning._tuned import INPUTS, SHORT, STEPS, base, short, treated, values
from tests.treat._models import example, output

# These change the outputs, and have something to learn.
HARMFUL: tuple[tuple[str, tuple[Treatment, ...]], ...] = (
    ("vit", (ClippedSoftmax(gamma=-0.1), Gate("elementwise"))),
    ("dinov2", (OffByOne(), HeadNorm())),
    ("siglip-vision", (OffByOne(), Gate())),
    ("clip-vision", (Form("relu"), Gate("elementwise"))),
    ("bert", (OffByOne(), Gate())),
    ("llama", (OffByOne(), HeadNorm())),
    ("gpt2", (OffByOne(), Gate())),
    ("timm-vit", (OffByOne(), Registers(2), Gate())),
)


@pytest.mark.parametrize(("family", "treatments"), HARMFUL, ids=[family for family, _ in HARMFUL])
def test_distillation_lowers_the_loss_and_leaves_the_model_itself_alone(
    family: str, treatments: tuple[Treatment, ...]
) -> None:
    made = treated(family, *treatments)
    before = {name: value.clone() for name, value in base(family).module.state_dict().items()}
    found = short(made, example(family, INPUTS), lr=3e-2)
    assert 0 < found.loss_after < 0.9 * found.loss_before
    assert not found.diverged and not found.harmless_start and found.remarks == ()
    assert found.model.module is made.module
    assert found.parameters == sum(value.numel() for value in treat.added(made).values())
    state = made.module.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    restored = treat.undo(made)
    x = example(family, 3)
    assert torch.equal(output(restored.module, x), output(base(family).module, x))


@pytest.mark.parametrize(
    ("family", "treatment"),
    [("dinov2", Registers(2)), ("bert", Gate()), ("llama", PrefixKV(2)), ("gpt2", LearnedSink())],
)
def test_a_harmless_start_has_no_distillation_loss(family: str, treatment: Treatment) -> None:
    found = short(treated(family, treatment), example(family, INPUTS), steps=1)
    assert found.loss_before < 1e-9
    assert found.harmless_start
    assert "nothing to teach" in found.remarks[0]
    assert found.table["held_out_loss"][0] == found.loss_before


def test_noise_teaches_nothing() -> None:
    """Adam makes any gradient large, that of rounding too: large rates would carry the outputs away."""
    made = treated("dinov2", Gate(), Registers(2))
    before = {name: value.detach().clone() for name, value in treat.added(made).items()}
    found = short(made, example("dinov2", INPUTS), steps=5, lr=1.0)
    assert not found.diverged and found.loss_after == found.loss_before < 1e-9
    assert all(torch.equal(value, before[name]) for name, value in treat.added(found.model).items())
    assert set(found.table["lr"].dropna()) == {0.0}


def test_language_models_learn_by_their_own_loss() -> None:
    x = example("llama", 1).repeat(INPUTS, 1)  # one text, which can be learned by heart
    found = short(treated("llama", Gate("elementwise")), x, "lm", lr=3e-2)
    assert found.loss_after < 0.9 * found.loss_before
    assert found.reference_loss == pytest.approx(found.loss_before, rel=1e-5)  # the gate starts harmless
    assert found.accuracy_after is None


def test_flags_gradients_and_modes_are_put_back() -> None:
    made = treated("vit", OffByOne(), Gate())
    own = [p for name, p in made.module.named_parameters() if "sinkscope" not in name]
    own[0].requires_grad_(False)
    own[1].grad = torch.ones_like(own[1])
    chosen = next(iter(treat.added(made).values())).requires_grad_(False)
    made.module.train()
    before = [(p.requires_grad, part.training) for p, part in zip(own, made.module.modules(), strict=False)]
    found = short(made, example("vit", INPUTS))
    assert found.loss_after < found.loss_before
    assert before == [(p.requires_grad, part.training) for p, part in zip(own, made.module.modules(), strict=False)]
    assert not chosen.requires_grad and made.module.training
    torch.testing.assert_close(own[1].grad, torch.ones_like(own[1]), rtol=0, atol=0)
    assert all(p.grad is None for p in made.module.parameters() if p is not own[1])


def test_equal_arguments_give_equal_weights_and_another_seed_others() -> None:
    x = example("vit", INPUTS)
    torch.manual_seed(5)
    first, again, other = (treated("vit", OffByOne(), Gate()) for _ in range(3))
    short(first, x)
    short(again, x)
    short(other, x, seed=1)
    assert torch.initial_seed() == 5
    found, same, different = values(first), values(again), values(other)
    assert all(torch.equal(found[name], same[name]) for name in found)
    assert not all(torch.equal(found[name], different[name]) for name in found)


def test_every_step_is_told_and_tabled() -> None:
    told: list[Step] = []
    found = short(treated("vit", OffByOne(), Gate()), example("vit", INPUTS), on_step=told.append)
    assert [step.step for step in told] == list(range(1, STEPS + 1))
    table = found.table
    assert tuple(table.columns) == COLUMNS
    assert table["step"].tolist() == list(range(STEPS + 1))
    assert table["loss"].iloc[:-1].tolist() == [step.loss for step in told] and math.isnan(table["loss"].iloc[-1])
    measured = table["step"][table["held_out_loss"].notna()].tolist()
    assert measured == [0, 4, 8, 12, 13]
    assert told[0].held_out_loss == found.loss_before
    assert found.loss_after == table["held_out_loss"].iloc[-1]
    assert table["lr"].iloc[:-1].tolist() == [TuneOptions(**SHORT).rate(step) for step in range(STEPS)]
    assert (table["seconds"].diff().dropna() >= 0).all()
    assert (found.inputs, found.held_out_inputs) == (INPUTS - 5, 5)


def test_the_gradient_is_clipped_and_told_before_that() -> None:
    # Adam forgets the length of a gradient, but not how lengths go from step to step.
    x = example("vit", INPUTS)
    free, clipped = (treated("vit", OffByOne(), Gate()) for _ in range(2))
    norms = short(free, x, clip=None).table["grad_norm"]
    told = short(clipped, x, clip=float(norms.min()) / 2).table["grad_norm"]
    assert norms[0] == told[0]
    assert any(not torch.equal(a, b) for a, b in zip(values(free).values(), values(clipped).values(), strict=True))


def test_divergence_stops_and_keeps_the_best(tmp_path: Path) -> None:
    made = treated("vit", OffByOne(), Gate("elementwise"))
    start = values(made)
    found = short(made, example("vit", INPUTS), lr=1e6, out=tmp_path)
    assert found.diverged and found.steps < STEPS and found.kept_step == 0
    assert found.loss_after == found.loss_before
    assert found.remarks == (f"The loss diverged at step {found.steps}; the values of step 0 are kept.",)
    kept = values(treat.load(base("vit"), tmp_path))
    assert all(torch.equal(start[name], value) for name, value in values(made).items())
    assert all(torch.equal(start[name], value) for name, value in kept.items())
    again = treated("vit", OffByOne(), Gate("elementwise"))
    assert short(again, example("vit", INPUTS), lr=1e6, out=tmp_path).remarks == found.remarks
    assert all(torch.equal(start[name], value) for name, value in values(again).items())


def test_divergence_late_keeps_the_best_evaluation() -> None:
    made = treated("vit", OffByOne(), Gate("elementwise"))
    seen: list[dict[str, torch.Tensor]] = []

    def spoil(step: Step) -> None:
        if step.step == 8:
            seen.append(values(made))
        if step.step == 10:  # between two evaluations
            with torch.no_grad():
                for parameter in treat.added(made).values():
                    parameter.fill_(math.nan)

    found = short(made, example("vit", INPUTS), lr=1e-2, on_step=spoil)
    assert found.diverged and (found.steps, found.kept_step) == (10, 8)
    assert found.loss_after == found.table["held_out_loss"][8] < found.loss_before
    assert all(torch.equal(seen[0][name], value) for name, value in values(made).items())


def test_a_loss_that_is_no_number_to_begin_with_is_an_error() -> None:
    made = treated("vit", OffByOne(), Gate())
    with torch.no_grad():
        next(iter(treat.added(made).values())).fill_(math.nan)
    with pytest.raises(NumericsError, match="a loss of nan before anything was tuned"):
        short(made, example("vit", INPUTS))


def test_half_precision_learns_in_steps_below_its_resolution() -> None:
    x = example("vit", INPUTS)
    plain = load(base("vit").module.to(torch.bfloat16))
    made = treat(plain, [OffByOne(), HeadNorm()])
    before = values(made)
    found = short(made, x, lr=1e-3)  # bfloat16 knows no number between 1 and 1.0078
    assert all(value.dtype == torch.bfloat16 for value in values(made).values())
    assert any(not torch.equal(before[name], value) for name, value in values(made).items())
    assert found.loss_after < found.loss_before


def test_the_common_mode_penalty_is_minimised_where_there_is_a_pathway() -> None:
    x = example("dinov2", INPUTS)
    shares: list[float] = []
    for weight in (0.0, 1.0):
        made = treated("dinov2", GlobalPathway(width=5), Gate("elementwise"))
        found = short(made, x, common_mode=weight, clip=None)
        assert found.table["loss"][0] < 1e-9  # told without it
        with branch_outputs(made.module) as outputs, torch.no_grad():
            made.module(x)
        shares.append(float(common_mode_penalty(outputs)))
    assert shares[1] < 0.98 * shares[0]


def test_a_folder_holds_all_of_it(tmp_path: Path) -> None:
    made = treated("vit", OffByOne(), Gate())
    found = short(made, example("vit", INPUTS), out=tmp_path)
    again = treat.load(base("vit"), tmp_path)
    x = example("vit", 3)
    assert torch.equal(output(again.module, x), output(made.module, x))
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "tuning.parquet"), found.table)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {
        "checkpoint/options.json",
        "checkpoint/state.safetensors",
        "figures/loss.png",
        "figures/loss.svg",
        "treatment.json",
        "treatment.safetensors",
        "tuning.parquet",
    }
    assert "relative squared error of the final tokens" in (tmp_path / "figures" / "loss.svg").read_text()
    assert found.out == tmp_path
    assert found.model.notes[-1] == f"tuned for {STEPS} steps with the objective distill"
    told = found.plain()
    assert told["options"]["lr"] == 1e-2 and told["loss_after"] == found.loss_after and told["steps"] == STEPS


def test_there_has_to_be_something_to_tune() -> None:
    with pytest.raises(OptionError, match="off-by-one: nothing to tune; expected a treatment with parameters"):
        short(treated("vit", OffByOne()), example("vit", INPUTS))
    with pytest.raises(OptionError, match="is not treated"):
        short(base("vit"), example("vit", INPUTS))


def test_another_teacher_can_be_given_and_has_to_fit() -> None:
    made = treated("vit", Gate("elementwise"))
    teacher = treat(base("vit"), OffByOne())
    found = short(made, example("vit", INPUTS), teacher=teacher, lr=1e-2)
    assert found.loss_before > 1e-4 and found.loss_after < 0.9 * found.loss_before
    with pytest.raises(OptionError, match="the model as its own teacher"):
        short(made, example("vit", INPUTS), teacher=made)
    with pytest.raises(OptionError, match=r"final tokens of shape \(5, 10, 21\), and \(5, 12, 21\) of the teacher"):
        short(made, example("vit", INPUTS), teacher=base("dinov2-registers"))


WRONG: tuple[tuple[dict[str, Any], str], ...] = (
    ({"objective": "mse"}, "objective is 'mse'; expected distill or lm or task"),
    ({"steps": 0}, "steps is 0; expected a whole number from 1 on"),
    ({"steps": 2.5}, "steps is 2.5; expected a whole number"),
    ({"batch_size": -1}, "batch_size is -1"),
    ({"evaluate_every": 0}, "evaluate_every is 0"),
    ({"checkpoint_every": 0}, "checkpoint_every is 0"),
    ({"lr": 0}, "lr is 0.0; expected a number above 0, at most 1000000"),
    ({"lr": math.nan}, "lr is nan"),
    ({"lr": 1e38}, "lr is 1e+38; expected a number above 0, at most 1000000"),
    ({"warmup": 1.0}, "warmup is 1.0; expected a share of the steps, from 0 to below 1"),
    ({"weight_decay": -0.1}, "weight_decay is -0.1"),
    ({"clip": 0.0}, "clip is 0.0; expected a number above 0, or None"),
    ({"held_out": 0.0}, "held_out is 0.0; expected a share of the inputs between 0 and 1"),
    ({"held_out": 1.0}, "held_out is 1.0"),
    ({"common_mode": -1.0}, "common_mode is -1.0"),
    ({"seed": -1}, "seed is -1; expected a whole number from 0 to"),
)


@pytest.mark.parametrize(("options", "message"), WRONG, ids=[message.split(";")[0] for _, message in WRONG])
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        TuneOptions(**options)
    assert message in str(caught.value)


def test_the_rate_rises_to_its_largest_and_falls_to_nothing() -> None:
    options = TuneOptions(steps=20, lr=2.0, warmup=0.2)
    rates = [options.rate(step) for step in range(20)]
    assert rates[:4] == [0.5, 1.0, 1.5, 2.0]
    assert rates[4] == 2.0 and rates[12] == pytest.approx(1.0)  # half way down
    assert all(after < before for before, after in pairwise(rates[4:])) and 0 < rates[-1] < 0.05
    assert TuneOptions(steps=1, warmup=0.0, lr=2.0).rate(0) == TuneOptions(steps=1, lr=2.0).rate(0) == 2.0


def test_the_first_step_of_each_parameter_is_its_own_rate() -> None:
    """Adam's first step is the rate, whatever the gradient."""
    made = treated("vit", OffByOne(), Registers(2), Gate())
    before = values(made)
    short(made, example("vit", INPUTS), steps=1, warmup=0.0, lr=1e-3, clip=None)
    moved = {name: float((value - before[name]).abs().max()) for name, value in values(made).items()}
    for ending, rate in (("gate_bias", 1e-3), ("gate_weight", 1e-3 / 21**0.5), ("column.root", 0.03)):
        largest = max(step for name, step in moved.items() if name.endswith(ending))
        assert largest == pytest.approx(rate, rel=1e-2), ending  # the smallest gradients feel its epsilon
