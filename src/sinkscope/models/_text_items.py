"""Texts: windows of exactly one length cut from a long text, or whole strings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sinkscope._errors import InputError, OptionError
from sinkscope.models._types import Batch, TextCodec

DEFAULT_LENGTH = 128
"""Tokens of a window where no length is asked for and the model takes as many."""


@dataclass(frozen=True)
class Windows:
    """Windows of `length` tokens, special tokens included; names are running numbers.

    - `rows`: the content tokens of the windows, without special tokens.
    - `unused`: content tokens behind the last window, dropped because they fill none.
    """

    rows: Sequence[Sequence[int]]
    codec: TextCodec
    length: int
    unused: int
    origin: dict[str, Any]

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        return str(index)

    def read(self, index: int) -> list[int]:
        return self.codec.wrap(self.rows[index])

    def identity(self, count: int) -> dict[str, Any]:
        cut = sum(len(row) for row in self.rows[count:])
        return {**self.origin, "length": self.length, "tokens_unused": self.unused + cut}


@dataclass(frozen=True)
class Strings:
    """Whole strings, one input each, never cut; names are running numbers from `first`."""

    texts: Sequence[str]
    codec: TextCodec
    length: int | None
    first: int = 0

    def __len__(self) -> int:
        return len(self.texts)

    def name(self, index: int) -> str:
        return str(self.first + index)

    def read(self, index: int) -> list[int]:
        tokens = self.codec.encode(self.texts[index])
        limits = [limit for limit in (self.length, self.codec.max_length) if limit is not None]
        if not tokens:
            raise InputError(f"string {self.name(index)}, which has no tokens", "a text", "leave empty strings out")
        if limits and len(tokens) > min(limits):
            raise InputError(
                f"string {self.name(index)} of {len(tokens)} tokens",
                f"at most {min(limits)}, as strings are never cut",
                "split it, or put the text into a file, which is cut into windows",
            )
        return tokens

    def identity(self, count: int) -> dict[str, Any]:
        digest = hashlib.sha256()
        for text in self.texts[:count]:
            digest.update(hashlib.sha256(text.encode()).digest())
        return {"kind": "text", "location": None, "sha256": digest.hexdigest(), "length": self.length}


def windows(
    texts: Iterable[str], codec: TextCodec, length: int | None, limit: int | None, origin: dict[str, Any]
) -> Windows:
    """Cuts texts, read one after the other as one, into windows; stops reading once there are `limit` of them.

    Raises `OptionError` for a length the model cannot take, `InputError` for a text shorter than one window.
    """
    length = _checked_length(codec, length)
    step = length - codec.overhead
    rows: list[list[int]] = []
    rest: list[int] = []
    for text in texts:
        rest += codec.content(text)
        whole = len(rest) // step * step
        rows += [rest[start : start + step] for start in range(0, whole, step)]
        rest = rest[whole:]
        if limit is not None and len(rows) >= limit:
            break
    if not rows:
        raise InputError(
            f"a text of {len(rest)} tokens ({origin['location']})",
            f"at least one window of {step} tokens and {codec.overhead} special ones",
            f"--length {len(rest) + codec.overhead}, or a longer text" if rest else "a text that is not empty",
        )
    return Windows(rows, codec, length, len(rest), origin)


def read_text(path: Path) -> str:
    """A UTF-8 text file, line ends as they are. Raises `InputError` for anything else."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, which is not UTF-8 (byte {error.start})",
            "a text file in UTF-8",
            f"iconv -f ISO-8859-1 -t UTF-8 {path.name} > utf8.txt, if it is Latin-1",
        ) from None


def text_origin(path: Path) -> dict[str, Any]:
    """Kind, location and hash of a text file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"kind": "text", "location": str(path.resolve()), "sha256": digest}


def text_batch(codec: TextCodec, index: int, names: tuple[str, ...], rows: Sequence[Sequence[int]]) -> Batch:
    """Pads rows of token ids into a batch."""
    batch = codec.collate(rows)
    return Batch(index, names, batch.args, batch.kwargs, batch.valid, batch.layouts, (None,) * len(names))


def _checked_length(codec: TextCodec, length: int | None) -> int:
    most = codec.max_length
    if length is None:
        return DEFAULT_LENGTH if most is None else min(DEFAULT_LENGTH, most)
    if length <= codec.overhead or (most is not None and length > most):
        raise OptionError(
            f"windows of {length} tokens",
            f"more than the {codec.overhead} special tokens" + (f", at most the model's {most}" if most else ""),
            f"--length {min(DEFAULT_LENGTH, most or DEFAULT_LENGTH)}",
        )
    return length
