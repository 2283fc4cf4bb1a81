"""A small classifier per data set, shared by all seeds and arms, for Fréchet distances.

Its features serve a Fréchet distance where Inception's weights are not at hand or not fit (8x8 grey images). That
distance is called FD, never FID.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fce.data.batches import Images
from pipeline.checkpoint import save
from pipeline.errors import Stopped
from pipeline.job import Job
from pipeline.progress import log, steps


class Classifier(nn.Module):
    """Two convolutions with batch norm, then `features` units and ten classes; takes uint8 NCHW images."""

    def __init__(self, channels: int, side: int, levels: int, width: int, features: int):
        super().__init__()
        self.levels = levels
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2 * width * (side // 2) ** 2, features), nn.ReLU(),
        )
        self.head = nn.Linear(features, 10)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, F] of uint8 images [B, C, H, W]."""
        return self.body((images + 0.5) / self.levels - 0.5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def run(job: Job) -> None:
    settings, data = job.params.classifier, job.data
    x, y = data.images["train"], torch.from_numpy(data.labels["train"]).to(job.device)
    build = {"channels": data.shape[0], "side": data.shape[1], "levels": data.levels, "width": settings.width,
             "features": settings.features}
    model = Classifier(**build).to(job.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=settings.lr)
    per_epoch = max(1, len(x) // settings.batch)
    total = settings.epochs * per_epoch
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for step, progress in steps(total, settings.batch):
        index = torch.randint(len(x), (settings.batch,), device=job.device)
        loss = F.cross_entropy(model(x[index]), y[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        progress(step, loss=loss.detach())
    if not loss.isfinite():
        raise Stopped(f"classifier: the loss ended at {loss.item()}; lower classifier.lr")
    right = {part: correct(model, data, part) for part in ("validation", "test") if len(data.labels[part])}
    log.info("accuracy: %s", ", ".join(f"{part} {share:.4f}" for part, share in right.items()))
    job.record.log(total, **right)
    save(job.out, {"kind": "classifier", "classifier": model.state_dict(), "build": build, "accuracy": right,
                   "provenance": job.provenance()})


@torch.no_grad()
def correct(model: Classifier, data: Images, part: str) -> float:
    model.eval()
    guesses = torch.cat([model(x).argmax(1).cpu() for x in data.images[part].split(1000)])
    return (guesses == torch.from_numpy(data.labels[part])).float().mean().item()


def open_classifier(checkpoint: Mapping[str, Any]) -> Classifier:
    """The network of a `classifier` checkpoint, frozen."""
    model = Classifier(**checkpoint["build"])
    model.load_state_dict(checkpoint["classifier"])
    return model.eval().requires_grad_(False)
