"""How matplotlib's SVG is rewritten."""

from __future__ import annotations

import pytest

from sinkscope.report._figure import Mark
from sinkscope.report._svg import finish_svg

RAW = b"""<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
 width="10pt" height="5pt" viewBox="0 0 10 5"><metadata>secret</metadata>
<defs><style>*{fill: red}</style><path id="dot" d="M 0.123456 1"/></defs>
<g id="figure_1"><g id="patch_1"><path d="M 0 0"/></g>
<g id="cells"><path d="M 1.23456 2" clip-path="url(#clip)"/><use xlink:href="#dot" x="3.98765"/></g>
<clipPath id="clip"/><text id="text_1">0.001 and 0.123456</text>
<image xlink:href="data:image/png;base64,AA"/></g></svg>"""
MARKS = {"cells": [Mark(3, 2, "L3.H2: <most>"), Mark(3, 5, "other")]}


def _finish(page: str = "") -> str:
    return finish_svg(RAW, name="figure", title="A & B", description="what it shows", marks=MARKS, page=page)


def test_export_keeps_background_size_and_ids() -> None:
    text = _finish()
    assert text.startswith('<?xml version="1.0" encoding="utf-8"?>\n<svg')
    assert 'width="10pt"' in text and 'height="5pt"' in text and 'd="M 0 0"' in text
    assert 'id="cells-3-2"' in text and 'id="cells-3-5"' in text
    assert "secret" not in text and "fill: red" not in text and "text_1" not in text


def test_coordinates_are_shortened_and_labels_are_not() -> None:
    text = _finish()
    assert 'd="M 1.23 2"' in text and 'x="3.98"' in text
    assert "0.001 and 0.123456" in text


def test_inlined_drawings_share_no_id_and_keep_their_references() -> None:
    text = _finish(page="narrow-")
    assert 'd="M 0 0"' not in text and 'width="10"' in text and "height=" not in text
    assert 'id="narrow-cells-3-2"' in text
    assert 'id="narrow-figure-dot"' in text and 'href="#narrow-figure-dot"' in text
    assert 'id="narrow-figure-clip"' in text and "url(#narrow-figure-clip)" in text
    assert 'href="data:image/png;base64,AA"' in text


def test_text_alternatives_are_escaped() -> None:
    text = _finish()
    assert '<title id="figure-title">A &amp; B</title><desc id="figure-desc">what it shows</desc>' in text
    assert "<title>L3.H2: &lt;most&gt;</title>" in text


def test_marks_that_do_not_fit_the_drawing_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        finish_svg(RAW, name="x", title="", description="", marks={"cells": MARKS["cells"][:1]})
