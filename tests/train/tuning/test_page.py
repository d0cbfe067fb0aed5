"""What the page about tuning makes of the docstrings."""

from __future__ import annotations

import dataclasses
from typing import get_args

from docs.tables import tuning
from sinkscope.train.tuning import Objective, TuneOptions


def test_every_option_and_every_objective_is_told() -> None:
    lines = tuning.options().splitlines()[2:]
    told = {line.split(" | ")[0].strip("| `"): line.split(" | ")[1:] for line in lines}
    assert list(told) == [each.name for each in dataclasses.fields(TuneOptions)]
    assert told["lr"][0] == "`0.01`" and told["lr"][1].startswith("the largest learning rate.")
    paragraphs = tuning.objectives().split("\n\n")
    assert all(any(each.startswith(f"`{name}` is") for each in paragraphs) for name in get_args(Objective))
