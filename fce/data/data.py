"""Stage: data. Makes data.npz of an experiment; and serves it to training, batch by batch."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fce.data import images, toy
from fce.stage import Job, UserError, main
from fce.state import atomic


def run(job: Job) -> None:
    data = job.params["data"]
    if data["source"] in toy.MAKERS:
        density = toy.density(data)
        generator = torch.Generator().manual_seed(0)
        arrays: dict[str, Any] = {}
        for part in ("validation", "test"):
            x = density.sample(data[part], generator)
            arrays |= {part: x.numpy(), f"{part}_log_prob": density.log_prob(x).numpy()}
    else:
        arrays = images.load(data)
    with atomic(job.out) as partial:
        np.savez(partial, **arrays)


class Points:
    """Two-dimensional data: fresh points from the true density at every step."""

    dims = 2

    def __init__(self, path: Path, data: dict[str, Any], device: str):
        self.density, self.device = toy.density(data), device
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files}

    def generator(self, seed: int) -> torch.Generator:
        """Chance for what is drawn for these data: it lives where it is drawn."""
        return torch.Generator().manual_seed(seed)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """n training points [n, 2]."""
        return self.density.sample(n, generator).to(self.device)

    def state_dict(self) -> dict[str, Any]:
        return {}  # fresh points have no order

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def part(self, name: str, generator: torch.Generator) -> Tensor:
        """All points of `validation` or `test`."""
        return self.arrays[name].to(self.device)


class Images:
    """Images, kept on the device as uint8; every batch is dequantised afresh."""

    def __init__(self, path: Path, device: str):
        self.device = device
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        self.levels, self.side = int(arrays.pop("levels")), arrays["train_images"].shape[1]
        self.dims = int(np.prod(arrays["train_images"].shape[1:]))
        self.images = {
            name.removesuffix("_images"): images.to_tensor(value).to(device)
            for name, value in arrays.items()
            if name.endswith("_images")
        }
        self.labels = {
            name.removesuffix("_labels"): value for name, value in arrays.items() if name.endswith("_labels")
        }
        self.shape = tuple(self.images["train"].shape[1:])
        self.order, self.at = torch.empty(0, dtype=torch.long), 0

    def generator(self, seed: int) -> torch.Generator:
        """Chance for what is drawn for these data: it lives where it is drawn."""
        return torch.Generator(self.device).manual_seed(seed)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """n training images [n, C, H, W] in model coordinates; every image once per pass."""
        total = len(self.images["train"])
        if n > total:
            raise UserError(f"batch: {n}, but there are only {total} training images")
        if self.at + n > len(self.order):
            self.order, self.at = torch.randperm(total, generator=generator, device=self.device), 0
        index = self.order[self.at : self.at + n]
        self.at += n
        return images.dequantize(self.images["train"][index], self.levels)

    def state_dict(self) -> dict[str, Any]:
        """The pass through the training images: their order, and how many are done."""
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order, self.at = state["order"].to(self.device), state["at"]

    def part(self, name: str, generator: torch.Generator) -> Tensor:
        """All images of `validation` or `test`, dequantised."""
        return images.dequantize(self.images[name], self.levels, generator)


def open_data(path: Path, data: dict[str, Any], device: str) -> Points | Images:
    return Points(path, data, device) if data["source"] in toy.MAKERS else Images(path, device)


if __name__ == "__main__":
    sys.exit(main(__doc__, run, seeded=False))
