"""Treatments as a command line states them: NAME, NAME=VALUE, NAME=VALUE,option=value,layers=0-5+7."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sinkscope import treat
from sinkscope._errors import OptionError
from sinkscope.train._values import _alternatives, parsed, typed
from sinkscope.treat import TREATMENTS, PrefixKV, RemoveHeads, TestTimeRegisters, Treatment

LIST = "sinkscope treat --list"
_NUMBERS = re.compile(r"\d{1,6}(-\d{1,6})?(\+\d{1,6}(-\d{1,6})?)*")
_PAIRS = re.compile(r"\d+\.\d+(\+\d+\.\d+)*")
_AUTO = re.compile(r"auto(?::(\d+))?")


@dataclass(frozen=True)
class Search:
    """How register neurons are looked for: `count` of them, the others as `find_register_neurons` has them."""

    count: int = 10
    threshold: float | None = None
    layer: int | None = None
    sparsity: float | None = None


_SEARCH = ("threshold", "layer", "sparsity")


@dataclass(frozen=True)
class Word:
    """One treatment as it was asked for.

    - `treatment`: with all options that can be known before the model is there.
    - `search`: for its register neurons, which are to be found; None where there are none to find.
    - `fill`: its key-values are to be those of the first tokens of a text.
    """

    treatment: Treatment
    search: Search | None = None
    fill: bool = False


def parse_words(words: Sequence[str]) -> list[Word]:
    """The treatments that words ask for.

    **Raises:** `OptionError` for an unknown treatment or option, with the closest names, and for values that cannot be.
    """
    return [_word(word) for word in words]


def described() -> list[dict[str, Any]]:
    """Every treatment for a list: name, what it does, options with types and defaults, how it starts, source."""
    return [_described(name, kind) for name, kind in TREATMENTS.items()]


def _word(word: str) -> Word:
    head, *rest = word.split(",")
    name, equals, value = head.partition("=")
    if name not in TREATMENTS:
        raise OptionError(f"there is no treatment {name!r}", _closest(name, TREATMENTS), LIST)
    kind = TREATMENTS[name]
    texts = {first_option(kind): value} if equals else {}
    for part in rest:
        option, equals, value = part.partition("=")
        option = option.replace("-", "_")
        if not equals or not option:
            raise OptionError(f"{part!r} in {word}", f"{name}=VALUE,option=value", LIST)
        if option in texts:
            raise OptionError(f"{option} twice in {word}", "one value", "leave one out")
        texts[option] = value
    if None in texts:
        raise OptionError(f"{name}={texts[None]}", f"{name} without a value", LIST)
    return _made(name, kind, {str(option): text for option, text in texts.items()})


def _made(name: str, kind: type[Treatment], texts: dict[str, str]) -> Word:
    search, fill = None, False
    if kind is TestTimeRegisters and (auto := _AUTO.fullmatch(texts.get("neurons", "auto"))):
        texts.pop("neurons", None)
        hints = get_type_hints(Search)
        given = {option: texts.pop(option) for option in _SEARCH if option in texts}
        found = {option: _value(name, option, hints[option], text) for option, text in given.items()}
        search = Search(int(auto[1] or Search.count), **found)
    if kind is PrefixKV and "fill" in texts:
        fill = _value(name, "fill", bool, texts.pop("fill"))
    hints, known = get_type_hints(kind), _options(kind)
    values: dict[str, Any] = {}
    for option, text in texts.items():
        if option in known:
            values[option] = _value(name, option, hints[option], text)
        elif kind is treat.Form:  # an option of the form, which checks it
            values[option] = parsed(text)
        else:
            names = [*known, *(_SEARCH if search is not None else ())]
            raise OptionError(f"{name} has no option {option!r}", _closest(option, names), LIST)
    missing = [option for option, default in known.items() if default is MISSING and option not in values]
    if missing:
        raise OptionError(f"{name} without {missing[0]}", f"{name}={_told(missing[0], hints[missing[0]])}", LIST)
    return Word(kind(**values), search, fill)


def stated(treatment: Treatment) -> str:
    """The word for a treatment, with the options that are not as by default."""
    kind = type(treatment)
    known = _options(kind)
    values = {name: getattr(treatment, name) for name in known}
    if isinstance(treatment, treat.Form):
        values |= dict(treatment.options)
    first = first_option(kind)
    head = treatment.name
    if first is not None:
        value = values.pop(first)
        if value != known[first] or not isinstance(value, bool | NoneType):
            head += f"={_as_text(first, value)}"
    others = {name: value for name, value in values.items() if value != known.get(name, MISSING)}
    return ",".join([head, *(f"{name}={_as_text(name, value)}" for name, value in others.items())])


def first_option(kind: type[Treatment]) -> str | None:
    """The option that VALUE in NAME=VALUE is for."""
    return next((each.name for each in fields(kind) if not each.kw_only), None)


def _options(kind: type[Treatment]) -> dict[str, Any]:
    """Defaults by name, the first option first, layers last."""
    if kind is treat.Form:
        return {"form": MISSING, "layers": None}
    return {each.name: each.default for each in sorted(fields(kind), key=lambda each: bool(each.kw_only))}


def _value(name: str, option: str, annotation: Any, text: str) -> Any:
    for kind in _alternatives(annotation):
        if get_origin(kind) is tuple:
            pairs = get_origin(get_args(kind)[0]) is tuple
            if (_PAIRS if pairs else _NUMBERS).fullmatch(text):
                return _pairs(text) if pairs else _numbers(text)
            if option == "neurons" and text == "none":
                return ()
        elif kind is NoneType:
            if text == _unset(option):
                return None
        else:
            with suppress(OptionError):
                return typed(option, kind, parsed(text))
    raise OptionError(f"{name}: {option} is {text!r}", _told(option, annotation), f"correct {option}; options: {LIST}")


def _numbers(text: str) -> tuple[int, ...]:
    numbers: list[int] = []
    for part in text.split("+"):
        ends = [int(end) for end in part.split("-")]
        numbers += range(min(ends), max(ends) + 1)
    return tuple(numbers)


def _pairs(text: str) -> tuple[tuple[int, int], ...]:
    split = [part.split(".") for part in text.split("+")]
    return tuple((int(block), int(number)) for block, number in split)


def _unset(option: str) -> str:
    """The word for None."""
    return "all" if option in ("layers", "heads") else "none"


def _told(option: str, annotation: Any) -> str:
    """What values may be, in words."""
    kinds = _alternatives(annotation)
    return " or ".join(_unset(option) if kind is NoneType else _kind_told(kind) for kind in kinds)


def _kind_told(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(str(choice) for choice in get_args(kind))
    if get_origin(kind) is tuple:
        return "3.5+4.1 (block.number)" if get_origin(get_args(kind)[0]) is tuple else "0-5+7"
    words: Mapping[Any, str] = {int: "whole number", float: "number", bool: "true|false", str: "NAME"}
    return words[kind]


def _described(name: str, kind: type[Treatment]) -> dict[str, Any]:
    hints = get_type_hints(kind)
    options = {
        option: {
            "values": _told(option, hints[option]),
            "default": None if default is MISSING else _as_text(option, default),
        }
        for option, default in _options(kind).items()
    }
    if kind in (TestTimeRegisters, RemoveHeads):  # their first option names blocks
        del options["layers"]
    if kind is TestTimeRegisters:
        options["neurons"] = {
            "values": "auto:COUNT or 3.5+4.1 (block.number) or none",
            "default": f"auto:{Search.count}",
        }
        hints = get_type_hints(Search)
        options |= {
            option: {"values": f"{_told(option, hints[option])} (with auto)", "default": "none"} for option in _SEARCH
        }
    if kind is PrefixKV:
        options["fill"] = {"values": "true (key-values of the first tokens of --text)|false", "default": "false"}
    return {
        "name": name,
        "does": _first_sentence(kind),
        "options": options,
        "harmless": _harmless(kind),
        "source": kind.source,
    }


def _as_text(option: str, value: Any) -> str:
    """An option's value in a word."""
    if value is None or value == ():
        return _unset(option)
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, tuple):
        return str(value)
    return "+".join(".".join(map(str, each)) if isinstance(each, tuple) else each for each in _runs(value))


def _runs(values: tuple[Any, ...]) -> list[Any]:
    """Pairs as they are, and numbers with those that follow each other put together: 0-5."""
    if isinstance(values[0], tuple):
        return list(values)
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def _harmless(kind: type[Treatment]) -> bool:
    """Of the treatment with its default options; those that need options change outputs."""
    needed = any(default is MISSING for default in _options(kind).values())
    return not needed and kind().harmless


def _first_sentence(kind: type[Treatment]) -> str:
    text = " ".join((kind.__doc__ or "").partition("\n\n")[0].split())
    return re.split(r"(?<=[.:;])\s", text, maxsplit=1)[0].rstrip(".:;")


def _closest(word: str, known: Iterable[str]) -> str:
    names = list(known)
    return f"one of {', '.join(difflib.get_close_matches(word, names) or names)}"
