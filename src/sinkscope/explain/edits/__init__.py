"""Causal edits of one attention head at a time, through the model's own forward."""

from sinkscope.explain.edits._options import EditOptions as EditOptions
from sinkscope.explain.edits._outputs import (
    Distribution as Distribution,
    OutputChange as OutputChange,
    logits_of as logits_of,
    token_ids as token_ids,
)
from sinkscope.explain.edits._run import edit_heads as edit_heads
from sinkscope.explain.edits._stream import select as select
