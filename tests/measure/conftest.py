"""Both forms of the second pass: the compiled kernels and torch."""

from __future__ import annotations

import os

import pytest

from sinkscope.measure import _kernels


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled kernels and without. Where they are not built the first form is skipped, unless
    SINKSCOPE_REQUIRE_NATIVE=1 says that they must be."""
    form: str = request.param
    if form == "torch":
        monkeypatch.setattr(_kernels, "_library", lambda: None)
    elif _kernels._library() is None:
        if os.environ.get("SINKSCOPE_REQUIRE_NATIVE") == "1":
            pytest.fail("the compiled kernels are not built although SINKSCOPE_REQUIRE_NATIVE=1")
        pytest.skip("the compiled kernels are not built")
    return form
