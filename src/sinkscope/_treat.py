"""A model by reference, treated, tuned if asked for, and written to a folder that is a model reference again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sinkscope import treat
from sinkscope._errors import ArtifactError, OptionError
from sinkscope._load import load
from sinkscope._treat_probe import Tried, first_of, made_up
from sinkscope._treat_words import Word, stated
from sinkscope._treated import Base, Treated, base_of, read_treated, write_treated
from sinkscope._treated_reference import FACTS, TREATED, treated_folder
from sinkscope.models import Batch, Inputs, Modality, Model, make_inputs
from sinkscope.treat import PrefixKV, Registers, TestTimeRegisters, Treatment
from sinkscope.treat._files import JSON, TENSORS
from sinkscope.treat._probe import output_change, run

if TYPE_CHECKING:
    from sinkscope.train.tuning import OnStep, Tuned, TuneOptions

PICTURES = 64
"""Register neurons are looked for on the first so many pictures."""

_OWN = frozenset({FACTS, JSON, TENSORS})


@dataclass(frozen=True)
class TreatOptions:
    """How a model and its inputs are read.

    - `kind`, `place`: of inputs, as `make_inputs` takes them; None for none.
    - the others: as for `sinkscope.load` and `make_inputs`.
    """

    kind: Literal["images", "text", "dataset"] | None = None
    place: Path | str | None = None
    batch_size: int = 8
    limit: int | None = None
    size: int | None = None
    length: int | None = None
    skip_bad: bool = False
    device: str = "cpu"
    dtype: str | None = None
    seed: int = 0
    trust_remote_code: bool = False

    def inputs(self, model: Model) -> Inputs | None:
        """The inputs for a model, if there are any."""
        if self.place is None:
            return None
        return make_inputs(
            model,
            self.place,
            batch_size=self.batch_size,
            limit=self.limit,
            size=self.size,
            length=self.length,
            seed=self.seed,
            skip_bad=self.skip_bad,
            kind=self.kind,
        )

    def flags(self, modality: Modality) -> list[str]:
        """The inputs as the command line takes them, with what is missing in capitals."""
        if self.place is None:
            return ["--images", "FOLDER"] if modality == "vision" else ["--text", "FILE"]
        sizes = {"--limit": self.limit, "--size": self.size, "--length": self.length}
        given = [word for flag, value in sizes.items() if value is not None for word in (flag, str(value))]
        return [f"--{self.kind}", str(self.place), *given]


@dataclass(frozen=True)
class Subject:
    """What is treated, and on what.

    - `model`, `base`: the model, and how it is loaded again.
    - `earlier`: what was done to it before, if it was treated.
    - `inputs`: to check, set and tune treatments on; None for a probe that is made up.
    - `flags`: the inputs as the command line takes them.
    """

    model: Model
    base: Base
    earlier: Treated | None = None
    inputs: Inputs | None = None
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class Outcome:
    """What was done.

    - `base`: reference of the model that was treated, as it was given.
    - `treatments`: that were put in, or are tuned.
    - `parameters`, `own`: how many were added, by earlier treatments too, and how many the model has of its own.
    - `probe`, `change`: an input in words, and the largest change of outputs on it before tuning, as a share of the
      largest output; None where nothing was put in.
    - `notes`: how treatments were set.
    - `tuned`: None where nothing was tuned.
    - `next_step`: the command that diagnoses it.
    """

    out: Path
    base: str
    treatments: tuple[Treatment, ...]
    parameters: int
    own: int
    probe: str | None
    change: float | None
    notes: tuple[str, ...]
    tuned: Tuned | None
    next_step: str

    @property
    def reference(self) -> str:
        """Of the treated model."""
        return f"{TREATED}{self.out}"


@dataclass(frozen=True)
class _Put:
    """A treated model, and what is to be told of it."""

    model: Model
    treatments: tuple[Treatment, ...]
    probe: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def subject_of(reference: str, options: TreatOptions, modality: Modality | None = None) -> Subject:
    """A model by reference, to be treated; its modality where that is known, else from the kind of inputs.

    **Raises:** as `sinkscope.load` and `make_inputs`.
    """
    if reference.startswith("toy:"):
        raise OptionError(
            f"{reference} to be treated", "a pretrained model", "train a toy with another form: sinkscope toy --help"
        )
    modalities: dict[str | None, Modality] = {"images": "vision", "text": "text"}
    model = load(
        reference,
        modality=modality or modalities.get(options.kind),
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    inputs, flags = options.inputs(model), options.flags(model.modality)
    folder = treated_folder(reference)
    if folder is None:
        return Subject(model, base_of(reference, model, options.dtype), None, inputs, flags)
    earlier = read_treated(folder)
    return Subject(model, earlier.base, earlier, inputs, flags)


def require_room(out: Path, tuning: bool) -> None:
    """Refuses a folder that can hold no treated model, before any work is done for one.

    **Raises:** `ArtifactError` when `out` is a file, holds a treated model already, or something else.
    """
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file", "a folder, new or empty", "choose another folder with --out")
    if (out / FACTS).exists():
        raise ArtifactError(
            f"{out} holds a treated model already",
            "a folder of its own for each",
            f"choose another --out; to go on from it: sinkscope treat {TREATED}{shlex.quote(str(out))} ...",
        )
    if not out.is_dir() or (tuning and (out / "checkpoint").is_dir()):
        return
    strangers = sorted(path.name for path in out.iterdir() if path.name not in _OWN and not path.name.endswith(".tmp"))
    if strangers:
        unfinished = strangers[0] == "checkpoint"
        raise ArtifactError(
            f"{out} holds {'a tuning that is not finished' if unfinished else strangers[0]}",
            "a folder, new or empty",
            "choose another folder with --out" + (", or give --tune to go on with it" if unfinished else ""),
        )


def treat_into(
    subject: Subject,
    words: Sequence[Word],
    out: Path,
    options: TuneOptions | None = None,
    *,
    seed: int = 0,
    command: str = "",
    on_step: OnStep | None = None,
) -> Outcome:
    """Treats the model, tunes what was added if there are options for that, and writes `out`.

    **Raises:** `ArtifactError` when `out` is taken; `OptionError`, `InputError` where a treatment cannot be had, set or
    tuned, or changes outputs though it promises not to; as `sinkscope.train.tuning.tune`. Nothing is written then, but
    checkpoints of a tuning that was begun.
    """
    require_room(out, options is not None)
    put = _put(subject, words, seed) if words else _Put(subject.model, treat.treatments_of(subject.model))
    parameters = sum(parameter.numel() for parameter in treat.added(put.model).values())
    own = put.model.parameters - parameters
    tuned, tuning, notes = None, [], list(put.notes)
    if options is None:
        treat.save(put.model, out)
    else:
        if subject.inputs is None:
            raise OptionError("tuning without inputs", "inputs to tune on", "give them")
        from sinkscope.train.tuning import tune

        tuned = tune(put.model, subject.inputs, options, out=out, on_step=on_step)
        tuning.append({"inputs": dict(subject.inputs.identity), "result": tuned.plain()})
        notes.append(tuned_words(tuned))
    earlier = subject.earlier or Treated(subject.base)
    write_treated(
        out,
        replace(
            earlier,
            command=command,
            treatments=tuple(stated(treatment) for treatment in treat.treatments_of(put.model)),
            added={"parameters": parameters, "share": parameters / own},
            probe=put.probe or earlier.probe,
            notes=(*earlier.notes, *notes),
            tuning=(*earlier.tuning, *tuning),
        ),
    )
    return Outcome(
        out=out,
        base=subject.model.reference,
        treatments=put.treatments,
        parameters=parameters,
        own=own,
        probe=put.probe.get("inputs"),
        change=put.probe.get("change"),
        notes=put.notes,
        tuned=tuned,
        next_step=shlex.join(
            ["sinkscope", "diagnose", f"{TREATED}{out}", *subject.flags, "--out", str(out / "diagnosis")]
        ),
    )


def tuned_words(tuned: Tuned) -> str:
    """What came of a tuning."""
    text = (
        f"tuned for {tuned.kept_step} steps ({tuned.options.objective}) on {tuned.inputs} inputs: loss on "
        f"{tuned.held_out_inputs} held out {tuned.loss_before:.3g} before, {tuned.loss_after:.3g} after"
    )
    if tuned.accuracy_before is not None and tuned.accuracy_after is not None:
        text += f"; accuracy {tuned.accuracy_before:.1%} before, {tuned.accuracy_after:.1%} after"
    return text + (f"; diverged at step {tuned.steps}" if tuned.diverged else "")


def _put(subject: Subject, words: Sequence[Word], seed: int) -> _Put:
    model = subject.model
    tried = made_up(model) if subject.inputs is None else first_of(subject.inputs)
    treatments, notes = _resolved(subject, words)
    before = run(model.module, tried.batch)
    treated = treat.treat(model, treatments, inplace=True, probe=tried.batch, seed=seed)
    for word in words:
        if word.fill and isinstance(word.treatment, PrefixKV):
            notes.append(_filled(treated, subject, word.treatment.count, tried))
    change = output_change(before, run(treated.module, tried.batch))
    return _Put(treated, tuple(treatments), {"inputs": tried.what, "change": change}, tuple(notes))


def _resolved(subject: Subject, words: Sequence[Word]) -> tuple[list[Treatment], list[str]]:
    """Treatments whose register neurons are found, and what was found."""
    treatments: list[Treatment] = []
    notes: list[str] = []
    for word in words:
        treatment = word.treatment
        if isinstance(treatment, TestTimeRegisters) and word.search is not None:
            if subject.inputs is None or subject.model.modality != "vision":
                raise OptionError(
                    f"{treatment.name} without pictures",
                    "pictures on which to look for register neurons",
                    f"--images FOLDER, or name them: {treatment.name}=3.5+4.1 (block.number)",
                )
            search = word.search
            pictures = _pictures(subject.inputs)
            found = treat.find_register_neurons(subject.model, pictures, threshold=search.threshold, layer=search.layer)
            treatment = replace(treatment, neurons=found.neurons(search.count, sparsity=search.sparsity))
            notes.append(f"{treatment.name}: {found}")
        own = treat.anatomy_of(subject.model.module).prefix.count("register")
        if isinstance(treatment, Registers) and own:
            notes.append(f"registers: the model has {own} of its own, which stay; these come on top")
        treatments.append(treatment)
    return treatments, notes


def _pictures(inputs: Inputs) -> list[Any]:
    """Batches of the first PICTURES pictures, the last one whole."""
    found: list[Batch] = []
    for batch in inputs.batches():
        if batch.names:
            found.append(batch)
        if sum(len(each.names) for each in found) >= PICTURES:
            break
    return list(found)


def _filled(treated: Model, subject: Subject, count: int, tried: Tried) -> str:
    """Gives a prefix the key-values of the first tokens of the text; says so."""
    if subject.inputs is None or subject.model.modality != "text":
        raise OptionError("prefix-kv: fill without a text", "a text, whose first tokens it takes", "--text FILE")
    batch = tried.batch
    ids = batch.args[0] if batch.args else batch.kwargs["input_ids"]
    if ids.shape[1] < count:
        raise OptionError(
            f"prefix-kv: {count} places for inputs of {ids.shape[1]} tokens", "as many tokens", "lower its count"
        )
    treat.fill_prefix(treated, ids[:1, :count])
    return f"prefix-kv: it has the key-values of the first {count} tokens of the text, which changes the outputs"
