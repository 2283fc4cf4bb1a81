"""Measure: linear classification on frozen features, against the number of labelled images (Figure 4)."""

import math
import sys
import warnings

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from eval.score import Score, write_scores
from fce.data.data import Images, open_data
from fce.energy import EnergyModel, make_energy
from fce.joint import load_models
from fce.progress import Progress
from fce.stage import Job, main


def run(job: Job) -> None:
    settings = job.params["probe"]
    data = open_data(job.inputs["data"], {"source": "images"}, job.device)
    assert isinstance(data, Images)
    if "model" in job.inputs:
        energy = load_models(job.inputs["model"], job.device)[0]
    else:  # the paper's "Random Init.": the same network, never trained
        torch.manual_seed(job.seed)
        energy = make_energy(data.shape, job.params["energy"]).to(job.device)
    features = {part: extract(energy, data, part) for part in ("train", "validation", "test")}
    spectrum = np.linalg.svd(features["train"] - features["train"].mean(0), compute_uv=False) ** 2
    share = spectrum / spectrum.sum()
    rank = math.exp(-(share * np.log(np.maximum(share, 1e-300))).sum())
    scores = [
        Score(
            name="effective_rank",
            model="features",
            value=rank,
            unit="dimensions",
            n=len(features["train"]),
            protocol=f"exp of the entropy of the covariance's spectrum, {features['train'].shape[1]} features",
        )
    ]
    total = len(data.labels["train"])
    counts = [count for count in settings["labels"] if count < total] + [total]
    progress = Progress(len(counts))
    for done, count in enumerate(counts, 1):
        draws = settings["draws"] if count < total else 1
        right = [
            accuracy(features, data.labels, subset(data.labels["train"], count, seed), settings["inverse_l2"])
            for seed in range(draws)
        ]
        error = float(np.std(right, ddof=1) / math.sqrt(draws)) if draws > 1 else None
        scores.append(
            Score(
                name="accuracy",
                model="features",
                value=float(np.mean(right)),
                unit="share",
                n=draws,
                labels=count,
                standard_error=error,
                protocol="multinomial logistic regression on standardised top-layer features of the test part; "
                f"L2 chosen on {len(data.labels['validation'])} validation labels; mean over draws of labels",
            )
        )
        progress(done, labels=count, accuracy=scores[-1].value)
    write_scores(job, scores)


@torch.no_grad()
def extract(energy: EnergyModel, data: Images, part: str) -> np.ndarray:
    """Features [N, F] of a part, at the middle of each grey level."""
    chunks = [energy.features((x + 0.5) / data.levels - 0.5).cpu() for x in data.images[part].split(1000)]
    return torch.cat(chunks).numpy()


def subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of `count` training images: balanced over classes, and nested in `count` for one seed."""
    random = np.random.default_rng(seed)
    by_class = [random.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    queue = [indices[i] for i in range(max(map(len, by_class))) for indices in by_class if i < len(indices)]
    return np.array(queue[:count])


def accuracy(
    features: dict[str, np.ndarray], labels: dict[str, np.ndarray], index: np.ndarray, inverse_l2: list[float]
) -> float:
    """Test accuracy of a classifier fitted on the training images `index`, its L2 chosen on the validation part."""
    best = (-1.0, 0.0)
    for c in inverse_l2:
        # PCA keeps every dimension the labelled images span, and an L2 penalty needs no other: exact, and faster
        model = make_pipeline(StandardScaler(), PCA(), LogisticRegression(C=c, max_iter=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an unconverged weak penalty loses on validation
            model.fit(features["train"][index], labels["train"][index])
        held = model.score(features["validation"], labels["validation"])
        if held > best[0]:
            best = (held, model.score(features["test"], labels["test"]))
    return best[1]


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data"], optional=["model"]))
