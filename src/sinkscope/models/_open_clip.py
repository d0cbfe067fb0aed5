"""The two towers of open_clip models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sinkscope._errors import MissingExtraError, ModelReferenceError, OptionError, WeightsError
from sinkscope.models._hub import hub_weights
from sinkscope.models._model import Model
from sinkscope.models._open_clip_text import OpenClipText
from sinkscope.models._pictures import picture_of
from sinkscope.models._placement import Placement, seeded
from sinkscope.models._quiet import quiet
from sinkscope.models._reference import Reference
from sinkscope.models._types import Modality, PictureTransform, Preparation
from sinkscope.models._weights import check_safetensors, first_line, unfit_error


def load_open_clip(reference: Reference, modality: Modality | None, placement: Placement) -> Model:
    """Builds an open_clip model and takes the tower that `modality` names, the vision one by default.

    `pretrained` is a tag of open_clip, the path of a safetensors file, or false; without it the first tag is taken.
    Options other than pretrained and seed go to `open_clip.create_model`.
    """
    try:
        import open_clip
    except ImportError:
        raise MissingExtraError(
            f"{reference.text} needs open_clip, which is not installed",
            "the open-clip extra",
            'pip install "sinkscope[open-clip]"',
        ) from None
    if modality == "unknown" or placement.spread:
        what = "device_map or tp_plan" if placement.spread else "modality 'unknown'"
        raise OptionError(f"{what} for {reference.text}", "modality 'vision' or 'text', on one device", "give these")
    name = reference.name
    if name not in open_clip.list_models():
        raise ModelReferenceError(
            f"open_clip has no model {name}",
            "a name such as ViT-B-32",
            'python -c "import open_clip; print(open_clip.list_models())"',
        )
    options = dict(reference.options)
    pretrained, seed = options.pop("pretrained", True), options.pop("seed", 0)
    notes = [] if modality else ["open_clip models have two towers: this is the vision one, modality='text' the other"]
    if pretrained is True:
        tags = open_clip.list_pretrained_tags_by_model(name)
        if not tags:
            raise ModelReferenceError(
                f"open_clip has no weights for {name}", "a model with weights", f"open_clip:{name}?pretrained=false"
            )
        pretrained = tags[0]
        notes.append(f"weights of the tag {pretrained}, the first of {len(tags)}")
    with quiet() as heard, seeded(seed):
        if pretrained is False:
            notes.append(f"weights are random (seed {seed})")
        else:
            options |= _weights(open_clip, reference, str(pretrained), notes)
        whole = _create(open_clip, reference, options)
    if modality == "text":
        tower, prepare = whole.text, Preparation(text=lambda: OpenClipText.of(name, whole.text))
    else:
        tower, prepare = whole.visual, open_clip_preparation(whole.visual)
    tower = tower.to(placement.device, placement.torch_dtype).eval()
    return Model(reference.text, tower, modality or "vision", placement.device, (*notes, *heard), prepare)


def open_clip_preparation(visual: nn.Module) -> Preparation:
    """Preprocessing by the configuration that open_clip attaches to a vision tower."""
    return Preparation(pictures=lambda size: _pictures(visual, size))


def _weights(open_clip: Any, reference: Reference, pretrained: str, notes: list[str]) -> dict[str, Any]:
    """Arguments of `create_model` for a file or a tag, with the preprocessing and activation of the tag's training."""
    config = open_clip.get_pretrained_cfg(reference.name, pretrained)
    if not config:
        path = Path(pretrained).expanduser()
        if not path.suffix:
            raise ModelReferenceError(
                f"open_clip knows no weights '{pretrained}' for {reference.name}",
                f"one of {', '.join(open_clip.list_pretrained_tags_by_model(reference.name))}, or a safetensors file",
                f"open_clip:{reference.name}?pretrained=TAG",
            )
        check_safetensors(path)
        return {"pretrained": str(path)}
    repository, _, filename = config.get("hf_hub", "").rpartition("/")
    if not repository:
        raise WeightsError(
            f"the tag {pretrained} of {reference.name} has pickled weights only",
            "safetensors, because reading a pickle can run any code",
            f"another tag of {', '.join(open_clip.list_pretrained_tags_by_model(reference.name))}",
        )
    stem = Path(filename).stem if filename else "open_clip_model"
    path = hub_weights(repository, f"{stem}.safetensors", reference.text)
    check_safetensors(path)
    arguments: dict[str, Any] = {"pretrained": str(path)}
    arguments["force_preprocess_cfg"] = {
        key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config
    }
    if config.get("quick_gelu") and not open_clip.get_model_config(reference.name).get("quick_gelu"):
        arguments["force_quick_gelu"] = True
        notes.append(f"activation is QuickGELU, with which {pretrained} was trained")
    return arguments


def _create(open_clip: Any, reference: Reference, options: dict[str, Any]) -> Any:
    try:
        return open_clip.create_model(
            reference.name,
            **{"pretrained": None, **options},
            load_weights="pretrained" in options,
            pretrained_text=False,
            force_custom_text=True,
        )
    except (TypeError, AssertionError, ValueError) as error:
        raise ModelReferenceError(
            f"options {options or ''} in the reference {reference.text} ({first_line(error)})",
            "arguments that open_clip.create_model takes",
            f"open_clip:{reference.name}?pretrained=false&force_image_size=224 is an example",
        ) from None
    except (RuntimeError, KeyError) as error:
        raise unfit_error(reference.name, error, "weights") from None
    except OSError as error:
        raise ModelReferenceError(
            f"{reference.text} needs files of the hub that cannot be had ({first_line(error)})",
            "a network connection",
            "an open_clip model without a text encoder of the hub, for instance ViT-B-32",
        ) from None


def _pictures(visual: Any, size: int | None) -> PictureTransform:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    config = PreprocessCfg(**visual.preprocess_cfg)
    if size is not None:
        config.size = size
    compose = image_transform_v2(config, is_train=False)

    def transform(picture: Image.Image) -> tuple[Float[Tensor, "channels height width"], Image.Image | None]:
        values = compose(picture)
        return values, picture_of(values, config.mean, config.std)

    return transform
