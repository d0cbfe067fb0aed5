"""How a command line has ended, and what a complaint must look like."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Ended(NamedTuple):
    """Exit code, standard output and standard error."""

    code: int
    out: str
    err: str


def complaint(ended: Ended, absent: Path | None = None) -> str:
    """The line with which a command line has ended: exit code 2, nothing on standard output, on standard error this
    one line with the next step, and nothing written at `absent`.
    """
    assert ended.code == 2, ended
    assert ended.out == "", ended.out
    assert ended.err.endswith("\n")
    assert ended.err.count("\n") == 1, ended.err
    assert ended.err.startswith("sinkscope: "), ended.err
    assert "; next: " in ended.err, ended.err
    assert "Traceback" not in ended.err
    if absent is not None:
        assert not absent.exists(), sorted(absent.rglob("*"))
    return ended.err.removeprefix("sinkscope: ").rstrip("\n")
