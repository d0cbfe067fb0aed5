"""Which token is to be the sink, and how queries are made to look at it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._errors import InputError, OptionError
from ._plant_states import States, column_mass, projected, scores_of, softmax
from ._plant_weights import HeadWeights

Sink = Literal["cls", "register", "sep", "first", "patch", "word"]

_FIRST_OF = ("cls", "register")
_STARTS = 24
_FOLDS = 4
_KEPT = 3
_ROUNDS = 4
_RIDGE = 1e-4
_SEARCH_RIDGE = 0.1
_STEPS = 30
_QUERIES = 64
_TEMPERS = (1.0, 0.5, 0.25, 0.1, 0.0)
_AT_SINK = 0.97
_STRONGEST = 300.0
_SHORT = 0.1


@dataclass(frozen=True)
class Mark:
    """A linear mark of the sink: `direction` . (x, 1) is about 1 at the sink of every input and 0 at other tokens.
    `score`: the mark of every token by a direction that was not fitted on its input, `sink` where the sink then is.
    `searched`: that is wherever the mark is largest, not at a place that is fixed."""

    sink: Int[Tensor, " inputs"]
    direction: Float[Tensor, " residual_and_one"]
    score: Float[Tensor, "inputs tokens"]
    searched: bool


def with_one(x: Float[Tensor, "... residual"], bias: bool) -> Float[Tensor, "... residual_and_one"]:
    """Hidden states with a 1 behind them where the model has biases, else as they are."""
    return torch.cat([x, torch.ones_like(x[..., :1])], dim=-1) if bias else x


def chosen_sink(sink: str, states: States) -> Sink:
    """`auto` is the class token, else the first token. **Raises:** `OptionError` for a sink that is none."""
    if sink == "auto":
        return "cls" if all("cls" in row for row in states.roles) else "first"
    if sink not in get_args(Sink):
        raise OptionError(f"sink {sink!r}", f"auto or one of {', '.join(get_args(Sink))}", "correct sink")
    return sink  # type: ignore[return-value]  # one of the literals by now


def fixed_places(sink: Sink, states: States) -> Int[Tensor, " inputs"]:
    """Where the sinks of `cls`, `register` (the first one), `sep` (the last one) and `first` are.

    **Raises:** `InputError` where an input has no such token.
    """
    places = []
    for row, valid in zip(states.roles, states.valid, strict=True):
        if sink == "first":
            places.append(int(valid.int().argmax()))
            continue
        found = [number for number, role in enumerate(row) if role == sink and bool(valid[number])]
        if not found:
            raise InputError(
                f"an input without a token of role {sink}", "one in every input", "choose another sink, such as first"
            )
        places.append(found[0] if sink in _FIRST_OF else found[-1])
    return torch.tensor(places)


def marks(sink: Sink, states: States, bias: bool, seed: int) -> list[Mark]:
    """Linear marks of a sink: one for a token with a fixed place; for the token with most of a feature the few of
    several directions whose token stands out most on inputs that the direction was not fitted on.

    A direction starts as what tells one random token from the others, and is then fitted, a few times over, to the
    tokens it is largest at, so that they stand out.
    """
    if sink not in ("patch", "word"):
        places = fixed_places(sink, states)
        x = with_one(states.x, bias)
        score = _held_out(x, states.valid, places, _RIDGE)
        return [Mark(places, _fitted(x, states.valid, places, _RIDGE), score, False)]
    allowed = states.candidates & may_be(sink, states)
    if not bool(allowed.any(1).all()):
        raise InputError(
            f"an input without a token that can be a {sink} sink", "one in every input", "choose another sink"
        )
    tokens = states.x[allowed]
    centred = tokens - tokens.mean(0)
    precision = torch.linalg.inv(_regular(centred.T @ centred / len(centred), _RIDGE))
    generator = torch.Generator().manual_seed(seed)
    starts = centred[torch.randperm(len(tokens), generator=generator)[:_STARTS]] @ precision
    even = torch.arange(len(states.x)) % 2 == 0
    every = torch.ones_like(even)
    distinct = [
        _distinct(_searched(states, allowed, bias, start, even), states, allowed, bias, ~even) for start in starts
    ]
    best = torch.tensor(distinct).argsort(descending=True)[:_KEPT]
    found = [_searched(states, allowed, bias, starts[number], every) for number in best]
    x = with_one(states.x, bias)
    made = []
    for direction in found:
        places = (x @ direction).masked_fill(~allowed, -torch.inf).argmax(1)
        score = _held_out(x, states.valid, places, _SEARCH_RIDGE)
        made.append(Mark(score.masked_fill(~allowed, -torch.inf).argmax(1), direction, score, True))
    return made


def may_be(sink: Sink, states: States) -> Bool[Tensor, "inputs tokens"]:
    """Tokens that are of the role of a sink."""
    if sink == "first":
        return torch.nn.functional.one_hot(states.valid.int().argmax(1), states.x.shape[1]).bool()
    roles = {"word": ("", "word", "punctuation")}.get(sink, (sink,))
    allowed = torch.tensor([[role in roles for role in row] for row in states.roles]) & states.valid
    if sink == "word" and states.causal:
        allowed &= ~may_be("first", states)
    return allowed


def _searched(
    states: States, allowed: Tensor, bias: bool, start: Float[Tensor, " residual"], fit: Bool[Tensor, " inputs"]
) -> Float[Tensor, " residual_and_one"]:
    x = with_one(states.x[fit], bias)
    score = states.x[fit] @ start
    direction = start
    for _ in range(_ROUNDS):
        places = score.masked_fill(~allowed[fit], -torch.inf).argmax(1)
        direction = _fitted(x, states.valid[fit], places, _SEARCH_RIDGE)
        score = x @ direction
    return direction


def _distinct(direction: Tensor, states: States, allowed: Tensor, bias: bool, chosen: Tensor) -> float:
    """By how many standard deviations of ordinary tokens the largest mark exceeds the next, mean over inputs."""
    score = with_one(states.x[chosen], bias) @ direction
    spread = score[states.valid[chosen]].std()
    most = score.masked_fill(~allowed[chosen], -torch.inf).topk(2, dim=1).values
    return float((most[:, 0] - most[:, 1]).clamp(max=spread * 10).mean() / spread)


def _fitted(
    x: Float[Tensor, "inputs tokens width"],
    valid: Bool[Tensor, "inputs tokens"],
    places: Int[Tensor, " inputs"],
    ridge: float,
) -> Float[Tensor, " width"]:
    """Ridge regression of 1 at the places, 0 elsewhere, both sides weighing as much."""
    sinks = x[torch.arange(len(x)), places]
    others = valid.clone()
    others[torch.arange(len(x)), places] = False
    moments = sinks.T @ sinks / len(sinks) + x[others].T @ x[others] / int(others.sum())
    found: Tensor = torch.linalg.solve(_regular(moments, ridge), sinks.mean(0))
    return found


def _held_out(
    x: Float[Tensor, "inputs tokens width"],
    valid: Bool[Tensor, "inputs tokens"],
    places: Int[Tensor, " inputs"],
    ridge: float,
) -> Float[Tensor, "inputs tokens"]:
    """The mark of every token, by a direction that was fitted on the inputs of the other folds."""
    folds = torch.arange(len(x)) % _FOLDS
    score = torch.empty_like(x[..., 0])
    for fold in range(_FOLDS):
        rest = folds != fold
        score[~rest] = x[~rest] @ _fitted(x[rest], valid[rest], places[rest], ridge)
    return score


def _regular(moments: Float[Tensor, "width width"], ridge: float) -> Float[Tensor, "width width"]:
    return moments + ridge * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)


def parked_at(
    weights: HeadWeights, states: States, mark: Mark, mass: float, share: float
) -> tuple[HeadWeights, float] | None:
    """Weights with which queries look at the marked token with that mean mass, and the share of inputs in which it is
    the key with the largest mass; None where no strength
    does it, or comes within 0.1 below.

    One dimension of queries and keys is given up: the key has the mark there, the query a constant (or, for a `share`
    of the queries below 1, a linear function of x that is positive for that share). Which one: the dimension that
    contributes least to the scores; with a rotary embedding one of the slowest pair, which hardly turns. The other
    dimensions keep the head's own scores, damped as far as needed for the sink to stand out.
    """
    bias = weights.bq is not None
    freed = _freed(weights, states)
    query = _query(states, bias, share)
    x = with_one(states.x, bias)
    asks = x @ query
    tokens = states.x.shape[1]
    some = slice(0, tokens, 1 if states.causal else max(1, tokens // _QUERIES))  # queries suffice, keys are all needed
    visible, every = states.visible[:, some], torch.arange(len(x))
    parking = visible[every, :, mark.sink] & ((asks > 0) if share < 1 else torch.ones_like(states.valid))[:, some]
    added = asks[:, some, None] * mark.score[:, None, :]
    for temper in _TEMPERS:
        emptied = _emptied(weights, freed, temper)
        own = scores_of(emptied, states)[:, some]

        def reached(strength: float, own: Tensor = own) -> Tensor:
            return softmax(own + strength * added, visible)

        def mean_mass(strength: float, reached: Callable[[float], Tensor] = reached) -> float:
            at_sink = reached(strength)[every, :, mark.sink]
            return float(((at_sink * parking).sum(1) / parking.sum(1).clamp(min=1)).mean())

        low, high = -_STRONGEST, _STRONGEST
        if not mean_mass(low) <= mass <= mean_mass(high) + _SHORT:
            continue
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (middle, high) if mean_mass(middle) < mass else (low, middle)
        masses = column_mass(reached(high), visible).masked_fill(~states.candidates, -1)
        at_sink = float((masses.argmax(1) == mark.sink).double().mean())
        if at_sink >= _AT_SINK or temper == _TEMPERS[-1]:
            factor = (abs(high) / weights.scale) ** 0.5
            signed = factor if high >= 0 else -factor
            return _with_dimension(emptied, freed, signed * query, factor * mark.direction), at_sink
    return None


def _query(states: States, bias: bool, share: float) -> Float[Tensor, " residual_and_one"]:
    tokens = with_one(states.x[states.valid], bias)
    if share >= 1:
        if bias:
            return torch.eye(tokens.shape[1], dtype=tokens.dtype)[-1]
        moments = tokens.T @ tokens / len(tokens)
        found: Tensor = torch.linalg.solve(_regular(moments, _RIDGE), tokens.mean(0))
        return found
    if not bias:
        constant: Tensor = torch.linalg.solve(_regular(tokens.T @ tokens / len(tokens), _RIDGE), tokens.mean(0))
    else:
        constant = torch.eye(tokens.shape[1], dtype=tokens.dtype)[-1]
    centred = states.x[states.valid] - states.x[states.valid].mean(0)
    direction: Tensor = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -1]
    along = states.x[states.valid] @ direction
    spread = along.std()
    query = torch.zeros_like(constant)
    query[: len(direction)] = direction / spread
    return query - float(torch.quantile(along, 1 - share) / spread) * constant


def _freed(weights: HeadWeights, states: States) -> int:
    if states.rotary is not None:
        return len(weights.wq) // 2 - 1
    q, k = projected(states.x, weights.wq, weights.bq), projected(states.x, weights.wk, weights.bk)
    return int((q[states.valid].square().mean(0) * k[states.valid].var(0)).argmin())


def _emptied(weights: HeadWeights, freed: int, temper: float) -> HeadWeights:
    wq, wk = temper * weights.wq, weights.wk.clone()
    wq[freed], wk[freed] = 0, 0
    bq = None if weights.bq is None else temper * weights.bq
    bk = None if weights.bk is None else weights.bk.clone()
    for part in (bq, bk):
        if part is not None:
            part[freed] = 0
    return replace(weights, wq=wq, wk=wk, bq=bq, bk=bk)


def _with_dimension(weights: HeadWeights, freed: int, query: Tensor, key: Tensor) -> HeadWeights:
    width = weights.wq.shape[1]
    weights.wq[freed], weights.wk[freed] = query[:width], key[:width]
    if weights.bq is not None:
        weights.bq[freed] = query[width]
    return weights
