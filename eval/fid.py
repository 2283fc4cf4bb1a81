"""Fréchet distances of samples to the training images (Table 1), and what goes with them.

By torch-fidelity. With Inception's features (2015-12-05, the TTUR protocol) it is FID, with any others FD. From the
same features: the kernel distance (KID or KD), precision and recall, the distance extrapolated to infinitely many
samples, and the floors: what real images score that are drawn as the samples are.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch_fidelity import metric_kid, metric_prc

from eval.features import Extractor, extract, kept, open_look
from eval.frechet import Moments, frechet, moments
from eval.score import Model, Score, write_scores
from pipeline.errors import UserError
from pipeline.files import read_arrays
from pipeline.job import Job
from pipeline.progress import log
from pipeline.schema.measures import Fid, Infinity, Kernel, Neighbours

REPEATS = 1e-3  # of the images that make a floor, so large a share may be expected to come twice


@dataclass(frozen=True)
class Reference:
    """The training images: their features [N, F], the features' moments, and the chance that draws subsets."""

    features: Tensor
    moments: Moments
    look: Extractor
    rng: np.random.Generator
    device: str


def run(job: Job) -> None:
    settings, images, place = job.params.fid, job.data.arrays, job.inputs["samples"]
    train, test = np.concatenate([images["train_images"], images["validation_images"]]), images["test_images"]
    file = read_arrays(place, ("images",), ("temperature", "kind"))
    samples, kind = file["images"], str(file.get("kind", ""))
    what = f"{len(samples)} floor-quantised samples"
    if "temperature" in file:
        what += f", temperature {float(file['temperature']):g}"
    if samples.dtype != np.uint8:
        raise UserError(f"{place}, images: dtype {samples.dtype}, but grey levels are uint8; make the samples again")
    look = open_look(job)
    fewer = "set fid.features to classifier" if settings.features == "inception" else "lower classifier.features"
    refuse_too_few(look.size, settings, len(samples), len(train), len(test), fewer)
    found, held = (kept(job, part, look, each) for part, each in (("train", train), ("test", test)))
    real = Reference(found, moments(found), look, np.random.default_rng(job.seed_for("subsets")), job.device)
    drawn = extract(look, samples, settings.batch, job.device)
    model: Model = "generator" if kind == "dcgan" else "flow"
    scores = of_samples(drawn, real, settings, model, what) + to_test(drawn, held, real, model, what)
    scores += by_class(drawn, real, model, what)
    if kind == "pretrain":  # once per seed, not once per arm
        scores += of_test(held, images["test_labels"], real, settings) if "test_labels" in images else []
        scores += of_halves(real)
    write_scores(job, scores)


def refuse_too_few(size: int, settings: Fid, samples: int, train: int, test: int, fewer: str) -> None:
    """Raise UserError where a covariance of `size` features would not have full rank, or an image not k neighbours."""
    draws, smallest = settings.draws, settings.infinity.smallest
    for where, count, mend in (
        ("the training part", train, f"give more images, or {fewer}"),
        ("sample.count", samples, f"raise it, or {fewer}"),
        (f"fid.draws: each of {draws} parts of {samples} samples", samples // draws, "lower it, or raise sample.count"),
        (f"fid.infinity.smallest: {smallest} of {samples} samples", round(smallest * samples), "raise it"),
    ):
        if count <= size:
            raise UserError(f"{where}: {count} images; a covariance of {size} features needs {size + 1}: {mend}")
    k, fewest = settings.neighbours.k, min(samples, train, test)
    if k >= fewest:
        raise UserError(f"fid.neighbours.k: {k}, but one set of images has only {fewest}; lower it")


def of_samples(found: Tensor, real: Reference, settings: Fid, model: Model, what: str) -> list[Score]:
    """Every score of the samples' features [N, F] against the training images."""
    distance, *others = compare(found, real, settings, model, what)
    # One file of samples serves every measure. What drawing it again would change is seen in its disjoint parts: a
    # distance is a smooth function of means over samples, so its variance falls as 1/N. More files would cost as many
    # times the sampling and the features, and the runs' seeds redraw the file anyway.
    draws, size = settings.draws, len(found) // settings.draws
    parts = [frechet(part, real.moments) for part in draw(found, draws * size, real.rng).split(size)]
    error = float(np.std(parts, ddof=1)) / math.sqrt(draws)
    spread = f"standard error from {draws} disjoint parts of {size} ({min(parts):.4g} to {max(parts):.4g})"
    value, fit_error, sizes = extrapolate(found, real, settings.infinity)
    # the errors over subsets that overlap are in words only: they are too small to judge a seed by that is alone
    by_line = (f"{distance.protocol}; extrapolated to infinitely many samples by a line in 1/N through random subsets "
               f"of {sizes[0]} to {sizes[-1]}; standard error of the fit, whose subsets overlap, {fit_error:.3g}")
    limit = {"name": f"{distance.name}_infinity", "value": value, "protocol": by_line}
    known = {"standard_error": error, "shared": False, "protocol": f"{distance.protocol}; {spread}"}
    return [distance.model_copy(update=known), distance.model_copy(update=limit), *others]


def to_test(found: Tensor, held: Tensor, real: Reference, model: Model, what: str) -> list[Score]:
    """The Fréchet distance of the samples' features [N, F] to the test images' [T, F], beside the headline's."""
    if len(held) <= real.look.size:
        log.warning("no distance to the %d test images: too few for %d features", len(held), real.look.size)
        return []
    return [Score(name=f"{real.look.names.frechet}_test", model=model, value=frechet(found, moments(held)),
                  n=len(found), protocol=f"{what}, against the {len(held)} test images, {real.look.words}")]


def by_class(found: Tensor, real: Reference, model: Model, what: str) -> list[Score]:
    """By the classes that the classifier sees in features [N, F]: are all there, and how far is each from its own?"""
    if real.look.classes is None:
        return []
    drawn, trained = (real.look.classes(features) for features in (found, real.features))
    classes = int(max(drawn.max(), trained.max())) + 1
    counts = [torch.bincount(each, minlength=classes).double() for each in (drawn, trained)]
    shares = [each / each.sum() for each in counts]
    protocol = f"{what}, by the classes that {real.look.words} tell"
    scores = [Score(name="class_coverage", model=model, value=1 - 0.5 * (shares[0] - shares[1]).abs().sum().item(),
                    n=len(found), protocol=f"1 - total variation from those of the training images; {protocol}")]
    if min(map(min, counts)) > real.look.size:
        each = [frechet(found[drawn == k], moments(real.features[trained == k])) for k in trained.unique()]
        scores.append(Score(name="frechet_distance_by_class", model=model, value=float(np.mean(each)), n=len(found),
                            protocol=f"mean over {len(each)} classes ({min(each):.4g} to {max(each):.4g}); {protocol}"))
    return scores


def of_test(found: Tensor, labels: np.ndarray, real: Reference, settings: Fid) -> list[Score]:
    """The floors, by the test images' features [N, F] and labels [N]; none where they are too few.

    Means over draws of independent images, as a model's samples are: a test part with as many of every class as there
    ought to be, which many are, scores less than any model can.
    """
    n, draws = independent_size(labels), settings.draws
    if n <= max(real.look.size, settings.neighbours.k):
        log.warning("no floor: %d of the %d test images, as many as can be drawn as samples are, are too few for %d "
                    "features", n, len(found), real.look.size)
        return []
    what = f"{n} of the {len(found)} real test images, drawn as samples are, with class counts at random"
    drawn = [compare(found[independent(labels, n, real.rng)], real, settings, "data", what, "_floor")
             for _ in range(draws)]
    scores = []
    for same in zip(*drawn, strict=True):
        values = [score.value for score in same]
        error = float(np.std(values, ddof=1)) / math.sqrt(draws)
        words = (f"{same[0].protocol}; so the first of {draws} such draws, which overlap; the value is their mean "
                 f"({min(values):.4g} to {max(values):.4g}), standard error {error:.3g}")
        scores.append(same[0].model_copy(update={"value": float(np.mean(values)), "protocol": words}))
    return scores


def independent_size(labels: np.ndarray) -> int:
    """The largest n of which `independent` is expected to repeat a share of REPEATS at most; labels [N].

    A class of c images is asked for X ~ Binomial(n, c / N) and repeats (X - c)+, where E (X - c)+ =
    n c / N P(Binomial(n - 1, c / N) >= c) - c P(X > c).
    """
    from scipy.stats import binom  # takes a second to import

    counts = np.unique(labels, return_counts=True)[1][:, None]
    n, share = np.arange(1, len(labels) + 1), counts / len(labels)
    repeats = (n * share * binom.sf(counts - 1, n - 1, share) - counts * binom.sf(counts, n, share)).sum(0)
    return int(n[repeats <= REPEATS * n].max())


def independent(labels: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of n random images, class counts multinomial with the shares of labels [N].

    Each image comes once, before any of its class comes twice.
    """
    classes, counts = np.unique(labels, return_counts=True)
    asked = rng.multinomial(n, counts / len(labels))
    return np.concatenate([np.resize(rng.permutation(np.flatnonzero(labels == label)), count)
                           for label, count in zip(classes, asked, strict=True)])


def of_halves(real: Reference) -> list[Score]:
    """What the training images score among themselves; none where they are too few for a covariance."""
    size = len(real.features) // 2
    if size <= real.look.size:
        log.warning("no distance of halves: %d training images are too few for %d features", size, real.look.size)
        return []
    first, second = draw(real.features, 2 * size, real.rng).split(size)
    return [Score(name=f"{real.look.names.frechet}_halves", model="data", value=frechet(first, moments(second)), n=size,
                  protocol=f"two disjoint random halves of the training images, {size} each, {real.look.words}")]


def compare(found: Tensor, real: Reference, settings: Fid, model: Model, what: str, suffix: str = "") -> list[Score]:
    """The Fréchet and the kernel distance, precision and recall of features [N, F] against the training images."""
    names, protocol = real.look.names, f"{what}, against all {len(real.features)} training images, {real.look.words}"
    kernel, error, size = kernel_distance(found, real, settings.kid)
    precision, recall, n = precision_recall(found, real, settings.neighbours)
    subsets, k = settings.kid.subsets, settings.neighbours.k
    by_kernel = (f"{protocol}; mean over {subsets} random subsets of {size} of each; their standard error, but that "
                 f"they overlap, {error:.3g}")
    by_neighbours = f"{protocol}; {n} random images of each, balls up to neighbour {k}"

    numbers = {names.frechet: (frechet(found, real.moments), len(found), protocol),
               names.kernel: (kernel, subsets, by_kernel),
               "precision": (precision, n, by_neighbours), "recall": (recall, n, by_neighbours)}
    return [Score(name=name + suffix, model=model, value=value, n=n, protocol=protocol)
            for name, (value, n, protocol) in numbers.items()]


def extrapolate(found: Tensor, real: Reference, settings: Infinity) -> tuple[float, float, list[int]]:
    """The Fréchet distance of infinitely many samples, from features [N, F] (Chong and Forsyth, arXiv 1911.07023).

    Returns:
        Where a least-squares line in 1/N meets 0, its standard error, and the sizes N it goes through.
    """
    from scipy.stats import linregress  # takes a second to import

    sizes = np.linspace(settings.smallest * len(found), len(found), settings.points).round().astype(int)
    values = [frechet(draw(found, size, real.rng), real.moments) for size in sizes]
    line = linregress(1 / sizes, values)
    return float(line.intercept), float(line.intercept_stderr), sizes.tolist()


def kernel_distance(found: Tensor, real: Reference, settings: Kernel) -> tuple[float, float, int]:
    """The mean kernel distance over random subsets, its standard error over them, and the subsets' size."""
    size = min(settings.size, len(found), len(real.features))
    both = metric_kid.kid_features_to_metric(
        found, real.features, kid_subsets=settings.subsets, kid_subset_size=size,
        rng_seed=int(real.rng.integers(2**32)), verbose=False)
    deviation = both[metric_kid.KEY_METRIC_KID_STD]
    return both[metric_kid.KEY_METRIC_KID_MEAN], deviation / math.sqrt(settings.subsets), size


def precision_recall(found: Tensor, real: Reference, settings: Neighbours) -> tuple[float, float, int]:
    """Precision and recall (arXiv 1904.06991) of as many random images of each, and their number."""
    n = min(settings.images, len(found), len(real.features))
    first, second = (draw(features, n, real.rng).to(real.device) for features in (found, real.features))
    both = metric_prc.prc_features_to_metric(first, second, prc_neighborhood=settings.k, save_cpu_ram=True,
                                             verbose=False)
    return both[metric_prc.KEY_METRIC_PRECISION], both[metric_prc.KEY_METRIC_RECALL], n


def draw(features: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """n random rows of features [N, F], each at most once."""
    return features[torch.from_numpy(rng.permutation(len(features))[:n])]
