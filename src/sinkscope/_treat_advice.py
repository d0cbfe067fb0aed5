"""From the prescription of a verified diagnosis to treatments of its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sinkscope._diagnosis import Diagnosis, open_diagnosis
from sinkscope._errors import InputError, ModelReferenceError, OptionError
from sinkscope._reload import load_again, require_same_weights
from sinkscope._treat import Subject, TreatOptions, subject_of
from sinkscope._treat_words import Word, stated
from sinkscope.explain import Advice, Prescription
from sinkscope.models import Inputs
from sinkscope.treat import (
    AttentionBias,
    AttentionTreatment,
    Gate,
    LearnedSink,
    PrefixKV,
    Registers,
    RemoveHeads,
    RemoveSinks,
    Treatment,
    anatomy_of,
    treatments_of,
)

ALTERNATIVES = ("learned sink", "prune")
"""Advice that is taken only if it is asked for, or if there is no other."""


@dataclass(frozen=True)
class Course:
    """One advice, and what is done about it: treatments, or none and why; `reason` says more about them."""

    advice: Advice
    treatments: tuple[Treatment, ...]
    reason: str = ""

    def __str__(self) -> str:
        words = " ".join(stated(treatment) for treatment in self.treatments) or "left out"
        return f"{words}: {self.reason}" if self.reason else words


@dataclass(frozen=True)
class Plan:
    """What is done about a prescription.

    - `folder`: of the diagnosis.
    - `courses`: one per advice, in its order.
    - `masked`: what hides the sinks of heads that are treated; None to leave them.
    - `subject`: the model to treat; None when there is nothing to treat it with.
    """

    folder: Path
    prescription: Prescription
    courses: tuple[Course, ...]
    masked: RemoveSinks | None = None
    subject: Subject | None = None

    @property
    def words(self) -> list[Word]:
        """The treatments."""
        chosen = [treatment for course in self.courses for treatment in course.treatments]
        return [Word(treatment) for treatment in [*filter(None, [self.masked]), *chosen]]

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "advice": [
                {
                    "treatment": course.advice.treatment,
                    "heads": [f"{layer}.{head}" for layer, head in course.advice.heads],
                    "title": course.advice.title,
                    "evidence": list(course.advice.evidence),
                    "done": [stated(treatment) for treatment in course.treatments],
                    "reason": course.reason,
                }
                for course in self.courses
            ],
            "masked": None if self.masked is None else stated(self.masked),
        }


def advised(folder: Path, options: TreatOptions, *, prune: bool, mask_sinks: bool, tune: bool) -> Plan:
    """The model of a diagnosis with treatments for what its verdicts call for.

    Gates go to the layers of nop heads, registers (copies of [CLS] if that is the sink; in decoders prefix key-values)
    to those of broadcast heads, an attention bias to those of bias heads. A learned sink, which is an alternative to
    gates, and pruning are left out unless nothing else is advised; pruning also comes with `prune`. With `mask_sinks`
    nobody sees the sinks of the heads that are treated any more: what is put in starts without effect, and has nothing
    to learn beside a sink that does its work.

    **Raises:** `ArtifactError` when the folder is no diagnosis or has no verdicts; `WeightsError` when the model is not
    the one that was diagnosed; as `subject_of`; with `tune` `InputError` or `OptionError` when no inputs are given and
    those of the diagnosis cannot be read again.
    """
    diagnosis = open_diagnosis(folder)
    prescription = diagnosis.prescription()
    if all(advice.treatment == "nothing" for advice in prescription.advice):
        return Plan(folder, prescription, tuple(Course(advice, ()) for advice in prescription.advice))
    subject = _subject(diagnosis, options, tune)
    courses = tuple(_courses(diagnosis, prescription, subject, prune))
    plan = Plan(folder, prescription, courses, _masked(courses, subject) if mask_sinks else None, subject)
    return plan if plan.words else replace(plan, subject=None)


def _masked(courses: Iterable[Course], subject: Subject) -> RemoveSinks | None:
    """The sinks of heads with a treatment that can stand in for them: the first token in decoders, whose later tokens
    an early one cannot know, else the key with the largest mass."""
    standing = (course for course in courses if course.treatments and course.advice.treatment != "prune")
    heads = tuple(sorted({head for course in standing for head in course.advice.heads}))
    causal = anatomy_of(subject.model.module).family.causal
    return RemoveSinks("mask", "first" if causal else "mass", heads=heads) if heads else None


def _subject(diagnosis: Diagnosis, options: TreatOptions, tune: bool) -> Subject:
    """The model that was diagnosed, with the inputs that are given, else with its own."""
    artifact, model = diagnosis.artifact, diagnosis.manifest["model"]
    there = diagnosis.manifest["options"]
    if model["reference"].startswith("module:"):
        raise OptionError(
            f"{diagnosis.path} was made from a torch module ({model['class']}), which no reference can load",
            "a diagnosis of a model with a reference",
            "in Python: sinkscope.treat(MODULE, [...])",
        )
    if options.dtype not in (None, there["dtype"]):
        raise OptionError(
            f"--dtype {options.dtype} for a diagnosis in {there['dtype'] or 'the own type of the model'}",
            "the same type",
            "leave --dtype out",
        )
    try:
        subject = subject_of(model["reference"], replace(options, dtype=there["dtype"]), model["modality"])
    except ModelReferenceError as error:
        raise ModelReferenceError(
            error.found,
            f"what it was when {diagnosis.path} was made",
            "run this in the folder that diagnose ran in, as the reference may be a relative path",
        ) from error
    if subject.inputs is not None:
        require_same_weights(artifact, subject.model)
        return subject
    return replace(subject, **_own_inputs(diagnosis, subject, options, tune))


def _own_inputs(diagnosis: Diagnosis, subject: Subject, options: TreatOptions, tune: bool) -> Mapping[str, Any]:
    """Inputs and flags of the diagnosis, or nothing where they cannot be had and need not be."""
    there, how = diagnosis.manifest["inputs"], diagnosis.manifest["options"]
    inputs: Inputs | None
    try:
        _, inputs = load_again(
            diagnosis.artifact,
            model=subject.model,
            data=None,
            device=options.device,
            trust_remote_code=options.trust_remote_code,
        )
    except (InputError, OptionError) as error:
        if tune:
            raise InputError(error.found, error.expected, "give the inputs to tune on: --images or --text") from error
        return {}
    shape = {name: how[name] for name in ("limit", "size", "length")}
    read = replace(options, kind=there["kind"], place=there["location"], **shape)
    return {"inputs": inputs, "flags": read.flags(subject.model.modality)}


def _courses(diagnosis: Diagnosis, prescription: Prescription, subject: Subject, prune: bool) -> Iterable[Course]:
    anatomy = anatomy_of(subject.model.module)
    heads = diagnosis.heads.set_index(["layer", "head"])
    verdict, role = heads["verdict"], heads["role"]
    needed = [advice for advice in prescription.advice if advice.treatment not in (*ALTERNATIVES, "nothing")]
    pruned = {
        head
        for advice in prescription.advice
        if advice.treatment == "prune" and (prune or not needed)
        for head in advice.heads
    }
    taken = {
        (site.index, treatment.slot)
        for treatment in treatments_of(subject.model)
        if isinstance(treatment, AttentionTreatment)
        for site in treatment.sites(anatomy)
    }

    instead = "prefix key-values, since a decoder can have no registers" if anatomy.family.causal else ""
    gated = "every head of these layers gets a gate, open at first"

    def put(treatment: AttentionTreatment, heads: Iterable[tuple[int, int]]) -> tuple[Treatment, ...]:
        """The treatment in the layers of these heads, as far as their place is free."""
        layers = sorted({layer for layer, head in heads if (layer, head) not in pruned})
        free = tuple(layer for layer in layers if (layer, treatment.slot) not in taken)
        taken.update((layer, treatment.slot) for layer in free)
        return (replace(treatment, layers=free),) if free else ()

    for advice in prescription.advice:
        of = {word: [head for head in advice.heads if verdict[head] == word] for word in ("nop", "broadcast")}
        copied = 0 if {role[head] for head in of["broadcast"]} == {"cls"} else None
        home: AttentionTreatment = PrefixKV() if anatomy.family.causal else Registers(like=copied)
        occupied = "these layers have something in that place already, or their heads are pruned"
        done: tuple[Treatment, ...] = ()
        reason = ""
        match advice.treatment:
            case "gate":
                done, reason = put(Gate(), advice.heads), gated
            case "registers":
                done, reason = put(home, advice.heads), instead
            case "both":
                done = *put(home, of["broadcast"]), *put(Gate(), of["nop"])
                reason = "; ".join(filter(None, [instead, gated]))
            case "attention bias":
                done = put(AttentionBias(), advice.heads)
            case "learned sink":
                reason = "an alternative to the gates"
                if not needed:
                    done, reason = put(LearnedSink(), advice.heads), ""
            case "prune":
                reason = "changes the outputs; --prune does it"
                if pruned:
                    done, reason = (RemoveHeads(advice.heads),), "these heads are silenced, which changes the outputs"
            case _:
                reason = "nothing to do"
        yield Course(advice, done, occupied if advice in needed and not done else reason)
