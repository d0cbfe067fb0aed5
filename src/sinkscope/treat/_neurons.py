"""Finds the neurons that make outlier tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.models import Model
from sinkscope.models._appended import APPENDED
from sinkscope.treat._anatomy import Anatomy, Site, anatomy_of
from sinkscope.treat._probe import Probe, run
from sinkscope.treat._registers import require_kind

QUIET = 0.5
"""An activation below this magnitude counts as silent, for the sparsity filter."""

DEVIATIONS = 3.0
"""Standard deviations above the mean norm from which the rule calls a token an outlier."""


@dataclass(frozen=True)
class RegisterNeurons:
    """Outlier tokens of a vision model, and how strongly every neuron of its MLPs is active on them.

    - `detected`: block behind which norms were taken.
    - `threshold`: norm from which a patch is an outlier.
    - `norms`: L2 norms of all patches behind that block, pictures one after the other.
    - `pictures`, `with_outliers`: how many pictures there were, and how many had outliers.
    - `appears`: first block behind which the outliers' mean norm is more than 3 standard deviations above the mean of
      the other patches.
    - `ratio`: mean norm of outliers by that of other patches, behind the block where they were detected. Models known
      for outliers have 2 and more; a rule that is a quantile in effect finds some also where there are none.
    - `scores`: mean magnitude of every neuron's activation on the outliers of a picture, averaged over pictures that
      have some.
    - `quiet`: share of all tokens on which the activation is below 0.5 in magnitude.
    """

    detected: int
    threshold: float
    norms: Float[Tensor, " patches"]
    pictures: int
    with_outliers: int
    appears: int
    ratio: float
    scores: Float[Tensor, "layers neurons"]
    quiet: Float[Tensor, "layers neurons"]

    @property
    def outliers(self) -> Bool[Tensor, " patches"]:
        """Which patches are outliers."""
        return self.norms > self.threshold

    def neurons(
        self, count: int = 10, *, layers: tuple[int, int] | None = None, sparsity: float | None = None
    ) -> tuple[tuple[int, int], ...]:
        """The neurons of the highest scores, highest first, as pairs of block and neuron.

        - `count`: how many.
        - `layers`: first and last block they may be in; by default up to the one behind which outliers appear.
        - `sparsity`: least share of tokens on which they are silent (activation below 0.5); 0.5 in the source's code.

        **Raises:** `OptionError` for blocks that are not there, and when fewer are left.
        """
        allowed = self._allowed(layers)
        if sparsity is not None:
            allowed &= self.quiet >= sparsity
        left = int(allowed.sum())
        if not 1 <= count <= left:
            raise OptionError(
                f"{count} register neurons",
                f"1 to {left}, as many as these layers and this sparsity leave",
                "correct count, layers or sparsity",
            )
        best = self.scores.masked_fill(~allowed, -torch.inf).flatten().topk(count).indices
        return tuple(divmod(int(place), self.scores.shape[1]) for place in best)

    def random(self, neurons: Sequence[tuple[int, int]], seed: int) -> tuple[tuple[int, int], ...]:
        """A control: as many other neurons in each block, drawn uniformly without replacement."""
        generator = torch.Generator().manual_seed(seed)
        drawn: list[tuple[int, int]] = []
        for layer in sorted({layer for layer, _ in neurons}):
            own = {neuron for block, neuron in neurons if block == layer}
            others = torch.tensor([neuron for neuron in range(self.scores.shape[1]) if neuron not in own])
            if len(others) < len(own):
                raise OptionError(
                    f"{len(own)} of {self.scores.shape[1]} neurons of block {layer}",
                    "at most half of them, so that as many others are left",
                    "choose fewer neurons",
                )
            chosen = others[torch.randperm(len(others), generator=generator)[: len(own)]]
            drawn += [(layer, int(neuron)) for neuron in chosen]
        return tuple(drawn)

    def __str__(self) -> str:
        """What was found, in words."""
        return (
            f"{int(self.outliers.sum())} of {len(self.norms)} patches are outliers, in {self.with_outliers} of "
            f"{self.pictures} pictures: norms above {self.threshold:.4g} behind block {self.detected} "
            f"({norms_in_words(self.norms)}). They are {self.ratio:.3g} times as large as the others on average and "
            f"appear behind block {self.appears}."
        )

    def _allowed(self, layers: tuple[int, int] | None) -> Bool[Tensor, "layers neurons"]:
        first, last = (0, self.appears) if layers is None else layers
        if not 0 <= first <= last < len(self.scores):
            raise OptionError(f"blocks {first} to {last}", f"some of 0 to {len(self.scores) - 1}", "correct layers")
        allowed = torch.zeros_like(self.scores, dtype=torch.bool)
        allowed[first : last + 1] = True
        return allowed


def find_register_neurons(
    model: nn.Module | Model,
    pictures: Probe | list[Any],
    *,
    threshold: float | None = None,
    layer: int | None = None,
) -> RegisterNeurons:
    """Finds outlier patches by their norm, and the neurons that are most active on them.

    Two passes over the pictures: norms, then activations. Memory does not grow with the number of pictures but for one
    number per patch. The score is that of Jiang et al. 2025, arXiv:2506.08010, Algorithm 1. Prefix tokens (class,
    registers) are never outliers.

    **Arguments:**

    - `model`: a vision model of a supported family; it may be treated, but not with registers.
    - `pictures`: an input of the model, or a list of them, each a batch of any size.
    - `threshold`: of norms; by default 3 standard deviations above the mean over all patches.
    - `layer`: block behind which norms are taken; by default the last, in front of the final norm.

    **Raises:** `OptionError` for other models, blocks that are not there, and when no patch is an outlier, with the
    norms that were seen.
    """
    module = model.module if isinstance(model, Model) else model
    anatomy = anatomy_of(module)
    require_kind("find_register_neurons", anatomy, ("vision",), "pass a vision model")
    if hasattr(anatomy.trunk, APPENDED):
        raise OptionError("a model treated with registers", "one without them", "call undo first")
    probes = _several(pictures)
    detected = len(anatomy.sites) - 1 if layer is None else layer
    if not 0 <= detected < len(anatomy.sites):
        raise OptionError(f"layer is {layer}", f"0 to {len(anatomy.sites) - 1}", "correct layer")
    found = list(_norms(module, anatomy, probes, detected))
    norms = torch.cat([batch.flatten() for batch in found])
    if threshold is None:
        threshold = float(norms.mean() + DEVIATIONS * norms.std())
    outliers = [batch > threshold for batch in found]
    if not any(bool(batch.any()) for batch in outliers):
        raise OptionError(
            f"no outlier tokens: {norms_in_words(norms)} behind block {detected}",
            f"some norms above {threshold:.4g}",
            "leave test-time registers out, or give a threshold, another layer or more pictures",
        )
    prefix = len(anatomy.prefix)
    tallies = [_Tally() for _ in anatomy.sites]
    sizes = [_Sizes() for _ in anatomy.sites]
    current: list[Tensor] = []
    with _watching(anatomy, lambda site: partial(_tally, tallies[site.index], sizes[site.index], current, prefix)):
        for probe, batch in zip(probes, outliers, strict=True):
            current[:] = [batch]
            run(module, probe)
    apart = [at.index for at in anatomy.sites if sizes[at.index].apart]
    return RegisterNeurons(
        detected=detected,
        threshold=threshold,
        norms=norms,
        pictures=sum(len(batch) for batch in outliers),
        with_outliers=sum(int(batch.any(1).sum()) for batch in outliers),
        appears=min(apart, default=detected),
        ratio=sizes[detected].ratio,
        scores=torch.stack([tally.score / tally.images for tally in tallies]),
        quiet=torch.stack([tally.quiet / tally.tokens for tally in tallies]),
    )


def norms_in_words(norms: Float[Tensor, " patches"]) -> str:
    """Quantiles of norms."""
    median, high, top = (float(norms.quantile(level)) for level in (0.5, 0.99, 1.0))
    return f"norms of {len(norms)} patches: median {median:.4g}, 99% below {high:.4g}, largest {top:.4g}"


@dataclass
class _Tally:
    """Sums over pictures, of one block's neurons."""

    score: Any = 0.0
    images: int = 0
    quiet: Any = 0.0
    tokens: int = 0

    def add(self, x: Float[Tensor, "batch tokens neurons"], outlier: Bool[Tensor, "batch tokens"]) -> None:
        """Counts one batch."""
        magnitude = x.detach().abs().to(torch.promote_types(x.dtype, torch.float32))
        each = outlier.sum(1)
        sums = torch.einsum("btn,bt->bn", magnitude, outlier.to(magnitude.dtype))
        self.score += (sums[each > 0] / each[each > 0, None]).double().sum(0).cpu()
        self.images += int((each > 0).sum())
        self.quiet += (magnitude < QUIET).sum((0, 1)).double().cpu()
        self.tokens += x.shape[0] * x.shape[1]


@dataclass
class _Sizes:
    """Norms behind one block: count, sum and sum of squares, of other patches and of outliers."""

    sums: Any = 0.0

    def add(self, norms: Float[Tensor, "batch patches"], outlier: Bool[Tensor, "batch patches"]) -> None:
        """Counts one batch."""
        groups = norms.double()[~outlier], norms.double()[outlier]
        self.sums += torch.stack([torch.stack([torch.ones_like(x), x, x.square()]).sum(1) for x in groups]).cpu()

    @property
    def ratio(self) -> float:
        """Mean of outliers by mean of others."""
        counts, totals, _ = self.sums.T
        return float((totals[1] / counts[1]) / (totals[0] / counts[0]))

    @property
    def apart(self) -> bool:
        """Whether outliers are, on average, beyond what the others are."""
        means = self.sums[:, 1:] / self.sums[:, :1]
        deviation = (means[0, 1] - means[0, 0] ** 2).clamp(min=0).sqrt()
        return bool(means[1, 0] > means[0, 0] + DEVIATIONS * deviation)


def _several(pictures: Probe | list[Any]) -> list[Probe]:
    probes: list[Any] = list(pictures) if isinstance(pictures, list) else [pictures]
    if not probes:
        raise OptionError("no pictures", "one batch or more", "pass tensors of batch x channels x height x width")
    return probes


def _norms(
    module: nn.Module, anatomy: Anatomy, probes: Sequence[Probe], layer: int
) -> Iterator[Float[Tensor, "batch patches"]]:
    found: list[Tensor] = []
    prefix = len(anatomy.prefix)
    handle = anatomy.sites[layer].block.register_forward_hook(
        lambda _block, _args, out: found.append(_patch_norms(out, prefix).cpu())
    )
    try:
        for probe in probes:
            run(module, probe)
            yield found.pop()
    finally:
        handle.remove()


def _patch_norms(out: Float[Tensor, "batch tokens residual"], prefix: int) -> Float[Tensor, "batch patches"]:
    dtype = torch.promote_types(out.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(out[:, prefix:].detach(), dim=-1, dtype=dtype)
    return norms


def _tally(tally: _Tally, sizes: _Sizes, current: list[Tensor], prefix: int, x: Tensor, of_neurons: bool) -> None:
    outlier = current[0].to(x.device)
    if of_neurons:
        tally.add(x, nn.functional.pad(outlier, (prefix, 0)))
    else:
        sizes.add(_patch_norms(x, prefix), outlier)


@contextmanager
def _watching(anatomy: Anatomy, tell: Callable[[Site], Callable[[Tensor, bool], None]]) -> Iterator[None]:
    """Tells of activations of neurons (True) and of block outputs (False)."""
    handles = []
    for site in anatomy.sites:
        told = tell(site)
        handles.append(site.neurons.register_forward_pre_hook(partial(_neurons_seen, told)))
        handles.append(site.block.register_forward_hook(partial(_block_seen, told)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _neurons_seen(told: Callable[[Tensor, bool], None], _module: nn.Module, args: tuple[Any, ...]) -> None:
    told(args[0], True)


def _block_seen(told: Callable[[Tensor, bool], None], _module: nn.Module, _args: Any, out: Tensor) -> None:
    told(out, False)
