"""Weight files that may be read: safetensors, whole and uncorrupted, never pickle."""

from __future__ import annotations

import json
from pathlib import Path

from sinkscope._errors import WeightsError

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def check_safetensors(path: Path) -> None:
    """Refuses a file that is missing, no safetensors file, or cut off: the header is read, the tensors are not.

    Raises `WeightsError`, which names the file.
    """
    from safetensors import SafetensorError, safe_open

    if path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path)
    if not path.is_file():
        raise WeightsError(f"no weight file {path}", "a .safetensors file", "check the path and its spelling")
    if path.suffix != ".safetensors":
        raise WeightsError(f"weights {path}", "a .safetensors file", "save the state dict with safetensors' save_file")
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise corrupt_error(path, error) from None


def check_folder(folder: Path) -> None:
    """Checks all weight files of a folder in the transformers layout, sharded or not.

    Raises `WeightsError` for missing, corrupt or pickled weights, naming the file.
    """
    index = folder / _INDEX
    if (folder / _SINGLE).is_file():
        check_safetensors(folder / _SINGLE)
    elif index.is_file():
        try:
            shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise corrupt_error(index, error) from None
        for shard in shards:
            check_safetensors(folder / shard)
    else:
        pickled = sorted(path for path in folder.iterdir() if path.suffix in PICKLE_SUFFIXES)
        if pickled:
            raise pickle_error(pickled[0])
        raise WeightsError(
            f"no weights in {folder}",
            f"{_SINGLE} or {_INDEX}",
            f"save the model there with save_pretrained, or build it with random weights: hf:{folder}?pretrained=false",
        )


def pickle_error(path: Path) -> WeightsError:
    """The refusal of a pickle file, which can run any code when it is read."""
    target = path.with_name("model.safetensors" if path.name == "pytorch_model.bin" else f"{path.stem}.safetensors")
    return WeightsError(
        f"pickled weights {path}",
        "safetensors, because reading a pickle can run any code",
        'if you trust the file, convert it once: python -c "import torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone() for k, v in torch.load('{path}', weights_only=True).items()}}, '{target}', "
        "metadata={'format': 'pt'})\"",
    )


def corrupt_error(path: Path | str, error: Exception) -> WeightsError:
    """A weight file that cannot be read to its end."""
    return WeightsError(
        f"corrupt or cut off weights {path} ({first_line(error)})", "a whole file", "fetch or save the file again"
    )


def unfit_error(name: str, error: Exception, source: str) -> WeightsError:
    """Weights that a library refuses for the model of that name; `source` is what they came from."""
    detail = " ".join(str(error).split())[:200]
    return WeightsError(
        f"weights that do not fit {name} ({detail})",
        "the weights of exactly this model",
        f"check the model's name against the {source}",
    )


def first_line(error: BaseException) -> str:
    """The first line of a library's message, for one-line errors."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
