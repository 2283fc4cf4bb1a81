"""Several processes share a minibatch: all draw the same one, from the same seeds, and compute with their part of it.

Gradients are averaged, so that a run is the same whether alone or shared, but for rounding. A single process, which
torch.distributed knows nothing of, shares with nobody.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


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
