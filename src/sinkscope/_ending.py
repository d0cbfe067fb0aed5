"""How the command line ends when it does not end well: one line on stderr and exit code 2."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer

from sinkscope._errors import ArtifactError, InputError, ResourceError, SinkError
from sinkscope._show import one_line
from sinkscope._world import fails_first

USAGE_ERROR: Any = typer.BadParameter.__base__
"""What the argument parser raises for wrong arguments; typer exports only this subclass."""

_NEXT = "next: run the same command again"


class Stopped(Exception):
    """The run was ended from outside; says what is kept of it."""


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn foreseeable mistakes, and what the system refuses, into one line on stderr and exit code 2.

    Of the processes of one run only the first to fail says so: the others fail because it has.
    """
    try:
        yield
    except (SinkError, Stopped) as error:
        _fail(str(error))
    except (typer.Abort, KeyboardInterrupt):
        _fail(f"stopped; {_NEXT}")
    except USAGE_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # it has shown the help
            raise SystemExit(2) from None
        command = error.ctx.command_path if error.ctx is not None else "sinkscope"
        _fail(f"{error.format_message().rstrip('.')}; next: {command} --help")
    except OSError as error:
        if error.errno is None:  # of a library, and not from the system
            raise
        _fail(str(_system_error(error)))
    except UnicodeEncodeError as error:
        _fail(str(InputError(f"the name {error.object!r}", "names in UTF-8", "rename it")))
    except MemoryError:
        _fail(str(_no_memory()))
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            _fail(str(_no_memory()))
        if fails_first():
            raise
        raise SystemExit(2) from None  # the connection to a process that has failed and said why


@contextmanager
def stoppable(kept: Callable[[], tuple[int, str]]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block by `Stopped`. `kept` tells how many pieces of work are kept, and says so."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        done, said = kept()
        raise Stopped(f"stopped, {said}; {_NEXT}{', it goes on from there' if done else ''}") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def batches_kept(out: Path) -> tuple[int, str]:
    """How many batches of the run in `out` are kept, for `stoppable`."""
    done = len(list((out / "events").glob("part-*.parquet")))
    return done, f"batches done and kept in {out}: {done}" if done else "no batch was done, nothing is kept"


def edits_kept(out: Path) -> tuple[int, str]:
    """How many parts of the edits in `out` are kept, for `stoppable`."""
    done = len(list((out / "edits").glob("part-*.parquet")))
    return done, f"parts done and kept in {out / 'edits'}: {done}" if done else "no part was done, nothing is kept"


def _system_error(error: OSError) -> SinkError:
    what = error.filename or "the output"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            f"the disk is full, {what} could not be written", "some room; what is finished is kept", "free some space"
        )
    return ArtifactError(
        f"{what} cannot be read or written ({error.strerror or error})",
        "files and folders with the permissions for it",
        "check the path and its permissions",
    )


def _no_memory() -> ResourceError:
    return ResourceError("memory ran out", "a batch that fits", "lower --batch-size, then --length or --size")


def _fail(message: str) -> NoReturn:
    if fails_first():
        print(f"sinkscope: {one_line(message)}", file=sys.stderr)  # noqa: T201 - the command line speaks
    raise SystemExit(2)
