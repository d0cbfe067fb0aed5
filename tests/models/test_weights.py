"""Weight files: whole safetensors, nothing else."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sinkscope._errors import ModelReferenceError, WeightsError
from sinkscope.models import load
from sinkscope.models._weights import check_safetensors
from tests.models._tiny import HF, save


def test_a_pickle_checkpoint_is_refused_and_the_advice_given_works(tmp_path: Path) -> None:
    saved = save("dinov2", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(WeightsError) as caught:
        load(str(tmp_path))
    assert caught.value.found == f"pickled weights {tmp_path / 'pytorch_model.bin'}"
    command = caught.value.next_step.partition('python -c "')[2].removesuffix('"')
    subprocess.run([sys.executable, "-c", command], check=True)
    assert load(str(tmp_path)).notes == ()


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl"])
def test_a_pickle_is_never_opened(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(pickle.dumps(_Trap(str(tmp_path / "opened"))))
    for reference in (str(path), f"timm:vit_tiny_patch16_224?checkpoint={path}", f"open_clip:RN50?pretrained={path}"):
        with pytest.raises(WeightsError, match=r"reading a pickle can run any code"):
            load(reference)
    assert not (tmp_path / "opened").exists()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (self.path, "w")


@pytest.mark.parametrize("keep", [0, 5, 0.5, 0.99])
def test_a_cut_off_file_is_named(keep: float, tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep if keep >= 1 else keep * len(whole))])
    with pytest.raises(WeightsError) as caught:
        load(str(tmp_path))
    assert caught.value.found.startswith(f"corrupt or cut off weights {path} (")


def test_shards_are_all_checked(tmp_path: Path) -> None:
    HF["dinov2"]().save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2 and load(str(tmp_path)).notes == ()
    shards[1].unlink()
    with pytest.raises(WeightsError, match=f"no weight file {shards[1]}"):
        load(str(tmp_path))
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weights": {}}))
    with pytest.raises(WeightsError, match=f"corrupt or cut off weights {index}"):
        load(str(tmp_path))


def test_no_weights_at_all(tmp_path: Path) -> None:
    HF["dinov2"]().config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=f"no weights in {tmp_path}") as caught:
        load(str(tmp_path))
    assert caught.value.next_step.endswith(f"hf:{tmp_path}?pretrained=false")


def test_a_file_of_another_format(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"weights \S*weights.npz; expected a .safetensors file"):
        check_safetensors(path)


def test_a_weight_file_is_no_reference(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    with pytest.raises(ModelReferenceError, match=r"the folder that holds config.json and model.safetensors"):
        load(str(tmp_path / "model.safetensors"))
