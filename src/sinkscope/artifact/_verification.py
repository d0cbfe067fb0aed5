"""`edits/verification.json`: which edits a folder holds, and whether all of them are there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, cast

from .. import __version__
from .._errors import ArtifactError
from ._files import remove_stale, write_text
from ._manifest import dumps, now, shown

VERIFICATION = "verification.json"


class Verification(TypedDict):
    """The content of `verification.json`. `finished` and `seconds` are null until every part is there.

    - `command`: what to run to go on.
    - `weights_sha256`: of the edited model.
    - `heads`: the edited heads as `layer.head`.
    - `options`: all that the edits depend on.
    - `seconds`: time spent by the process that finished the edits.
    """

    sinkscope: str
    created: str
    finished: str | None
    command: str
    weights_sha256: str
    heads: list[str]
    options: dict[str, Any]
    seconds: float | None


@contextmanager
def verification(
    folder: Path, weights_sha256: str, heads: Sequence[str], options: Mapping[str, Any], command: str
) -> Iterator[bool]:
    """Begin edits in `folder`, or go on with those that are there: they must be the same edits of the same model.

    Yields whether any are left to be made; when the block ends well, none are. When it fails before any part is done,
    the folder is gone again.

    **Raises:** `ArtifactError` when other edits are there (every difference is named) or the file is damaged;
    `ResourceError` when the disk is full.
    """
    began = time.perf_counter()
    asked = Verification(
        sinkscope=__version__,
        created=now(),
        finished=None,
        command=command,
        weights_sha256=weights_sha256,
        heads=list(heads),
        options=dict(options),
        seconds=None,
    )
    there = read_verification(folder)
    if there is not None:
        _require_same(folder, there, asked)
        remove_stale(folder)
    elif any(folder.glob("part-*")):
        raise ArtifactError(f"{folder} has parts but no {VERIFICATION}", "both", f"delete {folder}")
    else:
        write_text(folder / VERIFICATION, dumps(asked))
    begun = there or asked
    if begun["finished"] is not None:
        yield False
        return
    try:
        yield True
    except BaseException:
        if not any(folder.glob("part-*")):
            shutil.rmtree(folder)
        raise
    begun["finished"], begun["seconds"] = now(), round(time.perf_counter() - began, 3)
    write_text(folder / VERIFICATION, dumps(begun))


def read_verification(folder: Path) -> Verification | None:
    """What the edits in `folder` are, None when there are none. **Raises:** `ArtifactError` when it is damaged."""
    path = folder / VERIFICATION
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        missing = sorted(Verification.__annotations__.keys() - content.keys())
    except (OSError, ValueError, AttributeError) as error:
        raise _damaged(path, str(error)) from error
    if missing:
        raise _damaged(path, f"it lacks {', '.join(missing)}")
    return cast(Verification, content)


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged ({reason})", "a file as sinkscope wrote it", f"delete {path.parent} and verify again"
    )


def _require_same(folder: Path, there: Verification, here: Verification) -> None:
    one, other = _what_matters(there), _what_matters(here)
    differing = [
        f"{name}: {shown(one, name)} there, {shown(other, name)} here"
        for name in dict.fromkeys([*one, *other])
        if shown(one, name) != shown(other, name)
    ]
    if differing:
        raise ArtifactError(
            f"{folder} holds other edits ({'; '.join(differing)})",
            "the options that these edits began with",
            f"delete {folder}, or repeat the old command: {there['command']}",
        )


def _what_matters(verification: Verification) -> dict[str, Any]:
    return {
        "weights_sha256": verification["weights_sha256"],
        "heads": ",".join(verification["heads"]),
        **verification["options"],
    }
