"""The processes of one run: one, or those that torchrun has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

_PATIENCE = timedelta(hours=2)
"""How long a process waits for the slowest one. One that has died is noticed at once, by its closed connection."""


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that opens and finishes the run."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all processes are here."""
        if self.size > 1:
            from torch import distributed

            distributed.barrier()


def announced() -> World:
    """The world that torchrun's environment describes; imports nothing and joins nothing."""
    return World(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@contextmanager
def joined() -> Iterator[World]:
    """The world of this process; joins the process group that torchrun's environment describes, and leaves it."""
    world = announced()
    if world.size == 1:
        yield world
        return
    import torch
    from torch import distributed

    owns = not distributed.is_initialized()
    if owns:
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=_PATIENCE)
    try:
        yield World(distributed.get_rank(), distributed.get_world_size())
    finally:
        if owns:
            distributed.destroy_process_group()


def fails_first() -> bool:
    """Whether no other process of the run has asked this before: when one fails the others follow, and only the first
    has something to say. True where the others cannot be reached.
    """
    if announced().size == 1:
        return True
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # documented there, re-exported silently

    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=timedelta(seconds=5)
        )
        return store.add(f"sinkscope/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except (KeyError, ValueError, RuntimeError):
        return True
