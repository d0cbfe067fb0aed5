"""From a finished diagnosis to verdicts: the same model, the same inputs, the heads asked for, and nothing lost."""

from __future__ import annotations

import gc
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import sinkscope
from sinkscope._errors import (
    ArtifactError,
    CaptureError,
    InputError,
    ModelReferenceError,
    NumericsError,
    OptionError,
    SinkError,
    WeightsError,
)
from sinkscope.artifact import EDITS, head_columns, read_edits
from tests._tables import same
from tests.families.registry import FAMILIES
from tests.models._tiny import picture, save, save_processor
from tests.test_toy_model import saved

ARGUMENTS: dict[str, Any] = {"heads": "1.1,1.2", "inputs": 8, "donors": 1}


def sharp() -> nn.Module:
    """A tiny vision transformer whose queries pick one key: all of its heads are sink heads, most on few inputs."""
    model = FAMILIES["vit"].build()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter.mul_(5)
    return model


def pixels(count: int) -> torch.Tensor:
    x: torch.Tensor = FAMILIES["vit"].example(count).args[0]
    return x


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diagnosis of `sharp` on 13 inputs in 3 batches; not to be changed."""
    return sinkscope.diagnose(sharp(), pixels(13), tmp_path_factory.mktemp("made") / "out", batch_size=5).path


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "out"))


def verify(out: Path, **changes: Any) -> sinkscope.Diagnosis:
    given: dict[str, Any] = {"model": sharp(), "data": pixels(13)} | ARGUMENTS | changes
    return sinkscope.open(out).verify(**given)


def files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def verified(made: Path, tmp_path_factory: pytest.TempPathFactory) -> sinkscope.Diagnosis:
    """Verdicts on two heads; not to be changed."""
    return verify(Path(shutil.copytree(made, tmp_path_factory.mktemp("verified") / "out")))


# -- what is edited, and what is said ----------------------------------------------------------------


def test_every_chosen_head_and_input_gets_every_edit(verified: sinkscope.Diagnosis) -> None:
    edits, events = read_edits(verified.path), verified.events
    for head in (1, 2):
        own = edits[(edits["layer"] == 1) & (edits["head"] == head)]
        rows = events[(events["layer"] == 1) & (events["head"] == head) & (events["mass"] >= 0.3)].head(8)
        for edit in EDITS:
            assert set(own.loc[own["edit"] == edit, "input"]) == set(rows["input"]), edit
        sinks = own.drop_duplicates("input").set_index("input")["sink"]
        assert sinks.to_dict() == rows.set_index("input")["sink"].to_dict()
    assert len(edits[["layer", "head"]].drop_duplicates()) == 2


def test_heads_gain_verdicts_and_keep_the_rest(verified: sinkscope.Diagnosis, made: Path) -> None:
    heads, before = verified.heads, sinkscope.open(made).heads
    assert list(heads.columns) == [column.name for column in head_columns(verified=True)]
    pd.testing.assert_frame_equal(heads[list(before.columns)], before)
    edited = (heads["layer"] == 1) & heads["head"].isin([1, 2])
    assert heads["verdict"].notna().tolist() == edited.tolist()  # all heads are sink heads here
    assert heads.loc[edited, "n_verified"].tolist() == [8, 8]
    assert heads.loc[~edited, "effect_zero"].isna().all() and heads.loc[~edited, "n_verified"].isna().all()
    assert (heads.loc[edited, "effect_zero_low"] <= heads.loc[edited, "effect_zero"]).all()
    assert (heads.loc[edited, "effect_zero"] > 0).all()


def test_effects_are_means_of_the_edits(verified: sinkscope.Diagnosis) -> None:
    edits, effects = read_edits(verified.path), verified.effects
    zero = edits[(edits["layer"] == 1) & (edits["head"] == 2) & (edits["edit"] == "zero")]
    row = effects.query("layer == 1 and head == 2 and edit == 'zero' and measure == 'final'")
    assert row["value"].item() == pytest.approx(np.sqrt((zero["final"].astype(float) ** 2).mean()))
    assert row["n"].item() == len(zero) == 8


def test_a_verified_diagnosis_speaks_of_verdicts(verified: sinkscope.Diagnosis) -> None:
    assert "Causal edits of 2 sink heads say: " in verified.summary()
    assert str(verified.prescription()).startswith(f"Prescription for {verified.manifest['model']['reference']}")
    opened = sinkscope.open(verified.path)
    same(opened.verdicts, verified.verdicts)
    same(opened.effects, verified.effects)


def test_before_edits_there_is_nothing_to_say(out: Path) -> None:
    diagnosis = sinkscope.open(out)
    for ask in (lambda: diagnosis.verdicts, lambda: diagnosis.effects, diagnosis.prescription):
        with pytest.raises(ArtifactError, match=r"has no verdicts; expected .*; next: sinkscope verify"):
            ask()


def test_heads_of_another_kind_are_edited_when_asked_for_and_are_no_sinks(tmp_path: Path) -> None:
    family = FAMILIES["vit"]
    model, x = family.build(), pixels(11)
    plain = sinkscope.diagnose(model, x, tmp_path / "out", batch_size=11)
    kinds = plain.heads["kind"]
    assert "none" in set(kinds) and "sink" in set(kinds)
    diagnosis = plain.verify("all", 8, 1, model=model, data=x)
    heads = diagnosis.heads
    assert ((heads["verdict"] == "no sink") == (kinds != "sink")).all()
    assert (heads.loc[kinds != "sink", "n_verified"] == 8).all()
    assert heads.loc[kinds != "sink", "effect_control"].notna().all()
    few = heads[kinds == "sink"]  # on fewer than 8 inputs each
    assert (few["n_verified"] < 8).all() and (few["verdict"] == "undecided").all()
    reasons = diagnosis.verdicts.set_index(["layer", "head"])["reason"]
    assert all("oo few inputs" in reasons[layer, head] for layer, head in zip(few["layer"], few["head"], strict=True))


def test_without_a_sink_head_nothing_runs_and_all_are_no_sinks(tmp_path: Path) -> None:
    model, x = FAMILIES["vit"].build(), pixels(11)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.zero_()
    diagnosis = sinkscope.diagnose(model, x, tmp_path / "out").verify()  # a module that nobody gives anew
    assert (diagnosis.heads["verdict"] == "no sink").all()
    assert len(diagnosis.effects) == 0
    assert diagnosis.summary()


def test_frozen_attention_gives_other_numbers_where_later_layers_see_the_change(out: Path, tmp_path: Path) -> None:
    again = Path(shutil.copytree(out, tmp_path / "frozen"))
    changes: dict[str, Any] = {"heads": "0.0,0.1,0.2"}
    free, frozen = verify(out, **changes).effects, verify(again, freeze_all=True, **changes).effects
    keys = ["layer", "head", "edit", "measure"]
    both = free.merge(frozen, on=keys, suffixes=("", "_frozen"))
    zero = both[(both["edit"] == "zero") & (both["measure"] == "final")]
    write = both[both["measure"] == "write"]
    assert (zero["value"] != zero["value_frozen"]).all()
    np.testing.assert_allclose(write["value"], write["value_frozen"], rtol=1e-4, atol=1e-7)


# -- the same model and inputs ----------------------------------------------------------------


def test_changed_weights_are_refused_with_both_hashes(out: Path) -> None:
    other = sharp()
    with torch.no_grad():
        other.get_parameter("layers.1.mlp.fc1.bias")[0] += 1
    before = files(out)
    with pytest.raises(WeightsError) as error:
        verify(out, model=other)
    assert sinkscope.open(out).manifest["model"]["weights_sha256"] in error.value.found
    assert sinkscope.load(other).weights_sha256() in error.value.found
    assert files(out) == before


def test_changed_inputs_are_refused_with_both_hashes(out: Path) -> None:
    before = files(out)
    there = sinkscope.open(out).manifest["inputs"]["sha256"]
    for data, named in ((pixels(13) + 1, there), (pixels(12), "count 12 now, 13 then")):
        with pytest.raises(InputError) as error:
            verify(out, data=data)
        assert named in error.value.found and there in error.value.found
        assert "verify(data=INPUTS)" in error.value.next_step
    assert files(out) == before


def test_a_module_and_inputs_in_memory_must_be_given_anew(out: Path) -> None:
    before = files(out)
    with pytest.raises(OptionError, match=r"was made from a torch module .*verify\(model=MODULE, data=INPUTS\)"):
        verify(out, model=None)
    with pytest.raises(OptionError, match=r"were not read from one file or folder.*verify\(data=INPUTS\)"):
        verify(out, data=None)
    assert files(out) == before


def test_a_reference_and_a_folder_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save("dinov2", tmp_path / "model")
    save_processor(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for number in range(9):
        picture(40, 40, number).save(tmp_path / "pictures" / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    sinkscope.diagnose("./model", "pictures", "out", batch_size=4)
    with monkeypatch.context() as elsewhere:
        elsewhere.chdir("/")
        with pytest.raises(ModelReferenceError) as moved:
            sinkscope.open(tmp_path / "out").verify("0.0")
        assert "from the folder that diagnose ran in" in moved.value.next_step
        diagnosis = sinkscope.open(tmp_path / "out").verify("0.0", 9, 1, model=str(tmp_path / "model"))
    assert diagnosis.heads["n_verified"].notna().sum() == 1
    shutil.rmtree("out/edits")
    (tmp_path / "pictures").rename(tmp_path / "elsewhere")
    with pytest.raises(InputError) as gone:
        sinkscope.open("out").verify("0.0")
    assert str(tmp_path / "pictures") in gone.value.found and "verify(data=INPUTS)" in gone.value.next_step
    found = sinkscope.open("out").verify("0.0", 9, 1, data="elsewhere")
    same(found.effects, diagnosis.effects)


def test_a_toy_is_verified_on_its_task(tmp_path: Path) -> None:
    reference = saved(tmp_path / "runs")
    diagnosis = sinkscope.diagnose(reference, None, tmp_path / "out", limit=11)
    with pytest.raises(OptionError, match=r"data for toy:.*runs on its own task"):
        diagnosis.verify("0.0", 8, 1, data=torch.zeros(1))
    assert diagnosis.verify("0.0", 8, 1).heads["n_verified"].tolist()[0] == 8


class _Restless(nn.Module):
    """Dropout that evaluation mode does not end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.1, training=True)


def test_a_model_that_is_not_deterministic_is_named(tmp_path: Path) -> None:
    model, x = sharp(), pixels(9)
    model.layers[1].mlp = nn.Sequential(model.layers[1].mlp, _Restless())  # type: ignore[index, union-attr]
    diagnosis = sinkscope.diagnose(model, x, tmp_path / "out")
    with pytest.raises(NumericsError) as error:
        diagnosis.verify("1.0", 8, model=model, data=x)
    assert "not deterministic" in error.value.found and "layer 1" in error.value.found
    assert not (tmp_path / "out" / "edits").exists()


# -- heads and numbers that cannot be ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"heads": "1.3"}, OptionError, "there is no head 1.3; expected a head from 1.0 to 1.2; next: correct --heads"),
        ({"heads": "0.0,7.0"}, OptionError, "there is no layer 7; expected a layer among 0 to 1"),
        ({"heads": "first"}, OptionError, "--heads is 'first'; expected auto, all, or heads as layer.head"),
        ({"heads": "1.1,"}, OptionError, "next: use --heads 0.2,3.11"),
        ({"inputs": 7}, OptionError, "--inputs is 7; expected a whole number from 8 on, the fewest that make an inter"),
        ({"donors": 0}, OptionError, "--donors is 0; expected a whole number from 1 on"),
        ({"batch_size": 3}, OptionError, "--batch-size is 3; expected a whole number from 4 on"),
        ({"inputs": pixels(3)}, OptionError, "expected a whole number from 8 on"),
    ],
)
def test_what_cannot_be_edited(changes: dict[str, Any], kind: type[SinkError], message: str, out: Path) -> None:
    before = files(out)
    with pytest.raises(kind) as error:
        verify(out, **changes)
    assert message in str(error.value)
    assert files(out) == before


def test_a_head_of_a_layer_that_was_not_measured(tmp_path: Path) -> None:
    family = FAMILIES["t5"]
    example = family.example(8)
    given = dict(zip(("input_ids",), example.args, strict=False)) | dict(example.kwargs)
    diagnosis = sinkscope.diagnose(family.build(), given, tmp_path / "out")
    with pytest.raises(CaptureError) as error:
        diagnosis.verify("3.0", model=family.build(), data=given)
    assert error.value.found.startswith("layer 3 of head 3.0 was not measured (not measured are ")
    assert "cross attention" in error.value.found
    assert error.value.expected == "a head of a measured layer: 0 to 1"


def test_too_few_inputs(tmp_path: Path) -> None:
    diagnosis = sinkscope.diagnose(sharp(), pixels(7), tmp_path / "out")
    with pytest.raises(InputError, match="has 7 inputs; expected at least 8, the fewest that make an interval"):
        diagnosis.verify(model=sharp(), data=pixels(7))


# -- folders ----------------------------------------------------------------


def test_a_diagnosis_that_goes_on_keeps_its_verdicts(verified: sinkscope.Diagnosis, tmp_path: Path) -> None:
    out = Path(shutil.copytree(verified.path, tmp_path / "out"))
    again = sinkscope.diagnose(sharp(), pixels(13), out, batch_size=5)
    same(again.heads, verified.heads)


def test_a_folder_without_a_name_lives_as_long_as_the_verdicts() -> None:
    diagnosis = sinkscope.diagnose(sharp(), pixels(13)).verify("1.2", 8, 1, model=sharp(), data=pixels(13))
    gc.collect()
    assert len(diagnosis.events) == 13 * 6
    path = diagnosis.path
    del diagnosis
    gc.collect()
    assert not path.exists()
