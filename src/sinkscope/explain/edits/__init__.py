"""Causal edits of one attention head at a time, through the model's own forward."""

from sinkscope.explain.edits._options import EditOptions as EditOptions
from sinkscope.explain.edits._run import edit_heads as edit_heads
