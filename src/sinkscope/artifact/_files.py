"""Files that are either whole or absent, whatever kills the writer."""

from __future__ import annotations

import errno
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from .._errors import ArtifactError, ResourceError

STALE_SECONDS = 86_400.0
"""A temporary file of another machine's process counts as left over when it has not changed for this long."""

_HOST = re.sub(r"[^A-Za-z0-9-]", "-", platform.node()) or "unknown"
# Containers hand out the same process ids again and again, so the id alone does not name a writer.
_TOKEN = uuid4().hex[:8]
_TEMPORARY = re.compile(r"^\..+\.(?P<host>[A-Za-z0-9-]+)~(?P<pid>\d+)~(?P<token>[0-9a-f]{8})\.tmp$")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, flush it to disk and rename it to `path`.

    **Raises:** `ResourceError` when the disk is full, `ArtifactError` when the file cannot be written otherwise.
    """
    temporary = path.with_name(f".{path.name}.{_HOST}~{os.getpid()}~{_TOKEN}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        if os.name == "posix":
            _flush(path.parent)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """Replace the text of `path` in one step. **Raises:** as `replacing`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_temporary(path: Path) -> bool:
    """Whether `path` has a name that `replacing` gives."""
    return _TEMPORARY.match(path.name) is not None


def remove_stale(folder: Path) -> None:
    """Remove temporary files under `folder` whose writer is gone; those of living writers stay."""
    for path in folder.rglob(".*.tmp"):
        if (match := _TEMPORARY.match(path.name)) and _is_stale(path, match["host"], int(match["pid"]), match["token"]):
            path.unlink(missing_ok=True)


def _is_stale(path: Path, host: str, pid: int, token: str) -> bool:
    if host == _HOST and os.name == "posix":
        return token != _TOKEN if pid == os.getpid() else not _is_alive(pid)
    try:
        return time.time() - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_error(path: Path, error: OSError) -> ArtifactError | ResourceError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full, {path} could not be written",
            f"room in {path.parent}; what is finished is kept",
            "free some space, then run the same command again: it goes on where it stopped",
        )
    return ArtifactError(
        f"{path} could not be written ({error.strerror or error})",
        "a folder that can be written to",
        "choose another folder with --out, or change the permissions of this one",
    )
