"""The command `sinkscope compare`."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from sinkscope._ending import stoppable
from sinkscope._errors import MissingExtraError
from sinkscope._flags import AsJson, Device, TrustRemoteCode


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B ...",
            help="Folders that diagnose has written, verified or not; the first is the base.",
            show_default=False,
        ),
    ],
    no_outputs: Annotated[
        bool, typer.Option("--no-outputs", help="Compare the tables only; do not run the models.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(metavar="N", help="Run the models on the first N inputs of A only.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the comparison goes; by default compare-A in the last folder."),
    ] = None,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of bootstrap intervals.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare diagnoses: sinks, verdicts, norms, outliers, and whether outputs agree.

    Tables are compared first; then the models of all folders run on the inputs of A. Writes tables and a page.
    """
    with stoppable(lambda: (0, "nothing is written")):
        from sinkscope._compare import compare as run
        from sinkscope._compare_lines import comparison_lines, comparison_records
        from sinkscope._progress import shown

        with shown("running the models", "writing the comparison") as tick:
            comparison = run(
                *folders,
                out=out,
                outputs=not no_outputs,
                limit=limit,
                device=device,
                seed=seed,
                trust_remote_code=trust_remote_code,
                on_input=lambda model, done, total: tick(done, total, _words(model, done, total)),
                command=shlex.join(["sinkscope", *sys.argv[1:]]),
            )
        try:
            page: str | None = str(comparison.report())
            note = None
        except MissingExtraError as error:
            page, note = None, f"no page written: {error}"
        if as_json:
            if note is not None:
                print(note, file=sys.stderr)  # noqa: T201 - stdout is for the JSON object alone
            typer.echo(json.dumps(comparison_records(comparison) | {"report": page}, indent=2))
            return
        typer.echo(comparison_lines(comparison))
        typer.echo(f"\ntables: {comparison.path}")
        typer.echo(note if page is None else f"page: {page}")


def _words(model: int, done: int, total: int | None) -> str:
    return f"model {chr(ord('A') + model)}: input {done}" + ("" if total is None else f" of {total}")
