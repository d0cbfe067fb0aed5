"""A module with what is needed to feed it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope._errors import InputError, OptionError, ResourceError
from sinkscope.models._hash import tensors_sha256
from sinkscope.models._types import Batch, Modality, Preparation

TREATED = "_sinkscope_record"
"""Attribute of a module that was treated; its `treatments` tell with what."""


@dataclass(frozen=True)
class Model:
    """A module with what is needed to feed it and to name its tokens.

    - `reference`: the reference it was loaded from, or `module:ClassName`.
    - `module`: the torch module; its own forward is what runs.
    - `modality`: what it takes; decides which inputs are legal.
    - `device`: where inputs go.
    - `notes`: what a reader of the results should know: random or unused weights, a replaced attention kernel.
    - `prepare`: the model's own preprocessing and tokenizer.
    """

    reference: str
    module: nn.Module
    modality: Modality
    device: str = "cpu"
    notes: tuple[str, ...] = ()
    prepare: Preparation = field(default_factory=Preparation)

    @property
    def parameters(self) -> int:
        """Number of parameters, shared ones counted once."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def dtype(self) -> str:
        """Type of the first floating point parameter, for instance "float32"."""
        dtype = _floating_dtype(self.module)
        return "float32" if dtype is None else str(dtype).removeprefix("torch.")

    def weights_sha256(self) -> str:
        """Hash over the state dict: names in order, dtypes, shapes and bytes. Computed anew at every call.

        In a treated model also over its treatments: not all of them have tensors.
        """
        state = self.module.state_dict()
        if any(isinstance(value, Tensor) and value.is_meta for value in state.values()):  # offloaded by a device_map
            offloading: Any = import_module("accelerate.utils.modeling")
            state = offloading.get_state_dict_offloaded_model(self.module)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        return tensors_sha256(tensors, _treatments_told(self.module))

    def run(self, batch: Batch) -> Any:
        """One forward pass of the module, in evaluation mode, without gradients; returns what the module returns.

        Inputs go to the model's device and floating point ones to its dtype. Where the forward takes them, and the
        batch does not say otherwise, it gets `use_cache=False` and `logits_to_keep=1`: only attention is looked at,
        and all logits of a long text need more memory than the rest. A text encoder-decoder is given the whole text
        after its start token as decoder input.

        Raises `InputError` for arguments that the forward does not take, `ResourceError` when memory runs out.
        """
        with torch.inference_mode():
            return self.forward(batch)

    def forward(self, batch: Batch) -> Any:
        """As `run`, with gradients where torch records them."""
        dtype = _floating_dtype(self.module)
        args = tuple(_moved(value, self.device, dtype) for value in batch.args)
        kwargs = {name: _moved(value, self.device, dtype) for name, value in batch.kwargs.items()}
        accepted = inspect.signature(self.module.forward).parameters
        for name, value in (("use_cache", False), ("logits_to_keep", 1)):
            if name in accepted:
                kwargs.setdefault(name, value)
        if "decoder_input_ids" in accepted and self.modality == "text":
            kwargs = _with_decoder_input(getattr(self.module, "config", None), args, kwargs)
        _check_arguments(self.module, args, kwargs)
        try:
            with _evaluating(self.module):
                return self.module(*args, **kwargs)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise _out_of_memory(self.reference, batch) from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise _out_of_memory(self.reference, batch) from error
            raise


def _treatments_told(module: nn.Module) -> str:
    """The treatments of the model or of a part of it, as JSON; nothing when there are none."""
    records: list[Any] = [vars(part).get(TREATED) for part in module.modules()]
    told = [treatment.plain() for record in records if record is not None for treatment in record.treatments]
    return json.dumps(told) if told else ""


def _floating_dtype(module: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def _moved(value: Any, device: str, dtype: torch.dtype | None) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, dtype if dtype is not None and value.is_floating_point() else value.dtype)
    if isinstance(value, list | tuple):
        moved = [_moved(item, device, dtype) for item in value]
        return moved if isinstance(value, list) else tuple(moved)
    if isinstance(value, Mapping):
        return {name: _moved(item, device, dtype) for name, item in value.items()}
    return value


def _with_decoder_input(config: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    ids = kwargs.get("input_ids", args[0] if args else None)
    if not getattr(config, "is_encoder_decoder", False) or not isinstance(ids, Tensor):
        return kwargs
    if "decoder_input_ids" in kwargs or "decoder_inputs_embeds" in kwargs:
        return kwargs
    candidates = (getattr(config, name, None) for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"))
    start = next((token for token in candidates if token is not None), 0)
    ones = ids.new_ones((len(ids), 1))
    kwargs = {**kwargs, "decoder_input_ids": torch.cat([start * ones, ids], dim=1)}
    if isinstance(kwargs.get("attention_mask"), Tensor):
        mask = kwargs["attention_mask"]
        kwargs["decoder_attention_mask"] = torch.cat([ones.to(mask.dtype), mask], dim=1)
    return kwargs


def _check_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    signature = inspect.signature(module.forward)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"inputs that {type(module).__name__} cannot be called with: {error}",
            f"its forward's arguments ({', '.join(signature.parameters)})",
            "pass a dict with these names as keys, or one tensor for the first of them",
        ) from None


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    if training:
        module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def wrong_modality(asked: Modality, found: Modality, what: str) -> OptionError:
    """Pictures were announced for a text model, or the other way round."""
    return OptionError(
        f"{asked} inputs for {what}",
        f"{found} inputs, which is what it takes",
        "--text FILE" if found == "text" else "--images FOLDER" if found == "vision" else "its forward's arguments",
    )


def _out_of_memory(reference: str, batch: Batch) -> ResourceError:
    return ResourceError(
        f"memory ran out in the forward pass of {reference} with a batch of {len(batch.names)}",
        "a batch that fits",
        "lower --batch-size, then --length or --size, or take --dtype bfloat16",
    )
