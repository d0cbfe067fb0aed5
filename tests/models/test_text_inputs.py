"""Texts to batches: windows, strings, padding, roles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sinkscope._errors import InputError, OptionError
from sinkscope.models import Model, TokenLayout, load, make_inputs
from tests.models._tiny import HF, bert_tokenizer, llama_tokenizer, save


def roles(layout: TokenLayout | None) -> tuple[str, ...]:
    assert layout is not None
    return layout.roles


@pytest.fixture
def bert(tmp_path: Path) -> Model:
    save("bert", tmp_path)
    bert_tokenizer(tmp_path)
    return load(str(tmp_path))


def llama(folder: Path, **options: Any) -> Model:
    save("llama", folder)
    llama_tokenizer(folder, **options)
    return load(str(folder))


def text_file(folder: Path, text: str) -> Path:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder / "text.txt"


def test_windows_of_an_encoder_hold_its_special_tokens(bert: Model, tmp_path: Path) -> None:
    path = text_file(tmp_path, "the cat sat on\nthe mat. dog ran far, 42 bird the cat")
    inputs = make_inputs(bert, path, length=7, batch_size=2)
    batches = list(inputs.batches())
    ids = [row for batch in batches for row in batch.kwargs["input_ids"].tolist()]
    assert ids == [[2, 5, 6, 7, 8, 5, 3], [2, 9, 15, 10, 11, 12, 3], [2, 16, 13, 14, 5, 6, 3]]
    assert roles(batches[0].layouts[0]) == ("cls", *["word"] * 5, "sep")
    assert roles(batches[0].layouts[1]) == ("cls", "word", "punctuation", "word", "word", "word", "sep")
    assert [batch.names for batch in batches] == [("0", "1"), ("2",)]
    assert all(batch.valid is None and list(batch.kwargs) == ["input_ids"] for batch in batches)
    identity = inputs.identity
    assert (identity["kind"], identity["location"], identity["count"]) == ("text", str(path), 3)
    assert (identity["length"], identity["tokens_unused"]) == (7, 0)


def test_the_last_incomplete_window_and_the_rest_behind_a_limit_are_counted(bert: Model, tmp_path: Path) -> None:
    path = text_file(tmp_path, "cat " * 23)
    whole, cut = (make_inputs(bert, path, length=7, limit=limit) for limit in (None, 2))
    assert [(i.identity["count"], i.identity["tokens_unused"]) for i in (whole, cut)] == [(4, 3), (2, 13)]
    assert len(next(cut.batches()).names) == 2


@pytest.mark.parametrize(("bos", "first"), [(True, [0, 3, 4, 5, 6]), (False, [3, 4, 5, 6, 3])])
def test_windows_of_a_language_model_follow_its_tokenizer(bos: bool, first: list[int], tmp_path: Path) -> None:
    model = llama(tmp_path, bos=bos)
    inputs = make_inputs(model, text_file(tmp_path, "the cat sat on the mat dog ran far bird"), length=5)
    batch = next(inputs.batches())
    assert batch.kwargs["input_ids"][0].tolist() == first
    assert roles(batch.layouts[0])[0] == ("bos" if bos else "word")
    assert all((row[0] == 0) == bos for row in batch.kwargs["input_ids"].tolist())


def test_the_default_length_is_the_models_maximum_at_most_128(bert: Model, tmp_path: Path) -> None:
    path = text_file(tmp_path, "cat " * 300)
    assert make_inputs(bert, path).identity["length"] == 29
    long = HF["llama"]().config
    long.max_position_embeddings = 4096
    long.save_pretrained(tmp_path / "long")
    llama_tokenizer(tmp_path / "long", bos=True)
    assert make_inputs(load(f"{tmp_path / 'long'}?pretrained=false"), path).identity["length"] == 128


def test_positions_of_roberta_begin_behind_the_padding_index(tmp_path: Path) -> None:
    save("roberta", tmp_path)
    llama_tokenizer(tmp_path, bos=True)
    model = load(str(tmp_path))
    inputs = make_inputs(model, text_file(tmp_path, "cat " * 300))
    assert inputs.identity["length"] == 51
    model.run(next(inputs.batches()))


@pytest.mark.parametrize("length", [2, 30])
def test_lengths_the_model_cannot_take(length: int, bert: Model, tmp_path: Path) -> None:
    with pytest.raises(OptionError) as caught:
        make_inputs(bert, text_file(tmp_path, "cat " * 99), length=length)
    assert caught.value.found == f"windows of {length} tokens"
    assert caught.value.expected == "more than the 2 special tokens, at most the model's 29"


@pytest.mark.parametrize(
    ("text", "found", "next_step"),
    [
        ("cat cat cat", "a text of 3 tokens ({})", "--length 5, or a longer text"),
        ("  \n ", "a text of 0 tokens ({})", "a text that is not empty"),
    ],
)
def test_a_text_shorter_than_one_window(text: str, found: str, next_step: str, bert: Model, tmp_path: Path) -> None:
    path = text_file(tmp_path, text)
    with pytest.raises(InputError) as caught:
        make_inputs(bert, path, length=7)
    assert (caught.value.found, caught.value.next_step) == (found.format(path), next_step)
    assert caught.value.expected == "at least one window of 5 tokens and 2 special ones"


def test_a_file_that_is_no_text(bert: Model, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"caf\xe9 " * 30)
    with pytest.raises(InputError, match=r"a.bin, which is not UTF-8 \(byte 3\)") as caught:
        make_inputs(bert, tmp_path / "a.bin")
    assert caught.value.next_step.startswith("iconv")


def test_strings_are_padded_on_the_right(bert: Model) -> None:
    inputs = make_inputs(bert, ["the cat.", "dog"])
    (batch,) = inputs.batches()
    assert batch.kwargs["input_ids"].tolist() == [[2, 5, 6, 15, 3], [2, 10, 3, 0, 0]]
    assert batch.kwargs["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.valid is not None and batch.valid.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert roles(batch.layouts[0]) == ("cls", "word", "word", "punctuation", "sep")
    assert roles(batch.layouts[1]) == ("cls", "word", "sep", "pad", "pad")
    assert batch.layouts[0] is not None and batch.layouts[0].texts == ("[CLS]", "the", "cat", ".", "[SEP]")
    assert (batch.names, inputs.identity["count"], inputs.identity["kind"]) == (("0", "1"), 2, "text")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_padded_text_gets_what_it_would_get_alone(family: str, side: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    llama_tokenizer(tmp_path, bos=True, side=side)
    model = load(str(tmp_path), dtype="float64")
    texts = ["the cat sat on the mat", "dog ran"]
    padded = next(make_inputs(model, texts).batches())
    alone = next(make_inputs(model, texts[1:]).batches())
    assert padded.valid is not None
    expected = [[True] * 7, [False] * 4 + [True] * 3 if side == "left" else [True] * 3 + [False] * 4]
    assert padded.valid.tolist() == expected
    assert roles(padded.layouts[1]).count("pad") == 4
    with torch.inference_mode():
        together = model.module(**padded.kwargs).logits[1][padded.valid[1]]
        single = model.module(**alone.kwargs).logits[0]
    assert torch.allclose(together, single, atol=1e-12)


def test_roles_of_special_and_other_tokens(tmp_path: Path) -> None:
    model = llama(tmp_path, bos=True)
    (batch,) = make_inputs(model, ["the <extra> . cat </s>"]).batches()
    layout = batch.layouts[0]
    assert layout is not None and layout.texts is not None
    named = dict(zip(layout.texts, layout.roles, strict=True))
    assert named["<s>"] == "bos" and named["<extra>"] == named["</s>"] == "special"
    assert named[" ."] == "punctuation" and named[" cat"] == "word"


def test_a_siglip_text_tower_reads_its_padding(tmp_path: Path) -> None:
    save("siglip", tmp_path)
    bert_tokenizer(tmp_path)
    model = load(str(tmp_path), modality="text")
    (batch,) = make_inputs(model, ["the cat", "dog"]).batches()
    assert batch.kwargs["input_ids"].shape == (2, 13) and list(batch.kwargs) == ["input_ids"]
    assert batch.valid is None and roles(batch.layouts[1]) == ("cls", "word", "sep", *["pad"] * 10)


@pytest.mark.parametrize(
    ("texts", "options", "found"),
    [
        (["cat", "cat " * 28], {}, "string 1 of 30 tokens"),
        (["cat cat cat"], {"length": 4}, "string 0 of 5 tokens"),
    ],
)
def test_strings_are_never_cut(texts: list[str], options: dict[str, Any], found: str, bert: Model) -> None:
    with pytest.raises(InputError) as caught:
        list(make_inputs(bert, texts, **options).batches())
    assert caught.value.found == found and "strings are never cut" in caught.value.expected
    (batch,) = make_inputs(bert, [*texts, "dog"], skip_bad=True, **options).batches()
    assert list(batch.bad.values()) == [found] and batch.names[-1] == str(len(texts))


def test_an_empty_string_of_a_model_without_special_tokens(tmp_path: Path) -> None:
    model = llama(tmp_path, bos=False)
    with pytest.raises(InputError, match=r"string 1, which has no tokens"):
        list(make_inputs(model, ["cat", ""]).batches())


def test_an_encoder_decoder_keeps_a_place_for_its_start_token(tmp_path: Path) -> None:
    save("t5", tmp_path)
    bert_tokenizer(tmp_path)
    model = load(str(tmp_path))
    inputs = make_inputs(model, text_file(tmp_path, "cat " * 99))
    assert inputs.identity["length"] == 28
    batch = next(inputs.batches())
    assert model.run(batch).logits.shape[:2] == (len(batch.names), 29)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_folder_without_a_tokenizer(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    with pytest.raises(InputError, match=r"no usable tokenizer for") as caught:
        make_inputs(load(str(tmp_path)), ["a text"])
    assert "pass token ids" in caught.value.next_step


def test_pictures_for_a_text_model(bert: Model, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"pictures for .*, a model that takes text"):
        make_inputs(bert, tmp_path / "a.png", kind="images")
    with pytest.raises(OptionError, match=r"size for .*, which takes text"):
        make_inputs(bert, ["cat"], size=28)
    with pytest.raises(InputError, match=r"no file or folder the cat; .*text itself as a list of strings"):
        make_inputs(bert, "the cat")
