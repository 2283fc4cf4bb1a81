"""Optimisers, learning-rate schedules and weight averages, as params.yaml names them."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fce.stack import Stack


def make_optimizer(name: str, parameters: Any, lr: float) -> torch.optim.Optimizer:
    """Adam, AdamW or Adamax; in their many-tensors-at-once forms, which on a CPU take half the time or less."""
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, fused=True)
    if name == "adam":
        return torch.optim.Adam(parameters, lr=lr, fused=True)
    return torch.optim.Adamax(parameters, lr=lr, foreach=True)


def set_lr(optimizer: torch.optim.Optimizer, lrs: list[float], factor: float) -> None:
    """Give each parameter group its learning rate times `factor`."""
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr * factor


def lr_factor(decay: str, warmup: int, update: int, progress: float) -> float:
    """Linear rise over `warmup` updates; then constant, or a cosine to 2 % as `progress` goes from 0 to 1."""
    rise = min(1.0, (update + 1) / (warmup + 1))
    if decay == "constant":
        return rise
    return rise * (0.02 + 0.49 * (1 + math.cos(math.pi * min(1.0, progress))))


class Average:
    """Exponential moving average of the parameters of a stack of models, and of buffers but flags.

    The decay grows as (1 + t) / (10 + t) until it reaches `decay`, so that short runs forget their start.
    """

    def __init__(self, models: Stack, decay: float):
        self.models, self.decay, self.steps = models, decay, 0
        self.state = {name: value.detach().clone() for name, value in models.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        means, values = [], []
        for name, value in self.models.state_dict().items():
            if value.is_floating_point():
                means.append(self.state[name])
                values.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(means, values, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        return {"means": self.state, "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        for name, mean in self.state.items():
            mean.copy_(state["means"][name])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The models with the averaged weights, inside the block."""
        raw = {name: value.detach().clone() for name, value in self.models.state_dict().items()}
        self.models.load_state_dict(self.state)
        try:
            yield
        finally:
            self.models.load_state_dict(raw)
