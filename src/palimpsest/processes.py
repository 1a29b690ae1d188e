"""Several processes that work on one edit, as `torchrun` or `accelerate launch` start them.

All of them run the same program on the same facts. Those that train share the work out; the first alone writes and
speaks.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

_PATIENCE = timedelta(seconds=10)


def cores() -> int:
    """Processors that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count() -> int:
    """How many processes work together: those of torch's process group, 1 without one."""
    group = _group()
    return int(group.get_world_size()) if group else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    group = _group()
    return int(group.get_rank()) if group else 0


def local_rank() -> int:
    """The number of this process among those on this machine, as its launcher says; it is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def gathered(value: Any) -> list[Any]:
    """Gathers a value from each process, in their order. All processes must call it."""
    group = _group()
    if not group:
        return [value]
    values: list[Any] = [None] * count()
    group.all_gather_object(values, value)
    return values


def wait() -> None:
    """Returns when all processes have come here."""
    gathered(None)


@dataclass(frozen=True)
class Team:
    """The processes that a launcher started together, of which this is one.

    Arguments:
        rank: its number, from 0.
        count: how many there are.
        store: what they tell each other through, independent of the process group; `None` for one alone.
    """

    rank: int
    count: int
    store: Any = None

    @contextmanager
    def reporting(self) -> Iterator[bool]:
        """Yields whether an error is for this process to report: it is the first that has one.

        The errors of the others follow from it, and they stay until it is told: their end is the end of all.
        """
        if self.store is None:
            yield True
            return
        is_first = int(self.store.add("failures", 1)) == 1
        try:
            yield is_first
        finally:
            with suppress(Exception):  # the store itself may be gone with the process that kept it
                if is_first:
                    self.store.set("told", "yes")
                else:
                    self.store.wait(["told"], _PATIENCE)


@contextmanager
def joined() -> Iterator[Team]:
    """Inside the block the processes that a launcher started together are torch's process group.

    Does nothing, and does not import torch, in a single process.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Team(0, 1)
        return
    import torch
    from torch import distributed
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(local_rank())
    store, own_rank, world = next(rendezvous("env://"))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    distributed.init_process_group(
        "nccl" if has_cuda else "gloo",
        store=PrefixStore(f"group-{attempt}", store),
        rank=own_rank,
        world_size=world,
    )
    yield Team(own_rank, world, PrefixStore(f"palimpsest-{attempt}", store))
    # Not after an error: the others may be waiting for this process, and their launcher ends them.
    distributed.destroy_process_group()


def _group() -> Any:
    """torch.distributed when a process group of several is at work."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed if torch.distributed.get_world_size() > 1 else None
