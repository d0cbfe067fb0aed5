"""Tokens at the end of the sequence: put there before the first block, taken off behind the last one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad

from sinkscope.attention import Attend
from sinkscope.models import Role
from sinkscope.models._appended import APPENDED

if TYPE_CHECKING:
    from sinkscope.treat._body import Body


class Appended(nn.Module):
    """Tokens that travel with the sequence from the first block to the last.

    Everything in front of the blocks and behind them sees the sequence as it was, whatever its prefix. Hidden states
    between blocks have these tokens at their end.

    - `tokens`: their states before the first block, a parameter or a buffer.
    """

    tokens: Tensor

    def __init__(self, tokens: Float[Tensor, "count residual"]) -> None:
        super().__init__()
        if isinstance(tokens, nn.Parameter):
            self.tokens = tokens
        else:
            self.register_buffer("tokens", tokens)

    @property
    def roles(self) -> tuple[Role, ...]:
        """One per token that the sequence gets."""
        each: tuple[Role, ...] = ("register",)
        return each * len(self.tokens)

    def install(self, body: Body) -> None:
        """Puts itself into the trunk and its hooks on the first and the last block."""
        sites = body.anatomy.sites
        body.add(body.anatomy.trunk, APPENDED, self.to(device=sites[0].device, dtype=sites[0].dtype))
        body.hook(sites[0].block.register_forward_pre_hook(self.append, with_kwargs=True))
        body.hook(sites[-1].block.register_forward_hook(self.strip))

    def append(self, _block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """Forward pre-hook of the first block."""
        if args:
            return (self._longer(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self._longer(kwargs["hidden_states"])}

    def strip(
        self, _block: nn.Module, _args: Any, out: Float[Tensor, "batch longer residual"]
    ) -> Float[Tensor, "batch tokens residual"]:
        """Forward hook of the last block."""
        return out[:, : out.shape[1] - len(self.roles)]

    def _longer(self, x: Tensor) -> Tensor:
        if not self.roles:
            return x
        return torch.cat([x, self.tokens.to(x.dtype).expand(len(x), -1, -1)], 1)


def with_appended(call: Attend, count: int, shown: bool = True) -> Attend:
    """The call of a longer sequence, whose mask knows only the tokens before the last `count`.

    Appended queries see every key that some token sees, all of them unless keys are padding. Appended keys are seen by
    everyone if `shown`, else by none.
    """
    mask = call.mask
    if mask is None:
        if shown:
            return call
        mask = torch.ones(1, 1, 1, call.k.shape[2] - count, dtype=torch.bool, device=call.k.device)
    if mask.shape[2] > 1:
        mask = torch.cat([mask, mask.any(2, keepdim=True).expand(-1, -1, count, -1)], 2)
    return replace(call, mask=pad(mask, (0, count), value=shown))
