"""The calls of one capture, and how they are put together from what runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from sinkscope._errors import CaptureError
from sinkscope.capture._call import HIDDEN_BIAS, AttentionCall, Projection
from sinkscope.capture._coverage import Coverage, build_coverage
from sinkscope.capture._follower import storage_of
from sinkscope.capture._forms import FormCall
from sinkscope.capture._modules import attention_modules, looks_cross, residual_blocks
from sinkscope.capture._ops import FusedArguments
from sinkscope.capture._recorder import Recorder

_HIDDEN_KEYS = ("hidden_states", "x", "src", "input", "inputs", "query")
_CACHE_KEYS = ("past_key_values", "past_key_value", "layer_past", "cache_params")
_OTHER_SEQUENCE_KEYS = ("key_value_states", "encoder_hidden_states", "context", "memory")


@dataclass
class _Frame:
    """A module being executed."""

    name: str
    hidden: Tensor | None
    norms: Tensor | None = None
    cross: bool = False
    cached: bool = False
    watched: bool = False


@dataclass(frozen=True)
class _Ended:
    """What a call leaves behind for those of later forward passes."""

    module: str
    projection: Projection | None
    projection_gap: str | None


class Calls(list[AttentionCall]):
    """The captured calls, in the order of the forward pass, and what was not captured."""

    def __init__(self, root: nn.Module, on_call: Callable[[AttentionCall], None] | None) -> None:
        super().__init__()
        self._on_call = on_call
        self._attention = attention_modules(root)
        self._blocks = residual_blocks(root)
        own = {name: p.to_local() if hasattr(p, "to_local") else p for name, p in root.named_parameters()}
        self._parameters = {p.data_ptr(): name for name, p in own.items()}  # may share one storage
        self._parameter_storages = {storage_of(p) for p in own.values()}
        self._recorder = Recorder(self)
        self._stack: list[_Frame] = []
        self._pending: list[AttentionCall] = []
        self._layouts: dict[int, str | None] = {}
        self._forward = -1
        self._ordinals: dict[str, int] = {}
        self._entered: set[str] = set()
        self._seen: dict[str, set[str]] = {}
        self._ended: dict[tuple[str, int], _Ended] = {}
        self._settled: frozenset[str] | None = None
        self._everywhere = ExitStack()
        self._hooks: dict[str, ExitStack] = {}

    @property
    def coverage(self) -> Coverage:
        """What the capture saw of the attention modules it found; see `Coverage`."""
        return build_coverage(self._attention, self._entered, self._seen, self._recorder.unseen)

    def where(self) -> str:
        """Qualified name of the attention module being executed, else of the innermost module."""
        for frame in reversed(self._stack):
            if frame.name in self._attention:
                return frame.name
        return self._stack[-1].name if self._stack else ""

    def settle(self) -> None:
        """From now on take it that every forward runs the attention calls of those so far, and watch only there.

        Operations outside the modules that ran attention are no longer looked at, projections are those found so far,
        and `on_call` gets a call as soon as it has run, its tensors still in the cache and before the model reads its
        output: what `on_call` writes into `call.out` in place is what the model goes on with. For the same model on
        more inputs, after a first forward pass. A call that no earlier forward has made raises `CaptureError`.
        """
        self._settled = frozenset(call.module for call in self._ended.values())
        self._everywhere.close()
        for name in self._hooks.keys() - self._settled - self._attention.keys() - self._blocks - {""}:
            self._hooks.pop(name).close()

    def begin_at(self, made: Mapping[str, int]) -> None:
        """Number the next calls of the forward pass that runs as if so many of each kind had been made before.

        For a pass that leaves out its first blocks because their outputs are known.
        """
        self._ordinals = dict(made)

    # -- the recorder's reports ---------------------------------------------------------------------------------------

    def on_fused(self, arguments: FusedArguments, out: Tensor, lse: Tensor) -> None:
        call = self._new_call(
            "fused",
            out.shape[2],
            arguments.k.shape[2],
            v=arguments.v.detach(),
            out=out.detach(),
            q=arguments.q.detach(),
            k=arguments.k.detach(),
            lse=lse.detach()[..., : out.shape[2]],
            mask=None if arguments.mask is None else _over_keys(arguments.mask.detach(), arguments.k.shape[2]),
            causal=arguments.causal,
            scale=arguments.scale,
        )
        self._follow(call, out)

    def on_weights(self, logits: Tensor, weights: Tensor, values: Tensor, out: Tensor) -> None:
        heads = logits.shape[1] if logits.dim() == 4 else self._heads(weights.shape[0])
        if logits.dim() > 4 or heads is None or weights.shape[0] % heads:
            self._recorder.unseen[f"softmax of shape {tuple(logits.shape)}"] = self.where()
            return

        def split(x: Tensor) -> Tensor:
            return torch.unflatten(x.detach(), 0, (-1, heads))  # always a view: `out` must share the model's memory

        keys = weights.shape[2]
        shown = logits.detach().reshape(-1, heads, *logits.shape[-2:])[..., :keys] > HIDDEN_BIAS
        shown = shown.any(1, keepdim=True)  # masks are shared by heads; a bias of one head hides nothing
        call = self._new_call(
            "weights",
            weights.shape[1],
            keys,
            v=split(values),
            out=split(out),
            weights=split(weights),
            visible=None if bool(shown.all()) else shown,
            extra_columns=logits.shape[-1] - keys,
        )
        self._follow(call, out)

    def form_begins(self) -> None:
        self._recorder.paused = True

    def form_ends(self, form: FormCall, out: Tensor | None) -> None:
        self._recorder.paused = False
        if out is None or not self._stack:
            return
        mask = None
        if form.mask is not None:
            mask = torch.zeros(form.mask.shape, device=out.device).masked_fill_(~form.mask, -torch.inf)
        with _disable_current_modes():
            call = self._new_call(
                "form",
                out.shape[2],
                form.k.shape[2],
                v=form.v.detach(),
                out=out.detach(),
                q=form.q.detach(),
                k=form.k.detach(),
                mask=None if mask is None else _over_keys(mask, form.k.shape[2]),
                causal=form.causal,
                scale=form.scale,
                form=form,
            )
            self._follow(call, out)

    def on_projection(self, call: AttentionCall, x: Tensor, weight: Tensor) -> None:
        key = weight.data_ptr()
        if key not in self._layouts or key not in self._parameters:
            self._layouts[key] = _layout_gap(call.out, x)
        call.projection_gap = self._layouts[key]
        if call.projection_gap is None:
            call.projection = Projection(weight.detach(), self._parameters.get(key))

    def on_scaled(self, call: AttentionCall, factor: Tensor) -> None:
        if call.projection is not None:
            call.projection = replace(call.projection, layer_scale=factor.detach().reshape(-1))

    def on_gap(self, call: AttentionCall, reason: str) -> None:
        call.projection, call.projection_gap = None, reason

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter of the watched module, or a view of one."""
        return storage_of(tensor) in self._parameter_storages

    def is_inside(self, call: AttentionCall) -> bool:
        """Whether the module of the call is still being executed."""
        return any(frame.name == call.module for frame in self._stack)

    # -- modules ------------------------------------------------------------------------------------------------------

    def _enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._stack:
            self._forward += 1
            self._ordinals.clear()
        self._entered.add(name)
        frame = _Frame(name, _hidden_input(args, kwargs))
        if name in self._attention:
            other = any(isinstance(kwargs.get(key), Tensor) for key in _OTHER_SEQUENCE_KEYS)
            frame.cross = other or looks_cross(name) or _reads_two(self._attention[name], args, kwargs)
            frame.cached = any(kwargs.get(key) is not None for key in _CACHE_KEYS)
        self._stack.append(frame)
        if self._settled is not None and name in self._settled and not self._recorder.active:
            self._recorder.__enter__()
            self._stack[-1].watched = True

    def _leave(self, name: str) -> None:
        while self._stack:
            frame = self._stack.pop()
            if frame.watched:
                self._recorder.__exit__(None, None, None)
                self._recorder.forget()
            if frame.name == name:
                break
        self._finish(lambda call: name in (call.block, call.module) and call.block in (name, call.module))
        if not self._stack:
            self._finish(lambda call: True)

    def _finish(self, ready: Callable[[AttentionCall], bool]) -> None:
        done = [call for call in self._pending if ready(call)]
        if not done:
            return
        self._pending = [call for call in self._pending if not ready(call)]
        if not self._pending:
            self._recorder.forget()
        for call in done:
            self._ended[call.kind, call.layer] = _Ended(call.module, call.projection, call.projection_gap)
            self._hand_out(call)

    def _hand_out(self, call: AttentionCall) -> None:
        if self._on_call is None:
            self.append(call)
        else:
            with _disable_current_modes():
                self._on_call(call)

    def _new_call(
        self, route: Literal["fused", "weights", "form"], queries: int, keys: int, **tensors: Any
    ) -> AttentionCall:
        attention = next((f for f in reversed(self._stack) if f.name in self._attention), None)
        block = next((f for f in reversed(self._stack) if f.name in self._blocks), attention)
        if attention is not None and block is not None and not attention.name.startswith(block.name):
            block = attention
        virtual = _virtual_keys(self._attention.get(self.where()))
        virtual = virtual if keys == queries + virtual else 0
        kind: Literal["self", "cross", "decode"] = "self"
        if attention is not None and attention.cross:
            kind = "cross"
        elif queries != keys - virtual:
            kind = "decode" if attention is not None and attention.cached else "cross"
        layer = self._ordinals.get(kind, 0)
        self._ordinals[kind] = layer + 1
        module = self.where()
        self._seen.setdefault(module, set()).add(kind)
        call = AttentionCall(
            layer=layer,
            forward=self._forward,
            module=module,
            block=block.name if block is not None else module,
            kind=kind,
            route=route,
            virtual_keys=virtual,
            hidden_norms=_hidden_norms(block, tensors["out"], self._attention.get(module)),
            block_input=None if block is None or block.hidden is None else tuple(block.hidden.shape[:2]),
            **tensors,
        )
        return call

    def _follow(self, call: AttentionCall, out: Tensor) -> None:
        """Keep the call until its block has ended and its projection has been found, unless that is known."""
        if self._settled is None:
            self._pending.append(call)
            self._recorder.follow(call, out)
            return
        before = self._ended.get((call.kind, call.layer))
        if before is None or before.module != call.module:
            raise CaptureError(
                f"attention of {call.module}, number {call.layer} of its forward pass, that no earlier pass has run",
                "the same attention calls in every forward pass",
                "measure these inputs in a run of their own",
            )
        call.projection, call.projection_gap = before.projection, before.projection_gap
        self._hand_out(call)

    def _heads(self, rows: int) -> int | None:
        module = self._attention.get(self.where())
        for attribute in ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads"):
            heads = getattr(module, attribute, None)
            if isinstance(heads, int) and heads > 0 and rows % heads == 0:
                return heads
        return None


def _reads_two(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether nn.MultiheadAttention is given queries and keys from two sequences."""
    if not isinstance(module, nn.MultiheadAttention):
        return False
    query = args[0] if args else kwargs.get("query")
    key = args[1] if len(args) > 1 else kwargs.get("key")
    return query is not key


def _virtual_keys(module: nn.Module | None) -> int:
    """Keys that nn.MultiheadAttention appends to those it is given."""
    zero = getattr(module, "add_zero_attn", None) is True
    bias = isinstance(getattr(module, "bias_k", None), Tensor)
    return int(zero) + int(bias)


def _hidden_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    candidates = [*args[:1], *(kwargs.get(key) for key in _HIDDEN_KEYS)]
    for value in candidates:
        if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
            return value
    return None


def _over_keys(mask: Tensor, keys: int) -> Float[Tensor, "#batch #heads #queries keys"]:
    mask = mask[(None,) * (4 - mask.dim())]
    return mask.expand(*mask.shape[:3], keys)


def _hidden_norms(
    block: _Frame | None, out: Tensor, attention: nn.Module | None
) -> Float[Tensor, "batch tokens"] | None:
    if block is None or block.hidden is None:
        return None
    batch, queries = out.shape[0], out.shape[2]
    if batch == queries and getattr(attention, "batch_first", True) is False:
        return None  # the block may have either first, and the shape does not tell
    if block.norms is None:
        block.norms = torch.linalg.vector_norm(
            block.hidden.detach(), dim=-1, dtype=torch.promote_types(block.hidden.dtype, torch.float32)
        )
    norms = block.norms
    if tuple(norms.shape) == (batch, queries):
        return norms
    if tuple(norms.shape) == (queries, batch):
        return norms.T
    return None


def _layout_gap(out: Tensor, x: Tensor) -> str | None:
    """None when the rows of `x` are tokens and its columns the heads of `out` one after the other."""
    heads, dim = out.shape[1], out.shape[3]
    if x.shape[-1] != heads * dim or x.numel() != out.numel():
        return f"the projection takes {tuple(x.shape)}, not the {heads} x {dim} columns of the attention output"
    rows = x.reshape(-1, heads, dim)
    for order in ((0, 2, 1, 3), (2, 0, 1, 3)):
        if torch.equal(out.permute(*order).reshape(-1, heads, dim), rows):
            return None
    return "the attention output is changed before the projection"
