"""The attention function of treated models of transformers."""

from __future__ import annotations

import copy
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sinkscope._errors import OptionError
from sinkscope.treat._container import CONTAINER, Container

_UNKNOWN = ("softcap", "position_bias", "s_aux", "cache")


def attention(
    module: nn.Module,
    query: Float[Tensor, "batch heads queries dim"],
    key: Float[Tensor, "batch kv_heads keys dim"],
    value: Float[Tensor, "batch kv_heads keys dim"],
    attention_mask: Float[Tensor, "batch #heads queries keys"] | Bool[Tensor, "batch #heads queries keys"] | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "batch queries heads dim"], Float[Tensor, "batch heads queries keys"] | None]:
    """Attention of a treated module, as transformers calls it.

    **Raises:** `OptionError` for arguments that change attention in ways treatments do not know.
    """
    unknown = [name for name in _UNKNOWN if kwargs.get(name) is not None]
    if unknown:
        raise OptionError(
            f"{type(module).__name__} calls attention with {', '.join(unknown)}",
            "plain attention",
            "undo the treatment",
        )
    container = getattr(module, CONTAINER)
    assert isinstance(container, TransformersContainer) and container.hidden is not None
    x, container.hidden = container.hidden, None
    queries = query.shape[2]
    causal = False
    if attention_mask is None and queries > 1:
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
        if causal and key.shape[2] > queries:  # a static cache that is empty behind these keys
            key, value = key[:, :, :queries], value[:, :, :queries]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    eager = container.untreated_config._attn_implementation == "eager"  # transformers hands out weights in this mode
    out, weights = container.attend(x, query, key, value, attention_mask, causal, scale, dropout, need_weights=eager)
    return out.transpose(1, 2).contiguous(), weights


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(CONTAINER, attention)


class TransformersContainer(Container):
    """Knows the attention's own configuration, which says how the model attends without treatments. Where there is one,
    the attention function is registered."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.untreated_config: Any = config
        _register()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # untyped in torch
        _register()  # in the process that reads a pickled model


def treated_config(config: Any) -> Any:
    """A copy for one attention module. The model keeps its own, and with it its masks and its saved files."""
    own = copy.copy(config)
    own._attn_implementation = CONTAINER
    return own


def note_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Forward pre-hook: keeps the input of the attention module, which the attention function is not given."""
    getattr(module, CONTAINER).hidden = args[0] if args else kwargs["hidden_states"]
