"""The command line: one thin command per capability."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from sinkscope import __version__
from sinkscope._compare_command import compare
from sinkscope._ending import batches_kept, edits_kept, one_line_errors, stoppable
from sinkscope._errors import MissingExtraError, OptionError
from sinkscope._flags import AsJson, Dataset, Device, DType, Images, Length, Size, SkipBad, Text, TrustRemoteCode
from sinkscope._given import KINDS, given_input, require_reference
from sinkscope._toy import toy
from sinkscope._toy_reference import toy_folder
from sinkscope._treat_command import WordsAfterWith, treat
from sinkscope._world import announced

if TYPE_CHECKING:
    from sinkscope._diagnosis import Diagnosis

app = typer.Typer(
    name="sinkscope",
    help="Finds attention sinks in any transformer and says what each one computes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.add_typer(toy, name="toy")
app.command(epilog="Example: sinkscope compare runs/minilm runs/minilm-gated")(compare)

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="What a diagnosis has written: its --out folder.", show_default=False)
]


def main() -> NoReturn:
    """Run the command line; foreseeable mistakes end as one line on stderr and exit code 2."""
    with one_line_errors():
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


@app.command(epilog="Example: sinkscope diagnose zoo:minilm-l6 --text book.txt --out minilm")
def diagnose(
    reference: Annotated[
        str,
        typer.Argument(metavar="REF", help="The model: a folder, or a name as `sinkscope models` lists them."),
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where the results go. A run that was stopped there goes on."),
    ],
    images: Images = None,
    text: Text = None,
    dataset: Dataset = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Measure only the first N inputs; all by default, 256 for a toy."),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Inputs per forward pass.")] = 8,
    size: Size = None,
    length: Length = None,
    queries: Annotated[
        str, typer.Option(metavar="all|N", help="Use all queries, which is exact, or a sample of N per input.")
    ] = "all",
    rule: Annotated[
        str, typer.Option(metavar="RULE", help="What counts as an event: the name of a rule, or a .toml file.")
    ] = "fesser",
    device: Device = "cpu",
    dtype: DType = None,
    num_workers: Annotated[int, typer.Option(metavar="N", help="Threads that read inputs ahead; none if 0.")] = 0,
    seed: Annotated[
        int,
        typer.Option(metavar="N", help="Of sampled queries and of bootstrap intervals."),
    ] = 0,
    skip_bad: SkipBad = False,
    device_map: Annotated[
        str | None,
        typer.Option(metavar="MAP", help="transformers' device_map, such as auto, for a model larger than a device."),
    ] = None,
    tp_plan: Annotated[
        str | None,
        typer.Option(metavar="PLAN", help="auto: cut the heads of every layer over the processes of torchrun."),
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Find the sinks of a model on real inputs; write tables and a report.

    Exactly one of --images, --text and --dataset is needed, and none of them for toy:FOLDER: a toy is measured on
    inputs of its own task.
    """
    with stoppable(lambda: batches_kept(out)):
        kind, inputs = _one_input(reference, images=images, text=text, dataset=dataset)
        count = _queries(queries)
        require_reference(reference)
        from sinkscope._batch_progress import batch_progress
        from sinkscope._diagnose import diagnose as run

        first = announced().first
        with batch_progress(quiet=not first) as on_batch:
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
                command=shlex.join(["sinkscope", *sys.argv[1:]]),
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
        if first:
            _close(diagnosis, as_json)


@app.command(epilog="Example: sinkscope verify minilm --inputs 32")
def verify(
    folder: Folder,
    heads: Annotated[
        str,
        typer.Option(
            metavar="auto|all|L.H,...",
            help="auto: all sink heads; all: all heads; or layer.head, with commas between.",
        ),
    ] = "auto",
    inputs: Annotated[
        int, typer.Option(metavar="N", help="Most inputs per head: the first N on which it has a sink.")
    ] = 64,
    donors: Annotated[
        int, typer.Option(metavar="N", help="How many other inputs lend each input their values, one after the other.")
    ] = 2,
    freeze_all: Annotated[
        bool,
        typer.Option("--freeze-all", help="Later layers keep their attention, so that only values carry the change."),
    ] = False,
    again: Annotated[
        bool, typer.Option("--again", help="Delete the edits that are there; other options than theirs need that.")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(metavar="N", help="Most rows per edited pass; a row is one input under one edit.")
    ] = 128,
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(metavar="N", help="Of donors, controls and bootstrap intervals.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Edit sink heads one at a time and say what each one does.

    Loads the model and the inputs of the diagnosis again, takes away or exchanges what a sink hands out, and compares
    with controls. Adds verdicts to the tables and the report. A run that was stopped goes on; heads that were edited
    before are kept and judged with the new ones.
    """
    with stoppable(lambda: edits_kept(folder)):
        from sinkscope._diagnosis import open_diagnosis
        from sinkscope._progress import Pace, shown

        pace = Pace()
        with shown("editing heads", "judging") as tick:
            diagnosis = open_diagnosis(folder).verify(
                heads,
                inputs,
                donors,
                freeze_all,
                seed=seed,
                batch_size=batch_size,
                device=device,
                again=again,
                trust_remote_code=trust_remote_code,
                on_part=lambda done, parts: tick(done, parts, f"part {done} of {parts}{pace.left(done, parts)}"),
                command=shlex.join(["sinkscope", *sys.argv[1:]]),
            )
        _close(diagnosis, as_json)


app.command(cls=WordsAfterWith, epilog="Example: sinkscope treat zoo:minilm-l6 --with gate=headwise --out gated")(treat)


@app.command()
def show(
    folder: Folder,
    heads: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many heads to list, highest event rate first; 0 for all.")
    ] = 12,
    as_json: AsJson = False,
) -> None:
    """Print what a diagnosis has found."""
    from sinkscope._diagnosis import open_diagnosis
    from sinkscope._show import head_lines, head_records

    diagnosis = open_diagnosis(folder)
    if as_json:
        typer.echo(json.dumps(_facts(diagnosis) | {"heads": head_records(diagnosis.heads, heads)}, indent=2))
        return
    typer.echo(diagnosis.summary())
    typer.echo()
    typer.echo(head_lines(diagnosis.heads, heads))
    if diagnosis.verified:
        typer.echo()
        typer.echo(diagnosis.prescription())


@app.command()
def report(
    folder: Folder,
    figures: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Also write every figure there, as SVG and PNG.")
    ] = None,
) -> None:
    """Write the report of a diagnosis, one HTML file that works offline."""
    if figures is not None and figures.exists() and not figures.is_dir():
        raise OptionError(f"--figures {figures} is a file", "a folder, new or not", "choose another name")
    from sinkscope.report import write_figures, write_report

    typer.echo(write_report(folder))
    if figures is not None:
        for path in write_figures(folder, figures):
            typer.echo(path)


@app.command()
def models(as_json: AsJson = False) -> None:
    """List the forms of a model's name, and models that need no hub."""
    from sinkscope._show import model_lines, model_records

    typer.echo(json.dumps(model_records(), indent=2) if as_json else model_lines())


def _one_input(reference: str, **given: Any) -> tuple[Any, Any]:
    named = {name: value for name, value in given.items() if value is not None}
    if toy_folder(reference) is not None:
        if named:
            flag = f"--{next(iter(named))}"
            raise OptionError(f"{flag} for {reference}", "no inputs, since its task makes them", f"leave {flag} out")
        return None, None
    kind, value = given_input(**given)
    if kind is None:
        raise OptionError("no inputs", KINDS, "sinkscope diagnose --help")
    return kind, value


def _queries(text: str) -> Any:
    if text == "all":
        return text
    if not text.isdecimal():
        raise OptionError(f"--queries is {text!r}", "all or a whole number", "use --queries all or --queries 64")
    return int(text)


def _close(diagnosis: Diagnosis, as_json: bool) -> None:
    from sinkscope._show import one_line
    from sinkscope._verdict_lines import verdict_lines, verdict_records

    try:
        page: str | None = str(diagnosis.report())
        note = None
    except MissingExtraError as error:
        page, note = None, f"no report written: {error}"
    if as_json:
        if note is not None:
            print(note, file=sys.stderr)  # noqa: T201 - stdout is for the JSON object alone
        verdicts = {"verdicts": verdict_records(diagnosis.verdicts)} if diagnosis.verified else {}
        typer.echo(json.dumps(_facts(diagnosis) | verdicts | {"report": page}, indent=2))
        return
    typer.echo(diagnosis.summary())
    if diagnosis.verified:
        typer.echo("\n".join(verdict_lines(diagnosis.verdicts, str(diagnosis.path))))
    bad = diagnosis.manifest["coverage"]["bad_inputs"]
    if bad:
        typer.echo(f"left out {len(bad)} of {diagnosis.manifest['n_inputs'] + len(bad)} inputs:")
        for name, reason in bad.items():
            typer.echo("  " + one_line(f"{name}: {reason}"))
    typer.echo(note if page is None else f"report: {page}")


def _facts(diagnosis: Diagnosis) -> dict[str, Any]:
    model, coverage = diagnosis.manifest["model"], diagnosis.manifest["coverage"]
    return {
        "out": str(diagnosis.path),
        "model": model["reference"],
        "notes": model["notes"],
        "n_inputs": diagnosis.manifest["n_inputs"],
        "coverage": coverage["line"],
        "bad_inputs": coverage["bad_inputs"],
        "summary": diagnosis.summary().splitlines()[1 + len(model["notes"]) :],
    }
