"""Linear classification on frozen features, by the number of labelled images (Figure 4).

Of the top layer, as in the paper; and of all hidden layers together, as DCGAN's article (arXiv 1511.06434, section 5.1)
took them, which tells a layer that has lost the classes from a network that has.
"""

import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F

from eval.labelled import draws, middle, with_validation
from eval.score import Score, accuracy_score, write_scores
from fce.data.batches import Images
from fce.energy import make_energy
from fce.models import open_features
from pipeline.checkpoint import load
from pipeline.job import Job
from pipeline.progress import Progress

Maps = Callable[[Tensor], list[Tensor]]  # x [B, C, H, W] -> each hidden layer's maps
LAYERS = {"": "top-layer features", "_all_layers": "features of all hidden layers, max-pooled to at most 4x4,"}


def run(job: Job) -> None:
    settings, maps = job.params.probe, open_maps(job)
    data = with_validation(job.data, settings)
    progress = Progress(len(LAYERS) * (len(settings.labels) + 1))
    scores, done = [], 0
    for suffix, words in LAYERS.items():
        features = {part: extract(maps, data, part, suffix) for part in ("train", "validation", "test")}
        n, size = features["train"].shape
        scores.append(Score(name=f"effective_rank{suffix}", model="features", value=effective_rank(features["train"]),
                            n=n, protocol=f"exp of the entropy of the covariance's spectrum, {size} features"))
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
def extract(maps: Maps, data: Images, part: str, layers: str) -> np.ndarray:
    """Features [N, F] of a part, at the middle of each grey level; `layers` is a key of LAYERS."""
    chunks = []
    for x in data.images[part].split(1000):
        hidden = maps(middle(x, data.levels))
        used = [F.adaptive_max_pool2d(m, min(4, m.shape[-1])) for m in hidden] if layers else hidden[-1:]
        chunks.append(torch.cat([m.flatten(1) for m in used], 1).cpu())
    return torch.cat(chunks).numpy()


def effective_rank(features: np.ndarray) -> float:
    """exp of the entropy of the spectrum of the covariance of features [N, F]: F where all directions vary alike."""
    centred = features - features.mean(0)
    wide = len(centred) < centred.shape[1]  # both products have the same spectrum, but for zeros
    product = centred @ centred.T if wide else centred.T @ centred
    spectrum = np.linalg.eigvalsh(product.astype(np.float64)).clip(min=0)
    share = spectrum / spectrum.sum()
    return math.exp(-(share * np.log(np.maximum(share, 1e-300))).sum())


def classify(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], index: np.ndarray, inverse_l2: list[float]
) -> np.ndarray:
    """Which test images [n] a classifier gets right: fitted on the training images `index`, L2 chosen on validation."""
    # PCA keeps every dimension the labelled images span, and an L2 penalty needs no other: exact, and faster
    reduce = make_pipeline(StandardScaler(), PCA()).fit(features["train"][index])
    train, validation, test = (
        reduce.transform(x) for x in (features["train"][index], features["validation"], features["test"])
    )
    best, right = -1.0, np.zeros(len(test), bool)
    for c in inverse_l2:
        model = LogisticRegression(C=c, max_iter=300)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an unconverged weak penalty loses on validation
            model.fit(train, labels["train"][index])
        held = model.score(validation, labels["validation"])
        if held > best:
            best, right = held, model.predict(test) == labels["test"]
    return right
