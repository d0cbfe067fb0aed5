"""What a command line was given, checked before anything is loaded: that takes seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sinkscope._errors import InputError, OptionError
from sinkscope._toy_reference import toy_folder
from sinkscope._treated_reference import treated_folder

KINDS = "exactly one of --images, --text and --dataset"


def require_reference(reference: str) -> None:
    """**Raises:** `ModelReferenceError` for a mistyped reference."""
    from sinkscope.models._reference import parse_reference

    if toy_folder(reference) is None and treated_folder(reference) is None:
        parse_reference(reference)


def given_input(images: Path | None, text: Path | None, dataset: str | None) -> tuple[Any, Any]:
    """The kind of inputs and where they are; None for both where none are given.

    **Raises:** `OptionError` for more than one kind, `InputError` for a path that does not exist.
    """
    given = {"images": images, "text": text, "dataset": dataset}
    named = {kind: value for kind, value in given.items() if value is not None}
    if len(named) > 1:
        raise OptionError(" and ".join(f"--{kind}" for kind in named), KINDS, "leave out the rest")
    kind, value = next(iter(named.items()), (None, None))
    if isinstance(value, Path) and not value.exists():
        raise InputError(f"--{kind} {value}, which does not exist", "an existing path", "check the spelling")
    return kind, value
