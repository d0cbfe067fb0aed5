"""What a model reference says: where the model comes from, its name, and options after a question mark."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl

from sinkscope._errors import ModelReferenceError
from sinkscope.models._weights import PICKLE_SUFFIXES, pickle_error

SCHEMES: Mapping[str, str] = MappingProxyType(
    {
        "zoo": "zoo:NAME",
        "hf": "hf:NAME or hf:FOLDER",
        "timm": "timm:NAME",
        "open_clip": "open_clip:NAME",
    }
)
"""Scheme to its form; the options are described at `load`."""


@dataclass(frozen=True)
class Reference:
    """A parsed reference: `text` as given, `options` the query with values as Python literals where they are any."""

    text: str
    scheme: str
    name: str
    options: Mapping[str, Any]


def parse_reference(text: str) -> Reference:
    """Splits `SCHEME:NAME[?KEY=VALUE&...]`; a bare path of a folder means `hf:`.

    Raises `ModelReferenceError` for any other form, `WeightsError` for the path of a pickle.
    """
    scheme, colon, rest = text.partition(":")
    body, _, query = (rest if colon and scheme in SCHEMES else text).partition("?")
    if not body:
        raise _unknown_form(text)
    if colon and scheme in SCHEMES:
        return Reference(text, scheme, body, _options(text, query))
    path = Path(body).expanduser()
    if path.is_dir():
        return Reference(text, "hf", body, _options(text, query))
    if path.is_file() and path.suffix in PICKLE_SUFFIXES:
        raise pickle_error(path)
    if path.is_file():
        raise ModelReferenceError(
            f"the file {body} as a model reference",
            "the folder that holds config.json and model.safetensors",
            f"sinkscope diagnose {path.parent} ...",
        )
    raise _unknown_form(text)


def _options(text: str, query: str) -> dict[str, Any]:
    if not query:
        return {}
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True)
    except ValueError:
        raise ModelReferenceError(
            f"options '{query}' in the reference {text}",
            "KEY=VALUE pairs joined by &",
            "for instance ?pretrained=false",
        ) from None
    return {key: _literal(value) for key, value in pairs}


def _literal(value: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _unknown_form(text: str) -> ModelReferenceError:
    forms = ", ".join(SCHEMES.values())
    return ModelReferenceError(
        f"model reference '{text}'",
        f"an existing folder or one of {forms}",
        "`sinkscope models` for the list" + ("" if ":" in text else f", or hf:{text} if it is a model of the hub"),
    )
