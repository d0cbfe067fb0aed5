"""Models of the timm library."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sinkscope._errors import InputError, MissingExtraError, ModelReferenceError, OptionError, WeightsError
from sinkscope.models._hub import hub_weights
from sinkscope.models._model import Model, wrong_modality
from sinkscope.models._pictures import picture_of
from sinkscope.models._placement import Placement, seeded
from sinkscope.models._quiet import quiet
from sinkscope.models._reference import Reference
from sinkscope.models._types import Modality, PictureTransform, Preparation
from sinkscope.models._vision_tokens import vision_tokens
from sinkscope.models._weights import check_safetensors, first_line, unfit_error


def load_timm(reference: Reference, modality: Modality | None, placement: Placement) -> Model:
    """Builds a timm model; options other than pretrained, checkpoint and seed go to `timm.create_model`."""
    try:
        import timm
    except ImportError:
        raise MissingExtraError(
            f"{reference.text} needs timm, which is not installed", "the timm extra", 'pip install "sinkscope[timm]"'
        ) from None
    if modality is not None and modality != "vision":
        raise wrong_modality(modality, "vision", reference.text)
    if placement.spread:
        raise OptionError(f"device_map or tp_plan for {reference.text}", "a model of transformers", "give a device")
    options = dict(reference.options)
    pretrained, seed = options.pop("pretrained", True), options.pop("seed", 0)
    checkpoint = options.pop("checkpoint", None)
    known = timm.is_model(reference.name.split(".")[0])
    if not known:
        close = timm.list_models(f"*{reference.name.split('.')[0][:12]}*")[:5]
        raise ModelReferenceError(
            f"timm has no model {reference.name}",
            f"a name of timm{', for instance ' + ', '.join(close) if close else ''}",
            "python -c \"import timm; print(timm.list_models('*vit*'))\"",
        )
    notes = []
    with quiet() as heard, seeded(seed):
        overlay = None
        if checkpoint is not None:
            path = Path(str(checkpoint)).expanduser()
            check_safetensors(path)
            overlay = {"file": str(path), "custom_load": False}
        elif pretrained:
            overlay = {"file": str(_hub_file(timm, reference)), "custom_load": False}
        else:
            notes.append(f"weights are random (seed {seed})")
        module = _create(timm, reference, options, overlay)
    module = module.to(placement.device, placement.torch_dtype).eval()
    return Model(reference.text, module, "vision", placement.device, (*notes, *heard), timm_preparation(module))


def timm_preparation(module: nn.Module) -> Preparation:
    """Preprocessing by timm's own data configuration of the model."""
    return Preparation(pictures=lambda size: _pictures(module, size))


def _hub_file(timm: Any, reference: Reference) -> Path:
    config = timm.get_pretrained_cfg(reference.name, allow_unregistered=False)
    repository = config.hf_hub_id if config is not None else None
    if not repository:
        raise WeightsError(
            f"timm has no safetensors weights for {reference.name}",
            "a model with weights on the hub",
            f"timm:{reference.name}?pretrained=false for random weights, or ?checkpoint=/path/to/file.safetensors",
        )
    filename = config.hf_hub_filename or "model.safetensors"
    if filename == "open_clip_pytorch_model.bin":
        filename = "open_clip_model.safetensors"
    return hub_weights(repository, str(Path(filename).with_suffix(".safetensors")), reference.text)


def _create(timm: Any, reference: Reference, options: dict[str, Any], overlay: dict[str, Any] | None) -> Any:
    try:
        return timm.create_model(
            reference.name, pretrained=overlay is not None, pretrained_cfg_overlay=overlay, **options
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ModelReferenceError(
            f"options {options or ''} in the reference {reference.text} ({first_line(error)})",
            f"arguments that timm.create_model takes for {reference.name}",
            f"timm:{reference.name}?pretrained=false&img_size=224 is an example",
        ) from None
    except (RuntimeError, KeyError) as error:
        raise unfit_error(reference.name, error, "checkpoint") from None


def _pictures(module: nn.Module, size: int | None) -> PictureTransform:
    data: Any = import_module("timm.data")
    config = data.resolve_data_config({}, model=module)
    tokens = vision_tokens(module)
    if size is not None:
        config = {**config, "input_size": (config["input_size"][0], size, size)}
    elif tokens is not None and tokens.fixed is not None:  # built for another size than it was trained with
        config = {**config, "input_size": (config["input_size"][0], *tokens.fixed)}
    if config["input_size"][0] != 3:
        raise InputError(
            f"a timm model of {config['input_size'][0]} channels and pictures of 3",
            "a model of 3 channels",
            "pass tensors that are preprocessed already",
        )
    compose = data.create_transform(**config, is_training=False)

    def transform(picture: Image.Image) -> tuple[Float[Tensor, "channels height width"], Image.Image | None]:
        values = compose(picture)
        return values, picture_of(values, config["mean"], config["std"])

    return transform
