"""Several processes train as one: `torchrun --nproc-per-node 4 -m fce pretrain ...`, each with a GPU of its own.

Here they find each other and agree when to stop; how they share a minibatch stands in fce/parallel.py. The first
process alone writes files.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from pipeline.errors import UserError


def rank() -> int:
    """This process's number; the one with 0 speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def together(device: str, shares: bool) -> Iterator[None]:
    """Inside the block the processes that torchrun started find each other; alone, nothing happens.

    Raises:
        UserError: the stage can't be shared.
    """
    if count() == 1:
        yield
        return
    if not shares:
        raise UserError(f"WORLD_SIZE is {count()}, but this stage is not shared by several processes: start it alone")
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def anyone(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if not dist.is_initialized():
        return flag
    flags = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(flags)
    return flags.item() > 0


def wait() -> None:
    """Until all processes are here."""
    if dist.is_initialized():
        dist.barrier()
