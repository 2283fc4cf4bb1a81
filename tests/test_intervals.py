"""Intervals: they hold the population's value as often as they say, and differences are paired image by image."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from eval.score import Score, accuracy_score, mean_score, read_per_image, write_scores
from pipeline.catalogue import STAGES
from pipeline.errors import UserError
from pipeline.job import Job, tags_of
from reports.scores import by_seed, score_files, score_table
from reports.verdicts import Values, half_width, ordering_verdict

IMAGES, RUNS = 400, 200


def of_seeds(images: np.ndarray) -> Values:
    """Values [seeds, images], or [seeds, draws, images], as a measure's scores give them; no bootstrap, for speed."""
    share = images.mean(1) if images.ndim == 3 else images
    return Values.of(pd.DataFrame({
        "seed": range(len(images)), "value": share.mean(1), "shared": True,
        "standard_error": share.std(1) / math.sqrt(images.shape[-1]),
        "draws": images.mean(2).tolist() if images.ndim == 3 else [None] * len(images),
        "images": [lambda each=each: each for each in share]}))


def shares(rng: np.random.Generator, p: float, seed_sd: float) -> Iterator[tuple[float, Values]]:
    """(the population's value, Values) of a share of images: p of them, the same for every seed, but for its level."""
    for _ in range(RUNS):
        yield p, of_seeds((rng.random(IMAGES) < p) + seed_sd * rng.normal(size=(3, 1)))


def bits(rng: np.random.Generator, seeds: int) -> Iterator[tuple[float, Values]]:
    """Bits/dim whose images spread as those of the digits do, ± 0.0255; a seed does a little to each image too."""
    for _ in range(RUNS):
        image, own = 0.26 * rng.normal(size=IMAGES), 0.05 * rng.normal(size=(seeds, IMAGES))
        yield 2.05, of_seeds(2.05 + image + 0.009 * rng.normal(size=(seeds, 1)) + own)


def differences(rng: np.random.Generator) -> Iterator[tuple[float, Values]]:
    """Two arms' bits/dim, whose images correlate by 0.9."""
    for _ in range(RUNS):
        both = 0.26 * rng.multivariate_normal([0, 0], [[1, 0.9], [0.9, 1]], IMAGES).T
        first, second = (2 + image + 0.003 * rng.normal(size=(3, 1)) for image in both)
        yield 0.0, of_seeds(first) - of_seeds(second)


def accuracies(rng: np.random.Generator) -> Iterator[tuple[float, Values]]:
    """Accuracies near 0.9 with 5 draws of labels: an image has its difficulty, a seed and a draw their level."""
    for _ in range(RUNS):
        level = 0.01 * rng.normal(size=(3, 1, 1)) + 0.01 * rng.normal(size=(1, 5, 1))
        difficulty = rng.beta(0.9, 0.1, IMAGES)  # most are always right, some never, few in between
        yield 0.9, of_seeds(rng.random((3, 5, IMAGES)) < difficulty + level * (difficulty < 1))


@pytest.mark.parametrize(("case", "settings"), [(shares, (0.894, 0.003)), (shares, (0.894, 0.01)), (bits, (3,)),
                                                (bits, (5,)), (differences, ()), (accuracies, ())])
def test_95_percent_of_the_intervals_hold_the_populations_value(case, settings):
    inside = over_seeds = 0
    for true, values in case(np.random.default_rng(0), *settings):
        mean, half = values.interval()
        inside += abs(mean - true) <= half
        over_seeds += abs(mean - true) <= half_width(values.means.to_numpy())
    assert inside >= 0.93 * RUNS
    assert over_seeds < 0.85 * RUNS  # so many without the images that the seeds share


def write(root: Path, measure: str, seed: int, arm: str, *scores: Score) -> Path:
    """The scores as the stage `measure` writes them."""
    out = root / "build" / "full" / "digits" / f"seed-{seed}" / arm / f"{measure}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    record = SimpleNamespace(log=lambda *_, **__: None)
    write_scores(Job(measure, None, out, {}, seed, tags=tags_of(out, measure), record=record), list(scores))
    return out


def read(root: Path) -> pd.DataFrame:
    return score_table(score_files(root / "build" / "full").values())


@pytest.fixture(autouse=True)
def no_parameters(monkeypatch):
    monkeypatch.setattr(Job, "provenance", lambda _: {})


def test_differences_are_paired_image_by_image(tmp_path):
    generator = torch.Generator().manual_seed(0)
    image = 0.26 * torch.randn(400, generator=generator)
    first, second = (2 + level + image + 0.02 * torch.randn(400, generator=generator) for level in (0.1, 0))
    for arm, bits in (("joint", first), ("mle", second)):
        written = write(tmp_path, "bits_per_dim", 0, arm, mean_score("bits_per_dim", "flow", bits, "on test images"))
    found = read(tmp_path)
    ours, theirs = (by_seed(found, arm=arm, name="bits_per_dim") for arm in ("joint", "mle"))
    paired = (first - second).std().item() / 20
    assert (ours - theirs).errors[0] == pytest.approx(paired, rel=1e-4)
    assert (ours - theirs).shared[0] == (ours - theirs).errors[0] < 0.2 * ours.errors[0]
    written.with_suffix(".npz").unlink()  # as an older run has left it, which kept no values
    before = read(tmp_path)
    ours, theirs = (by_seed(before, arm=arm, name="bits_per_dim") for arm in ("joint", "mle"))
    assert (ours - theirs).errors[0] == pytest.approx(math.hypot(ours.errors[0], theirs.errors[0]))
    written.with_suffix(".npz").write_bytes(b"no zip")
    assert len(by_seed(read(tmp_path), arm="mle", name="bits_per_dim")) == 1, "read where a difference needs it alone"
    with pytest.raises(UserError, match=r"bits_per_dim.npz is not a readable npz file"):
        by_seed(found, arm="joint", name="bits_per_dim") - by_seed(found, arm="mle", name="bits_per_dim")


def test_accuracies_are_paired_over_their_draws_and_label_counts(tmp_path):
    rng = np.random.default_rng(0)
    right = {arm: [torch.from_numpy(rng.random((draws, 50)) < p) for draws in (5, 1)]
             for arm, p in (("joint", 0.8), ("supervised", 0.6))}
    for arm, measure, model in (("joint", "probe", "features"), ("supervised", "supervised", "network")):
        written = write(tmp_path, measure, 0, arm, *(accuracy_score("accuracy", model, each, "here", labels)
                                                     for each, labels in zip(right[arm], (20, 100), strict=True)))
    found = read(tmp_path)
    difference = by_seed(found, arm="joint", name="accuracy") - by_seed(found, arm="supervised", name="accuracy")
    mean = {arm: sum(each.double().mean(0) for each in both) / 2 for arm, both in right.items()}
    assert difference.errors[0] == pytest.approx((mean["joint"] - mean["supervised"]).std().item() / 50**0.5)
    with np.load(written.with_suffix(".npz")) as file:
        assert {key: (file[key].dtype, file[key].shape) for key in file.files} == {
            "network/accuracy/20": (np.uint8, (5, 50)), "network/accuracy/100": (np.uint8, (1, 50))}
    assert read_per_image(written.with_suffix(".npz"), "network/accuracy/20").tolist() == \
        right["supervised"][0].double().mean(0).tolist()


def test_samples_have_no_image_in_common(tmp_path):
    """Each seed draws its own: nothing is kept, and the spread over seeds has their error."""
    for seed in (0, 1):
        share = torch.arange(10) < 5 + seed
        written = write(tmp_path, "log_z", seed, "joint",
                        mean_score("told_apart_data", "ebm", share.double(), "of test images"),
                        mean_score("told_apart_gen", "ebm", share.double(), "of samples", shared=False))
    with np.load(written.with_suffix(".npz")) as file:
        assert file.files == ["ebm/told_apart_data"]
    data, gen = (by_seed(read(tmp_path), name=name) for name in ("told_apart_data", "told_apart_gen"))
    assert gen.interval()[1] == half_width(np.array([0.5, 0.6]))
    assert data.interval()[1] == pytest.approx(math.hypot(gen.interval()[1], 1.96 * data.errors.mean()))
    assert gen.errors[0] == data.errors[0]  # a seed alone has it


def test_a_score_file_of_before_is_read_and_its_interval_is_not_too_narrow(tmp_path):
    for seed in (0, 1):
        path = write(tmp_path, "bits_per_dim", seed, "mle",
                     mean_score("bits_per_dim", "flow", torch.tensor([2.0, 2.1, 2.2]), "here"))
        content = json.loads(path.read_text())
        assert content["scores"][0].pop("shared") is True and "per_image" not in path.read_text()
        path.write_text(json.dumps(content))
        path.with_suffix(".npz").unlink()
    old = by_seed(read(tmp_path), arm="mle")
    assert old.interval()[1] == pytest.approx(1.96 * old.errors.mean()) and old.errors.mean() > 0.04


def test_what_is_not_finite_has_no_error_and_no_verdict(tmp_path):
    """As a bound on log Z that is -inf: it is shown, and decides nothing."""
    bits = torch.linspace(2, 3, 50)
    for arm, values in (("joint", bits - math.inf), ("mle", bits)):
        write(tmp_path, "bits_per_dim", 0, arm, mean_score("bits_per_dim", "flow", values, "here"))
    found = read(tmp_path)
    difference = by_seed(found, arm="joint", name="bits_per_dim") - by_seed(found, arm="mle", name="bits_per_dim")
    assert difference.means[0] == -math.inf and math.isnan(difference.interval()[1])
    assert ordering_verdict(difference, -math.inf, 0.0) == "undetermined"


def test_every_stage_that_measures_test_images_declares_its_values_per_image():
    kept = {name for name, stage in STAGES.items() if stage.measures and "npz" in stage.beside}
    assert kept == {"density", "bits_per_dim", "log_z", "probe", "supervised", "trajectory"}
    # density's are its pictures, trajectory's its moments
    assert STAGES["probe"].outputs == [STAGES["probe"].out, STAGES["probe"].out.replace(".json", ".npz")]
