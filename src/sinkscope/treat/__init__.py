"""Small, reversible edits of pretrained models: gates, learned sinks, biases, norms and other attention forms.

```python
import sinkscope
from sinkscope.treat import Gate

treated = sinkscope.treat(model, [Gate("headwise")])
optimiser = torch.optim.Adam(sinkscope.treat.added(treated).values())
sinkscope.treat.undo(treated)
```
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sinkscope.treat._anatomy import Anatomy, Site, anatomy_of, supported
from sinkscope.treat._biases import AttentionBias, KeyBias
from sinkscope.treat._body import Body
from sinkscope.treat._container import ORDER, Container, Part
from sinkscope.treat._family import FAMILIES, Family
from sinkscope.treat._files import load, save
from sinkscope.treat._form import ClippedSoftmax, Form, OffByOne
from sinkscope.treat._gate import Gate
from sinkscope.treat._global_pathway import GlobalPathway, branch_outputs
from sinkscope.treat._head_norm import HeadNorm
from sinkscope.treat._learned_sink import LearnedSink
from sinkscope.treat._neurons import RegisterNeurons, find_register_neurons
from sinkscope.treat._prefix import PrefixKV, fill_prefix
from sinkscope.treat._probe import Probe
from sinkscope.treat._quantise import Quantise
from sinkscope.treat._registers import Registers
from sinkscope.treat._registry import TREATMENTS
from sinkscope.treat._remove_heads import RemoveHeads
from sinkscope.treat._remove_sinks import RemoveSinks
from sinkscope.treat._test_time import TestTimeRegisters
from sinkscope.treat._treat import Treatable, added, treat, treatments_of, undo
from sinkscope.treat._treatment import AttentionTreatment, Treatment

if TYPE_CHECKING:
    from sinkscope.treat._sink_cache import SinkCache

__all__ = [
    "FAMILIES",
    "ORDER",
    "TREATMENTS",
    "Anatomy",
    "AttentionBias",
    "AttentionTreatment",
    "Body",
    "ClippedSoftmax",
    "Container",
    "Family",
    "Form",
    "Gate",
    "GlobalPathway",
    "HeadNorm",
    "KeyBias",
    "LearnedSink",
    "OffByOne",
    "Part",
    "PrefixKV",
    "Probe",
    "Quantise",
    "RegisterNeurons",
    "Registers",
    "RemoveHeads",
    "RemoveSinks",
    "Room",
    "SinkCache",
    "Site",
    "TestTimeRegisters",
    "Treatment",
    "added",
    "anatomy_of",
    "branch_outputs",
    "fill_prefix",
    "find_register_neurons",
    "load",
    "save",
    "supported",
    "treat",
    "treatments_of",
    "undo",
]


def __getattr__(name: str) -> Any:
    if name == "SinkCache":  # its base class is transformers', which is loaded when it is used
        from sinkscope.treat._sink_cache import SinkCache

        return SinkCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Room(ModuleType):
    """Lets `sinkscope.treat` be both this room and the function users call; types for what users call through it."""

    added = staticmethod(added)
    fill_prefix = staticmethod(fill_prefix)
    find_register_neurons = staticmethod(find_register_neurons)
    load = staticmethod(load)
    save = staticmethod(save)
    treatments_of = staticmethod(treatments_of)
    undo = staticmethod(undo)

    def __call__(
        self,
        model: Treatable,
        treatments: Treatment | Sequence[Treatment],
        *,
        inplace: bool = False,
        probe: Probe | None = None,
        seed: int = 0,
    ) -> Treatable:
        """As the function `treat`."""
        return treat(model, treatments, inplace=inplace, probe=probe, seed=seed)


sys.modules[__name__].__class__ = Room
