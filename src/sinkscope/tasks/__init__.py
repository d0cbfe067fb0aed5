"""Synthetic tasks with known truth, and the small network that solves them.

`sinkscope.tasks.nop(p=0.5, gamma=0.0)`, or by name `sinkscope.tasks.get("nop", p=0.5)`. Tasks are frozen dataclasses:
their fields are their parameters. `plant` writes a known mechanism into a head of a pretrained model.
"""

from ._bigram_backcopy import BigramBackcopy as bigram_backcopy
from ._broadcast import Broadcast as broadcast
from ._catch_tag_release import CatchTagRelease as catch_tag_release
from ._mixed import Mixed as mixed
from ._network import Block as Block, Network as Network
from ._nop import Nop as nop
from ._options import NetworkOptions as NetworkOptions, Optimizer as Optimizer, Positions as Positions, Recipe as Recipe
from ._plant import Plan as Plan, Planted as Planted, plant as plant, plant_all as plant_all
from ._plant_truth import Truth as Truth
from ._registry import get as get, names as names, parameters as parameters
from ._task import Mechanism as Mechanism, Split as Split, Task as Task, TaskBatch as TaskBatch
from ._trigger import Trigger as trigger

__all__ = [
    "Block",
    "Mechanism",
    "Network",
    "NetworkOptions",
    "Optimizer",
    "Plan",
    "Planted",
    "Positions",
    "Recipe",
    "Split",
    "Task",
    "TaskBatch",
    "Truth",
    "bigram_backcopy",
    "broadcast",
    "catch_tag_release",
    "get",
    "mixed",
    "names",
    "nop",
    "parameters",
    "plant",
    "plant_all",
    "trigger",
]
