"""An input on which a treatment is set and checked: the first of the user's, or one made up for the model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from sinkscope._errors import InputError
from sinkscope.models import Batch, Inputs, Model, make_inputs

SQUARES = (4, 16, 64, 256)
"""How many along a side; the pictures differ in how coarse they are."""

TOKENS = 64
TEXT = (
    "An attention head has to put its weights somewhere. When no token has anything to say, many heads put them on the "
    "first one, or on a token between two sentences, and what they read there is close to nothing. Other heads gather "
    "what the whole text is about in one place, and every token can read it from there. "
)


@dataclass(frozen=True)
class Tried:
    """A batch, and in words what it is."""

    batch: Batch
    what: str


def first_of(inputs: Inputs) -> Tried:
    """The first batch that has an input.

    **Raises:** `InputError` when there is none.
    """
    batch = next((batch for batch in inputs.batches() if batch.names), None)
    if batch is None:
        raise InputError("inputs that can all not be read", "one that can", "check the inputs")
    count, where = len(batch.names), inputs.identity.get("location")
    return Tried(batch, f"the first {count} inputs" + (f" of {where}" if where else ""))


def made_up(model: Model) -> Tried:
    """Pictures of grey noise, or some sentences.

    **Raises:** `InputError` for a model without preprocessing or tokenizer.
    """
    if model.modality == "vision":
        inputs = make_inputs(model, [_noise(squares) for squares in SQUARES])
        return Tried(next(iter(inputs.batches())), f"{len(SQUARES)} pictures of grey noise")
    if model.prepare.text is None:
        raise InputError(f"{model.reference}, a model without a tokenizer", "one with a tokenizer", "give it one")
    codec = model.prepare.text()
    room = min(TOKENS, codec.max_length or TOKENS) - codec.overhead
    made = codec.collate([codec.wrap(codec.content(TEXT)[:room])])
    batch = Batch(0, ("made up",), made.args, made.kwargs, made.valid, made.layouts)
    return Tried(batch, f"a made-up text of {len(made.layouts[0])} tokens")


def _noise(squares: int) -> Image.Image:
    levels = np.random.default_rng(squares).integers(0, 256, (squares, squares), dtype=np.uint8)
    return Image.fromarray(levels).resize((SQUARES[-1], SQUARES[-1]), Image.Resampling.NEAREST).convert("RGB")
