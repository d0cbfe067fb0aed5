"""Writing the page and the figures of an artifact."""

from __future__ import annotations

from pathlib import Path

from sinkscope.artifact import open_artifact, replacing, write_text
from sinkscope.report._data import read_data
from sinkscope.report._figure import render
from sinkscope.report._figures import figures, heatmaps
from sinkscope.report._page import build_page
from sinkscope.report._style import WIDE
from sinkscope.report._svg import finish_svg


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes the report of the artifact in `folder` as one HTML file that needs no network, and returns its path.

    The file is whole or absent: it is written beside its place and then renamed. Equal artifacts give equal files.

    **Arguments:**

    - `folder`: a finished artifact. Only it is read, never a model.
    - `path`: where to write; None for `report.html` in the folder.

    **Raises:** `ArtifactError` where the folder is no finished artifact or the file cannot be written,
    `MissingExtraError` without matplotlib, `ResourceError` where the disk is full.
    """
    target = folder / "report.html" if path is None else path
    write_text(target, build_page(read_data(open_artifact(folder))))
    return target


def write_figures(folder: Path, out: Path) -> list[Path]:
    """Writes every figure of the report as `NAME.svg` and `NAME.png` (200 dpi) into `out`, and returns their paths.

    These are the drawings of the page, by the same code. `out` is made where it is missing.

    **Raises:** as `write_report`.
    """
    data = read_data(open_artifact(folder))
    paths = []
    for spec in (*heatmaps(data), *figures(data)):
        drawing, files = render(spec, data, WIDE, "svg", "png")
        text = finish_svg(
            files["svg"], name=spec.name, title=spec.title, description=spec.caption(data), marks=drawing.marks
        )
        for suffix, content in (("svg", text.encode()), ("png", files["png"])):
            target = out / f"{spec.name}.{suffix}"
            with replacing(target) as temporary:
                temporary.write_bytes(content)
            paths.append(target)
    return paths
