"""What a figure is, and how it becomes SVG and PNG: one drawing for page and export."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sinkscope._errors import MissingExtraError
from sinkscope.report._data import ReportData
from sinkscope.report._style import GRID, INK, MUTED, RC, Layout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Mark:
    """One drawn element that stands for a head, and what it says when pointed at."""

    layer: int
    head: int
    text: str


@dataclass(frozen=True)
class Drawing:
    """A drawn figure; `marks` names the head behind every element of the collections with these ids, in order."""

    figure: Figure
    marks: Mapping[str, Sequence[Mark]] = field(default_factory=dict)

    @property
    def width(self) -> float:
        """In CSS pixels."""
        return 72 * self.figure.get_figwidth()


@dataclass(frozen=True)
class FigureSpec:
    """One figure of the report.

    - `name`: file name and prefix of element ids.
    - `title`: heading on the page.
    - `draw`: draws it for a layout.
    - `caption`: says what is drawn, the finding's numbers and n.
    """

    name: str
    title: str
    draw: Callable[[ReportData, Layout], Drawing]
    caption: Callable[[ReportData], str]


def new_figure(layout: Layout, height: float) -> Figure:
    """An empty figure of the layout's width and `height` CSS pixels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(layout.width / 72, height / 72), dpi=72, layout="constrained")


def empty_drawing(layout: Layout, message: str) -> Drawing:
    """A figure that says in its place why there is nothing to draw."""
    from matplotlib.patches import Rectangle

    lines = textwrap.wrap(message, 38 if layout.narrow else 84)
    figure = new_figure(layout, 56 + 16 * len(lines))
    frame = Rectangle((0.002, 0.01), 0.996, 0.98, fill=False, edgecolor=GRID, linestyle=(0, (5, 4)))
    figure.add_artist(frame)
    figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", color=MUTED, linespacing=1.4)
    return Drawing(figure)


def layer_axis(axes: Axes, layers: Sequence[int]) -> None:
    """Whole layer numbers on the x axis, no more than fit."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
    axes.set_xlim(min(layers) - 0.6, max(layers) + 0.6)
    axes.set_xlabel("layer", color=INK)


_STEPS = (
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
    (1, 1.2, 1.5, 2, 3, 4, 5, 7),
    (1, 2, 5),
    (1, 3),
    (1,),
)


def log_ticks(axis: Axis, low: float, high: float, most: int = 7) -> None:
    """As many plain numbers as fit, such as 1, 2, 5 times powers of ten, as ticks of a log axis with these limits."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in _STEPS:
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) <= most:
            break
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def render(spec: FigureSpec, data: ReportData, layout: Layout, *formats: str) -> tuple[Drawing, dict[str, bytes]]:
    """Draws `spec` once and returns the drawing and its bytes per format ("svg", "png"); equal input, equal bytes.

    **Raises:** `MissingExtraError` without matplotlib.
    """
    return rendered(lambda: spec.draw(data, layout), *formats)


def rendered(draw: Callable[[], Drawing], *formats: str) -> tuple[Drawing, dict[str, bytes]]:
    """As `render`, of any drawing. **Raises:** `MissingExtraError` without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError(
            "matplotlib is not installed", "it, to draw the report's figures", 'pip install "sinkscope[report]"'
        ) from error
    with matplotlib.rc_context(RC):
        drawing = draw()
        files = {}
        for form in formats:
            buffer = io.BytesIO()
            metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
            drawing.figure.savefig(buffer, format=form, metadata=metadata, dpi=72 if form == "svg" else 200)
            files[form] = buffer.getvalue()
    return drawing, files
