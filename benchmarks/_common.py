"""What the benchmarks share: the machine in words, memory, ratios over rounds, and how results are written."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


def machine() -> str:
    """Processor, threads and torch in words."""
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def resident(kind: str) -> float:
    """Resident memory of this process in MB: `VmRSS` now, `VmHWM` at its peak. Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def mark_memory() -> float:
    """MB resident now, from where the high-water mark starts anew. Linux only."""
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def over_rounds(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def in_words(found: dict[str, float], digits: int = 2) -> str:
    """What `over_rounds` gives, as text."""
    return f"{found['median']:.{digits}f} [{found['low']:.2f}, {found['high']:.2f}]"


def merged(path: Path, rows: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[dict[str, Any]]:
    """`rows` behind those that the file has from this machine of other cases, which `keys` tell apart."""
    before = json.loads(path.read_text()) if path.exists() else {"machine": machine(), "rows": []}
    new = [[row[key] for key in keys] for row in rows]
    kept = [row for row in before["rows"] if before["machine"] == machine() and [row[key] for key in keys] not in new]
    return [*kept, *rows]


def write(path: Path, rows: Sequence[Any], **more: Any) -> None:
    """A JSON file of rows, with the machine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), "rows": rows} | more, indent=2) + "\n")
