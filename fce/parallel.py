"""Several processes train as one: `torchrun --nproc-per-node 4 -m fce.pretrain ...`, each with a GPU of its own.

All draw the same minibatch, from the same seeds, and compute with their share of it; gradients are averaged. So a run
is the same whether alone or shared, but for rounding, and so are its files, which the first process alone writes.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fce.stage import UserError


def rank() -> int:
    """This process's number; the one with 0 speaks and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def together(device: str, shares: bool) -> Iterator[None]:
    """Inside the block the processes that torchrun started find each other; alone, nothing happens.

    Raises:
        UserError: the stage can't be shared.
    """
    if (count := int(os.environ.get("WORLD_SIZE", "1"))) == 1:
        yield
        return
    if not shares:
        raise UserError(f"WORLD_SIZE is {count}, but this stage is not shared by several processes: use `python -m`")
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def check(params: dict[str, Any]) -> None:
    """Raise UserError where a minibatch can't be divided among the processes."""
    for section in ("pretrain", "joint"):
        if (batch := params.get(section, {}).get("batch", 0)) % size():
            raise UserError(f"{section}.batch: {batch} can't be shared equally by {size()} processes; change either")


def share(x: Tensor, dim: int) -> Tensor:
    """This process's part of x along `dim`, which all of them must be able to divide among themselves."""
    return x.tensor_split(size(), dim)[rank()] if size() > 1 else x


@torch.no_grad()
def average(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors' means over all processes."""
    if size() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / size()).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


def total(counts: Tensor) -> Tensor:
    """The sum of counts over all processes."""
    if size() > 1:
        dist.all_reduce(counts)
    return counts


@torch.no_grad()
def gather(x: Tensor, dim: int) -> Tensor:
    """The parts of all processes along `dim`, in the order of `share`."""
    if size() == 1:
        return x
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts, dim)


def anyone(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if size() == 1:
        return flag
    return total(torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")).item() > 0


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        dist.barrier()
