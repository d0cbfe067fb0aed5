"""What is minimised: a loss per input, and how much each input counts."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sinkscope._errors import InputError, OptionError
from sinkscope.explain.edits import logits_of, token_ids
from sinkscope.models import Batch, Model
from sinkscope.train.tuning._final_tokens import FinalTokens, final_tokens
from sinkscope.train.tuning._learned import share_of_weight
from sinkscope.train.tuning._supply import Drawn
from sinkscope.treat import anatomy_of

ROUNDING = 1e-9
"""Distillation losses of treatments that leave the outputs as they are, to rounding."""


@dataclass(frozen=True)
class Terms:
    """Of a batch: the loss is `sums.sum() / weights.sum()`.

    - `sums`: the loss of each input, times its weight.
    - `weights`: how much it counts.
    - `hits`: whether its class was the first choice; None where there are no classes.
    """

    sums: Float[Tensor, " batch"]
    weights: Float[Tensor, " batch"]
    hits: Bool[Tensor, " batch"] | None = None

    @property
    def loss(self) -> Float[Tensor, ""]:
        return self.sums.sum() / self.weights.sum()


class Objective(AbstractContextManager["Objective"], Protocol):
    """A loss of a model. Used within a `with`, as some look into the model."""

    @property
    def floor(self) -> float:
        """No loss below it is taken for divergence, however small it was at first."""
        ...

    @property
    def rounding(self) -> float:
        """A loss up to it is rounding: its gradient is noise, which Adam would make as large as any other."""
        ...

    @property
    def learned(self) -> Mapping[str, nn.Parameter]:
        """What is learned beside what the treatments added, by name."""
        ...

    @property
    def shares(self) -> Mapping[str, float]:
        """Of the learning rate that these get, where it is not 1."""
        ...

    def __call__(self, drawn: Drawn) -> Terms:
        """Runs the model."""
        ...


class _Opened(ExitStack):
    """An objective that opens nothing by default and learns nothing."""

    rounding = 0.0

    @property
    def learned(self) -> Mapping[str, nn.Parameter]:
        return {}

    @property
    def shares(self) -> Mapping[str, float]:
        return {}


class Distill(_Opened):
    """The final tokens of a teacher: mean over inputs of sum |t - t'|^2 / sum |t|^2.

    **Raises:** `OptionError` when the models do not have the same tokens.
    """

    floor = 0.1
    rounding = ROUNDING

    def __init__(self, model: Model, teacher: Model) -> None:
        super().__init__()
        self._model, self._teacher = model, teacher

    def __enter__(self) -> Distill:
        self._own = self.enter_context(final_tokens(self._model.module))
        self._wanted = self.enter_context(final_tokens(self._teacher.module))
        return self

    def __call__(self, drawn: Drawn) -> Terms:
        with torch.no_grad():
            self._teacher.forward(drawn.batch)
            wanted = _exact(self._wanted.tokens)
        self._model.forward(drawn.batch)
        own = _exact(self._own.tokens.to(wanted.device))
        if own.shape != wanted.shape:
            raise OptionError(
                f"final tokens of shape {tuple(own.shape)}, and {tuple(wanted.shape)} of the teacher",
                "the same tokens of the same width",
                "take the untreated model as the teacher, which is the default",
            )
        counted = _counted(drawn.batch, wanted)[..., None]
        distance = ((own - wanted).square() * counted).sum((1, 2))
        size = (wanted.square() * counted).sum((1, 2))
        return Terms(distance / size, torch.ones_like(size))


class NextToken(_Opened):
    """Cross-entropy of the next token in nats; an input counts as much as it has tokens with a next one.

    **Raises:** `OptionError` for models that see more than the tokens before, and for those without a language head;
    `InputError` for inputs that are no token ids.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        anatomy = anatomy_of(model.module)
        if not anatomy.family.causal:
            raise OptionError(
                f"the objective lm for {anatomy.family.title}, whose tokens see those behind them",
                "a decoder",
                "take the objective distill",
            )
        self._model = model
        self._words = math.inf

    @property
    def floor(self) -> float:
        return math.log(self._words)

    def __call__(self, drawn: Drawn) -> Terms:
        ids = token_ids(drawn.batch)
        if ids is None:
            raise InputError("inputs without token ids", "whole numbers of batch x tokens", "pass a text, or input_ids")
        logits = logits_of(self._model.module, self._model.forward(_all_logits(self._model, drawn.batch)))
        if logits is None or logits.dim() != 3:
            raise OptionError(
                f"the objective lm for {type(self._model.module).__name__}, which has no language head",
                "a model such as LlamaForCausalLM",
                "load it with its head, or take the objective distill",
            )
        self._words = logits.shape[-1]
        ids = ids.to(logits.device)
        valid = _counted(drawn.batch, logits)
        followed = valid[:, :-1] & valid[:, 1:]
        if not bool(followed.any()):
            raise InputError("inputs of one token", "two tokens or more", "give longer texts")
        losses = cross_entropy(_exact(logits[:, :-1][followed]), ids[:, 1:][followed], reduction="none")
        rows = followed.nonzero()[:, 0]
        sums = losses.new_zeros(len(ids)).index_add(0, rows, losses)
        return Terms(sums, followed.sum(1).to(losses.dtype))


class OwnHead(_Opened):
    """Cross-entropy of the model's own classes in nats."""

    def __init__(self, model: Model, labels: Sequence[int], classes: int) -> None:
        super().__init__()
        self._model, self._labels = model, labels
        self.floor = math.log(classes)

    def __call__(self, drawn: Drawn) -> Terms:
        logits = logits_of(self._model.module, self._model.forward(drawn.batch))
        assert logits is not None and logits.dim() == 2
        return _classified(logits, self._labels, drawn.rows)


class Probe(_Opened):
    """Cross-entropy in nats of a linear map, which is learned, of the pooled final tokens: [CLS], else their mean.

    - `weight`, `bias`: start at 0.
    """

    def __init__(self, model: Model, labels: Sequence[int], classes: int) -> None:
        super().__init__()
        anatomy = anatomy_of(model.module)
        site = anatomy.sites[0]
        width = site.shape.residual
        self._model, self._labels, self._prefix = model, labels, anatomy.prefix
        self.weight = nn.Parameter(torch.zeros(classes, width, device=site.device))
        self.bias = nn.Parameter(torch.zeros(classes, device=site.device))
        self.floor = math.log(classes)

    @property
    def learned(self) -> Mapping[str, nn.Parameter]:
        return {"probe.weight": self.weight, "probe.bias": self.bias}

    @property
    def shares(self) -> Mapping[str, float]:
        return {"probe.weight": share_of_weight(self.weight.shape[1])}

    def __enter__(self) -> Probe:
        self._final: FinalTokens = self.enter_context(final_tokens(self._model.module))
        return self

    def __call__(self, drawn: Drawn) -> Terms:
        self._model.forward(drawn.batch)
        tokens = _exact(self._final.tokens)
        logits = nn.functional.linear(self._pooled(drawn.batch, tokens).to(self.weight.dtype), self.weight, self.bias)
        return _classified(logits, self._labels, drawn.rows)

    def _pooled(self, batch: Batch, tokens: Tensor) -> Float[Tensor, "batch residual"]:
        layout = batch.layouts[0] if batch.layouts else None
        roles = self._prefix if layout is None else layout.roles
        if "cls" in roles:
            return tokens[:, roles.index("cls")]
        counted = _counted(batch, tokens)[..., None].to(tokens.dtype)
        return (tokens * counted).sum(1) / counted.sum(1)


def own_classes(model: Model, batch: Batch) -> int | None:
    """How many classes the model's own head has; None without one."""
    with torch.no_grad():
        logits = logits_of(model.module, model.forward(batch))
    return None if logits is None or logits.dim() != 2 else logits.shape[-1]


def _classified(logits: Float[Tensor, "batch classes"], labels: Sequence[int], rows: Sequence[int]) -> Terms:
    wanted = torch.tensor([labels[row] for row in rows], device=logits.device)
    losses = cross_entropy(_exact(logits), wanted, reduction="none")
    return Terms(losses, torch.ones_like(losses), logits.argmax(-1) == wanted)


def _all_logits(model: Model, batch: Batch) -> Batch:
    """Where the forward can be asked for fewer, a model is asked for the last alone by default."""
    if "logits_to_keep" not in inspect.signature(model.module.forward).parameters:
        return batch
    return replace(batch, kwargs={"logits_to_keep": 0, **batch.kwargs})


def _counted(batch: Batch, tokens: Float[Tensor, "batch tokens width"]) -> Bool[Tensor, "batch tokens"]:
    """Which tokens are no padding. A batch may know of more tokens, which a treatment adds at the end."""
    if batch.valid is None:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return batch.valid[:, : tokens.shape[1]].to(tokens.device)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
