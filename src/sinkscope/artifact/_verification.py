"""`edits/verification.json`: which edits a folder holds, and whether all of them are there."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from .. import __version__
from .._errors import ArtifactError
from ._edits import done_edits
from ._files import remove_stale, write_text
from ._manifest import dumps, now, shown

VERIFICATION = "verification.json"

_FEW = 8
"""Most heads that an error names."""


class Verification(TypedDict):
    """The content of `verification.json`. `finished` and `seconds` are null until every part is there.

    - `command`: what to run to go on.
    - `weights_sha256`: of the edited model.
    - `rounds`: the edited heads as `layer.head`, those of later calls apart.
    - `options`: all that the edits depend on.
    - `seconds`: time spent by the process that finished the edits.
    """

    sinkscope: str
    created: str
    finished: str | None
    command: str
    weights_sha256: str
    rounds: list[list[str]]
    options: dict[str, Any]
    seconds: float | None


@dataclass(frozen=True)
class Round:
    """Edits that are left to be made: the round's `number` and its `heads`, none when all are there."""

    number: int
    heads: tuple[str, ...]


@contextmanager
def verification(
    folder: Path,
    weights_sha256: str,
    heads: Sequence[str],
    options: Mapping[str, Any],
    command: str,
    *,
    again: bool = False,
) -> Iterator[Round]:
    """Begin edits in `folder`, or go on with those that are there: they must be the same edits of the same model.

    Heads that are not among those edited there make a round of their own, once those are finished.

    Yields what is left to be made; when the block ends well, nothing is. When it fails before any part is done, the
    folder is as it was.

    **Arguments:**

    - `again`: delete the edits that are there, and begin anew.

    **Raises:** `ArtifactError` when other edits are there (every difference is named) or the file is damaged;
    `ResourceError` when the disk is full.
    """
    if again:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.perf_counter()
    asked = Verification(
        sinkscope=__version__,
        created=now(),
        finished=None,
        command=command,
        weights_sha256=weights_sha256,
        rounds=[list(heads)],
        options=dict(options),
        seconds=None,
    )
    there = read_verification(folder)
    if there is not None:
        _require_same(folder, there, asked)
        remove_stale(folder)
    elif any(folder.glob("part-*")):
        raise ArtifactError(f"{folder} has parts but no {VERIFICATION}", "both", f"delete {folder}")
    begun = asked if there is None else _with_round(folder, there, asked)
    if begun["finished"] is not None:
        yield Round(len(begun["rounds"]), ())
        return
    write_text(folder / VERIFICATION, dumps(begun))
    number = len(begun["rounds"]) - 1
    try:
        yield Round(number, tuple(begun["rounds"][number]))
    except BaseException:
        _forget_empty(folder, number, there)
        raise
    begun["finished"], begun["seconds"] = now(), round(time.perf_counter() - began, 3)
    write_text(folder / VERIFICATION, dumps(begun))


def _with_round(folder: Path, there: Verification, asked: Verification) -> Verification:
    """What is there, with a round more when it is finished and other heads are asked for."""
    done, finished = there["rounds"], there["finished"] is not None
    edited = {head for heads in (done if finished else done[:-1]) for head in heads}
    more = [head for head in asked["rounds"][0] if head not in edited]
    if finished and more:
        asked["created"], asked["rounds"] = there["created"], [*done, more]
        return asked
    if not finished and more != done[-1]:
        raise ArtifactError(
            f"the edits in {folder} are unfinished, and of other heads ({_listed(done[-1])} there, "
            f"{_listed(more)} here)",
            "finished edits before others are added",
            f"repeat the old command: {there['command']}; or begin anew with --again",
        )
    return there


def _listed(heads: Sequence[str]) -> str:
    """A few heads by name, more by their number: the old command has them all."""
    if len(heads) > _FEW:
        return f"{len(heads)} heads"
    return ",".join(heads) or "none that are new"


def _forget_empty(folder: Path, number: int, before: Verification | None) -> None:
    """Takes back the beginning of a round of which no part is there."""
    if done_edits(folder.parent, number):
        return
    if number == 0:
        shutil.rmtree(folder)
    elif before is not None:
        write_text(folder / VERIFICATION, dumps(before))


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
            f"begin anew with --again, or repeat the old command: {there['command']}",
        )


def _what_matters(verification: Verification) -> dict[str, Any]:
    return {
        "weights_sha256": verification["weights_sha256"],
        **verification["options"],
    }
