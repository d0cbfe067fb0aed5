"""The picture preprocessing of a transformers model, from its own image processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from jaxtyping import Float
from PIL import Image
from torch import Tensor

from sinkscope._errors import InputError
from sinkscope.models._hub import hub_answers
from sinkscope.models._pictures import picture_of
from sinkscope.models._quiet import quiet
from sinkscope.models._types import PictureTransform
from sinkscope.models._weights import first_line


def hf_pictures(source: str, trust_remote_code: bool, size: int | None) -> PictureTransform:
    """The transform of the image processor saved beside the model; `size` replaces its height and width in pixels.

    With a crop the resizing grows in proportion, so that the same part of the picture is seen.

    Raises `InputError` if there is no image processor, or one whose output is no picture.
    """
    from transformers import AutoImageProcessor

    offline = not Path(source).is_dir() and not hub_answers()
    try:
        with quiet():
            processor = cast(Any, AutoImageProcessor).from_pretrained(
                source, trust_remote_code=trust_remote_code, local_files_only=offline
            )
    except Exception as error:
        # Missing, unreadable and unknown processors raise OSError, ValueError, KeyError and ImportError.
        raise InputError(
            f"no usable image preprocessing for {source} ({first_line(error)})",
            "preprocessor_config.json beside the model",
            "add the file, or pass tensors that are preprocessed already",
        ) from None
    sizes = {} if size is None else _sizes(processor, size)
    scale = processor.rescale_factor if processor.do_rescale else 1.0
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)

    def transform(picture: Image.Image) -> tuple[Float[Tensor, "channels height width"], Image.Image | None]:
        values = processor(picture, return_tensors="pt", **sizes)["pixel_values"][0]
        if values.ndim != 3:
            raise InputError(
                f"the image processor {type(processor).__name__}, whose output is no picture",
                "one array of channels x height x width per picture",
                "call the processor yourself and pass its output as a dict",
            )
        return values, picture_of(values, mean, std, scale)

    return transform


def _sizes(processor: Any, size: int) -> dict[str, dict[str, int]]:
    resize, crop = dict(processor.size), getattr(processor, "crop_size", None)
    if getattr(processor, "do_center_crop", False) and crop:
        edges = {edge: round(pixels * size / crop["height"]) for edge, pixels in resize.items() if pixels}
        return {"size": edges, "crop_size": {"height": size, "width": size}}
    if resize.get("height"):
        return {"size": {"height": size, "width": size}}
    return {"size": {"shortest_edge": size}}
