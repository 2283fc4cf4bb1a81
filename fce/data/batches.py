"""Serves data to training, batch by batch: points of a known density, or images."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fce.data.pixels import bits_per_dim, dequantize, padded, shifted, to_tensor
from fce.data.toy import Density


class Points:
    """Two-dimensional data: fresh points from the true density at every step.

    Args:
        arrays: `validation` and `test` [N, 2], and their log-densities, `validation_log_prob` and `test_log_prob` [N].
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], density: Density, device: str):
        self.density, self.device, self.shape = density, device, (2,)
        self.arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}

    def generator(self, seed: int) -> torch.Generator:
        """Chance for what is drawn for these data: it lives where it is drawn."""
        return torch.Generator().manual_seed(seed)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """n training points [n, 2]."""
        return self.density.sample(n, generator).to(self.device)

    def loss(self, log_prob: float) -> float:
        """What a mean log-density in nats is worth: nats, lower is better."""
        return -log_prob

    def state_dict(self) -> dict[str, Any]:
        return {}  # fresh points have no order

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def part(self, name: str, generator: torch.Generator) -> Tensor:
        """All points of `validation` or `test`."""
        return self.arrays[name].to(self.device)


def at_once(shape: Sequence[int], most: int) -> int:
    """How many points or images [C, H, W] of a shape to look at together: `most`, or fewer if larger than 32x32.

    So one look takes the memory of `most` images of 32x32 at any size.
    """
    return max(1, most * 32**2 // max(32**2, math.prod(shape[1:])))


def shape_of(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    """Of an array; one that is still in its file is not read for it."""
    header = getattr(arrays, "header", None)
    shape: tuple[int, ...] = header(name)[0] if header else arrays[name].shape
    return shape


class Parts(dict[str, Any]):
    """What is made of each part of the data, when it is first asked for."""

    def __init__(self, make: Callable[[str], Any]):
        super().__init__()
        self.make = make

    def __missing__(self, part: str) -> Any:
        self[part] = self.make(part)
        return self[part]


class Images:
    """Images, kept on the device as uint8; every batch is dequantised afresh.

    Args:
        arrays: `<part>_images` (uint8 [N, H, W, C]) and `<part>_labels` [N] of the parts train,
            validation (which may be empty) and test, and `levels`; each is asked for when it is needed.
        augment: by which share of a side `batch` moves each image, at most; nothing else moves them.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], device: str, augment: float = 0.0):
        self.arrays, self.device, self.levels, self.augment = arrays, device, int(arrays["levels"]), augment
        self.images = Parts(lambda part: to_tensor(arrays[f"{part}_images"]).to(device))
        self.labels = Parts(lambda part: arrays[f"{part}_labels"])
        self.count, self.side, _, channels = shape_of(arrays, "train_images")
        self.dims, self.shape = self.side**2 * channels, (channels, padded(self.side), padded(self.side))
        self.order, self.at = torch.empty(0, dtype=torch.long), 0

    def generator(self, seed: int) -> torch.Generator:
        """Chance for what is drawn for these data: it lives where it is drawn."""
        return torch.Generator(self.device).manual_seed(seed)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """n training images [n, C, H, W] in model coordinates; an image at most once per pass."""
        if n > self.count:
            raise ValueError(f"batch: {n}, but there are only {self.count} training images")
        if self.at + n > len(self.order):
            self.order, self.at = torch.randperm(self.count, generator=generator, device=self.device), 0
        index = self.order[self.at : self.at + n]
        self.at += n
        images = self.images["train"][index]
        return dequantize(shifted(images, self.augment, generator) if self.augment else images, self.levels)

    def loss(self, log_prob: float) -> float:
        """What a mean log-density in nats is worth: bits/dim, lower is better."""
        exact = torch.tensor(log_prob, dtype=torch.float64)
        return bits_per_dim(exact, self.levels, self.dims, math.prod(self.shape)).item()

    def state_dict(self) -> dict[str, Any]:
        """The pass through the training images: their order, and how many are done."""
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = state["order"].to(self.device), state["at"]

    def held_out(self, n: int) -> tuple[str, Tensor]:
        """At most n validation images, uint8; of the training part where there are none. The part first."""
        part = "validation" if len(self.images["validation"]) else "train"
        return part, self.images[part][:n]

    def part(self, name: str, generator: torch.Generator) -> Tensor:
        """All images of `validation` or `test`, dequantised."""
        return dequantize(self.images[name], self.levels, generator)
