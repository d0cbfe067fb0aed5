"""Hashes of named tensors, for weights and for inputs that are tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor


def tensors_sha256(tensors: Mapping[str, Shaped[Tensor, "..."]], told: str = "") -> str:
    """Hash over names in order, dtypes, shapes and bytes, then over what is told beside the tensors; a tensor spread
    over devices is gathered first."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        content: Any = whole.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    digest.update(told.encode())
    return digest.hexdigest()
