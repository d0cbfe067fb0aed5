"""Models too large for one device: on several devices of one process, or cut over several processes."""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

from sinkscope._errors import MissingExtraError, OptionError
from sinkscope.models._placement import Placement

_HEADS = ("num_attention_heads", "num_key_value_heads")


def require_spreadable(placement: Placement, config: Any, reference: str, pretrained: bool) -> None:
    """Refuses what transformers cannot spread, or would leave whole without a word.

    **Raises:** `OptionError`, and `MissingExtraError` without accelerate, which transformers needs for it.
    """
    option = "device_map" if placement.device_map is not None else "tp_plan"
    if placement.device_map is not None and placement.tp_plan is not None:
        raise OptionError("device_map and tp_plan together", "one of them", "leave one out")
    if not pretrained:
        raise OptionError(
            f"{option} for {reference}, whose weights are random", "weights to load", f"leave {option} out"
        )
    if find_spec("accelerate") is None:
        raise MissingExtraError(
            f"{option} needs accelerate, which is not installed",
            "accelerate beside transformers",
            "pip install accelerate",
        )
    if placement.tp_plan is not None:
        _require_parallel(placement, config, reference)


def spread_arguments(placement: Placement) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    if placement.tp_plan is None:
        return {"device_map": placement.device_map}
    from transformers.distributed.configuration_utils import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_plan=placement.tp_plan)}


def _require_parallel(placement: Placement, config: Any, reference: str) -> None:
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        raise OptionError(
            "tp_plan in a single process",
            "several processes that share every layer",
            "torchrun --nproc-per-node=2 -m sinkscope diagnose ... --tp-plan auto, or --device-map auto in one process",
        )
    text = config.get_text_config()
    if not (getattr(config, "base_model_tp_plan", None) or getattr(text, "base_model_tp_plan", None)):
        raise OptionError(
            f"tp_plan for {reference}, for which transformers has no plan ({type(config).__name__})",
            "a model with base_model_tp_plan",
            "leave tp_plan out: the processes then share the inputs, each with the whole model; or use device_map",
        )
    if not isinstance(placement.tp_plan, dict) and placement.tp_plan != "auto":
        raise OptionError(f"tp_plan {placement.tp_plan!r}", "'auto', or a dict from Python", "--tp-plan auto")
    counts = {name: count for name in _HEADS if isinstance(count := getattr(text, name, None), int)}
    if any(count % processes for count in counts.values()):
        fit = [n for n in range(2, min(counts.values()) + 1) if not any(count % n for count in counts.values())]
        advice = f"torchrun --nproc-per-node={fit[0]}" if fit else "leave tp_plan out, or use device_map"
        shown = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise OptionError(
            f"tp_plan for {reference} ({shown}) with {processes} processes",
            "a number of processes that divides the heads",
            advice,
        )
