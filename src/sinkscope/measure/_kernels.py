"""The compiled kernels, when the package was built with them and the processor is the CPU."""

from __future__ import annotations

import ctypes
import importlib.machinery
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_int64 = ctypes.c_int64


@cache
def _library() -> ctypes.CDLL | None:
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.exists():
            try:
                return ctypes.CDLL(str(path))
            except OSError:
                return None  # built against another thread runtime: the torch form takes over
    return None


def available(*tensors: Tensor | None) -> bool:
    """Whether the compiled kernels can take these tensors (float32 on the CPU)."""
    given = [tensor for tensor in tensors if tensor is not None]
    fits = all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in given)
    return fits and _library() is not None


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if tensor is None else tensor.data_ptr())


def _ints(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (_int64 * len(values))(*values)


def _dense_last(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _check(status: int) -> None:
    if status:
        raise MemoryError("the attention kernels could not get memory")


def columns(
    q: Float[Tensor, "batch heads queries dim"],
    k: Float[Tensor, "batch kv_heads keys dim"],
    lse: Float[Tensor, "batch heads queries"],
    bias: Float[Tensor, "#batch #heads #queries keys"] | None,
    scale: float,
    causal: bool,
) -> tuple[Float[Tensor, "batch heads keys"], Float[Tensor, "batch heads queries"]]:
    """Column sums and row entropies (nats) of exp(scale q.k + bias - lse); rows with lse = inf count for nothing."""
    library = _library()
    assert library is not None
    batch, heads, queries, dim = q.shape
    kv_heads, keys = k.shape[1:3]
    q, k, lse = _dense_last(q), _dense_last(k), lse.contiguous()
    sums, entropy = q.new_empty(batch, heads, keys), q.new_empty(batch, heads, queries)
    strides = _ints(0, 0, 0)
    if bias is not None:
        bias = _dense_last(bias)
        strides = _ints(*(0 if bias.shape[axis] == 1 else bias.stride(axis) for axis in range(3)))
    # enough tasks for every thread to share the work evenly, and never so many that the partial sums weigh
    chunks = max(1, min(8 * torch.get_num_threads() // (batch * heads), queries // 256))
    status = library.sinkscope_columns(
        _pointer(q),
        _pointer(k),
        _pointer(lse),
        _pointer(bias),
        _pointer(sums),
        _pointer(entropy),
        _ints(batch, heads, kv_heads, queries, keys, dim),
        _ints(*q.stride()[:3]),
        _ints(*k.stride()[:3]),
        strides,
        ctypes.c_float(scale),
        int(causal),
        _int64(0),
        chunks,
    )
    _check(status)
    return sums, entropy


def dots(
    q: Float[Tensor, "batch heads tokens dim"],
    k: Float[Tensor, "batch kv_heads tokens dim"],
    at: Int[Tensor, "batch heads"],
) -> tuple[Float[Tensor, "batch heads tokens"], Float[Tensor, "batch heads tokens"]]:
    """Products of every query with the key at one place per head, and with the key at the query's own place."""
    library = _library()
    assert library is not None
    batch, heads, tokens, dim = q.shape
    q, k, at = _dense_last(q), _dense_last(k), at.contiguous()
    chosen, own = q.new_empty(batch, heads, tokens), q.new_empty(batch, heads, tokens)
    dims = _ints(batch, heads, k.shape[1], tokens, dim)
    strides = _ints(*q.stride()[:3]), _ints(*k.stride()[:3])
    library.sinkscope_dots(_pointer(q), _pointer(k), _pointer(at), _pointer(chosen), _pointer(own), dims, *strides)
    return chosen, own


def norms(
    x: Float[Tensor, "batch kv_heads tokens dim"], factor: Float[Tensor, "heads dim dim"]
) -> Float[Tensor, "batch heads tokens"]:
    """L2 norms |R_h x_j| for upper triangular R_h."""
    library = _library()
    assert library is not None
    batch, kv_heads, tokens, dim = x.shape
    heads = factor.shape[0]
    x, factor = _dense_last(x), factor.contiguous()
    out = x.new_empty(batch, heads, tokens)
    dims = _ints(batch, heads, kv_heads, tokens, dim)
    _check(library.sinkscope_norms(_pointer(x), _pointer(factor), _pointer(out), dims, _ints(*x.stride()[:3])))
    return out


def gram(
    x: Float[Tensor, "batch heads tokens dim"], keep: Bool[Tensor, "batch tokens"]
) -> Float[Tensor, "batch heads dim dim"]:
    """Sum over the kept tokens of x x^T."""
    library = _library()
    assert library is not None
    batch, heads, tokens, dim = x.shape
    x, keep = _dense_last(x), keep.contiguous()
    out = x.new_empty(batch, heads, dim, dim)
    dims = _ints(batch, heads, tokens, dim)
    _check(library.sinkscope_gram(_pointer(x), _pointer(keep), _pointer(out), dims, _ints(*x.stride()[:3])))
    return out


def top_eigenvalue(matrices: Float[Tensor, "*many dim dim"]) -> Float[Tensor, "*many"]:
    """Largest eigenvalue of positive semidefinite matrices, to about 1e-7 of itself."""
    library = _library()
    assert library is not None
    matrices = matrices.contiguous()
    out = matrices.new_empty(matrices.shape[:-2])
    _check(
        library.sinkscope_top_eigenvalue(
            _pointer(matrices), _pointer(out), _int64(out.numel()), _int64(matrices.shape[-1])
        )
    )
    return out
