"""Attention over channels looks like self-attention of another length, and must not be measured as such."""

from __future__ import annotations

import pytest
import timm
import torch

import sinkscope


def test_channel_attention_is_no_attention_over_tokens() -> None:
    """XCiT attends over the 32 channels of a head; its blocks see 16 tokens."""
    model = timm.create_model("xcit_nano_12_p16_224", pretrained=False, img_size=64)
    with pytest.raises(
        sinkscope.SinkError, match=r"32 positions that are no tokens \(the block's input is \(2, 16\)\)"
    ):
        sinkscope.diagnose(model, torch.randn(2, 3, 64, 64))
