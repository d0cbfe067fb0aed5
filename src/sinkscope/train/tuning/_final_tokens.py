"""What a model makes of its tokens, whatever its head does with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.treat import anatomy_of


class FinalTokens:
    """The final tokens of the last forward pass."""

    def __init__(self) -> None:
        self._seen: Tensor | None = None

    @property
    def tokens(self) -> Float[Tensor, "batch tokens residual"]:
        """Behind the final norm, where the family has one for all tokens; without those that a treatment added.

        **Raises:** `OptionError` before the first forward pass, and for a model that returns no tokens.
        """
        if not isinstance(self._seen, Tensor) or self._seen.dim() != 3:
            raise OptionError(
                "a forward pass without final tokens", "a tensor of batch x tokens x width", "report this"
            )
        return self._seen

    def keep(self, _module: nn.Module, _args: Any, out: Any) -> None:
        """Forward hook."""
        self._seen = out if isinstance(out, Tensor) else out[0]

    def clear(self) -> None:
        """Forgets them, and with them the graph of their gradients."""
        self._seen = None


@contextmanager
def final_tokens(module: nn.Module) -> Iterator[FinalTokens]:
    """Sees the final tokens of every forward pass of a model of a supported family, treated or not.

    **Raises:** `OptionError` for other models.
    """
    anatomy = anatomy_of(module)
    found = FinalTokens()
    # timm's trunk returns what its head makes of the tokens; transformers' trunks may not have a norm over all tokens
    seen = anatomy.final_norm if anatomy.family.library == "timm" else anatomy.trunk
    assert seen is not None
    handle = seen.register_forward_hook(found.keep)
    try:
        yield found
    finally:
        handle.remove()
        found.clear()
