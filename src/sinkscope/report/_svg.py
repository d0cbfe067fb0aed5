"""From matplotlib's SVG to one that can be exported or put into the page: small, accessible, with stable ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from sinkscope.report._figure import Mark

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_HREF = f"{{{_XLINK}}}href"
_COORDINATES = {"d", "x", "y", "transform"}
_DECIMALS = re.compile(r"(\d+\.\d\d)\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def finish_svg(
    raw: bytes, *, name: str, title: str, description: str, marks: Mapping[str, Sequence[Mark]], page: str = ""
) -> str:
    """Rewrites matplotlib's SVG.

    Metadata goes, coordinates keep two decimals, only ids something refers to stay, and every element that stands for
    a head gets the id `NAME-LAYER-HEAD` with its text as tooltip. `title` and `description` become the text
    alternative. With `page` (a prefix for all ids) the drawing is made to be inlined: background and fixed size go.
    """
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(raw)
    for element in root.iter():
        for key in _COORDINATES & element.attrib.keys():
            element.set(key, _DECIMALS.sub(r"\1", element.attrib[key]))
    for child in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(child)
    for defs in root.iter(f"{{{_SVG}}}defs"):
        for style in defs.findall(f"{{{_SVG}}}style"):  # would apply to the whole page
            defs.remove(style)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    marked = {group.get("id"): group for group in root.iter(f"{{{_SVG}}}g") if group.get("id") in marks}
    background = root.find(f"./{{{_SVG}}}g[@id='figure_1']")
    if page and background is not None:
        background.remove(background[0])
    _keep_used_ids(root, f"{page}{name}-")
    for group_id, elements in marks.items():
        _mark(marked[group_id], f"{page}{group_id}", elements)
    _describe(root, f"{page}{name}", title, description)
    if page:
        root.set("width", root.get("viewBox", "").split()[2])
        del root.attrib["height"]
    text = re.sub(r"[ \n]+", " ", ElementTree.tostring(root, encoding="unicode"))
    return text if page else f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _keep_used_ids(root: ElementTree.Element, prefix: str) -> None:
    used = {element.get(_HREF, "").removeprefix("#") for element in root.iter()}
    for element in root.iter():
        for value in element.attrib.values():
            used.update(_REFERENCE.findall(value))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", prefix + own)
        for key, value in element.attrib.items():
            if key == _HREF and value.startswith("#"):
                element.set(key, f"#{prefix}{value[1:]}")
            elif "url(#" in value:
                element.set(key, _REFERENCE.sub(rf"url(#{prefix}\1)", value))


def _mark(group: ElementTree.Element, name: str, marks: Sequence[Mark]) -> None:
    elements = [child for child in group if child.tag != f"{{{_SVG}}}defs"]
    for element, mark in zip(elements, marks, strict=True):
        element.set("id", f"{name}-{mark.layer}-{mark.head}")
        element.set("class", "mark")
        ElementTree.SubElement(element, f"{{{_SVG}}}title").text = mark.text


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(position, element)
