"""Which token is what in a vision transformer, read off the module's own attributes.

A library's vision transformer says in its embedding what stands before the patches, and its first convolution says
how the picture is cut. What is not known for sure is None: wrong roles are worse than none.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from sinkscope._errors import InputError
from sinkscope.models._types import Role, TokenLayout


@dataclass(frozen=True)
class VisionTokens:
    """The token order of a vision transformer.

    - `prefix`: roles of the tokens before the patches; None where the order is not known.
    - `patch`: height and width of a patch in pixels.
    - `channels`: channels of the picture, None where the first layer does not say.
    - `fixed`: height and width in pixels, where the model takes no other.
    - `padded`: whether the model pads a picture to whole patches itself.
    """

    prefix: tuple[Role, ...] | None
    patch: tuple[int, int]
    channels: int | None
    fixed: tuple[int, int] | None = None
    padded: bool = False

    def check(self, height: int, width: int) -> None:
        """Raises `InputError` for a picture the model cannot take, or of which it would drop a border unasked."""
        rows, cols = self.patch
        if self.fixed is not None and (height, width) != self.fixed:
            raise InputError(
                f"a picture of {height} x {width} pixels",
                f"{self.fixed[0]} x {self.fixed[1]}, the only size this model takes as it was built",
                f"leave --size out, or build the model for this size: ?img_size={height} in a timm: reference, "
                f"?force_image_size={height} in an open_clip: reference",
            )
        if height < rows or width < cols:
            raise InputError(
                f"a picture of {height} x {width} pixels",
                f"at least one patch of {rows} x {cols}",
                "leave the picture out, or give a larger --size",
            )
        if not self.padded and (height % rows or width % cols):
            raise InputError(
                f"a picture of {height} x {width} pixels",
                f"a multiple of the patch, {rows} x {cols} pixels, as the model would drop the rest",
                f"--size {max(1, height // rows) * rows}",
            )

    def layout(self, height: int, width: int) -> TokenLayout | None:
        """Roles of the tokens of a picture of that size in pixels: prefix, then patches row by row."""
        return (
            None
            if self.prefix is None
            else _layout(self.prefix, -(-height // self.patch[0]), -(-width // self.patch[1]))
        )


@lru_cache(maxsize=64)
def _layout(prefix: tuple[Role, ...], rows: int, cols: int) -> TokenLayout:
    nowhere = (None,) * len(prefix)
    patches: list[Role] = ["patch"] * (rows * cols)
    return TokenLayout(
        roles=(*prefix, *patches),
        rows=nowhere + tuple(row for row in range(rows) for _ in range(cols)),
        cols=nowhere + tuple(range(cols)) * rows,
    )


def vision_tokens(module: nn.Module) -> VisionTokens | None:
    """The token order of the vision transformer in `module`, None if there is none of a known kind."""
    config = None
    for part in module.modules():
        config = getattr(part, "config", config)
        tokens = _transformers(part, config) or _timm(part) or _open_clip(part) or _torchvision(part)
        if tokens is not None:
            return tokens
    return None


_HF_EMBEDDED = {
    "cls_token",
    "class_embedding",
    "distillation_token",
    "register_tokens",
    "mask_token",
    "position_embeddings",
    "position_embedding",
}
_HF_NOT_FLAT = ("depths", "window_size", "hidden_sizes", "embed_dims", "query_strides")


def _transformers(part: nn.Module, config: Any) -> VisionTokens | None:
    """Embedding modules of the transformers library: class token, distillation token, registers, patches."""
    patches = getattr(part, "patch_embeddings", None) or getattr(part, "patch_embedding", None)
    conv = getattr(patches, "projection", patches)
    if not isinstance(conv, nn.Conv2d) or conv.kernel_size != conv.stride:
        return None
    own = dict(part.named_parameters(recurse=False))
    flat = not any(getattr(config, name, None) for name in _HF_NOT_FLAT)
    prefix: tuple[Role, ...] | None = None
    # An embedding with a token of another kind, or one that drops or shuffles patches, is not in this order.
    if own.keys() <= _HF_EMBEDDED and flat and not hasattr(part, "random_masking"):
        cls = own.get("cls_token", own.get("class_embedding"))
        prefix = _prefix(cls, own.get("distillation_token"), own.get("register_tokens"))
    return VisionTokens(prefix, _pair(conv.stride), conv.in_channels)


def _timm(part: nn.Module) -> VisionTokens | None:
    """Models of timm with a `patch_embed`; the order is known where the tokens found are its `num_prefix_tokens`."""
    embed: Any = getattr(part, "patch_embed", None)
    if not hasattr(embed, "feat_ratio"):
        return None
    prefix = _prefix(
        getattr(part, "cls_token", None), getattr(part, "dist_token", None), getattr(part, "reg_token", None)
    )
    known = len(prefix) == getattr(part, "num_prefix_tokens", None)
    conv = None if hasattr(embed, "backbone") else getattr(embed, "proj", None)
    return VisionTokens(
        prefix if known else None,
        _pair(embed.feat_ratio(as_scalar=False)),
        conv.in_channels if isinstance(conv, nn.Conv2d) else None,
        _pair(embed.img_size) if embed.img_size is not None and embed.strict_img_size else None,
        bool(embed.dynamic_img_pad),
    )


def _open_clip(part: nn.Module) -> VisionTokens | None:
    """The vision transformer of open_clip: class token, patches."""
    conv = getattr(part, "conv1", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(part, "class_embedding", None), Tensor):
        return None
    return VisionTokens(("cls",), _pair(conv.stride), conv.in_channels, _pair(part.image_size))


def _torchvision(part: nn.Module) -> VisionTokens | None:
    """The vision transformer of torchvision: class token, patches."""
    conv = getattr(part, "conv_proj", None)
    if not isinstance(conv, nn.Conv2d) or not isinstance(getattr(part, "class_token", None), Tensor):
        return None
    return VisionTokens(("cls",), _pair(conv.stride), conv.in_channels, _pair(part.image_size))


def _prefix(cls: Tensor | None, distill: Tensor | None, registers: Tensor | None) -> tuple[Role, ...]:
    roles: list[Role] = []
    if cls is not None:
        roles.append("cls")
    if distill is not None:
        roles.append("distill")
    if registers is not None:
        roles += ["register"] * registers.shape[1]
    return tuple(roles)


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)
