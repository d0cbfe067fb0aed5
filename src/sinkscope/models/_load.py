"""Any model by reference, or a module as it is."""

from __future__ import annotations

from typing import Any

from torch import nn

from sinkscope._errors import ModelReferenceError, OptionError
from sinkscope.models._hf import hf_modality, hf_preparation, load_hf
from sinkscope.models._model import Model, wrong_modality
from sinkscope.models._open_clip import load_open_clip, open_clip_preparation
from sinkscope.models._placement import Placement
from sinkscope.models._reference import Reference, parse_reference
from sinkscope.models._timm import load_timm, timm_preparation
from sinkscope.models._types import Modality, Preparation
from sinkscope.models._vision_tokens import vision_tokens
from sinkscope.models._zoo import zoo_folder


def load(
    reference: str | nn.Module,
    *,
    modality: Modality | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    device_map: Any = None,
    tp_plan: Any = None,
    trust_remote_code: bool = False,
) -> Model:
    """Loads a model by reference, in evaluation mode, or takes a module as it is.

    **Arguments:**

    - `reference`: one of
        - `zoo:NAME`, a model of the zoo (`zoo_models`);
        - `hf:NAME`, `hf:FOLDER` or just an existing folder: transformers, with the class that its config.json names;
        - `timm:NAME`; options are arguments of `timm.create_model`, and `checkpoint=FILE.safetensors`;
        - `open_clip:NAME`; `pretrained` is a tag or a file, other options are arguments of `open_clip.create_model`;
        - an `nn.Module`: used in place, neither moved nor changed; its modality is read off its class and attributes.

      Options stand behind a question mark: `?pretrained=false` builds with random weights, drawn from `seed` (0).
    - `modality`: "vision" or "text" picks a tower of CLIP, SigLIP and other dual encoders (vision by default); for a
      module whose kind is unknown it says what it takes.
    - `device`: where the model goes; a module stays where it is.
    - `dtype`: "float64", "float32", "bfloat16" or "float16"; by default the checkpoint's own.
    - `device_map`, `tp_plan`: passed on to transformers, for models too large for one device.
    - `trust_remote_code`: run Python code that comes with the weights.

    Attention runs as transformers itself chooses, sdpa where supported, else eager, but never a kernel that hides its
    scores. Weights are read from safetensors only. What a reader of results must know stands in `Model.notes`.

    **Raises:** `ModelReferenceError`, `WeightsError`, `MissingExtraError`, `OptionError`, each with the next step.
    """
    if isinstance(reference, nn.Module):
        if dtype is not None or device_map is not None or tp_plan is not None:
            raise OptionError(
                "dtype, device_map or tp_plan with a module", "a module as it should be", "module.to(dtype=...)"
            )
        return _module(reference, modality, device)
    placement = Placement(device, dtype, device_map, tp_plan, trust_remote_code)
    parsed = parse_reference(reference)
    if parsed.scheme == "timm":
        return load_timm(parsed, modality, placement)
    if parsed.scheme == "open_clip":
        return load_open_clip(parsed, modality, placement)
    if parsed.scheme == "zoo":
        if parsed.options:
            raise ModelReferenceError(
                f"options in the reference {parsed.text}", "zoo:NAME without options", f"zoo:{parsed.name}"
            )
        parsed = Reference(parsed.text, "zoo", str(zoo_folder(parsed.name)), {})
    return load_hf(parsed, modality, placement)


def _module(module: nn.Module, modality: Modality | None, device: str) -> Model:
    where = next((str(p.device) for p in module.parameters()), "cpu")
    if device not in ("cpu", where):
        raise OptionError(f"device '{device}' with a module on {where}", f"'{where}'", f"module.to('{device}') first")
    found: Modality = "unknown"
    prepare = Preparation()
    if hasattr(module, "config") and hasattr(module, "main_input_name"):
        found = hf_modality(module)
        source = getattr(module.config, "_name_or_path", "")
        prepare = hf_preparation(source, module) if source else Preparation()
    elif hasattr(module, "pretrained_cfg"):
        found, prepare = "vision", timm_preparation(module)
    elif hasattr(module, "preprocess_cfg"):
        found, prepare = "vision", open_clip_preparation(module)
    elif vision_tokens(module) is not None:
        found = "vision"
    if modality is not None and found not in (modality, "unknown"):
        raise wrong_modality(modality, found, f"a {type(module).__name__}")
    return Model(f"module:{type(module).__name__}", module, modality or found, where, prepare=prepare)
