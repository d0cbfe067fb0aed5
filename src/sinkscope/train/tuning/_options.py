"""How the added parameters of a treated model are tuned."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_type_hints

from sinkscope._errors import OptionError
from sinkscope.train._values import LARGEST_SEED, typed

_LARGEST_RATE = 1_000_000

Objective = Literal["distill", "lm", "task"]


@dataclass(frozen=True)
class TuneOptions:
    """What is minimised, and how. The optimiser is AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    `distill` is the distance to the final tokens t of the untouched model: of an input sum |t - t'|^2 / sum |t|^2 over
    its tokens. It is normalised per input, so that an input of large tokens counts no more than another, and a loss
    does not depend on how inputs are put into batches. Tokens that a treatment has added and padding are left out.

    `lm` is the cross-entropy of the next token, in nats, the mean over all tokens that have a next one.

    `task` is the cross-entropy of the model's own classes, in nats. A model without a classification head gets a linear
    probe on its pooled final tokens ([CLS] where there is one, else their mean) that is trained as well.

    - `objective`: `distill`, `lm` or `task`.
    - `steps`: updates.
    - `lr`: the largest learning rate. Weights that multiply states of width d, those of gates, of a pathway and of a
      probe, learn at lr / sqrt(d): Adam moves every entry by about the rate, and their product moves by more the more
      entries it sums. The weights of added columns (registers, prefixes, learned sinks, attention biases) learn at 0.03
      at least: they start at 3e-4, and count from about 1 on.
    - `warmup`: share of the steps in which the rate rises to `lr`, linearly; then it falls to 0 like a cosine.
    - `batch_size`: inputs of one step, and of one forward pass on held-out inputs. Iterables of batches keep their own.
    - `weight_decay`: of AdamW.
    - `clip`: the largest norm of the gradient, longer ones are scaled down; None for no limit.
    - `held_out`: share of the inputs that is never trained on: at least 1 input, at most 256. Which ones, is drawn from
      the seed.
    - `evaluate_every`: steps between two evaluations on the held-out inputs; there is one before the first step and one
      after the last.
    - `checkpoint_every`: steps between two checkpoints.
    - `common_mode`: weight of the common-mode penalty, which is added where the model has a `GlobalPathway`, and not
      counted in any loss that is told. The default is the source's (Fesser et al. 2026, arXiv:2606.08105, Eq. 5).
    - `seed`: of the order of the inputs.

    **Raises:** `OptionError` for values that cannot be.
    """

    objective: Objective = "distill"
    steps: int = 300
    lr: float = 1e-2
    warmup: float = 0.1
    batch_size: int = 8
    weight_decay: float = 0.0
    clip: float | None = 1.0
    held_out: float = 0.1
    evaluate_every: int = 25
    checkpoint_every: int = 50
    common_mode: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        hints = get_type_hints(TuneOptions)
        for each in fields(self):
            object.__setattr__(self, each.name, typed(each.name, hints[each.name], getattr(self, each.name)))
        whole = ("steps", "batch_size", "evaluate_every", "checkpoint_every")
        checks: list[tuple[str, bool, str]] = [
            *((name, getattr(self, name) >= 1, "a whole number from 1 on") for name in whole),
            ("lr", 0 < self.lr <= _LARGEST_RATE, f"a number above 0, at most {_LARGEST_RATE}"),
            ("warmup", 0 <= self.warmup < 1, "a share of the steps, from 0 to below 1"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("clip", self.clip is None or 0 < self.clip < math.inf, "a number above 0, or None"),
            ("held_out", 0 < self.held_out < 1, "a share of the inputs between 0 and 1"),
            ("common_mode", 0 <= self.common_mode < math.inf, "0 or more"),
            ("seed", 0 <= self.seed <= LARGEST_SEED, f"a whole number from 0 to {LARGEST_SEED}"),
        ]
        for name, fits, expected in checks:
            if not fits:
                raise OptionError(f"{name} is {getattr(self, name)!r}", expected, f"correct {name}")

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        return self.lr * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising))) / 2

    def plain(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
