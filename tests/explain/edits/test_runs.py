"""Parts, resuming, what is left behind, and what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from sinkscope._errors import CaptureError, InputError, NumericsError, OptionError
from sinkscope.artifact import done_edits, read_edits
from sinkscope.explain.edits import EditOptions, edit_heads
from sinkscope.models import Batch, Model
from tests.capture.test_state import unchanged
from tests.explain.edits._cases import CASES, NAMES, SIZES, Fixed

VIT = CASES["vit"]
ALL = pd.DataFrame(
    [
        {"input": name, "layer": layer, "head": head, "sink": 3, "mass": 0.5}
        for name in NAMES
        for layer, head in ((0, 2), (1, 0))
    ]
)


def test_parts_are_written_as_they_are_done_and_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    edit_heads(VIT.model, VIT.inputs, ALL, tmp_path, EditOptions(donors=1, draws=1), lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert done_edits(tmp_path) == {(0, 0), (1, 0), (0, 1), (1, 1)}
    assert sorted(path.name for path in (tmp_path / "edits").iterdir()) == [
        f"part-00{layer}-0000{batch}.{kind}"
        for layer in (0, 1)
        for batch in (0, 1)
        for kind in ("parquet", "safetensors")
    ]


def test_an_interrupted_run_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    options = EditOptions(donors=1, draws=1)
    edit_heads(VIT.model, VIT.inputs, ALL, tmp_path / "whole", options)
    told: list[tuple[int, int]] = []

    def stop(done: int, parts: int) -> None:
        told.append((done, parts))
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit_heads(VIT.model, VIT.inputs, ALL, tmp_path / "stopped", options, stop)
    assert done_edits(tmp_path / "stopped") == {(0, 0), (1, 0), (0, 1)}
    kept = (tmp_path / "stopped" / "edits" / "part-000-00000.parquet").stat().st_mtime_ns
    edit_heads(VIT.model, VIT.inputs, ALL, tmp_path / "stopped", options, lambda *done: told.append(done))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (tmp_path / "stopped" / "edits" / "part-000-00000.parquet").stat().st_mtime_ns == kept
    pd.testing.assert_frame_equal(read_edits(tmp_path / "whole"), read_edits(tmp_path / "stopped"))


@pytest.mark.parametrize("name", ["vit", "gpt2", "sequence-first", "mha-bias-kv", "relu"])
def test_nothing_is_left_behind(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    chosen = ALL[ALL["layer"] == (0 if name == "mha-bias-kv" else 1)]
    with unchanged(case.model.module):
        edit_heads(case.model, case.inputs, chosen, tmp_path, EditOptions(donors=1, draws=1))

    def stop(done: int, parts: int) -> None:
        raise KeyboardInterrupt

    with unchanged(case.model.module), pytest.raises(KeyboardInterrupt):
        edit_heads(case.model, case.inputs, chosen, tmp_path / "stopped", EditOptions(donors=1, draws=1), stop)


def test_a_forward_that_was_replaced_before_comes_back(tmp_path: Path) -> None:
    model = CASES["hand-plain"].build()
    block = model.get_submodule("blocks.1")
    mine = block.forward
    block.forward = mine  # an attribute of the instance, as accelerate leaves one
    edit_heads(
        Model("module:HandModel", model, "unknown"), CASES["hand-plain"].inputs, ALL, tmp_path, EditOptions(donors=1)
    )
    assert vars(block)["forward"] == mine
    assert "forward" not in vars(model.get_submodule("blocks.0"))


def test_blocks_before_the_edited_one_run_for_the_unedited_passes_only(tmp_path: Path) -> None:
    module = VIT.build()
    sizes: dict[str, list[int]] = {"layers.0": [], "layers.1": []}
    for name, seen in sizes.items():
        mlp = module.get_submodule(f"{name}.mlp")
        mlp.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(len(args[0])))
    chosen = ALL[ALL["layer"] == 1]
    edit_heads(Model("module:ViT", module, "unknown"), VIT.inputs, chosen, tmp_path, EditOptions(donors=1, draws=1))
    assert sizes["layers.0"] == [3, 2, 3, 2]
    assert sum(sizes["layers.1"]) == sum(sizes["layers.0"]) + len(read_edits(tmp_path))


def test_one_input_has_no_donors_and_one_head_no_other(tmp_path: Path) -> None:
    chosen = ALL[(ALL["input"] == NAMES[4]) & (ALL["layer"] == 1)]
    edit_heads(VIT.model, VIT.inputs, chosen, tmp_path, EditOptions())
    assert set(read_edits(tmp_path)["edit"]) == {"noop", "zero", "redirect", "control", "random", "other_head"}


def run(module: nn.Module, chosen: pd.DataFrame, out: Path, inputs: Any = None) -> None:
    edit_heads(Model("module:X", module, "unknown"), inputs or VIT.inputs, chosen, out, EditOptions(donors=1, draws=1))


@pytest.mark.parametrize(
    ("place", "found"),
    [
        ("blocks.0", "the values of head 0 on input 0 change from pass to pass by"),
        ("blocks.1.mlp", "an edit that changes nothing changes the final tokens by"),
    ],
    ids=["before the edit", "after the edit"],
)
def test_a_model_that_is_not_deterministic_is_found_out(place: str, found: str, tmp_path: Path) -> None:
    torch.manual_seed(5)
    module = CASES["hand-plain"].build()
    module.get_submodule(place).register_forward_hook(lambda _m, _a, out: out + 0.01 * torch.randn_like(out))
    with pytest.raises(
        NumericsError,
        match=rf"layer 1 \(blocks\.1\.attention\) of module:X: {found} .* not deterministic in evaluation",
    ):
        run(module, ALL[ALL["layer"] == 1], tmp_path, CASES["hand-plain"].inputs)


def test_attention_that_does_more_than_mix_values_is_found_out(tmp_path: Path, monkeypatch: Any) -> None:
    from sinkscope.attention import get

    form = type(get("relu"))
    mixed = form._attend
    monkeypatch.setattr(form, "_attend", lambda self, call: mixed(self, call) + 0.1)
    with pytest.raises(
        NumericsError, match=r"the output of head 2 of layer 0|head 0 of layer 1.*differs from its weights"
    ):
        run(CASES["relu"].model.module, ALL[ALL["head"] == 0], tmp_path, CASES["relu"].inputs)


@pytest.mark.parametrize(
    ("change", "error", "found"),
    [
        ({"head": 3}, OptionError, r"head 3 of layer 0 \(layers\.0\.attention\).*one of its 3 heads"),
        ({"layer": 2}, CaptureError, r"layer 2 of module:X, whose attention is not captured.*layer that is: 0"),
        ({"sink": 17}, CaptureError, r"over 17 tokens of 3 sequences.*token 17 among them"),
        ({"input": "x"}, InputError, r"no input is called x \(1 of 6 are missing\)"),
        ({"mass": None}, OptionError, r"the table of chosen rows has nulls"),
        ({"layer": 1, "head": 0}, InputError, r"two rows for head 0 of layer 1 on input 0.*one name per input"),
    ],
)
def test_rows_that_cannot_be_edited(change: dict[str, Any], error: Any, found: str, tmp_path: Path) -> None:
    chosen = ALL.copy()
    for name, value in change.items():
        chosen.loc[0, name] = value
    with pytest.raises(error, match=found):
        run(VIT.model.module, chosen, tmp_path)
    assert not (tmp_path / "edits").exists()


def test_a_table_without_its_columns(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"lacks sink, mass; expected input, layer, head, sink, mass"):
        run(VIT.model.module, ALL[["input", "layer", "head"]], tmp_path)


def test_two_inputs_of_one_name(tmp_path: Path) -> None:
    class Twins(Fixed):
        def batches(self, **options: Any) -> Iterator[Batch]:
            for batch in super().batches(**options):
                yield replace(batch, names=tuple("same" for _ in batch.names))

    chosen = ALL[ALL["input"] == NAMES[0]].assign(input="same")
    with pytest.raises(InputError, match="two inputs are called same"):
        run(VIT.model.module, chosen, tmp_path, Twins(VIT.example(5)))


def test_results_that_are_not_finite(tmp_path: Path) -> None:
    module = CASES["hand-plain"].build()

    def overflow(_module: nn.Module, _args: Any, out: Tensor) -> Tensor:
        if len(out) > max(SIZES):  # the last row of an edited pass
            out = out.clone()
            out[-1, 0] = torch.inf
        return out

    module.get_submodule("blocks.1.mlp").register_forward_hook(overflow)
    with pytest.raises(NumericsError, match=r"NaN or infinite final tokens after edits in layer 0 \(blocks\.0\.att"):
        run(module, ALL, tmp_path, CASES["hand-plain"].inputs)


@pytest.mark.parametrize("options", [{"donors": 0}, {"draws": 0}, {"rows": 3}, {"seed": -1}])
def test_options_have_a_least_value(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(OptionError, match=rf"{name}={value}; expected a whole number from \d on"):
        EditOptions(**options)
