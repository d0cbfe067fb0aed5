"""`manifest.json`: what was measured, on what, with which options, and how far it got."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, cast

from .. import __version__
from .._errors import ArtifactError
from ._files import write_text
from ._schema import SCHEMA_VERSION

MANIFEST = "manifest.json"
OPTIONS_WITHOUT_EFFECT = frozenset({"device", "num_workers"})
"""Options that may differ between a run and its continuation: they change where and how fast, not what."""

_PACKAGES = (
    "numpy",
    "open_clip_torch",
    "pandas",
    "pyarrow",
    "safetensors",
    "scipy",
    "timm",
    "torch",
    "torchvision",
    "transformers",
)

ModelInfo = TypedDict(
    "ModelInfo",
    {
        "reference": str,
        "class": str,
        "modality": str,
        "weights_sha256": str,
        "parameters": int,
        "dtype": str,
        "notes": list[str],
    },
)
"""The measured model: how it is loaded, its class, a hash of its weights, and what a reader should know of it."""


class Manifest(TypedDict):
    """The content of `manifest.json`. `finished`, `n_inputs`, `n_tokens` and `seconds` are null until the run ends.

    - `inputs`: identity of the inputs, as their supply states it; equal means the same inputs.
    - `options`: what the run was asked for.
    - `rule`: `name`, `source` and the thresholds in words, as `Rule.to_dict` gives them.
    - `coverage`: attention modules found and captured, routes per layer, gaps, the coverage line, bad inputs.
    - `n_tokens`: smallest and largest number of valid tokens of an input.
    - `seconds`: time spent measuring, summed over parts and so over processes.
    """

    schema: int
    sinkscope: str
    created: str
    finished: str | None
    command: str
    model: ModelInfo
    inputs: dict[str, Any]
    options: dict[str, Any]
    rule: dict[str, Any]
    coverage: dict[str, Any]
    packages: dict[str, str]
    n_inputs: int | None
    n_tokens: list[int] | None
    seconds: float | None


def build_manifest(
    *,
    model: ModelInfo,
    inputs: Mapping[str, Any],
    options: Mapping[str, Any],
    rule: Mapping[str, Any],
    command: str,
) -> Manifest:
    """The manifest of a run that is about to begin, with the time and the versions of the packages at work.

    **Raises:** `ArtifactError` when something in it cannot be written as JSON.
    """
    manifest = Manifest(
        schema=SCHEMA_VERSION,
        sinkscope=__version__,
        created=now(),
        finished=None,
        command=command,
        model=model,
        inputs=dict(inputs),
        options=dict(options),
        rule=dict(rule),
        coverage={},
        packages=packages(),
        n_inputs=None,
        n_tokens=None,
        seconds=None,
    )
    return cast(Manifest, json.loads(dumps(manifest)))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in `folder`.

    **Raises:** `ArtifactError` when there is none, when it is damaged, or when a newer sinkscope wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(
            f"{folder} holds no {MANIFEST}" if folder.is_dir() else f"there is no folder {folder}",
            "a folder that sinkscope diagnose has written",
            "give the folder that was its --out; to make one: sinkscope diagnose --help",
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from error
    if not isinstance(manifest, dict) or not isinstance(manifest.get("schema"), int):
        raise damaged(path, "it names no schema")
    if manifest["schema"] > SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema {manifest['schema']}",
            f"schema {SCHEMA_VERSION}, the newest this sinkscope can read",
            "run: pip install --upgrade sinkscope",
        )
    if missing := sorted(Manifest.__annotations__.keys() - manifest.keys()):
        raise damaged(path, f"it lacks {', '.join(missing)}")
    return cast(Manifest, manifest)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of `folder` in one step."""
    write_text(folder / MANIFEST, dumps(manifest))


def differences(there: Manifest, here: Manifest) -> list[str]:
    """What keeps two runs from sharing a folder, one text for each: `batch_size: 8 there, 4 here`."""
    one, other = dict(_what_matters(there)), dict(_what_matters(here))
    absent = object()
    return [
        f"{name}: {shown(one, name)} there, {shown(other, name)} here"
        for name in dict.fromkeys([*one, *other])
        if one.get(name, absent) != other.get(name, absent)
    ]


def damaged(path: Path, reason: str, repair: str | None = None) -> ArtifactError:
    """The error for a file of an artifact that cannot be read; `repair` is for files that no run's command restores."""
    if repair is None:
        repair = (
            f"delete {path} and run the command of {MANIFEST} again"
            if path.name != MANIFEST
            else f"delete {path.parent} and run sinkscope diagnose again"
        )
    return ArtifactError(f"{path} is damaged ({reason})", "a file as sinkscope wrote it", repair)


def dumps(content: Any) -> str:
    """JSON with sorted keys and an indent, so that equal content is equal text."""
    try:
        return json.dumps(content, sort_keys=True, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ArtifactError(
            f"something in the artifact's JSON cannot be written ({error})",
            "texts, finite numbers, booleans, lists, dicts with text keys, or null",
            "convert that value first",
        ) from error


def packages() -> dict[str, str]:
    """Versions of the packages at work."""
    return {name: version for name in _PACKAGES if (version := _version(name))}


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _what_matters(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    yield "schema", manifest["schema"]
    yield "model", manifest["model"]["reference"]
    yield "weights_sha256", manifest["model"]["weights_sha256"]
    for section in ("inputs", "rule"):
        for name, value in manifest[section].items():
            yield f"{section}.{name}", value
    for name, value in manifest["options"].items():
        if name not in OPTIONS_WITHOUT_EFFECT:
            yield name, value


def shown(values: Mapping[str, Any], name: str) -> str:
    """A value as messages show it."""
    if name not in values:
        return "absent"
    return str(values[name]) if isinstance(values[name], str) else json.dumps(values[name])


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
