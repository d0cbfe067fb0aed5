"""How heads are edited."""

from __future__ import annotations

from dataclasses import dataclass

from sinkscope._errors import OptionError

_LEAST = {"donors": 1, "draws": 1, "seed": 0, "rows": 4, "number": 0}


@dataclass(frozen=True)
class EditOptions:
    """What the edits of a head depend on.

    - `donors`: draws of the edits `donor` and `ordinary` per input; fewer where a head has fewer other inputs.
    - `draws`: draws of the edit `control`.
    - `seed`: of all random choices. Each depends on the input, layer, head and edit alone, not on what else is edited.
    - `freeze_all`: all later layers keep the attention of the unedited pass.
    - `rows`: most rows in one forward pass, one row being one input under one edit or none. No result
        depends on it.
    - `number`: of the round that the parts belong to: heads that are asked for later make another.
    """

    donors: int = 2
    draws: int = 3
    seed: int = 0
    freeze_all: bool = False
    rows: int = 128
    number: int = 0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise OptionError(f"{name}={value!r}", f"a whole number from {least} on", f"{name}={least}")
