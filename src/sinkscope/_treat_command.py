"""`sinkscope treat`: gates, registers and the rest, put into a model, tuned, and written as a model to diagnose."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from sinkscope._ending import stoppable
from sinkscope._errors import OptionError
from sinkscope._flags import AsJson, Dataset, Device, DType, Images, Length, Size, SkipBad, Text, TrustRemoteCode
from sinkscope._given import KINDS, given_input, require_reference
from sinkscope._treated_reference import treated_folder

if TYPE_CHECKING:
    from sinkscope.train.tuning import OnStep, Step

DIVERGED = 1
"""Exit code when tuning has diverged; what was best before is written."""

_HELP = "sinkscope treat --help"


class WordsAfterWith(TyperCommand):
    """Takes all words behind --with, up to the next option, and not only the first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        spread: list[str] = []
        words: int | None = None  # behind the last --with, None behind another option
        for arg in [*args[:end], "--"]:
            if not arg.startswith("-"):
                spread += ["--with"] * (words is not None and words > 0)
                words = None if words is None else words + 1
            elif words == 0:
                raise OptionError("--with and no treatment behind it", "one or more", "sinkscope treat --list")
            else:
                words = {"--with": 0}.get(arg, 1 if arg.startswith("--with=") else None)
            spread.append(arg)
        return super().parse_args(ctx, spread[:-1] + args[end:])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What stands behind `sinkscope treat`."""
        return ["REF --with TREATMENT... --out FOLDER [OPTIONS]"]


def treat(
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="REF",
            help="The model: a folder, or a name as `sinkscope models` lists them; treated:FOLDER to go on from there.",
            show_default=False,
        ),
    ] = None,
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="TREATMENT...",
            help="One or more, behind each other: NAME, NAME=VALUE, or NAME=VALUE,option=value,layers=0-5+7.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where the treated model goes, called treated:FOLDER then.")
    ] = None,
    list_all: Annotated[bool, typer.Option("--list", help="Print all treatments with their options.")] = False,
    advise: Annotated[
        Path | None,
        typer.Option(
            metavar="DIAGNOSIS",
            help="A verified diagnosis, in place of REF and --with: treat its model as its prescription says.",
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="With --advise: silence the heads that may be pruned, too.")
    ] = False,
    mask_sinks: Annotated[
        bool,
        typer.Option(
            "--mask-sinks",
            help="With --advise: hide the sinks of heads that are treated, so that what is put in, tuned, stands in.",
        ),
    ] = False,
    tune: Annotated[
        bool,
        typer.Option("--tune", help="Train what was added, all else frozen. A run that was stopped goes on."),
    ] = False,
    images: Images = None,
    text: Text = None,
    dataset: Dataset = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="distill|lm|task",
            help="What tuning minimises: the distance to the untouched model's final tokens, which is the default; the "
            "loss of a language model; or that on the labels of --dataset.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Updates; 300 by default.")] = None,
    lr: Annotated[float | None, typer.Option(metavar="X", help="Largest learning rate; 0.01 by default.")] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Inputs per forward pass, and per update.")] = 8,
    limit: Annotated[int | None, typer.Option(metavar="N", help="Use only the first N inputs.")] = None,
    size: Size = None,
    length: Length = None,
    skip_bad: SkipBad = False,
    device: Device = "cpu",
    dtype: DType = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of random starts, and of the order of inputs.")] = 0,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Put gates, registers and other treatments into a pretrained model, and tune them.

    The model stays as it is. FOLDER gets what was added, and treated:FOLDER is both together: to diagnose, verify,
    compare or treat further. --images, --text or --dataset give inputs to check and tune on. Most treatments start
    without effect. That is checked on the first inputs, or on made-up ones where none are given. Exit code 1: tuning
    has diverged, and FOLDER has the best values before.
    """
    if list_all:
        from sinkscope._treat_lines import list_lines
        from sinkscope._treat_words import described

        typer.echo(json.dumps(described(), indent=2) if as_json else list_lines())
        return
    kind, place = given_input(images, text, dataset)
    tuning = _given(objective=objective, steps=steps, lr=lr)
    shape = _given(limit=limit, size=size, length=length)
    _check_subject(reference, words, advise, {"--prune": prune, "--mask-sinks": mask_sinks}, tune)
    _check_inputs(kind, advise, tune, tuning, shape | _given(skip_bad=skip_bad or None))
    if out is None:
        raise OptionError("no --out", "a folder for the treated model", "give --out FOLDER")
    with stoppable(lambda: _kept(out)):
        from sinkscope._treat import TreatOptions, require_room, subject_of, treat_into
        from sinkscope._treat_advice import advised
        from sinkscope._treat_lines import advice_lines, nothing_lines, outcome_lines, outcome_record
        from sinkscope._treat_words import parse_words
        from sinkscope.train.tuning import TuneOptions

        require_room(out, tune)
        tune_options = TuneOptions(**tuning, batch_size=batch_size, seed=seed) if tune else None
        options = TreatOptions(
            kind, place, batch_size, limit, size, length, skip_bad, device, dtype, seed, trust_remote_code
        )
        plan = None
        if advise is None:
            chosen = parse_words(words or [])
            subject = subject_of(str(reference), options)
        else:
            plan = advised(advise, options, prune=prune, mask_sinks=mask_sinks, tune=tune)
            if plan.subject is None:
                typer.echo(json.dumps({"out": None} | plan.record(), indent=2) if as_json else nothing_lines(plan))
                return
            chosen, subject = plan.words, plan.subject
            if not as_json:
                typer.echo(advice_lines(plan))
        with _progress(tune) as on_step:
            outcome = treat_into(
                subject,
                chosen,
                out,
                tune_options,
                seed=seed,
                command=shlex.join(["sinkscope", *sys.argv[1:]]),
                on_step=on_step,
            )
        if as_json:
            typer.echo(json.dumps(outcome_record(outcome, plan), indent=2))
        else:
            typer.echo(outcome_lines(outcome, plan))
        if outcome.tuned is not None and outcome.tuned.diverged:
            raise typer.Exit(DIVERGED)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_subject(
    reference: str | None, words: list[str] | None, advise: Path | None, of_advice: dict[str, bool], tune: bool
) -> None:
    """What is treated, and with what."""
    if advise is not None:
        if reference is not None or words:
            found = "REF" if reference is not None else "--with"
            expected = "one of them: the diagnosis names its model"
            raise OptionError(f"{found} beside --advise", expected, f"leave {found} out")
        return
    for flag in (flag for flag, given in of_advice.items() if given):
        raise OptionError(f"{flag} without --advise", "a diagnosis that tells which heads", _HELP)
    if reference is None:
        raise OptionError(
            "no model",
            "sinkscope treat REF --with TREATMENT... --out FOLDER, REF in front of --with",
            f"{_HELP}, or sinkscope treat --list",
        )
    require_reference(reference)
    if not words and not (tune and treated_folder(reference) is not None):
        raise OptionError("nothing to treat with", "--with and one treatment or more", "sinkscope treat --list")


def _check_inputs(
    kind: str | None, advise: Path | None, tune: bool, tuning: dict[str, Any], shape: dict[str, Any]
) -> None:
    """What needs inputs, and what needs --tune."""
    if tuning and not tune:
        name = next(iter(tuning))
        raise OptionError(f"--{name} without --tune", "--tune, which it is for", f"add --tune, or leave --{name} out")
    if kind is not None:
        return
    if shape:
        name = next(iter(shape)).replace("_", "-")
        own = ": those of the diagnosis are taken as they were" if advise is not None else ""
        raise OptionError(f"--{name} without inputs{own}", KINDS, f"give them, or leave --{name} out")
    if tune and advise is None:
        raise OptionError("--tune without inputs", KINDS, "give the inputs to tune on")


@contextmanager
def _progress(tune: bool) -> Iterator[OnStep | None]:
    """A callback that shows steps, losses and the time left."""
    if not tune:
        yield None
        return
    from sinkscope._progress import Pace, shown

    pace = Pace()
    with shown("tuning", "writing") as tick:

        def on_step(step: Step) -> None:
            losses = f"loss {step.loss:.3g}, held out {step.held_out_loss:.3g}"
            words = f"step {step.step} of {step.steps}, {losses}{pace.left(step.step, step.steps)}"
            tick(step.step, step.steps, words)

        yield on_step


def _kept(out: Path) -> tuple[int, str]:
    """How many steps of a tuning in `out` are kept, for `stoppable`."""
    path = out / "checkpoint" / "state.safetensors"
    if not path.is_file():
        return 0, "nothing was tuned, nothing is written"
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        done = int(json.loads(file.metadata()["progress"])["step"])
    return done, f"steps done and kept in {out}: {done}"
