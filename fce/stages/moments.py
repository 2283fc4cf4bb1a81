"""How a flow's samples and likelihood move while it trains: both at a few moments, with the same chance each time."""

import copy
from typing import Any

import torch

from fce.data.batches import Images
from fce.data.pixels import dequantize, quantize, to_images
from fce.optim import Average
from fce.stack import Stack
from pipeline.job import Job
from pipeline.resume import State
from pipeline.schema.training import Trajectory

BATCH = 250


class Moments(State):
    """What the averaged flow of a run on images showed at each moment, the first before training.

    All models of a seed decode the same noise, and code the same held-out images (without a validation part, the first
    training images) with the same dequantisation: differences between moments and between arms are paired.

    Args:
        total: how many updates there will be.
    """

    def __init__(self, job: Job, settings: Trajectory, total: int):
        n = settings.moments
        self.due = {round(total * i / n) for i in range(n + 1)} if n else set()
        self.settings, self.data = settings, job.data
        self.seed = job.shared_seed_for("trajectory")
        self.updates, self.bits_per_dim, self.images = list[int](), list[float](), list[torch.Tensor]()

    def look(self, update: int, flow: Stack, average: Average) -> None:
        """Add the moment, where `update` is one that is not there yet."""
        if update not in self.due or update in self.updates:
            return
        assert isinstance(self.data, Images)
        n, data, random = self.settings.images, self.data, torch.Generator().manual_seed(self.seed)
        _, held = data.held_out(n)
        log_q, drawn = [], []
        model = copy.deepcopy(flow.first)  # the flow's own weights must not change: a game keeps a pass through them
        model.load_state_dict(flow.split(average.state)[0])
        model.requires_grad_(False)
        with torch.no_grad():
            for images in held.split(BATCH):
                log_q.append(model.log_prob(dequantize(images, data.levels, random)).double())
            for size in (min(BATCH, n - start) for start in range(0, n, BATCH)):
                x = model.sample(size, generator=random)
                drawn.append(torch.from_numpy(to_images(quantize(x.nan_to_num(), data.levels), data.side)))
        self.updates.append(update)
        self.bits_per_dim.append(data.loss(torch.cat(log_q).mean().item()))
        self.images.append(torch.cat(drawn))

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "bits_per_dim": self.bits_per_dim, "images": self.images}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.updates, self.bits_per_dim, self.images = state["updates"], state["bits_per_dim"], state["images"]

    def content(self) -> dict[str, Any]:
        """For the checkpoint: updates and bits/dim of each moment, and its samples, uint8 [moments, n, H, W, C]."""
        return {"trajectory": self.state_dict() | {"images": torch.stack(self.images)}} if self.images else {}
