"""Linear classification on frozen features, by the number of labelled images (Figure 4).

Of the top layer, as in the paper; and of all hidden layers together, as DCGAN's article (arXiv 1511.06434, section 5.1)
took them, which tells a layer that has lost the classes from a network that has. Maps are pooled to at most 4x4,
which the top layer's are at 32x32 (4,096 features, the paper's): so larger images have no more features.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eval.labelled import draws, looks, middle, with_validation
from eval.logistic import fits
from eval.score import Score, accuracy_score, write_scores
from fce.data.batches import Images
from fce.energy import make_energy
from fce.models import open_features
from pipeline.checkpoint import load
from pipeline.job import Job
from pipeline.progress import Progress

Maps = Callable[[Tensor], list[Tensor]]  # x [B, C, H, W] -> each hidden layer's maps
LAYERS = {"": "top-layer features, max-pooled to at most 4x4,",
          "_all_layers": "features of all hidden layers, max-pooled to at most 4x4,"}

RANKED = 10_000  # training images, at most, that tell the rank


def run(job: Job) -> None:
    settings, maps = job.params.probe, open_maps(job)
    data = with_validation(job.data, settings)
    progress = Progress(len(LAYERS) * (len(settings.labels) + 1))
    scores, done = [], 0
    found = {part: extract(maps, data, part) for part in ("train", "validation", "test")}
    for suffix, words in LAYERS.items():
        features = {part: layers.pop(suffix) for part, layers in found.items()}
        some = features["train"][:: -(-len(features["train"]) // RANKED)]
        scores.append(Score(name=f"effective_rank{suffix}", model="features", value=effective_rank(some), n=len(some),
                            protocol=f"exp of the entropy of the covariance's spectrum, {some.shape[1]} features"))
        protocol = (f"multinomial logistic regression on standardised {words} of the test part; L2 chosen on "
                    f"{len(data.labels['validation'])} validation labels")
        for count, chosen in draws(data.labels["train"], settings):
            right = np.stack([classify(features, data.labels, index, settings.inverse_l2) for index in chosen])
            scores.append(accuracy_score(f"accuracy{suffix}", "features", torch.from_numpy(right), protocol, count))
            done += 1
            progress(done, labels=count, accuracy=scores[-1].value)
    write_scores(job, scores)


def open_maps(job: Job) -> Maps:
    """The hidden layers of the model that was given: an EBM's, or those of DCGAN's discriminator."""
    if "model" not in job.inputs:  # the paper's "Random Init.": the same network, never trained
        torch.manual_seed(job.seed)
        return make_energy(job.data.shape, **job.params.energy.model_dump()).to(job.device).maps
    return open_features(load(job.inputs["model"]), job.device).maps


@torch.no_grad()
def extract(maps: Maps, data: Images, part: str) -> dict[str, Tensor]:
    """Features [N, F] of a part, at the middle of each grey level, by the layers they are of (LAYERS' keys)."""
    found, done = dict[str, Tensor](), 0
    for x in looks(data, part):
        pooled = [F.adaptive_max_pool2d(m, min(4, m.shape[-1])) for m in maps(middle(x, data.levels))]
        for suffix, used in zip(LAYERS, (pooled[-1:], pooled), strict=True):
            features = torch.cat([m.flatten(1) for m in used], 1)
            whole = found.setdefault(suffix, features.new_empty(len(data.images[part]), features.shape[1]))
            whole[done : done + len(x)] = features
        done += len(x)
    return found


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the spectrum of the covariance of features [N, F]: F where all directions vary alike."""
    centred = features - features.mean(0)
    wide = len(centred) < centred.shape[1]  # both products have the same spectrum, but for zeros
    product = centred @ centred.T if wide else centred.T @ centred
    spectrum = torch.linalg.eigvalsh(product.double()).clip(min=0)
    return math.exp(torch.special.entr(spectrum / spectrum.sum()).sum().item())


def classify(features: dict[str, Tensor], labels: dict[str, np.ndarray], index: np.ndarray, inverse_l2: list[float]
             ) -> np.ndarray:
    """Which test images [n] a classifier gets right: fitted on the training images `index`, L2 chosen on validation."""
    classes, known = np.unique(labels["train"][index], return_inverse=True)
    train = features["train"][index]
    mean = train.mean(0)
    deviation = torch.linalg.vector_norm(train.sub_(mean), dim=0) / len(train) ** 0.5
    deviation[deviation <= 1e-6 * mean.abs()] = 1.0  # constant, but for rounding
    best, right = -1.0, np.zeros(len(labels["test"]), bool)
    for weights, bias in fits(train.div_(deviation), torch.from_numpy(known).to(train.device), sorted(inverse_l2)):
        hits = {}
        for part in ("validation", "test"):
            logits = (features[part] - mean).div_(deviation) @ weights.to(mean.dtype) + bias
            hits[part] = classes[logits.argmax(1).cpu()] == labels[part]
        if hits["validation"].mean() > best:
            best, right = hits["validation"].mean(), hits["test"]
    return right
