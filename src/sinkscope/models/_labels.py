"""The labels that a dataset has beside its pictures."""

from __future__ import annotations

from sinkscope.models._datasets import DatasetPictures
from sinkscope.models._items import ItemInputs
from sinkscope.models._picture_items import PictureItems
from sinkscope.models._types import Inputs


def labels_of(inputs: Inputs) -> tuple[int, ...] | None:
    """The class of every input, in their order: the column of whole numbers named label, labels, fine_label or class
    of a dataset of pictures; None for other inputs, and for a dataset without one."""
    if not isinstance(inputs, ItemInputs) or not isinstance(inputs.items, PictureItems):
        return None
    source = inputs.items.source
    return source.labels(inputs.count) if isinstance(source, DatasetPictures) else None
