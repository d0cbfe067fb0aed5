"""Fixtures of the models' tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
from transformers.utils import logging


@pytest.fixture(autouse=True, scope="session")
def quiet_transformers() -> Iterator[None]:
    """Saving tiny models would fill the terminal with progress bars."""
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    yield
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of a tiny model made known to open_clip: 28 pixels, patch 7, context 13."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 24, "head_width": 12, "patch_size": 7},
        "text_cfg": {"context_length": 13, "vocab_size": 49408, "width": 24, "heads": 2, "layers": 2},
    }
    path: Path = tmp_path_factory.mktemp("open_clip") / "sinkscope-tiny.json"
    path.write_text(json.dumps(config))
    open_clip.add_model_config(path)
    return path.stem
