"""Models in the transformers layout, from a folder or the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from sinkscope._errors import MissingExtraError, ModelReferenceError, OptionError, ResourceError, WeightsError
from sinkscope.models._hf_pictures import hf_pictures
from sinkscope.models._hf_text import hf_text
from sinkscope.models._hub import hub_answers, unreachable
from sinkscope.models._model import Model, wrong_modality
from sinkscope.models._placement import Placement, seeded
from sinkscope.models._quiet import quiet
from sinkscope.models._reference import Reference
from sinkscope.models._spread import require_spreadable, spread_arguments
from sinkscope.models._types import Modality, Preparation
from sinkscope.models._weights import check_folder, corrupt_error, first_line

_CAPTURABLE = ("sdpa", "eager")


@dataclass(frozen=True)
class _Plan:
    cls: Any
    config: Any
    tower: bool = False
    notes: tuple[str, ...] = ()


def load_hf(reference: Reference, modality: Modality | None, placement: Placement) -> Model:
    """Loads or, with `?pretrained=false`, builds a model with the class its configuration names."""
    options = dict(reference.options)
    pretrained, seed = options.pop("pretrained", True), options.pop("seed", 0)
    if options or not isinstance(pretrained, bool):
        raise ModelReferenceError(
            f"options {sorted(options) or pretrained} in the reference {reference.text}",
            "pretrained=true, pretrained=false or seed=NUMBER",
            f"hf:{reference.name}?pretrained=false for random weights",
        )
    folder = Path(reference.name).expanduser()
    source = str(folder) if folder.is_dir() else reference.name
    if not folder.is_dir() and reference.name.startswith(("/", ".", "~")):
        raise ModelReferenceError(
            f"no folder {reference.name}", "a folder with config.json and model.safetensors", "check the path"
        )
    with quiet() as heard:
        config = _config(source, reference.text, placement.trust_remote_code)
        plan = _plan(config, modality, reference.text, placement.trust_remote_code)
        if placement.spread:
            require_spreadable(placement, plan.config, reference.text, pretrained)
        if pretrained:
            if folder.is_dir():
                check_folder(folder)
            module, notes = _pretrained(plan, source, reference.text, placement)
        else:
            module, notes = _random(plan, placement, seed)
    found = hf_modality(module)
    if modality is not None and modality != found:
        raise wrong_modality(modality, found, f"{reference.text}, a {type(module).__name__}")
    device = placement.device if placement.device_map is None and placement.tp_plan is None else str(module.device)
    prepare = hf_preparation(source, module, placement.trust_remote_code)
    return Model(reference.text, module, found, device, (*plan.notes, *notes, *heard), prepare)


def hf_preparation(source: str, module: nn.Module, trust_remote_code: bool = False) -> Preparation:
    """Pictures and text as the image processor and the tokenizer saved beside the model prepare them."""
    return Preparation(
        pictures=lambda size: hf_pictures(source, trust_remote_code, size),
        text=lambda: hf_text(source, module, trust_remote_code),
    )


def hf_modality(module: Any) -> Modality:
    """What a transformers model takes, by the name of its main input; a dual encoder as a whole is unknown."""
    config = module.config
    if hasattr(config, "vision_config") and hasattr(config, "text_config") and not module.can_generate():
        return "unknown"
    known: dict[str, Modality] = {"pixel_values": "vision", "input_ids": "text"}
    return known.get(str(module.main_input_name), "unknown")


def _config(source: str, reference: str, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    local = Path(source).is_dir()
    if local and not (Path(source) / "config.json").is_file():
        raise ModelReferenceError(
            f"no config.json in {source}",
            "a folder in the transformers layout: config.json and model.safetensors",
            "save the model there with save_pretrained",
        )
    try:
        return AutoConfig.from_pretrained(
            source, trust_remote_code=trust_remote_code, local_files_only=not local and not hub_answers()
        )
    except OSError as error:
        if local:
            raise _bad_config(source, error) from None
        raise unreachable(reference, source) from None
    except Exception as error:
        # Anything may be wrong with a configuration: each class checks its own fields, and remote code is refused here.
        if "trust_remote_code" in str(error):
            raise ModelReferenceError(
                f"{reference} runs Python code that comes with the model",
                "a model of the transformers library itself, or your consent",
                "if you trust that code, load it with trust_remote_code=True",
            ) from None
        raise _bad_config(source, error) from None


def _bad_config(source: str, error: Exception) -> ModelReferenceError:
    return ModelReferenceError(
        f"a configuration in {source} that transformers cannot use ({first_line(error)})",
        "a config.json whose model_type this version of transformers knows",
        "pip install --upgrade transformers, or mend config.json",
    )


def _plan(config: Any, modality: Modality | None, reference: str, trusted: bool) -> _Plan:
    """Which class to build: the one config.json names, or one tower of a dual encoder."""
    import transformers

    names = list(config.architectures or ())
    if not names and type(config) in transformers.MODEL_MAPPING:
        names = [cast(Any, transformers.MODEL_MAPPING)[type(config)].__name__]
    name = names[0] if names else ""
    base = name.removesuffix("Model")
    towers = {tower: getattr(transformers, f"{base}{tower.capitalize()}Model", None) for tower in ("vision", "text")}
    if name == f"{base}Model" and all(towers.values()) and hasattr(config, "vision_config"):
        if modality == "unknown":
            raise OptionError(f"modality 'unknown' for {reference}", "'vision' or 'text'", "modality='text'")
        note = f"{name} has two towers: this is the vision one, modality='text' takes the other"
        tower = modality or "vision"
        return _Plan(towers[tower], getattr(config, f"{tower}_config"), True, () if modality else (note,))
    if name and hasattr(transformers, name):
        return _Plan(getattr(transformers, name), config)
    remote = next((key for key in getattr(config, "auto_map", None) or {} if key.startswith("AutoModel")), None)
    if trusted and remote:
        return _Plan(getattr(transformers, remote), config)
    found = f"architecture {name} is not in transformers" if name else "config.json names no architecture"
    note = f"{found}: the base model of its type is loaded, without a head"
    return _Plan(transformers.AutoModel, config, notes=(note,))


def _kernel(config: Any) -> tuple[str | None, list[str]]:
    """The attention implementation to ask for: transformers' own choice, but none that hides its scores."""
    wanted = config._attn_implementation
    if wanted is None or wanted in _CAPTURABLE:
        return wanted, []
    return "sdpa", [f"attention runs as sdpa or eager instead of {wanted}, which cannot be captured"]


def _with_kernel(kernel: str | None, build: Callable[[str | None], Any]) -> Any:
    try:
        return build(kernel)
    except ValueError as error:
        if kernel is None or "scaled_dot_product_attention" not in str(error):
            raise
        return build("eager")


def _random(plan: _Plan, placement: Placement, seed: int) -> tuple[nn.Module, list[str]]:
    kernel, notes = _kernel(plan.config)
    build = plan.cls.from_config if hasattr(plan.cls, "from_config") else plan.cls._from_config
    with seeded(seed):
        module = _with_kernel(kernel, lambda kernel: build(plan.config, attn_implementation=kernel))
    return module.to(placement.device, placement.torch_dtype).eval(), [*notes, f"weights are random (seed {seed})"]


def _pretrained(plan: _Plan, source: str, reference: str, placement: Placement) -> tuple[nn.Module, list[str]]:
    from safetensors import SafetensorError

    kernel, notes = _kernel(plan.config)
    arguments: dict[str, Any] = {
        "config": plan.config,
        "dtype": placement.torch_dtype or "auto",
        "use_safetensors": True,
        "local_files_only": not Path(source).is_dir() and not hub_answers(),
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # refused below, by name
    }
    if placement.trust_remote_code:
        arguments["trust_remote_code"] = True
    if placement.spread:
        arguments |= spread_arguments(placement)
    try:
        module, info = _with_kernel(
            kernel, lambda kernel: plan.cls.from_pretrained(source, attn_implementation=kernel, **arguments)
        )
    except SafetensorError as error:
        raise corrupt_error(source, error) from None
    except ImportError as error:
        raise _missing_package(reference, error) from None
    except OSError as error:
        if "safetensors" not in str(error):
            raise unreachable(reference, source) from None
        raise WeightsError(
            f"no safetensors weights for {reference}",
            "model.safetensors, because reading a pickle can run any code",
            "take a model with safetensors weights, or convert these and give the folder",
        ) from None
    except torch.OutOfMemoryError:
        raise ResourceError(
            f"memory ran out while loading {reference}", "room for its weights", "--dtype bfloat16, or another device"
        ) from None
    except RuntimeError as error:
        raise WeightsError(
            f"weights of {reference} that do not load ({first_line(error)})",
            "weights and config.json of the same model",
            "fetch both again",
        ) from None
    except ValueError as error:
        raise ModelReferenceError(
            f"{reference} does not load ({first_line(error)})",
            "a model that transformers can build from its config.json",
            "pip install --upgrade transformers, or mend config.json",
        ) from None
    notes += _loading_notes(module, info, reference, plan.tower)
    return module if placement.spread else module.to(placement.device), notes


def _missing_package(reference: str, error: ImportError) -> MissingExtraError:
    return MissingExtraError(
        f"{reference} needs a package that is missing ({first_line(error)})",
        "that package next to transformers",
        f"pip install {error.name}" if error.name else "install it and run again",
    )


def _loading_notes(module: Any, info: Any, reference: str, tower: bool) -> list[str]:
    """Refuses weights that leave part of the body random; notes a random head and weights without a place."""
    missing, unused = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])
    prefix = "" if module.base_model is module else f"{module.base_model_prefix}."
    body = [key for key in missing if key.startswith(prefix) and "pooler" not in key.split(".")]
    if body or mismatched:
        what = "of the wrong shape" if mismatched else "missing"
        raise WeightsError(
            f"weights of {reference} that do not fit its config.json: {len(mismatched or body)} {what}, "
            f"the first {(mismatched or body)[0]}",
            "weights and config.json of the same model",
            "fetch both again, or take random weights on purpose: ?pretrained=false",
        )
    notes = []
    if missing:
        notes.append(f"random, because not in the weights (head or pooler, behind all attention): {', '.join(missing)}")
    if unused and not tower:
        notes.append(f"{len(unused)} weights of the files are not part of {type(module).__name__}, first {unused[0]}")
    return notes
