"""Diagnoses compared: their tables, and what their models do with the same inputs, against plain forward passes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from torch import nn

import sinkscope
from sinkscope import treat
from sinkscope._errors import ArtifactError, OptionError
from sinkscope.models import Model, make_inputs
from sinkscope.treat import Gate, Registers
from tests._tables import same
from tests.models._tiny import picture, save, save_processor
from tests.report._fake import Fake, write_fake
from tests.treat._models import VISION, example, learned, model

N = 11


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return example("llama", N)


@pytest.fixture(scope="module")
def gated() -> Any:
    return learned(treat.treat(model("llama"), [Gate()]), 3.0)


@pytest.fixture(scope="module")
def folders(ids: torch.Tensor, gated: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Diagnoses of a tiny language model and of the same with gates; not to be changed."""
    out = tmp_path_factory.mktemp("llama")
    return tuple(  # type: ignore[return-value]  # as many as the annotation says
        sinkscope.diagnose(made, ids, out / name, batch_size=4).path
        for name, made in (("plain", model("llama")), ("gated", gated))
    )


@pytest.fixture(scope="module")
def compared(
    folders: tuple[Path, Path], gated: Any, ids: torch.Tensor, tmp_path_factory: pytest.TempPathFactory
) -> sinkscope.Comparison:
    """Their comparison; not to be changed."""
    out = tmp_path_factory.mktemp("compared") / "out"
    return sinkscope.compare(*folders, models=[model("llama"), gated], data=ids, out=out)


def numbers(comparison: sinkscope.Comparison, group: str, measure: str, number: int = 1) -> dict[str, Any]:
    table = comparison.measures
    chosen = table[(table["group"] == group) & (table["measure"] == measure) & (table["model"] == number)]
    (row,) = chosen[chosen["layer"].isna()].to_dict("records")
    return {str(name): value for name, value in row.items()}


# -- tables of the diagnoses ---------------------------------------------------------------------------------------


def test_rates_are_those_of_the_tables(compared: sinkscope.Comparison, folders: tuple[Path, Path]) -> None:
    first, second = (sinkscope.open(folder) for folder in folders)
    for name, column in (("sink_rate", "sink_rate"), ("event_rate", "event_rate")):
        row = numbers(compared, "sinks", name)
        assert row["value"] == pytest.approx(second.heads[column].mean())
        assert row["change"] == pytest.approx(second.heads[column].mean() - first.heads[column].mean())
    mass = numbers(compared, "sinks", "mass")
    assert mass["low"] < mass["value"] < mass["high"]
    assert numbers(compared, "sinks", "mass", 0)["value"] == pytest.approx(first.events["mass"].mean(), rel=1e-5)
    sinks = second.events[second.events["mass"] >= 0.3]
    assert numbers(compared, "roles", "first token")["value"] == pytest.approx((sinks["sink"] == 0).mean())
    assert numbers(compared, "roles", "unknown")["value"] == 1  # tensors have no roles
    by_input = (sinks["value_ratio"]).groupby(sinks["input"]).median()
    assert numbers(compared, "norms", "value_ratio")["value"] == pytest.approx(by_input.mean(), rel=1e-5)
    for kind in ("uniform", "none"):
        row = numbers(compared, "kinds", kind)
        assert row["value"] == (second.heads["kind"] == kind).sum()
        assert row["change"] == row["value"] - (first.heads["kind"] == kind).sum()


def test_the_number_of_sink_heads_is_that_of_the_head_table(
    compared: sinkscope.Comparison, folders: tuple[Path, Path]
) -> None:
    for number, folder in enumerate(folders):
        row = numbers(compared, "sinks", "sink_heads", number)
        assert row["value"] == (sinkscope.open(folder).heads["kind"] == "sink").sum()


def test_heads_are_compared_one_by_one(compared: sinkscope.Comparison, folders: tuple[Path, Path]) -> None:
    first, second = (sinkscope.open(folder) for folder in folders)
    heads = compared.heads
    assert heads[["layer", "head"]].to_numpy().tolist() == first.heads[["layer", "head"]].to_numpy().tolist()
    for end, diagnosis in (("before", first), ("after", second)):
        np.testing.assert_allclose(heads[f"sink_rate_{end}"], diagnosis.heads["sink_rate"])
        means = diagnosis.events.groupby(["layer", "head"])["mass"].mean()
        np.testing.assert_allclose(heads[f"mass_{end}"], means, rtol=1e-5)
        assert heads[end].tolist() == diagnosis.heads["kind"].tolist()  # no head was edited
    np.testing.assert_allclose(heads["mass_change"], heads["mass_after"] - heads["mass_before"], atol=1e-12)
    assert (heads["mass_change_low"] < heads["mass_change_high"]).all()
    moved = compared.transitions
    assert moved["heads"].sum() == len(heads)


def test_a_comparison_is_read_back_and_written_again(
    compared: sinkscope.Comparison, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    opened = sinkscope.open_comparison(compared.path)
    same(opened.measures, compared.measures)
    assert json.loads((compared.path / "comparison.json").read_text())["models"][1]["letter"] == "B"
    one = sinkscope.compare(*folders, outputs=False, out=tmp_path / "out", command="x")
    content = {path.name: path.read_bytes() for path in one.path.iterdir()}
    again = sinkscope.compare(*folders, outputs=False, out=tmp_path / "out", command="x")
    assert {path.name: path.read_bytes() for path in again.path.iterdir()} == content
    assert again.inputs.empty
    assert "outputs" not in set(again.measures["group"])


def test_what_was_not_measured_is_no_zero(tmp_path: Path) -> None:
    hidden = write_fake(tmp_path / "b", Fake(layers=3, inputs=9, projection=False))
    found = sinkscope.compare(write_fake(tmp_path / "a", Fake(layers=3, inputs=9)), hidden, outputs=False)
    assert numbers(found, "classes", "nop", 0)["value"] > 0
    for group, measure in (("classes", "nop"), ("classes", "other"), ("norms", "update_ratio"), ("writes", "silent")):
        row = numbers(found, group, measure)
        assert np.isnan(row["value"]) and np.isnan(row["change"]), measure
    assert numbers(found, "sinks", "event_rate")["value"] > 0
    told = "the output projection of 3 of 3 layers of B was not found: what sinks write there, and classes that need it"
    assert found.facts["notes"][-1].startswith(told)


def test_verdicts_are_counted_and_followed(tmp_path: Path) -> None:
    one = write_fake(tmp_path / "a", Fake(layers=4, inputs=16, verdicts=("nop", "bias")))
    two = write_fake(tmp_path / "b", Fake(layers=4, inputs=16, verdicts=("bias",)))
    found = sinkscope.compare(one, two, outputs=False)
    heads = [sinkscope.open(folder).heads for folder in (one, two)]
    for word in ("nop", "bias"):
        counts = [int((table["verdict"] == word).sum()) for table in heads]
        row = numbers(found, "verdicts", word)
        assert (row["value"], row["change"]) == (counts[1], counts[1] - counts[0])
    moved = found.transitions.set_index(["before", "after"])["heads"]
    assert moved["nop", "bias"] == ((heads[0]["verdict"] == "nop") & (heads[1]["verdict"] == "bias")).sum() > 0
    assert moved["bias", "bias"] > 0 and ("nop", "nop") not in moved
    assert f"{moved['nop', 'bias']} from nop to bias" in found.summary()


def test_a_head_that_was_not_edited_is_no_change(tmp_path: Path) -> None:
    one = write_fake(tmp_path / "a", Fake(layers=4, inputs=16, verdicts=("nop",)))
    two = Path(shutil.copytree(one, tmp_path / "b"))
    heads = sinkscope.open(two).heads
    heads.loc[heads["verdict"] == "nop", "verdict"] = None
    heads.to_parquet(two / "heads.parquet", schema=pq.read_schema(one / "heads.parquet"), index=False)
    found = sinkscope.compare(one, two, outputs=False)
    assert found.transitions.set_index(["before", "after"])["heads"]["nop", "sink"] > 0
    assert "Every one of 20 heads is in B what it is in A." in found.summary()


# -- what the models do ----------------------------------------------------------------------------------------------


def test_final_tokens_and_outputs_agree_as_plain_forwards_say(
    compared: sinkscope.Comparison, gated: Any, ids: torch.Tensor
) -> None:
    models = (model("llama"), gated)
    with torch.inference_mode():
        hidden = [made.model(ids)[0].double() for made in models]
        logs = [made(ids).logits.double().log_softmax(-1) for made in models]
    table = compared.inputs[compared.inputs["model"] == 1].set_index("input")
    assert table.index.tolist() == [str(number) for number in range(N)]
    change = ((hidden[1] - hidden[0]).square().sum((1, 2)) / hidden[0].square().sum((1, 2))).sqrt()
    np.testing.assert_allclose(table["final_change"], change, rtol=1e-4)
    cosine = torch.cosine_similarity(hidden[0], hidden[1], dim=-1).mean(1)
    np.testing.assert_allclose(table["final_cosine"], cosine, rtol=1e-5)
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(1)
    np.testing.assert_allclose(table["output_kl"], kl, rtol=1e-3)
    top = (logs[0].argmax(-1) == logs[1].argmax(-1)).double().mean(1)
    np.testing.assert_allclose(table["output_top1"], top)
    losses = [-log[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].mean(1) for log in logs]
    for number, loss in enumerate(losses):
        own = compared.inputs[compared.inputs["model"] == number]
        np.testing.assert_allclose(own["loss"], loss, rtol=1e-5)
    whole = numbers(compared, "outputs", "final_change")["value"]
    assert whole == pytest.approx(float(change.square().mean().sqrt()), rel=1e-4)
    row = numbers(compared, "outputs", "loss")
    assert row["change"] == pytest.approx(float((losses[1] - losses[0]).mean()), abs=1e-5)
    assert row["change_low"] < row["change"] < row["change_high"]
    assert np.isnan(numbers(compared, "outputs", "output_kl")["change"])


def test_outliers_are_of_what_blocks_read(compared: sinkscope.Comparison, ids: torch.Tensor) -> None:
    with torch.inference_mode():
        states = model("llama")(ids, output_hidden_states=True).hidden_states
    table = compared.measures
    largest = table[(table["measure"] == "largest") & (table["model"] == 0)].set_index("layer")["value"]
    assert largest.index.tolist() == [0, 1, 2, 3]
    for layer in range(3):
        assert largest[layer] == pytest.approx(float(states[layer].abs().amax((1, 2)).mean()), rel=1e-5)


def test_a_harmless_treatment_changes_nothing(tmp_path: Path) -> None:
    x = example("dinov2", 5)
    plain = model("dinov2")
    treated = treat.treat(plain, [Registers(2)], probe=x)
    folders = [sinkscope.diagnose(m, x, tmp_path / name).path for name, m in (("a", plain), ("b", treated))]
    found = sinkscope.compare(*folders, models=[plain, treated], data=x)
    assert found.path == tmp_path / "b" / "compare-a"
    table = found.inputs[found.inputs["model"] == 1]
    assert table["final_change"].max() < 1e-4 and table["final_cosine"].min() > 0.9999
    added = found.measures[found.measures["measure"] == "largest_added"]
    assert added["model"].unique().tolist() == [1] and added["layer"].tolist() == [0, 1, 2]
    (note,) = found.facts["notes"]
    assert note.startswith("B has 12 tokens per input and A 10: the tokens that only one of them has are queries")


def test_padding_does_not_count(tmp_path: Path) -> None:
    module, ids = model("bert"), example("bert", 4)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    data = {"input_ids": ids, "attention_mask": mask}
    other = learned(treat.treat(module, [Gate()]), 2.0)
    folders = [sinkscope.diagnose(m, data, tmp_path / name).path for name, m in (("a", module), ("b", other))]
    found = sinkscope.compare(*folders, models=[module, other], data=data)
    with torch.inference_mode():
        one, two = (m(ids[1:2, :7]).last_hidden_state.double() for m in (module, other))
    row = found.inputs[(found.inputs["model"] == 1) & (found.inputs["input"] == "1")]
    assert row["final_change"].item() == pytest.approx(float((two - one).norm() / one.norm()), rel=1e-4)


def test_registers_inside_the_sequence_are_left_out(tmp_path: Path) -> None:
    x = example("dinov2", 3)
    modules = [model("dinov2"), model("dinov2-registers")]
    folders = [sinkscope.diagnose(m, x, tmp_path / str(n)).path for n, m in enumerate(modules)]
    found = sinkscope.compare(*folders, models=modules, data=x)
    with torch.inference_mode():
        one, two = (m(x).last_hidden_state.double() for m in modules)
    two = torch.cat([two[:, :1], two[:, 3:]], 1)
    expected = ((two - one).square().sum((1, 2)) / one.square().sum((1, 2))).sqrt()
    np.testing.assert_allclose(found.inputs["final_change"], expected, rtol=1e-4)


def test_the_first_inputs_only(folders: tuple[Path, Path], gated: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    told: list[tuple[int, int, int | None]] = []
    found = sinkscope.compare(
        *folders, models=[model("llama"), gated], data=ids, limit=6, out=tmp_path / "out",
        on_input=lambda *done: told.append(done),
    )  # fmt: skip
    assert found.inputs["input"].unique().tolist() == [str(n) for n in range(6)]
    assert numbers(found, "sinks", "mass")["n"] == N and numbers(found, "outputs", "loss")["n"] == 6
    assert told[-1] == (1, 6, 6)


def test_labels_of_a_dataset_give_accuracy(tmp_path: Path) -> None:
    import io

    save("vit", tmp_path / "vit")
    save_processor(tmp_path / "vit")
    rows = []
    for number in range(5):
        buffer = io.BytesIO()
        picture(37, 41, number).save(buffer, "PNG")
        rows.append({"image": buffer.getvalue(), "label": number % 2})
    pd.DataFrame(rows).to_parquet(tmp_path / "data.parquet")
    one = sinkscope.diagnose(str(tmp_path / "vit"), tmp_path / "data.parquet", tmp_path / "a", kind="dataset")
    found = sinkscope.compare(one, one, out=tmp_path / "out")
    loaded = sinkscope.load(str(tmp_path / "vit"))
    (batch,) = make_inputs(loaded, tmp_path / "data.parquet", kind="dataset").batches()
    right = (loaded.run(batch).logits.argmax(-1) == torch.tensor([0, 1, 0, 1, 0])).double()
    for number in (0, 1):
        own = found.inputs[found.inputs["model"] == number]
        assert own["accuracy"].tolist() == right.tolist()
    assert numbers(found, "outputs", "accuracy")["change"] == 0
    assert numbers(found, "outputs", "output_top1")["value"] == 1
    assert "B has the weights of A" in found.facts["notes"]


# -- what does not go together -----------------------------------------------------------------------------------------


def test_other_inputs_are_compared_without_pairing(folders: tuple[Path, Path], tmp_path: Path) -> None:
    other = sinkscope.diagnose(model("llama"), example("llama", N, seed=1), tmp_path / "other").path
    found = sinkscope.compare(folders[0], other, outputs=False)
    assert found.facts["models"][1]["same_inputs"] is False
    (note, _) = found.facts["notes"]
    assert note.startswith("the inputs of B are not known to be those of A (11 inputs from tensors, 11 inputs from ")
    assert "without pairing" in note
    paired = sinkscope.compare(*folders, outputs=False, out=tmp_path / "paired")
    assert paired.facts["models"][1]["same_inputs"] is True


def test_models_of_other_depth_are_compared_as_wholes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    ids = example("llama", N)
    small = model("gpt2")
    small.transformer.h = small.transformer.h[:2]
    other = sinkscope.diagnose(small, ids, tmp_path / "small").path
    found = sinkscope.compare(folders[0], other, models=[model("llama"), small], data=ids)
    assert found.heads.empty and found.transitions.empty
    told = "heads are not compared one by one: B has 2 layers of 3 heads, A has 3 layers of 6 heads"
    assert told in found.facts["notes"]
    assert not np.isnan(numbers(found, "sinks", "mass")["change"])
    assert set(found.measures.loc[found.measures["group"] == "outliers", "model"]) == {0, 1}
    assert np.isfinite(numbers(found, "outputs", "final_change")["value"])  # both are 30 wide


def test_final_tokens_of_other_widths_are_not_compared(tmp_path: Path) -> None:
    x = example("vit", 3)
    wide = transformers.ViTModel(transformers.ViTConfig(**VISION | {"hidden_size": 24}))
    modules: list[Any] = [model("vit"), wide]
    folders = [sinkscope.diagnose(made, x, tmp_path / str(n)).path for n, made in enumerate(modules)]
    found = sinkscope.compare(*folders, models=modules, data=x)
    assert found.facts["notes"] == ["final tokens are 21 wide in A and 24 in B: not compared"]
    assert "final_change" not in set(found.measures["measure"])
    assert len(found.measures.query("model == 1 and measure == 'kurtosis'")) == 4


def test_a_model_that_cannot_be_loaded_leaves_the_tables(folders: tuple[Path, Path], tmp_path: Path) -> None:
    found = sinkscope.compare(*folders, out=tmp_path / "out")
    assert found.inputs.empty and len(found.heads)
    first, second = found.facts["notes"]
    assert first.startswith("the model of A was not run: ") and "which no reference can load" in first
    assert second == "the model of B was not run: that of A was not"
    assert found.facts["models"][0]["not_run"] is not None
    some = sinkscope.compare(*folders, models=[model("llama"), None], data=example("llama", N), out=tmp_path / "out")
    assert some.facts["models"][0]["not_run"] is None
    (note,) = some.facts["notes"]
    assert note.startswith("the model of B was not run: ")


def test_weights_have_to_be_those_of_the_diagnosis(folders: tuple[Path, Path], tmp_path: Path) -> None:
    models = [model("llama"), model("llama")]
    found = sinkscope.compare(*folders, models=models, data=example("llama", N), out=tmp_path / "out")
    (note,) = found.facts["notes"]
    assert note.startswith("the model of B was not run: the weights of ")


def test_wrong_use_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="1 diagnosis to compare; expected 2 to 26; next: sinkscope compare BEFORE AFTER"
    ):
        sinkscope.compare(folders[0])
    with pytest.raises(OptionError, match="limit is 0; expected a whole number from 1 on; next: correct --limit"):
        sinkscope.compare(*folders, limit=0)
    with pytest.raises(OptionError, match="1 models for 2 diagnoses"):
        sinkscope.compare(*folders, models=[None])
    with pytest.raises(ArtifactError, match=r"there is no folder .*nowhere; expected a folder that sinkscope diagnose"):
        sinkscope.compare(folders[0], tmp_path / "nowhere")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(ArtifactError, match="mine is a folder that holds no comparison; expected a new folder"):
        sinkscope.compare(*folders, out=tmp_path / "mine")
    with pytest.raises(ArtifactError, match=r"mine holds no comparison\.json"):
        sinkscope.open_comparison(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_damaged_comparison_is_told(compared: sinkscope.Comparison, tmp_path: Path) -> None:
    out = Path(shutil.copytree(compared.path, tmp_path / "out"))
    (out / "heads.parquet").write_bytes((out / "inputs.parquet").read_bytes())
    with pytest.raises(ArtifactError, match=r"heads.parquet is damaged \(its columns are model, input"):
        sinkscope.open_comparison(out)


def test_three_at_once_have_one_base(folders: tuple[Path, Path], gated: Any, ids: torch.Tensor, tmp_path: Path) -> None:
    models: list[nn.Module | Model | str | None] = [model("llama"), gated, model("llama")]
    found = sinkscope.compare(*folders, folders[0], models=models, data=ids, limit=3, out=tmp_path / "out")
    assert sorted(found.heads["model"].unique()) == [1, 2]
    assert numbers(found, "outputs", "final_change", 2)["value"] == 0
    assert numbers(found, "outputs", "final_change", 1)["value"] > 0.01
    assert (found.measures.query("model == 2")["change"].dropna() == 0).all()
    assert len(found.facts["sentences"]) == 2
    assert found.summary().splitlines()[-1].startswith("C: ")
