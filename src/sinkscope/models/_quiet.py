"""Libraries kept off the terminal while a model loads, without losing what they warn of."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Silences logs and progress bars of libraries; yields a list that holds their `UserWarning`s at the end.

    Other categories, such as deprecations, concern the libraries' callers and are dropped. Downloads from the hub
    keep their progress bar on a terminal.
    """
    bars: Any = import_module("transformers.utils.logging")
    heard: list[str] = []
    before = logging.root.manager.disable
    shown = bars.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    bars.disable_progress_bar()
    if sys.stderr.isatty():
        import_module("huggingface_hub.utils").enable_progress_bars()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield heard
        heard += [" ".join(str(w.message).split()) for w in caught if w.category is UserWarning]
    finally:
        logging.disable(before)
        if shown:
            bars.enable_progress_bar()
