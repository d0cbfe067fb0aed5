"""Colours, sizes and matplotlib settings shared by all figures.

The categorical colours are those of Okabe and Ito (Color Universal Design, 2008), safe for colour-blind readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

INK = "#22262b"
MUTED = "#5f6873"
GRID = "#dfe3e8"
EMPTY = "#c6ccd3"

BLUE, SKY, GREEN, YELLOW, ORANGE, VERMILLION, PURPLE = (
    "#0072b2", "#56b4e9", "#009e73", "#f0e442", "#e69f00", "#d55e00", "#cc79a7"
)  # fmt: skip

ROLE_COLOURS: dict[str, str] = {
    "cls": BLUE,
    "bos": BLUE,
    "register": PURPLE,
    "special": PURPLE,
    "patch": ORANGE,
    "word": ORANGE,
    "distill": GREEN,
    "sep": GREEN,
    "punctuation": VERMILLION,
    "mask": YELLOW,
    "pad": SKY,
    "unknown": EMPTY,
}
"""Stacking order and colour of token roles. Roles that share a colour belong to different kinds of model."""

CLASS_COLOURS = {"nop": BLUE, "broadcast": VERMILLION, "other": "#8a929c"}
SHARE_COLOURS = {"content": VERMILLION, "constant": BLUE, "silent": "#d4d9df"}

VERDICT_COLOURS = {
    "nop": BLUE,
    "broadcast": VERMILLION,
    "bias": GREEN,
    "inert": "#8a929c",
    "undecided": "#a8902f",
    "no sink": EMPTY,
}
"""In the order of every legend and axis; letters and markers tell the same without colour."""
VERDICT_LETTERS = {"nop": "N", "broadcast": "B", "bias": "C", "inert": "I", "undecided": "?", "no sink": ""}
VERDICT_MARKERS = {"nop": "o", "broadcast": "s", "bias": "D", "inert": "v", "undecided": "X", "no sink": "P"}

RC: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.dpi": 72,
    "figure.facecolor": "white",
    "font.family": ["DejaVu Sans"],
    "font.size": 11,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "sinkscope",
    "text.color": INK,
    "xtick.color": MUTED,
    "xtick.labelcolor": INK,
    "xtick.labelsize": 10.5,
    "ytick.color": MUTED,
    "ytick.labelcolor": INK,
    "ytick.labelsize": 10.5,
}


@dataclass(frozen=True)
class Layout:
    """For which page a figure is drawn: `name` prefixes its element ids, `width` is in CSS pixels (= SVG units)."""

    name: str
    width: int

    @property
    def narrow(self) -> bool:
        return self.width < 500


WIDE = Layout("wide", 800)
NARROW = Layout("narrow", 328)
