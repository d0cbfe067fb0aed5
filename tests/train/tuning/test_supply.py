"""Which inputs are trained on, in which order, and which are held out; pictures, texts, datasets and batches."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from sinkscope import treat
from sinkscope._errors import InputError
from sinkscope.models import load, make_inputs
from sinkscope.models._labels import labels_of
from sinkscope.models._placement import seeded
from sinkscope.train.tuning import TuneOptions, _supply, tune
from sinkscope.train.tuning._supply import make_supply
from sinkscope.treat import Gate, OffByOne, Registers
from tests.models._tiny import bert_tokenizer, llama_tokenizer, picture, save, save_processor
from tests.train.tuning._tuned import INPUTS, SHORT, base, treated
from tests.treat._models import example


def inputs(count: int = INPUTS, **options: Any) -> Any:
    return make_inputs(base("vit"), example("vit", count), **options)


def test_every_input_of_an_epoch_comes_once_and_held_out_ones_never() -> None:
    supply = make_supply(inputs(), 5, 0.2, seed=3)
    assert (supply.count, supply.held_out_count) == (18, 5)
    drawn = list(supply.train(18, 0))  # 18 steps of 5 inputs are 5 epochs
    rows = [row for each in drawn for row in each.rows]
    epochs = [rows[start : start + 18] for start in range(0, 90, 18)]
    assert all(Counter(epoch) == Counter(supply.training) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    held = [row for each in supply.evaluate() for row in each.rows]
    assert held == sorted(held) == list(supply.held_out) and not set(held) & set(rows)
    x = example("vit", INPUTS)
    for each in (*drawn, *supply.evaluate()):
        assert torch.equal(each.batch.args[0], x[list(each.rows)])
        assert each.batch.names == tuple(map(str, each.rows))


def test_what_is_done_is_left_out_and_the_rest_the_same() -> None:
    supply = make_supply(inputs(), 5, 0.2, seed=3)
    whole = [each.rows for each in supply.train(11, 0)]
    assert [each.rows for each in supply.train(11, 4)] == whole[4:]


@pytest.mark.parametrize(("share", "expected"), [(0.001, 1), (0.2, 5), (0.5, 12), (0.999, 22)])
def test_one_input_at_least_is_on_either_side(share: float, expected: int) -> None:
    assert make_supply(inputs(), 5, share, 0).held_out_count == expected


def test_the_seed_chooses_and_at_most_256_are_held_out() -> None:
    first, again, other = (make_supply(inputs(), 5, 0.3, seed).held_out for seed in (0, 0, 1))
    assert first == again != other
    many = make_inputs(base("vit"), torch.zeros(1009, 3, 15, 15))
    assert make_supply(many, 5, 0.5, 0).held_out_count == 256


def test_a_limit_and_readers_ahead_hold_here_too() -> None:
    supply = make_supply(inputs(limit=7, num_workers=2), 3, 0.2, 0)
    assert {*supply.training, *supply.held_out} == set(range(7))
    assert len(list(supply.train(5, 0))) == 5


@pytest.mark.parametrize("count", [0, 1])
def test_two_inputs_are_needed(count: int) -> None:
    given = inputs(1) if count else make_inputs(base("vit"), iter([]))
    with pytest.raises(InputError, match=f"{count} (inputs|batches) to tune on; expected two or more"):
        make_supply(given, 5, 0.2, 0)


def test_pictures_are_prepared_once_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    one = example("vit", 1).nbytes
    for room, reads in ((10 * INPUTS * one, INPUTS), (7 * one, 7 + 2 * (INPUTS - 7))):
        monkeypatch.setattr(_supply, "CACHED_BYTES", room)
        found = inputs()
        read: list[int] = []
        real = found.items.read
        object.__setattr__(
            found.items, "read", lambda index, real=real, read=read: (read.append(index), real(index))[1]
        )
        supply = make_supply(found, 11, 0.04, 0)
        for _ in range(2):
            list(supply.train(2, 0))
            list(supply.evaluate())
        assert len(read) == reads


def test_batches_of_an_iterable_stay_together() -> None:
    ids = example("bert", 12)
    batches = [
        {"input_ids": ids[row : row + 3, :tokens]} for row, tokens in zip(range(0, 12, 3), (5, 7, 11, 3), strict=True)
    ]
    made = treated("bert", OffByOne(), Gate())
    once = iter(batches)
    supply = make_supply(make_inputs(made, once), 5, 0.2, 0)
    assert (supply.count, supply.held_out_count) == (9, 3)
    seen = [each for each in supply.train(6, 0)]
    assert {each.rows for each in seen} == {tuple(range(unit * 3, unit * 3 + 3)) for unit in supply.training}
    for each in seen:
        given = batches[each.rows[0] // 3]["input_ids"]
        assert torch.equal(each.batch.kwargs["input_ids"], given)
    found = tune(made, make_inputs(made, batches), TuneOptions(**SHORT))
    assert (found.inputs, found.held_out_inputs) == (9, 3)
    trained = found.table["loss"].dropna()
    assert trained.iloc[-3:].mean() < trained.iloc[:3].mean()
    with pytest.raises(InputError, match=r"1 batches to tune on; .*; next: give smaller batches"):
        tune(made, make_inputs(made, {"input_ids": ids}), TuneOptions(**SHORT))


def test_folders_of_pictures_and_bad_ones_left_out(tmp_path: Path) -> None:
    model, pictures = tmp_path / "model", tmp_path / "pictures"
    save("dinov2", model)
    save_processor(model)
    pictures.mkdir()
    for number in range(11):
        picture(37, 41, number).save(pictures / f"{number:02}.png")
    (pictures / "05.png").write_bytes(b"no picture")
    plain = load(str(model))
    probe = make_inputs(plain, [picture(37, 41, 99)])
    made = treat.treat(plain, [OffByOne(), Registers(2), Gate()], probe=next(probe.batches()))
    found = tune(made, make_inputs(made, pictures, skip_bad=True), TuneOptions(**SHORT))
    assert (found.inputs, found.held_out_inputs) == (8, 2)
    assert list(found.left_out) == ["05.png"] and "05.png" in found.left_out["05.png"]
    assert found.remarks == ("1 inputs could not be read and are left out.",)
    assert found.loss_after < found.loss_before
    with pytest.raises(InputError, match=r"05\.png"):
        tune(made, make_inputs(made, pictures), TuneOptions(**SHORT))


def test_windows_of_a_text(tmp_path: Path) -> None:
    save("llama", tmp_path)
    llama_tokenizer(tmp_path, bos=True)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat . the dog ran far , the bird sat . " * 29)
    plain = load(str(tmp_path))
    made = treat.treat(plain, Gate("elementwise"))
    found = tune(made, make_inputs(made, text, length=13), TuneOptions("lm", lr=3e-2, **SHORT))
    assert found.loss_after < found.loss_before


def test_strings_of_different_length_and_their_classes(tmp_path: Path) -> None:
    save("bert", tmp_path)
    bert_tokenizer(tmp_path)
    plain = load(load(str(tmp_path)).module.bert, modality="text")  # type: ignore[arg-type]  # nn.Module's attributes
    with seeded(0), torch.no_grad():
        for parameter in plain.module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    strings = [("the cat sat " if row % 2 else "dog ran far far ") * (1 + row % 3) for row in range(INPUTS)]
    made = treat.treat(plain, [Gate(), OffByOne()])
    options = TuneOptions("task", **{**SHORT, "lr": 0.1, "steps": 31})
    found = tune(made, make_inputs(made, strings), options, labels=[row % 2 for row in range(INPUTS)])
    assert found.accuracy_after == 1.0


def parquet(path: Path, column: str, values: list[Any], groups: int = 1) -> None:
    pictures = []
    for number in range(len(values)):
        file = io.BytesIO()
        picture(28, 28, number).save(file, "PNG")
        pictures.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"image": pictures, column: values})
    pq.write_table(table, path, row_group_size=-(-len(values) // groups))


def test_labels_are_those_of_the_dataset(tmp_path: Path) -> None:
    model, data = tmp_path / "model", tmp_path / "data"
    save("vit", model)
    save_processor(model)
    data.mkdir()
    parquet(data / "a.parquet", "label", [1, 0, 1, 1, 0], groups=2)
    parquet(data / "b.parquet", "label", [0, 0, 1])
    made = treat.treat(load(str(model)), Gate("elementwise"))
    found = make_inputs(made, data, kind="dataset")
    assert labels_of(found) == (1, 0, 1, 1, 0, 0, 0, 1)
    assert labels_of(make_inputs(made, data, kind="dataset", limit=3)) == (1, 0, 1)
    tuned = tune(made, found, TuneOptions("task", **SHORT))
    assert tuned.accuracy_before is not None and tuned.reference_accuracy == tuned.accuracy_before


@pytest.mark.parametrize(("column", "values"), [("label", ["cat", "dog"]), ("size", [1, 2])])
def test_other_columns_are_no_labels(column: str, values: list[Any], tmp_path: Path) -> None:
    save("vit", tmp_path)
    save_processor(tmp_path)
    parquet(tmp_path / "data.parquet", column, values)
    made = load(str(tmp_path))
    assert labels_of(make_inputs(made, tmp_path / "data.parquet")) is None
    assert labels_of(make_inputs(made, [picture(28, 28)])) is None
    assert labels_of(inputs()) is None


def test_a_missing_label_is_told(tmp_path: Path) -> None:
    save("vit", tmp_path)
    save_processor(tmp_path)
    parquet(tmp_path / "data.parquet", "label", [1, None, 0])
    with pytest.raises(InputError, match="row 1 with label None; expected whole numbers from 0 on"):
        labels_of(make_inputs(load(str(tmp_path)), tmp_path / "data.parquet"))
