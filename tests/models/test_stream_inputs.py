"""Tensors, dicts of model arguments, and iterables of batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from sinkscope._errors import InputError, OptionError
from sinkscope.models import Model, load, make_inputs
from tests.models._tiny import HF, bert_tokenizer, picture, save, save_processor


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("vision")
    save("dinov2", folder)
    save_processor(folder)
    return load(str(folder))


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("text")
    save("bert", folder)
    bert_tokenizer(folder)
    return load(str(folder))


def test_a_tensor_is_split_into_batches(vision: Model) -> None:
    pixels = torch.randn(7, 3, 21, 35)
    inputs = make_inputs(vision, pixels, batch_size=3)
    batches = list(inputs.batches())
    assert [batch.names for batch in batches] == [("0", "1", "2"), ("3", "4", "5"), ("6",)]
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), pixels)
    assert inputs.identity["kind"] == "tensors" and inputs.identity["count"] == 7
    layout = batches[2].layouts[0]
    assert layout is not None and (len(layout), layout.rows[-1], layout.cols[-1]) == (16, 2, 4)
    pixels[6, 2, 20, 34] += 1
    assert make_inputs(vision, pixels).identity != inputs.identity
    assert make_inputs(vision, pixels, limit=6).identity == make_inputs(vision, pixels.clone(), limit=6).identity
    assert [batch.index for batch in inputs.batches(skip=frozenset({0}), rank=0, world=2)] == [2]


def test_token_ids_and_a_dict_with_a_mask(text: Model) -> None:
    ids = torch.tensor([[2, 5, 6, 3], [2, 10, 3, 0]])
    (plain,) = make_inputs(text, ids).batches()
    assert plain.valid is None and plain.layouts[1] is not None
    assert plain.layouts[1].roles == ("cls", "word", "sep", "pad")
    inputs = make_inputs(text, {"input_ids": ids, "attention_mask": (ids != 0).long()})
    (batch,) = inputs.batches()
    assert batch.valid is not None and batch.valid.tolist() == [[True] * 4, [True] * 3 + [False]]
    assert (inputs.identity["count"], inputs.identity["kind"], inputs.n_batches) == (2, "tensors", 1)
    text.run(batch)
    (one,) = make_inputs(text, {"input_ids": ids, "attention_mask": (ids != 0).long()}, limit=1).batches()
    assert one.names == ("0",) and one.kwargs["attention_mask"].tolist() == [[1, 1, 1, 1]] and one.valid is None


def test_without_a_tokenizer_token_ids_have_no_roles(tmp_path: Path) -> None:
    bare = HF["bert"]()
    bare.save_pretrained(tmp_path)
    for model in (load(HF["llama"]()), load(str(tmp_path))):
        (batch,) = make_inputs(model, torch.randint(3, 101, (2, 7))).batches()
        assert batch.layouts == (None, None)


def test_embeddings_are_passed_on(text: Model) -> None:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    (batch,) = make_inputs(text, {"inputs_embeds": torch.randn(2, 5, 24), "attention_mask": mask}).batches()
    assert batch.layouts == (None, None) and text.run(batch).logits.shape == (2, 5, 101)
    assert batch.valid is not None and batch.valid.tolist() == mask.bool().tolist()


def test_a_loader_keeps_its_batches_labels_are_left_out(vision: Model) -> None:
    pixels = torch.randn(8, 3, 28, 28)
    loader = DataLoader(TensorDataset(pixels, torch.arange(8)), batch_size=3)
    inputs = make_inputs(vision, loader, batch_size=5)
    assert inputs.n_batches == 3
    assert inputs.identity == {"kind": "iterable", "location": "DataLoader", "count": None, "sha256": None}
    whole = list(inputs.batches())
    assert [batch.names for batch in whole] == [("0", "1", "2"), ("3", "4", "5"), ("6", "7")]
    assert torch.equal(torch.cat([batch.args[0] for batch in whole]), pixels)
    limited = make_inputs(vision, loader, limit=5)
    assert limited.n_batches is None
    assert [batch.names for batch in limited.batches()] == [("0", "1", "2"), ("3", "4")]
    rest = [list(inputs.batches(skip=frozenset({0}), rank=rank, world=2)) for rank in range(2)]
    assert [[batch.index for batch in share] for share in rest] == [[2], [1]]
    assert rest[0][0].names == ("6", "7") and torch.equal(rest[1][0].args[0], pixels[3:6])


def test_lists_of_pictures_and_of_strings_and_dicts_as_batches(vision: Model, text: Model) -> None:
    pictures = [[picture(40, 40, 0), picture(50, 40, 1)], (picture(40, 60, 2), "a label"), picture(40, 40, 3)]
    batches = list(make_inputs(vision, pictures).batches())
    assert [batch.names for batch in batches] == [("0", "1"), ("2",), ("3",)]
    flat = [picture(40, 40, 0), picture(50, 40, 1), picture(40, 60, 2), picture(40, 40, 3)]
    (expected,) = make_inputs(vision, flat).batches()
    assert torch.equal(torch.cat([batch.args[0] for batch in batches]), expected.args[0])
    strings = iter([["the cat", "dog"], ("mat", 3), {"input_ids": torch.tensor([[2, 9, 3]])}])
    rows = [batch.kwargs["input_ids"].tolist() for batch in make_inputs(text, strings).batches()]
    assert rows == [[[2, 5, 6, 3], [2, 10, 3, 0]], [[2, 9, 3]], [[2, 9, 3]]]


def test_bad_elements_of_a_batch(vision: Model) -> None:
    batches = [[picture(40, 40)], [picture(1, 1), picture(40, 40)]]
    with pytest.raises(InputError, match=r"1, a picture of 1 x 1 pixels"):
        list(make_inputs(vision, batches).batches())
    last = list(make_inputs(vision, batches, skip_bad=True).batches())[1]
    assert last.names == ("2",) and list(last.bad) == ["1"]


def test_a_generator_gives_its_batches_once(vision: Model) -> None:
    def generate() -> Iterator[torch.Tensor]:
        yield torch.zeros(2, 3, 28, 28)

    inputs = make_inputs(vision, generate())
    assert inputs.n_batches is None and len(list(inputs.batches())) == 1
    with pytest.raises(InputError, match=r"a generator that has been read to its end"):
        list(inputs.batches())


def test_a_vision_model_of_its_own_kind_is_trusted_with_its_arguments() -> None:
    from transformers import Siglip2VisionConfig, Siglip2VisionModel

    module = Siglip2VisionModel(Siglip2VisionConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
                                                    intermediate_size=37, patch_size=7, num_patches=16))  # fmt: skip
    given = {"pixel_values": torch.randn(2, 6, 147), "pixel_attention_mask": torch.ones(2, 6, dtype=torch.long),
             "spatial_shapes": torch.tensor([[2, 3], [3, 2]])}  # fmt: skip
    model = load(module)
    (batch,) = make_inputs(model, given).batches()
    assert batch.layouts == (None, None) and model.run(batch).last_hidden_state.shape == (2, 6, 24)


def test_a_module_of_unknown_kind_takes_tensors_and_dicts() -> None:
    model = load(nn.Linear(3, 5))
    (batch,) = make_inputs(model, torch.ones(2, 7, 3)).batches()
    assert batch.layouts == (None, None) and model.run(batch).shape == (2, 7, 5)
    (batch,) = make_inputs(model, {"input": torch.ones(2, 3)}).batches()
    assert model.run(batch).shape == (2, 5)


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.zeros(3, 28, 28), r"torch.float32 \(3, 28, 28\) as pictures"),
        (torch.zeros(2, 3, 28, 28, dtype=torch.uint8), r"torch.uint8 \(2, 3, 28, 28\) as pictures"),
        (torch.zeros(2, 1, 28, 28), "pictures of 1 channels for .*; expected 3 channels"),
        (torch.zeros(2, 3, 28, 30), "a picture of 28 x 30 pixels"),
        ({"wrong": torch.zeros(2, 3, 28, 28)}, r"\['wrong'\] as pictures for .*, pixel_values in a dict"),
        (torch.zeros(0, 3, 28, 28), "model arguments without a batch dimension"),
        ({"flag": True}, "model arguments without a batch dimension"),
        ([], "inputs of type list without elements"),
        (17, "inputs of type int;"),
        ([object()], "a batch of type object"),
        ([3.5], "a batch of type float"),
        (["/nowhere/a.png"], "no file or folder /nowhere/a.png"),
    ],
)
def test_inputs_of_the_wrong_kind(inputs: Any, found: str, vision: Model) -> None:
    with pytest.raises(InputError, match=found):
        list(make_inputs(vision, inputs).batches())


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.zeros(2, 5), r"torch.float32 \(2, 5\) as token ids"),
        (torch.zeros(5, dtype=torch.long), r"torch.int64 \(5,\) as token ids"),
        (torch.tensor([[2, 101, 3]]), "token ids from 2 to 101 for .*; expected ids from 0 to 100"),
    ],
)
def test_token_ids_of_the_wrong_kind(inputs: torch.Tensor, found: str, text: Model) -> None:
    with pytest.raises(InputError, match=found):
        list(make_inputs(text, inputs).batches())


def test_a_size_for_what_is_preprocessed_already(vision: Model) -> None:
    with pytest.raises(OptionError, match=r"size with inputs that are preprocessed already"):
        make_inputs(vision, torch.zeros(1, 3, 28, 28), size=56)


def test_paths_and_published_files(vision: Model, tmp_path: Path) -> None:
    picture(40, 40).save(tmp_path / "a.png")
    (batch,) = make_inputs(vision, tmp_path / "a.png").batches()
    assert batch.names == (str(tmp_path / "a.png"),)
