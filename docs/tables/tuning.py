"""The options of tuning."""

from __future__ import annotations

import dataclasses

from sinkscope.train.tuning import TuneOptions

from .docstring import meanings, prose
from .markdown import plain, table


def objectives() -> str:
    """What is minimised, one paragraph for each."""
    return plain(prose(TuneOptions))


def options() -> str:
    """Names, defaults and meanings."""
    told = meanings(TuneOptions)
    rows = [
        [f"`{each.name}`", f"`{each.default!r}`", plain(told[each.name])] for each in dataclasses.fields(TuneOptions)
    ]
    return table(["option", "default", "meaning"], rows)
