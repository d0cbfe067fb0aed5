"""What all rooms' tests share.

A machine may lack a browser or the weight wheels; tests marked `browser` or `zoo` then skip with the reason. Where
SINKSCOPE_REQUIRE_BROWSER=1 or SINKSCOPE_REQUIRE_ZOO=1 is set, as in CI, such a skip is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

import tests._typecheck  # noqa: F401 - switches the check on before the package is imported

# The same tests on every machine, whether or not it reaches the hub. Read when huggingface_hub is first imported.
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        for marker in ("browser", "zoo"):
            variable = f"SINKSCOPE_REQUIRE_{marker.upper()}"
            if item.get_closest_marker(marker) and os.environ.get(variable) == "1":
                report.outcome = "failed"
                report.longrepr = f"skipped although {variable}=1: {report.longrepr}"
    return report
