"""Every treatment by name."""

from __future__ import annotations

from collections.abc import Mapping

from sinkscope.treat._biases import AttentionBias, KeyBias
from sinkscope.treat._form import ClippedSoftmax, Form, OffByOne
from sinkscope.treat._gate import Gate
from sinkscope.treat._global_pathway import GlobalPathway
from sinkscope.treat._head_norm import HeadNorm
from sinkscope.treat._learned_sink import LearnedSink
from sinkscope.treat._prefix import PrefixKV
from sinkscope.treat._quantise import Quantise
from sinkscope.treat._registers import Registers
from sinkscope.treat._remove_heads import RemoveHeads
from sinkscope.treat._remove_sinks import RemoveSinks
from sinkscope.treat._test_time import TestTimeRegisters
from sinkscope.treat._treatment import Treatment

_ALL: tuple[type[Treatment], ...] = (
    Gate,
    LearnedSink,
    AttentionBias,
    KeyBias,
    OffByOne,
    HeadNorm,
    ClippedSoftmax,
    Form,
    GlobalPathway,
    Registers,
    PrefixKV,
    TestTimeRegisters,
    RemoveSinks,
    RemoveHeads,
    Quantise,
)

TREATMENTS: Mapping[str, type[Treatment]] = {treatment.name: treatment for treatment in _ALL}
"""Classes by the names under which treatments are saved."""
