"""What images are compared through: Inception's features, or those of the data set's own classifier.

The real images' features, the same for all arms and seeds, are kept beside the data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.classifier import open_classifier
from eval.frechet import features_of
from eval.inception import is_official, open_network
from fce.data.pixels import to_tensor
from pipeline.checkpoint import load, save
from pipeline.errors import UserError
from pipeline.files import digest, sha256
from pipeline.job import Job
from pipeline.progress import Progress
from pipeline.sources import fingerprint

LAYER = "2048"  # Inception's last pooling; torch-fidelity names a layer by its size


class Names(NamedTuple):
    """Of the scores."""

    frechet: str
    kernel: str


INCEPTION = Names("frechet_inception_distance", "kernel_inception_distance")
OTHER = Names("frechet_distance", "kernel_distance")


@dataclass(frozen=True)
class Extractor:
    """What the distances look through.

    Attributes:
        prepare: makes what `network` takes from uint8 images [B, H, W, C].
        network: makes features [B, size] of it.
        words: what it is, for the protocols.
        names: of the distances between its features.
        classes: which class [B] it sees in features [B, size]; None where it tells none.
    """

    prepare: Callable[[np.ndarray], Tensor]
    network: Callable[[Tensor], Tensor]
    size: int
    words: str
    names: Names
    classes: Callable[[Tensor], Tensor] | None = None


def open_look(job: Job) -> Extractor:
    """What `fid.features` names, from the job's input `features`."""
    through_inception = job.params.fid.features == "inception"
    if through_inception and job.data.levels != 256:
        raise UserError("fid.features: inception needs 256 grey levels, this data has "
                        f"{job.data.levels}; set it to classifier")
    return (inception if through_inception else classifier)(job.inputs["features"], job.device)


def inception(path: Path, device: str) -> Extractor:
    network = open_network(path, LAYER, device, f"--features: {path}")
    official = is_official(sha256(path))
    words = "Inception 2015-12-05" if official else "an Inception network with other weights: not FID"
    return Extractor(three_channels, lambda x: network(x)[0], int(LAYER), words, INCEPTION if official else OTHER)


def classifier(path: Path, device: str) -> Extractor:
    checkpoint = load(path)
    network, size = open_classifier(checkpoint).to(device), checkpoint["build"]["features"]
    known = ", ".join(f"{share:.1%} right on {part} images" for part, share in checkpoint["accuracy"].items())
    words = f"features of this data set's classifier ({known}): not FID"
    if blind := checkpoint["blind"]:
        words += f"; it does not rise with every step of {', '.join(blind)}"

    def classes(features: Tensor) -> Tensor:
        return network.head(features.float().to(device)).argmax(1).cpu()

    return Extractor(to_tensor, network.features, size, words, OTHER, classes)


def three_channels(images: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 1 or 3] as uint8 [B, 3, H, W]; not padded as for the models: Inception resizes what it gets."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2)).expand(-1, 3, -1, -1)


def kept(job: Job, part: str, look: Extractor, images: np.ndarray) -> Tensor:
    """Features [N, F] of the real images of a part: those kept from another run on the same files, or new ones.

    They lie in `.features/` beside the data, which neither engine declares, named after all that they depend on.
    """
    code = [fingerprint("eval/features.py"), torch.__version__, job.device]
    key = digest([job.hashes["data"], job.hashes["features"], *code])
    path = job.inputs["data"].parent / ".features" / f"{part}-{key}.pt"
    if path.exists():
        features: Tensor = load(path)["features"].double()
        return features
    features = extract(look, images, job.params.fid.batch, job.device)
    save(path, {"features": features.float()})  # as the network gives them
    return features


def extract(look: Extractor, images: np.ndarray, batch: int, device: str) -> Tensor:
    """Features [N, F] of uint8 images [N, H, W, C]."""
    return features_of(images, lambda part: look.network(look.prepare(part).to(device)), batch, Progress(len(images)))
