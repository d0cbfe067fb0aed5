"""sinkscope: find attention sinks in any transformer, say what each one computes, and treat it.

Names load on first use, so that `import sinkscope` stays fast and imports no model code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sinkscope._errors import SinkError as SinkError

if TYPE_CHECKING:
    from sinkscope import (
        artifact as artifact,
        attention as attention,
        explain as explain,
        measure as measure,
        models as models,
        report as report,
        tasks as tasks,
        train as train,
    )
    from sinkscope._compare import (
        Comparison as Comparison,
        compare as compare,
        open_comparison as open_comparison,
    )
    from sinkscope._diagnose import DiagnoseOptions as DiagnoseOptions, diagnose as diagnose
    from sinkscope._diagnosis import Diagnosis as Diagnosis, open_diagnosis as open
    from sinkscope._load import load as load
    from sinkscope.capture import capture as capture
    from sinkscope.treat import Room as _Treat

    treat: _Treat

__version__ = "0.1.0"

_HOMES = {
    "Comparison": ("sinkscope._compare", "Comparison"),
    "DiagnoseOptions": ("sinkscope._diagnose", "DiagnoseOptions"),
    "Diagnosis": ("sinkscope._diagnosis", "Diagnosis"),
    "capture": ("sinkscope.capture", "capture"),
    "compare": ("sinkscope._compare", "compare"),
    "diagnose": ("sinkscope._diagnose", "diagnose"),
    "load": ("sinkscope._load", "load"),
    "open": ("sinkscope._diagnosis", "open_diagnosis"),
    "open_comparison": ("sinkscope._compare", "open_comparison"),
}

__all__ = [
    "Comparison",
    "DiagnoseOptions",
    "Diagnosis",
    "SinkError",
    "capture",
    "compare",
    "diagnose",
    "load",
    "open",
    "open_comparison",
]


_ROOMS = frozenset({"artifact", "attention", "explain", "measure", "models", "report", "tasks", "train", "treat"})


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"sinkscope.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'sinkscope' has no attribute {name!r}")
    home, attribute = _HOMES[name]
    return getattr(import_module(home), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, *_ROOMS})
