"""What `sinkscope treat` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from sinkscope._treat import Outcome, tuned_words
from sinkscope._treat_advice import Plan
from sinkscope._treat_words import described, stated
from sinkscope.treat._probe import TOLERANCE

_WIDTH = 100


def list_lines() -> str:
    """Every treatment with its options."""
    lines = ["sinkscope treat REF --with NAME NAME=VALUE NAME=VALUE,option=value,layers=0-5+7 --out FOLDER"]
    lines.append("VALUE is for the first option. Defaults stand in brackets.")
    for each in described():
        start = "outputs unchanged until tuned" if each["harmless"] else "changes the outputs from the start"
        options = [
            f"{name}={option['values']}" + ("" if option["default"] is None else f" [{option['default']}]")
            for name, option in each["options"].items()
        ]
        lines += ["", f"{each['name']} ({start})", *_wrapped(each["does"] + ".")]
        lines += [line for option in options for line in _wrapped(option, "    ")]
        lines += _wrapped(f"Source: {each['source']}")
    return "\n".join(lines)


def nothing_lines(plan: Plan) -> str:
    """A prescription without treatments."""
    reasons = [f"{course.advice.title}. {course.advice.text}" for course in plan.courses if not course.reason]
    told = [line for reason in reasons for line in _wrapped(reason)] or _courses(plan)
    return "\n".join([f"{plan.folder}: nothing to treat, nothing is written", *told])


def advice_lines(plan: Plan) -> str:
    """The prescription, and what is done about it."""
    masked = [] if plan.masked is None else [f"{stated(plan.masked)}: nobody sees these heads' sinks any more"]
    return "\n".join([str(plan.prescription), "", "Done about it:", *_courses(plan), *masked, ""])


def outcome_lines(outcome: Outcome, plan: Plan | None) -> str:
    """What was put in, what it does to the outputs, what came of tuning, and how to go on."""
    words = " ".join(stated(treatment) for treatment in outcome.treatments)
    lines = [f"treated: {outcome.base}", f"with: {words}", f"added: {_added(outcome)}"]
    if outcome.change is not None:
        lines.append(f"before tuning: {_change(outcome)}" if outcome.tuned else f"outputs: {_change(outcome)}")
    lines += [f"note: {note}" for note in outcome.notes]
    if outcome.tuned is not None:
        lines += [tuned_words(outcome.tuned), *(f"note: {remark}" for remark in outcome.tuned.remarks)]
    lines += [f"written: {outcome.out}", f"next: {outcome.next_step}"]
    if plan is not None:
        lines.append(f"then: sinkscope compare {plan.folder} {outcome.out / 'diagnosis'}")
    return "\n".join(lines)


def outcome_record(outcome: Outcome, plan: Plan | None) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "out": str(outcome.out),
        "model": outcome.reference,
        "base": outcome.base,
        "treatments": [stated(treatment) for treatment in outcome.treatments],
        "added": {"parameters": outcome.parameters, "share": outcome.parameters / outcome.own},
        "probe": None if outcome.change is None else {"inputs": outcome.probe, "change": outcome.change},
        "notes": list(outcome.notes),
        "tuning": None if outcome.tuned is None else outcome.tuned.plain(),
        **({} if plan is None else plan.record()),
        "next": outcome.next_step,
    }


def _added(outcome: Outcome) -> str:
    if not outcome.parameters:
        return "no parameters"
    share = 100 * outcome.parameters / outcome.own
    return f"{outcome.parameters:,} parameters, {share:.2g}% of the model's own {outcome.own:,}"


def _change(outcome: Outcome) -> str:
    change = outcome.change or 0.0
    same = "unchanged but for rounding" if change <= TOLERANCE else "changed"
    return f"{same}, by {change:.2g} of the largest on {outcome.probe}"


def _courses(plan: Plan) -> list[str]:
    numbered = enumerate(plan.courses, 1)
    return [line for number, course in numbered for line in _wrapped(str(course), f"{number}. ", "   ")]


def _wrapped(text: str, lead: str = "  ", rest: str | None = None) -> Sequence[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=lead,
        subsequent_indent=lead if rest is None else rest,
        break_on_hyphens=False,
        break_long_words=False,
    )
