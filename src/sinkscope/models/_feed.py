"""What only the model knows about its inputs: legal shapes, further arguments, valid tokens, token roles."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sinkscope._errors import InputError
from sinkscope.models._appended import Appended
from sinkscope.models._model import Model
from sinkscope.models._picture_items import picture_batch
from sinkscope.models._text_items import text_batch
from sinkscope.models._types import Batch, PictureTransform, TextCodec
from sinkscope.models._vision_tokens import VisionTokens, vision_tokens


@dataclass(frozen=True)
class Feed:
    """Makes batches for `model`; `size` in pixels replaces the side of its pictures."""

    model: Model
    size: int | None = None

    @cached_property
    def tokens(self) -> VisionTokens | None:
        """The token order of a vision model, None for others and where it is not known."""
        return vision_tokens(self.model.module) if self.model.modality == "vision" else None

    @cached_property
    def _appended(self) -> Appended:
        """What a treatment of the model puts behind its tokens."""
        return Appended(self.model.module)

    @cached_property
    def transform(self) -> PictureTransform:
        """The model's preprocessing of pictures. Raises `InputError` if it has none."""
        if self.model.modality != "vision" or self.model.prepare.pictures is None:
            raise self._unfit("pictures", "a vision model with known preprocessing, or tensors")
        if self.size is not None and self.tokens is not None:
            self.tokens.check(self.size, self.size)
        return self.model.prepare.pictures(self.size)

    @cached_property
    def codec(self) -> TextCodec:
        """The model's tokenizer. Raises `InputError` if it has none."""
        if self.model.modality != "text" or self.model.prepare.text is None:
            raise self._unfit("text", "a text model with a tokenizer, or token ids as tensors")
        return self.model.prepare.text()

    def pictures(
        self,
        index: int,
        names: tuple[str, ...],
        items: Sequence[tuple[Float[Tensor, "channels height width"], Image.Image | None]],
    ) -> Batch:
        """A batch of prepared pictures."""
        return self.finished(picture_batch(index, names, items))

    def texts(self, index: int, names: tuple[str, ...], rows: Sequence[Sequence[int]]) -> Batch:
        """A batch of token ids."""
        return self._appended(text_batch(self.codec, index, names, rows))

    def finished(self, batch: Batch) -> Batch:
        """Checks raw model arguments against the model and adds valid tokens, roles and missing arguments."""
        if self.model.modality == "vision":
            return self._appended(self._vision(batch))
        if self.model.modality == "text":
            return self._appended(self._text(batch))
        return replace(batch, layouts=(None,) * len(batch.names))

    def _vision(self, batch: Batch) -> Batch:
        pictures = batch.pictures or (None,) * len(batch.names)
        pixels = self._main(batch)
        if self.tokens is None and batch.kwargs:  # a model of its own kind knows its arguments better
            return replace(batch, layouts=(None,) * len(batch.names), pictures=pictures)
        if not isinstance(pixels, Tensor) or pixels.ndim != 4 or not pixels.is_floating_point():
            shape = f"{pixels.dtype} {tuple(pixels.shape)}" if isinstance(pixels, Tensor) else str(sorted(batch.kwargs))
            raise InputError(
                f"{shape} as pictures for {self.model.reference}",
                f"a floating point tensor of batch x channels x height x width, {self._main_name} in a dict",
                "preprocess and stack the pictures, or pass a folder or PIL pictures",
            )
        height, width = pixels.shape[-2:]
        layout, kwargs = None, dict(batch.kwargs)
        if self.tokens is not None:
            if self.tokens.channels not in (None, pixels.shape[1]):
                raise InputError(
                    f"pictures of {pixels.shape[1]} channels for {self.model.reference}",
                    f"{self.tokens.channels} channels",
                    "pass tensors of batch x channels x height x width",
                )
            self.tokens.check(height, width)
            layout = self.tokens.layout(height, width)
        built = getattr(getattr(self.model.module, "config", None), "image_size", None)
        if built is not None and (built if isinstance(built, list | tuple) else [built] * 2) != [height, width]:
            if "interpolate_pos_encoding" in inspect.signature(self.model.module.forward).parameters:
                kwargs.setdefault("interpolate_pos_encoding", True)
        return replace(batch, kwargs=kwargs, layouts=(layout,) * len(batch.names), pictures=pictures)

    def _text(self, batch: Batch) -> Batch:
        ids, mask = self._main(batch), batch.kwargs.get("attention_mask")
        valid = mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 and not bool(mask.all()) else None
        nothing = (None,) * len(batch.names)
        batch = replace(batch, valid=valid, layouts=nothing, pictures=nothing)
        if not isinstance(ids, Tensor):  # embeddings, or a form of its own: the forward will tell
            return batch
        if ids.ndim != 2 or ids.is_floating_point():
            raise InputError(
                f"{ids.dtype} {tuple(ids.shape)} as token ids for {self.model.reference}",
                "whole numbers of batch x tokens",
                "tokenize first, or pass strings",
            )
        self._check_vocabulary(ids)
        if self._known_codec is None:
            return batch
        return replace(batch, layouts=self._known_codec.layouts(ids.tolist(), batch.valid))

    @cached_property
    def _known_codec(self) -> TextCodec | None:
        """The tokenizer if there is one: token ids can do without, they only have no roles then."""
        try:
            return self.codec
        except InputError:
            return None

    @cached_property
    def _main_name(self) -> str:
        """The argument that holds pictures or token ids: the forward's first."""
        return next(iter(inspect.signature(self.model.module.forward).parameters))

    def _main(self, batch: Batch) -> Any:
        return batch.args[0] if batch.args else batch.kwargs.get(self._main_name)

    def _check_vocabulary(self, ids: Tensor) -> None:
        embedding = getattr(self.model.module, "get_input_embeddings", lambda: None)()
        size = getattr(embedding, "num_embeddings", None)
        if size is not None and ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < size:
            raise InputError(
                f"token ids from {int(ids.min())} to {int(ids.max())} for {self.model.reference}",
                f"ids from 0 to {size - 1}",
                "use the model's own tokenizer",
            )

    def _unfit(self, what: str, expected: str) -> InputError:
        kind = "of unknown modality" if self.model.modality == "unknown" else f"that takes {self.model.modality}"
        return InputError(
            f"{what} for {self.model.reference}, a model {kind}",
            expected,
            "pass a dict of the forward's arguments, or load the model by its reference",
        )


def rows_of(arguments: Mapping[str, Any] | Tensor) -> int:
    """The batch size of a tensor or of a dict of model arguments. Raises `InputError` if it has none."""
    tensors = [arguments] if isinstance(arguments, Tensor) else [v for v in arguments.values() if isinstance(v, Tensor)]
    sized = [tensor for tensor in tensors if tensor.ndim]
    if not sized or not len(sized[0]):
        raise InputError(
            "model arguments without a batch dimension", "tensors whose first dimension is the batch", "tensor[None]"
        )
    return len(sized[0])
