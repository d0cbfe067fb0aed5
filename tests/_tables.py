"""Comparing event and head tables."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd


def same(some: pd.DataFrame, others: pd.DataFrame, tolerance: float = 0.0) -> None:
    """Two tables are equal, lists included; numbers to `tolerance`."""
    lists = [name for name in ("top_sinks", "top_masses") if name in some]
    options: dict[str, Any] = {"check_exact": True} if not tolerance else {"rtol": tolerance, "atol": tolerance}
    pd.testing.assert_frame_equal(some.drop(columns=lists), others.drop(columns=lists), **options)
    for name in lists:
        for a, b in zip(some[name], others[name], strict=True):
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)
