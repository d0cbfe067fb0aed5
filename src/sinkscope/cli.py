"""The command line: one thin command per capability."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sinkscope import __version__
from sinkscope._errors import OptionError, ResourceError, SinkError

if TYPE_CHECKING:
    from sinkscope._diagnose import Diagnosis

app = typer.Typer(
    name="sinkscope",
    help="Finds attention sinks in any transformer and says what each one computes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

USAGE_ERROR: Any = typer.BadParameter.__base__
"""What the argument parser raises for wrong arguments; typer exports only this subclass."""

_STOPPED = "stopped; parts that were done are kept; next: run the same command again, it goes on from there"

Folder = Annotated[Path, typer.Argument(help="An artifact: the --out folder of a diagnosis.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


def main() -> NoReturn:
    """Run the command line; foreseeable mistakes end as one line on stderr and exit code 2."""
    with _one_line_errors():
        code = app(standalone_mode=False)
    raise SystemExit(code or 0)


@app.callback(invoke_without_command=True)
def version_or_help(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True)] = False,
) -> None:
    """Options of sinkscope itself."""
    if version:
        typer.echo(f"sinkscope {__version__}")
        raise typer.Exit


@app.command()
def diagnose(
    reference: Annotated[
        str, typer.Argument(metavar="REF", help="The model; forms: sinkscope models", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder of the artifact; an unfinished run there goes on.")],
    images: Annotated[Path | None, typer.Option(help="Folder of pictures, or one picture.", show_default=False)] = None,
    text: Annotated[Path | None, typer.Option(help="Text file, cut into windows.", show_default=False)] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Parquet file, or name of a hub dataset.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Measure only the first N inputs.", show_default=False)] = None,
    batch_size: Annotated[int, typer.Option(help="Inputs per forward pass.")] = 8,
    size: Annotated[int | None, typer.Option(help="Side of pictures in pixels.", show_default="the model's")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens per text window.", show_default="at most 128")] = None,
    queries: Annotated[str, typer.Option(help="all (exact), or how many queries to sample per input.")] = "all",
    rule: Annotated[str, typer.Option(help="Rule that calls a row an event, or a .toml file.")] = "fesser",
    device: Annotated[str, typer.Option(help="Where the model runs.")] = "cpu",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16.", show_default="the checkpoint's")
    ] = None,
    num_workers: Annotated[int, typer.Option(help="Threads that read inputs ahead.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of sampling and bootstrap.")] = 0,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out unreadable inputs, and name them.")] = False,
    device_map: Annotated[str | None, typer.Option(help="transformers device_map, for models larger than a device.")] = None,
    tp_plan: Annotated[str | None, typer.Option(help="transformers tp_plan, under torchrun.")] = None,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help="Run code that the model brings.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find the sinks of a model on real inputs: event table, head table, report.

    Exactly one of --images, --text and --dataset is needed.
    """
    kind, inputs = _one_input(images=images, text=text, dataset=dataset)
    count = _queries(queries)
    from sinkscope._diagnose import diagnose as run
    from sinkscope._progress import batch_progress

    with batch_progress(quiet=_rank() > 0) as on_batch:
        diagnosis = run(
            reference,
            inputs,
            out,
            kind=kind,
            rule=rule,
            trust_remote_code=trust_remote_code,
            device_map=device_map,
            tp_plan=tp_plan,
            on_batch=on_batch,
            limit=limit,
            batch_size=batch_size,
            size=size,
            length=length,
            queries=count,
            device=device,
            dtype=dtype,
            num_workers=num_workers,
            seed=seed,
            skip_bad=skip_bad,
        )
    if _rank() == 0:
        _close(diagnosis, as_json)


@app.command()
def show(
    folder: Folder,
    heads: Annotated[int, typer.Option(help="How many heads to list, by event rate; 0 for all.")] = 12,
    as_json: AsJson = False,
) -> None:
    """Print what a diagnosis found."""
    from sinkscope._diagnose import open_diagnosis
    from sinkscope._show import head_lines, head_records

    diagnosis = open_diagnosis(folder)
    if as_json:
        typer.echo(json.dumps(_facts(diagnosis) | {"heads": head_records(diagnosis.heads, heads)}, indent=2))
        return
    typer.echo(diagnosis.summary())
    typer.echo()
    typer.echo(head_lines(diagnosis.heads, heads))


@app.command()
def report(
    folder: Folder,
    figures: Annotated[Path | None, typer.Option(help="Also write every figure here, as SVG and PNG.")] = None,
) -> None:
    """Write the offline HTML report of a diagnosis, and its figures."""
    from sinkscope.report import write_figures, write_report

    typer.echo(write_report(folder))
    if figures is not None:
        for path in write_figures(folder, figures):
            typer.echo(path)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the zoo and the forms a model reference can take."""
    from sinkscope._show import model_lines, model_records

    typer.echo(json.dumps(model_records(), indent=2) if as_json else model_lines())


def _one_input(**given: Any) -> tuple[Any, Any]:
    named = {name: value for name, value in given.items() if value is not None}
    if len(named) != 1:
        found = " and ".join(f"--{name}" for name in named) or "no inputs"
        raise OptionError(found, "exactly one of --images, --text and --dataset", "sinkscope diagnose --help")
    return next(iter(named.items()))


def _queries(text: str) -> Any:
    if text == "all":
        return text
    if not text.isdigit():
        raise OptionError(f"--queries is {text!r}", "all or a whole number", "use --queries all or --queries 64")
    return int(text)


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _close(diagnosis: Diagnosis, as_json: bool) -> None:
    from sinkscope._errors import MissingExtraError

    try:
        page: str | None = str(diagnosis.report())
        note = None
    except MissingExtraError as error:
        page, note = None, f"no report written: {error}"
    if as_json:
        typer.echo(json.dumps(_facts(diagnosis) | {"report": page}, indent=2))
        return
    typer.echo(diagnosis.summary())
    for name, reason in diagnosis.manifest["coverage"].get("bad_inputs", {}).items():
        typer.echo(f"skipped {name}: {reason}")
    typer.echo(note if page is None else f"report: {page}")


def _facts(diagnosis: Diagnosis) -> dict[str, Any]:
    coverage, *sentences = diagnosis.summary().splitlines()
    return {
        "out": str(diagnosis.path),
        "model": diagnosis.manifest["model"]["reference"],
        "n_inputs": diagnosis.manifest["n_inputs"],
        "coverage": coverage,
        "bad_inputs": diagnosis.manifest["coverage"].get("bad_inputs", {}),
        "summary": sentences,
    }


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except SinkError as error:
        _fail(str(error))
    except typer.Abort:
        _fail(_STOPPED)
    except USAGE_ERROR as error:
        if error.ctx is not None and type(error).__name__ == "NoArgsIsHelpError":
            typer.echo(error.ctx.get_help())
            raise SystemExit(2) from None
        command = error.ctx.command_path if error.ctx is not None else "sinkscope"
        _fail(f"{error.format_message().rstrip('.')}; next: {command} --help")
    except KeyboardInterrupt:
        _fail(_STOPPED)
    except MemoryError:
        _fail(str(_no_memory()))
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
            _fail(str(_no_memory()))
        raise


def _no_memory() -> ResourceError:
    return ResourceError("memory ran out", "a batch that fits", "lower --batch-size, then --length or --size")


def _fail(message: str) -> NoReturn:
    print("sinkscope: " + " ".join(message.split()), file=sys.stderr)  # noqa: T201 - the command line speaks
    raise SystemExit(2)
