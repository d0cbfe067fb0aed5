"""Values that edits put in the place of a sink's: those of other inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sinkscope._errors import CaptureError, OptionError
from sinkscope.capture import AttentionCall
from sinkscope.explain.edits._head import Head
from sinkscope.explain.edits._targets import Target


class Donors:
    """Sink values and a few ordinary ones of every head and input, gathered in one pass over all inputs."""

    def __init__(self, draws: int, seed: int) -> None:
        self._draws, self._seed = draws, seed
        self._sinks: dict[Target, Tensor] = {}
        self._ordinary: dict[Target, Tensor] = {}
        self._of_head: defaultdict[tuple[int, int], list[Target]] = defaultdict(list)
        self._sums: dict[tuple[int, int], Tensor] = {}

    def gather(
        self, call: AttentionCall, rows: Sequence[tuple[int, Target]], valid: Bool[Tensor, "batch tokens"]
    ) -> None:
        """Keep the values of these rows of a call. **Raises:** `OptionError`, `CaptureError` where there are none."""
        for row, target in rows:
            if target.head >= call.shape[1]:
                raise OptionError(
                    f"head {target.head} of layer {target.layer} ({call.module})",
                    f"one of its {call.shape[1]} heads, from 0",
                    "edit a head that exists",
                )
            if valid.shape != (call.shape[0], call.shape[2]) or target.sink >= valid.shape[1]:
                raise CaptureError(
                    f"attention of layer {target.layer} ({call.module}) over {call.shape[2]} tokens of "
                    f"{call.shape[0]} sequences",
                    f"the {valid.shape[1]} tokens of the {valid.shape[0]} inputs, token {target.sink} among them",
                    "edit heads of layers that a diagnosis of these inputs has measured",
                )
            values = Head(call, row, target.head).values
            others = valid[row].cpu().numpy().copy()
            others[target.sink] = False
            places = np.flatnonzero(others)
            draws = self._draws if len(places) else 0
            chosen = target.generator(self._seed, "ordinary").choice(places, draws) if draws else places
            self._sinks[target] = values[target.sink].clone()
            self._ordinary[target] = values[torch.from_numpy(chosen)].clone()
            self._of_head[target.layer, target.head].append(target)

    def sink_value(self, target: Target) -> Float[Tensor, " value_dim"]:
        """v_s of the target itself."""
        return self._sinks[target]

    def mean(self, target: Target) -> Float[Tensor, " value_dim"] | None:
        """Mean of v_s over the other inputs of the head, None without any."""
        key = target.layer, target.head
        of_head = self._of_head[key]
        if len(of_head) < 2:
            return None
        if key not in self._sums:
            self._sums[key] = torch.stack([self._sinks[other].double() for other in of_head]).sum(0)
        return (self._sums[key] - self._sinks[target].double()) / (len(of_head) - 1)

    def of(
        self, target: Target
    ) -> list[tuple[Target, Float[Tensor, " value_dim"], Float[Tensor, " value_dim"] | None]]:
        """Random other inputs of the head, none twice, each with the value of its sink and, unless it has no other
        token, an ordinary one."""
        others = sorted(set(self._of_head[target.layer, target.head]) - {target}, key=lambda other: other.input)
        order = target.generator(self._seed, "donor").permutation(len(others))
        found = []
        for draw, number in enumerate(order[: self._draws].tolist()):
            donor = others[number]
            ordinary = self._ordinary[donor]
            found.append((donor, self._sinks[donor], ordinary[draw] if len(ordinary) else None))
        return found
