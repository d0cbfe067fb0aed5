"""Both forms of the second pass: the compiled kernels and torch."""

from __future__ import annotations

import os

import pytest

from sinkscope.measure import _kernels


@pytest.fixture
def native() -> None:
    """The compiled kernels. Not built, they are a reason to skip, and with SINKSCOPE_REQUIRE_NATIVE=1 to fail."""
    if _kernels._library() is None:
        if os.environ.get("SINKSCOPE_REQUIRE_NATIVE") == "1":
            pytest.fail("the compiled kernels are not built although SINKSCOPE_REQUIRE_NATIVE=1")
        pytest.skip("the compiled kernels are not built")


@pytest.fixture(params=["native", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with the compiled kernels and without."""
    form: str = request.param
    if form == "native":
        request.getfixturevalue("native")
    else:
        monkeypatch.setattr(_kernels, "_library", lambda: None)
    return form
