"""The time course of toy runs: one figure per task and form, one line per run."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sinkscope._errors import MissingExtraError
from sinkscope.artifact import replacing
from sinkscope.train._signatures import strongest
from sinkscope.train._store import RunRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS = (
    ("loss", "loss on held-out inputs", "log"),
    ("sink_mass", "mass of the sink", "share"),
    ("value_ratio", "|v| of the sink / others", "log"),
    ("update_ratio", "|u| of the sink / others", "log"),
    ("sigma_1", "σ₁ of W_Q W_Kᵀ", "log"),
    ("stable_rank", "stable rank of the write", "any"),
    ("silent", "silent share", "share"),
    ("constant", "constant share", "any"),
    ("content", "content share", "any"),
)
_MOST_NAMED = 7


def write_figures(records: Sequence[RunRecord], out: Path) -> list[Path]:
    """Draw how loss and signatures went with the steps, as `TASK-FORM.svg` and `.png` in `out`, and return the paths.

    A line is a run; it follows the head that has the largest sink mass at the end. Runs that differ in more than the
    seed have different colours. Runs that diverged are left out, and counted in the title.

    **Raises:** `MissingExtraError` without matplotlib, `ArtifactError` and `ResourceError` when a file cannot be
    written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is not installed", "it, to draw the figures", 'pip install "sinkscope[report]"'
        ) from error
    from sinkscope.report._style import RC

    paths: list[Path] = []
    for (task, form), members in _grouped(records).items():
        name, title = f"{task}-{form}", _title(members)
        with matplotlib.rc_context(RC):
            figure = _draw(members, title)
            caption = f"{title}: {', '.join(label for _, label, _ in _PANELS)}, against steps of training."
            paths += save_figure(figure, out, name, title, caption)
    return paths


def save_figure(figure: Figure, out: Path, name: str, title: str, caption: str) -> list[Path]:
    """Write a figure as `NAME.svg` and `NAME.png` in `out`, the same bytes for the same figure; return the paths.

    **Raises:** `ArtifactError` and `ResourceError` when a file cannot be written.
    """
    from sinkscope.report._svg import finish_svg

    paths = []
    for suffix in ("svg", "png"):
        buffer = io.BytesIO()
        metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
        figure.savefig(buffer, format=suffix, metadata=metadata, dpi=72 if suffix == "svg" else 200)
        content = buffer.getvalue()
        if suffix == "svg":
            text = finish_svg(content, name=name, title=title, description=caption, marks={})
            content = text.encode()
        paths.append(out / f"{name}.{suffix}")
        with replacing(paths[-1]) as temporary:
            temporary.write_bytes(content)
    return paths


def _grouped(records: Iterable[RunRecord]) -> dict[tuple[str, str], list[RunRecord]]:
    groups: dict[tuple[str, str], list[RunRecord]] = {}
    for record in records:
        groups.setdefault((record.options.task.name, record.options.network.form), []).append(record)
    return groups


def _title(records: Sequence[RunRecord]) -> str:
    diverged = sum(record.result.diverged for record in records)
    solved = sum(record.result.solved for record in records)
    options = records[0].options
    note = f", {diverged} diverged" if diverged else ""
    runs = "1 run" if len(records) == 1 else f"{len(records)} runs"
    return f"{options.task.title}, {options.network.form}: {runs}, {solved} solved{note}"


def _draw(records: Sequence[RunRecord], title: str) -> Figure:
    from sinkscope.report._figure import new_figure
    from sinkscope.report._style import INK, WIDE

    columns = 3
    figure = new_figure(WIDE, 40 + 165 * (len(_PANELS) // columns))
    axes = figure.subplots(len(_PANELS) // columns, columns, sharex=True).ravel()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    drawn = [record for record in records if not record.result.diverged]
    labels = _labels(drawn)
    colours = _colours(list(dict.fromkeys(labels)))
    named: set[str] = set()
    for record, label in zip(drawn, labels, strict=True):
        curve = _of_strongest(record)
        for panel, (name, _, _) in zip(axes, _PANELS, strict=True):
            shown = label if panel is axes[0] and label not in named else None
            panel.plot(curve["step"] + 1, curve[name], color=colours[label], linewidth=1.2, alpha=0.8, label=shown)
        named.add(label)
    for panel, (name, text, scale) in zip(axes, _PANELS, strict=True):
        _finish(panel, text, scale)
        if name == "loss" and drawn and (best := drawn[0].options.task.optimal_loss):
            panel.axhline(best, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    for panel in axes[-columns:]:
        panel.set_xlabel("step + 1", color=INK)
    if len(colours) > 1:
        figure.legend(loc="outside lower left", ncols=3, fontsize=9.5)
    return figure


def _finish(panel: Axes, text: str, scale: str) -> None:
    from sinkscope.report._figure import log_ticks

    panel.set_title(text, fontsize=10, fontweight="normal")
    panel.set_xscale("log")
    panel.grid(axis="y")
    positive = any(bool((line.get_ydata() > 0).any()) for line in panel.get_lines())  # type: ignore[operator, union-attr]
    if scale == "log" and positive:
        panel.set_yscale("log")
        log_ticks(panel.yaxis, *panel.get_ylim(), most=5)
    if scale == "share":
        panel.set_ylim(-0.02, 1.02)


def _of_strongest(record: RunRecord) -> pd.DataFrame:
    chosen = strongest(record.heads)
    curves = record.curves.set_index(["layer", "head"])
    return curves.loc[[(chosen["layer"], chosen["head"])]]


def _labels(records: Sequence[RunRecord]) -> list[str]:
    """What tells the runs apart beside their seeds, in words; equal for runs that differ in the seed only."""
    contents = [_settings(record) for record in records]
    varying = [
        name
        for name in dict.fromkeys(name for content in contents for name in content)
        if len({repr(content.get(name)) for content in contents}) > 1
    ]
    return [", ".join(f"{name} {content[name]}" for name in varying if name in content) for content in contents]


def _settings(record: RunRecord) -> Mapping[str, Any]:
    content = record.options.to_dict()
    network = content["network"]
    return {**network.pop("form_options"), **network, **content["recipe"], **content["task"]["parameters"]}


def _colours(labels: Sequence[str]) -> dict[str, Any]:
    import matplotlib

    from sinkscope.report._style import BLUE, GREEN, INK, ORANGE, PURPLE, SKY, VERMILLION

    if len(labels) <= _MOST_NAMED:
        return dict(zip(labels, (BLUE, VERMILLION, GREEN, ORANGE, PURPLE, SKY, INK), strict=False))
    scale = matplotlib.colormaps["viridis"]
    return {label: scale(place / (len(labels) - 1)) for place, label in enumerate(labels)}
