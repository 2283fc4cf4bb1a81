"""A small residual network per data set, shared by all seeds and arms, for Fréchet distances.

Its features serve a Fréchet distance where Inception's weights are not at hand or not fit (8x8 grey images). That
distance is called FD, never FID. What it sees is measured before it is used (`eval/distortions.py`): beside the
checkpoint lies its curve of FD by distortion, and the checkpoint says which of these it can't order.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

from eval import distortions
from eval.labelled import looks, middle
from fce.data.batches import Images
from fce.data.pixels import shifted, to_tensor
from pipeline.checkpoint import save
from pipeline.errors import Stopped
from pipeline.files import write_csv
from pipeline.job import Job
from pipeline.progress import log, steps
from pipeline.resume import State

STEM_HALVES = 16  # from this side on the first layer's maps are halved at once, which saves most of the work
SMOOTHING = 0.1  # of the labels


class Classifier(nn.Module):
    """A 3x3 convolution and three of torchvision's residual blocks, of width, 2 width and `features` channels.

    Takes uint8 NCHW images. The last block's maps, averaged over pixels, are the features.
    """

    def __init__(self, channels: int, side: int, levels: int, width: int, features: int, classes: int = 10):
        super().__init__()
        self.levels = levels
        sizes = [width, 2 * width, features]
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
            nn.MaxPool2d(2) if side >= STEM_HALVES else nn.Identity(),
            *(block(a, b, stride) for a, b, stride in zip([width, *sizes], sizes, (1, 2, 2), strict=False)),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )
        self.head = nn.Linear(features, classes)
        # a quarter faster on a CPU; but of fewer than 8 channels oneDNN's strided 1x1 convolution breaks the heap there
        self.layout = torch.channels_last if width >= 8 else torch.contiguous_format
        self.to(memory_format=self.layout)

    def features(self, images: Tensor) -> Tensor:
        """Features [B, F] of uint8 images [B, C, H, W]."""
        return self.body(middle(images, self.levels).to(memory_format=self.layout))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    if stride == 1 and inputs == outputs:
        return BasicBlock(inputs, outputs)
    return BasicBlock(inputs, outputs, stride, nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)))


class Epochs(State):
    """How far it has come: the last step, its loss, and the images [N] in the order of this epoch."""

    def __init__(self) -> None:
        self.step, self.loss, self.order = 0, torch.zeros(()), torch.empty(0, dtype=torch.long)


def run(job: Job) -> None:
    settings, data = job.params.classifier, job.data
    x, y = data.images["train"], torch.from_numpy(data.labels["train"]).to(job.device)
    build = {"channels": data.shape[0], "side": data.shape[1], "levels": data.levels, "width": settings.width,
             "features": settings.features, "classes": int(y.max()) + 1}
    model = Classifier(**build).to(job.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    random, batch = data.generator(job.seed_for("batches")), min(settings.batch, len(x))
    per_epoch = len(x) // batch
    total = settings.epochs * per_epoch
    length, done = max(total, 10), Epochs()  # of fewer steps a fifth, which the rate rises for, is none
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.lr, length, pct_start=0.2)
    keeper = job.keeper("training", done=done, model=model, optimizer=optimizer, course=course, random=random)
    keeper.load()
    for step, progress in steps(total, batch, done.step):
        at = (step - 1) % per_epoch * batch
        if not at:
            done.order = torch.randperm(len(x), generator=random, device=job.device)
        index = done.order[at:at + batch].to(job.device)
        images = shifted(x[index], settings.shift, random) if settings.shift else x[index]
        if settings.flip:
            turned = torch.rand(len(images), 1, 1, 1, generator=random, device=job.device) < 0.5
            images = torch.where(turned, images.flip(3), images)
        loss = F.cross_entropy(model(images), y[index], label_smoothing=SMOOTHING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        course.step()
        done.step, done.loss = step, loss.detach()
        progress(step, loss=done.loss)
        keeper.tick()
    keeper.save()
    if not done.loss.isfinite():
        raise Stopped(f"classifier: the loss ended at {done.loss.item()}; lower classifier.lr")
    model.eval().requires_grad_(False)
    right = {part: correct(model, data, part) for part in ("validation", "test") if len(data.labels[part])}
    log.info("accuracy: %s", ", ".join(f"{part} {share:.4f}" for part, share in right.items()))
    job.record.log(total, **right)
    curve = distortions.curve(lambda images: model.features(to_tensor(images).to(job.device)),
                              data.arrays["train_images"], data.arrays["train_labels"], data.levels)
    if blind := distortions.not_ordered(curve):
        log.warning("FD by these features does not rise with every step of %s", ", ".join(blind))
    write_csv(job.out.with_suffix(".csv"), curve)
    save(job.out, {"kind": "classifier", "classifier": model.state_dict(), "build": build, "accuracy": right,
                   "blind": blind, "provenance": job.provenance()})


@torch.no_grad()
def correct(model: Classifier, data: Images, part: str) -> float:
    guesses = torch.cat([model(x).argmax(1).cpu() for x in looks(data, part)])
    return (guesses == torch.from_numpy(data.labels[part])).float().mean().item()


def open_classifier(checkpoint: Mapping[str, Any]) -> Classifier:
    """The network of a `classifier` checkpoint, frozen."""
    model = Classifier(**checkpoint["build"])
    model.load_state_dict(checkpoint["classifier"])
    return model.eval().requires_grad_(False)
