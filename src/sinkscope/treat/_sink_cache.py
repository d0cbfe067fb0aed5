"""A key-value cache of constant size: the first tokens and the last ones, at positions in the cache."""

from __future__ import annotations

import inspect
import weakref
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache, DynamicLayer

from sinkscope._errors import OptionError
from sinkscope.models import Model
from sinkscope.treat._anatomy import Anatomy, anatomy_of
from sinkscope.treat._remove_sinks import sliding_window
from sinkscope.treat._treat import module_of

_STEADY = ("default", "linear", "llama3", "yarn")
"""Rotary embeddings whose frequencies do not depend on the length of the input."""


class SinkCache(Cache):
    """The first keys and values, which models use as sinks, and the last ones, for generation beyond any length.

    ```python
    cache = sinkscope.treat.SinkCache(model, window=1024, sinks=4)
    model.generate(ids, past_key_values=cache, max_new_tokens=10_000)
    ```

    A query sees `window` keys at most, its own included, and finds them where they stand in the cache: neighbours there
    are one position apart, whatever was dropped between them. Up to `window` tokens this is plain attention. When
    several tokens come at once, room for all of them is made first, so that the earlier of them see fewer than `window`
    keys; a longer prompt goes in by `prefill_chunk_size` of `generate`.

    Keys are kept as they were rotated. Dropping tokens moves only the first ones, which are rotated further for every
    call; when positions have grown by a window, the last keys are rotated back once, so that positions stay small and
    roundings few. The model gets positions by a hook that is gone with the cache.

    **Arguments:**

    - `model`: Llama-like (Llama, Qwen2, Qwen3, Mistral, SmolLM), the one that the cache is used with, treated or not.
    - `window`: of keys in all, the first ones included.
    - `sinks`: how many of the first tokens are kept; 0 for a window alone.

    **Raises:** `OptionError` for models whose keys cannot be moved (learned positions, rotary embeddings that depend on
    the length), a sliding window of the model's own that is shorter, and sizes that do not fit; at use for more tokens
    at once than there is room for, padding, another model, and for taking tokens back (assisted decoding).

    Source: Xiao et al. 2024, arXiv:2309.17453.
    """

    layers: Any

    def __init__(self, model: nn.Module | Model, window: int = 1024, sinks: int = 4) -> None:
        anatomy = anatomy_of(module_of(model))
        if not 0 <= sinks < window:
            raise OptionError(
                f"a cache of {window} keys, {sinks} of them sinks",
                "0 or more sinks, and room for another key",
                "correct them",
            )
        frequencies = _frequencies(anatomy, window)
        super().__init__(layers=[_SinkLayer(window, sinks, frequencies) for _ in anatomy.sites])
        self.window, self.sinks = window, sinks
        self._trunk = weakref.ref(anatomy.trunk)
        self._coming: int | None = None
        handle = anatomy.trunk.register_forward_pre_hook(_place_tokens, with_kwargs=True)
        weakref.finalize(self, handle.remove)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        kept = [x for layer in self.layers for x in (layer.keys, layer.values) if x is not None]
        return sum(x.nbytes for x in kept)

    def begin(self, trunk: nn.Module, tokens: int) -> int:
        """Room for tokens that come at once.

        **Returns:** the position of the first of them.

        **Raises:** `OptionError` when there is none, and for another model.
        """
        first = self.layers[0]
        if self._trunk() is not trunk:
            raise _of_another_model()
        room = self.window - min(self.sinks, first.kept)
        if tokens > room:
            raise OptionError(
                f"{tokens} tokens at once for a cache with room for {room}",
                "fewer",
                f"pass prefill_chunk_size={self.window - self.sinks} to generate, or feed the input in parts",
            )
        self._coming = tokens
        return int(first.kept + first.base)

    def update(
        self,
        key_states: Float[Tensor, "batch kv_heads new dim"],
        value_states: Float[Tensor, "batch kv_heads new dim"],
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "batch kv_heads keys dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        """As transformers calls it."""
        if key_states.shape[-2] != self._coming:  # no hook has given positions
            raise _of_another_model()
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if layer_idx == len(self.layers) - 1:
            self._coming = None
        return keys, values

    def crop(self, tokens_to_remove: int) -> None:
        """Tokens that were dropped cannot be had again."""
        raise OptionError("taking tokens back from a SinkCache", "plain decoding", "leave out the assistant model")


class _SinkLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # untyped in transformers
    """Of one attention.

    - `seen`: tokens so far.
    - `kept`: keys in the cache.
    - `base`: how much further than their place the keys behind the first ones are rotated. The first ones are rotated
      by their place.
    """

    is_croppable = False

    def __init__(self, window: int, sinks: int, frequencies: Float[Tensor, " half"]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in transformers
        self.window, self.sinks, self.frequencies = window, sinks, frequencies
        self.seen = self.base = 0

    @property
    def kept(self) -> int:
        return 0 if self.keys is None else int(self.keys.shape[-2])

    def update(
        self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[Float[Tensor, "batch kv_heads keys dim"], Float[Tensor, "batch kv_heads keys dim"]]:
        new = key_states.shape[-2]
        if self.keys is None or self.values is None:
            self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
            self.keys, self.values = key_states[..., :0, :], value_states[..., :0, :]
        drop = self._dropped(new)
        first, last = slice(self.sinks), slice(self.sinks + drop, None)
        self.keys = torch.cat([self.keys[..., first, :], self.keys[..., last, :], key_states], -2)
        self.values = torch.cat([self.values[..., first, :], self.values[..., last, :], value_states], -2)
        self.seen += new
        self.base += drop
        if self.base == 0:
            return self.keys, self.values
        sinks, others = self.keys[..., : self.sinks, :], self.keys[..., self.sinks :, :]
        keys = torch.cat([self._turned(sinks, self.base), others], -2)
        if self.base >= self.window:
            self.keys = torch.cat([sinks, self._turned(others, -self.base)], -2)
            self.base = 0
        return keys, self.values

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        left = self.kept - self._dropped(query_length)
        return left + query_length, self.seen - left

    def reset(self) -> None:
        super().reset()
        self.seen = self.base = 0

    def _dropped(self, new: int) -> int:
        return max(0, self.kept + new - self.window)

    def _turned(
        self, keys: Float[Tensor, "batch kv_heads keys dim"], by: int
    ) -> Float[Tensor, "batch kv_heads keys dim"]:
        """Keys rotated by so many positions further."""
        dtype = torch.promote_types(keys.dtype, torch.float32)
        angles = self.frequencies.to(keys.device, dtype) * by
        left, right = keys.to(dtype).chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(keys.dtype)


def _place_tokens(
    trunk: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Forward pre-hook of the trunk: positions in the cache, where the call has such a cache."""
    given = {**dict(zip(inspect.signature(trunk.forward).parameters, args, strict=False)), **kwargs}
    cache = given.get("past_key_values")
    if not isinstance(cache, SinkCache):
        return None
    mask = given.get("attention_mask")
    if mask is not None and not (mask.dim() == 2 and bool(mask.all())):
        raise OptionError(
            "padding, or a mask of its own, with a SinkCache",
            "inputs of one length without padding",
            "generate for one input at a time",
        )
    embedded = given.get("inputs_embeds")
    tokens = given["input_ids"] if embedded is None else embedded
    count = tokens.shape[1]
    positions = cache.begin(trunk, count) + torch.arange(count, device=tokens.device)
    return (), {**given, "attention_mask": None, "position_ids": positions[None]}


def _frequencies(anatomy: Anatomy, window: int) -> Float[Tensor, " half"]:
    """Radians per position of the rotary embedding.

    **Raises:** `OptionError` where keys cannot be moved by a rotation.
    """
    family, trunk = anatomy.family, anatomy.trunk
    if family.name != "llama":
        why = "learns positions that are in its hidden states" if family.name == "gpt2" else "is no decoder"
        raise OptionError(
            f"a SinkCache for {family.title}, which {why}",
            "rotary embeddings, by which a key in the cache can be moved: Llama, Qwen2, Qwen3, Mistral, SmolLM",
            "use such a model",
        )
    rotary: Any = trunk.rotary_emb
    kind = str(rotary.rope_type)
    if kind not in _STEADY or 2 * len(rotary.inv_freq) != anatomy.sites[0].shape.head_dim:
        raise OptionError(
            f"a SinkCache for rotary embeddings of type {kind}, whose frequencies depend on the length of the input",
            f"{', '.join(_STEADY)}, of all dimensions",
            "use the model's own cache",
        )
    windows = [sliding_window(site.attention) for site in anatomy.sites]
    shortest = min((own for own in windows if own is not None), default=window)
    if shortest < window:
        raise OptionError(
            f"a SinkCache with a window of {window} for a model that looks back {shortest} tokens",
            f"a window up to {shortest}",
            "correct window",
        )
    frequencies: Tensor = rotary.inv_freq.detach().clone()
    return frequencies


def _of_another_model() -> OptionError:
    return OptionError("a SinkCache in another model", "the one that it was made for", "make one for this model")
