"""Artifacts of invented models, and a real Chromium."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright

from sinkscope.report import write_report
from tests.report._fake import Fake, write_fake

Artifacts = Callable[..., Path]


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """Calls `write_fake` with the given properties; the same properties give the same folder. Not to be written to."""
    folders: dict[Fake, Path] = {}

    def make(**properties: Any) -> Path:
        fake = Fake(**properties)
        if fake not in folders:
            folders[fake] = write_fake(tmp_path_factory.mktemp("artifact") / "run", fake)
        return folders[fake]

    return make


@pytest.fixture(scope="session")
def report(artifact: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> Artifacts:
    """The page of such an artifact, not beside it; the same properties give the same file."""
    pages: dict[Path, Path] = {}

    def make(**properties: Any) -> Path:
        folder = artifact(**properties)
        if folder not in pages:
            pages[folder] = write_report(folder, tmp_path_factory.mktemp("report") / "page.html")
        return pages[folder]

    return make


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser of this machine; SINKSCOPE_CHROMIUM names another one."""
    path = os.environ.get("SINKSCOPE_CHROMIUM", "/usr/bin/chromium")
    if not Path(path).is_file():
        pytest.skip(f"there is no browser at {path}; set SINKSCOPE_CHROMIUM")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
        )
        yield browser
        browser.close()
