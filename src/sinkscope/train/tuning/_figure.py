"""How the loss went with the steps."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from sinkscope._errors import MissingExtraError
from sinkscope.train._figures import save_figure
from sinkscope.train.tuning._tuned import Tuned

_WIDE_RANGE = 3.0
"""Largest over smallest value from which an axis is logarithmic."""

_LOSSES = {
    "distill": "relative squared error of the final tokens",
    "lm": "cross-entropy of the next token, nats",
    "task": "cross-entropy of the classes, nats",
}


def write_figure(tuned: Tuned, out: Path) -> list[Path]:
    """Draws losses and the norm of the gradient, as `loss.svg` and `.png` in `out`, and returns the paths.

    **Raises:** `MissingExtraError` without matplotlib; `ArtifactError` and `ResourceError` when a file cannot be
    written.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is not installed", "it, to draw the figures", 'pip install "sinkscope[report]"'
        ) from error
    from sinkscope.report._figure import log_ticks, new_figure
    from sinkscope.report._style import BLUE, INK, MUTED, RC, VERMILLION, WIDE

    ended = f"diverged, step {tuned.kept_step} kept" if tuned.diverged else f"{tuned.steps} steps"
    title = f"{tuned.model.reference}: {tuned.options.objective}, {ended}"
    table = tuned.table
    held = table.dropna(subset=["held_out_loss"])
    with matplotlib.rc_context(RC):
        figure = new_figure(WIDE, 300)
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
        left, right = figure.subplots(1, 2, width_ratios=(2, 1))
        left.plot(table["step"], table["loss"], color=MUTED, linewidth=0.8, alpha=0.7, label="batch")
        left.plot(
            held["step"], held["held_out_loss"], color=BLUE, linewidth=1.6, marker="o", markersize=3.5, label="held out"
        )
        if tuned.options.objective != "distill":
            left.axhline(tuned.reference_loss, color=VERMILLION, linewidth=1, linestyle=(0, (4, 3)), label="untouched")
        right.plot(table["step"], table["grad_norm"], color=MUTED, linewidth=0.8)
        losses = pd.concat([table["loss"], table["held_out_loss"]])
        for panel, values, text in (
            (left, losses, _LOSSES[tuned.options.objective]),
            (right, table["grad_norm"], "norm of the gradient"),
        ):
            panel.set_title(text, fontsize=10, fontweight="normal")
            panel.set_xlabel("step", color=INK)
            panel.grid(axis="y")
            if values.min() > 0 and values.max() > _WIDE_RANGE * values.min():
                panel.set_yscale("log")
                low, high = panel.get_ylim()
                log_ticks(panel.yaxis, low, high, most=5)
        left.legend(loc="best")
        return save_figure(figure, out, "loss", title, f"{title}: loss and norm of the gradient against updates.")
