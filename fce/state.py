"""Files that are whole or absent: every output is written beside its place, then moved there."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; on success it becomes `path`, on failure it goes."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def save(path: str | Path, content: dict[str, Any]) -> None:
    """Write a checkpoint: tensors, numbers, strings and containers of them only."""
    with atomic(path) as partial:
        torch.save(content, partial)


def load(path: str | Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint without executing code from it."""
    content: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return content


def save_json(path: str | Path, content: Any) -> None:
    with atomic(path) as partial:
        partial.write_text(json.dumps(content, indent=1, allow_nan=True) + "\n")


def sha256(path: str | Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Average:
    """Exponential moving average of a module's parameters; its buffers are copied as they are.

    The decay grows as (1 + t) / (10 + t) until it reaches `decay`, so that short runs forget their start.
    """

    def __init__(self, module: torch.nn.Module, decay: float):
        self.decay, self.steps = decay, 0
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: torch.nn.Module) -> None:
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        means, values = [], []
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                means.append(self.state[name])
                values.append(value)
            else:
                self.state[name].copy_(value)
        torch._foreach_lerp_(means, values, 1 - decay)

    @contextmanager
    def applied(self, module: torch.nn.Module) -> Iterator[None]:
        """The module with the averaged weights, inside the block."""
        raw = {name: value.detach().clone() for name, value in module.state_dict().items()}
        module.load_state_dict(self.state)
        try:
            yield
        finally:
            module.load_state_dict(raw)


def schedule(decay: str, warmup: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate at update t: linear warm-up, then constant or cosine to 2 %."""
    def factor(t: int) -> float:
        rise = min(1.0, (t + 1) / (warmup + 1))
        if decay == "constant":
            return rise
        return rise * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, t / max(total, 1)))))

    return factor
