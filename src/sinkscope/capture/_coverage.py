"""Attention modules found against calls captured: the answer to 'did we see everything?'."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from sinkscope._errors import CaptureError


@dataclass(frozen=True)
class Gap:
    """Something that was not captured, and why."""

    module: str
    reason: str


@dataclass(frozen=True)
class Coverage:
    """How much of the attention in a module was seen.

    - `found`: attention modules in the module tree.
    - `captured`: those with a captured call.
    - `gaps`: the others, each with its reason, and kernels that cannot be read.
    """

    found: int
    captured: int
    gaps: tuple[Gap, ...]

    @property
    def line(self) -> str:
        """One line for people."""
        text = f"captured {self.captured} of {self.found} attention modules"
        return text if not self.gaps else f"{text}; {len(self.gaps)} named gaps"

    def require(self) -> None:
        """Raise unless some attention was captured.

        **Raises:**

        - `CaptureError`: no attention found, or found and none captured; names what stood in the way.
        """
        if self.captured:
            return
        if not self.found and not self.gaps:
            raise CaptureError(
                "no attention found in this model",
                "a transformer whose attention runs through PyTorch's scaled dot product or a softmax",
                "check that the reference names a transformer: sinkscope models",
            )
        reasons = "; ".join(f"{gap.module or 'the model'}: {gap.reason}" for gap in self.gaps[:3])
        raise CaptureError(
            f"attention found in {self.found} modules but none could be captured ({reasons})",
            "attention through torch.nn.functional.scaled_dot_product_attention or an explicit softmax",
            "load the model with attn_implementation='sdpa' or 'eager', in eval mode, and run again",
        )


def build_coverage(
    attention: Mapping[str, nn.Module], entered: set[str], seen: Mapping[str, set[str]], unseen: Mapping[str, str]
) -> Coverage:
    """Compare modules found, modules executed and modules with captured calls."""
    gaps = [Gap(where, f"{operation} runs outside what can be read") for operation, where in sorted(unseen.items())]
    named = {gap.module for gap in gaps}
    for name, module in attention.items():
        if name in seen or name in named:
            continue
        if name in entered:
            reason = f"{type(module).__name__} ran without a scaled dot product or softmax that could be followed"
        else:
            reason = f"{type(module).__name__} was not called in this forward pass"
        gaps.append(Gap(name, reason))
    captured = sum(name in seen for name in attention)
    outside = len([name for name in seen if name not in attention])
    return Coverage(len(attention) + outside, captured + outside, tuple(gaps))
