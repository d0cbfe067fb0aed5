"""How fast the report of a large run is made and opened, and how large it is.

An invented model of 40 layers x 24 heads measured on 4096 inputs (3.9 million event rows) is written with the project's
own writer; the page is then made in a fresh process and opened in Chromium five times. Prints a table and JSON.

    python benchmarks/report.py [--inputs 4096]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # the invented model lives with the tests

from tests.report._fake import Fake, write_fake

LAYERS, HEADS, OPENINGS = 40, 24, 5
MAKE = """import sys; from pathlib import Path; from sinkscope.report import write_report
write_report(Path(sys.argv[1]))"""
READY = """() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(
    () => resolve(performance.now()))))"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=4096)
    inputs = parser.parse_args().inputs
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_fake(Path(folder) / "run", Fake(layers=LAYERS, heads=HEADS, inputs=inputs, batch=64))
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", MAKE, str(artifact)], check=True)
        result = {
            "layers": LAYERS,
            "heads": HEADS,
            "inputs": inputs,
            "rows": LAYERS * HEADS * inputs,
            "make_seconds": round(time.perf_counter() - started, 2),
            "make_peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024,
            "page_mb": round((artifact / "report.html").stat().st_size / 1e6, 2),
            "open_seconds": round(statistics.median(_open_times(artifact / "report.html")), 2),
        }
    for name, value in result.items():
        print(f"{name:14} {value:>12,}")
    print(json.dumps(result))


def _open_times(page: Path) -> list[float]:
    """Seconds from navigation until the second frame after load, each in a fresh browser."""
    from playwright.sync_api import sync_playwright

    path = os.environ.get("SINKSCOPE_CHROMIUM", "/usr/bin/chromium")
    times = []
    with sync_playwright() as playwright:
        for _ in range(OPENINGS):
            browser = playwright.chromium.launch(
                executable_path=path, args=["--no-sandbox", "--disable-background-networking"]
            )
            tab = browser.new_page(viewport={"width": 1100, "height": 900})
            tab.goto(page.as_uri())
            times.append(tab.evaluate(READY) / 1000)
            browser.close()
    return times


if __name__ == "__main__":
    main()
