"""The measures against closed forms and independent computations."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from sklearn.linear_model import LogisticRegression

from eval import bits_per_dim, log_z, probe, supervised
from eval.bits_per_dim import simple_codes
from eval.density import Cells, divergence, integral, jensen_shannon, measure
from eval.labelled import draws, middle, subset
from eval.logistic import fits
from eval.probe import classify, effective_rank, extract, open_maps
from eval.score import Score, accuracy_score, standard_error
from fce.data import toy
from fce.data.batches import Images, Points
from fce.data.pixels import dequantize
from fce.data.toy import grid
from fce.energy import make_energy
from fce.flow.sampler import Gaussian
from pipeline.catalogue import STAGES
from pipeline.checkpoint import save
from pipeline.job import Job
from pipeline.schema.experiment import Sections
from pipeline.schema.measures import BitsPerDim, LogZ, Probe, Supervised
from pipeline.schema.training import Energy
from pipeline.sources import sources

PARTS = ("train", "validation", "test")
ENERGY = Energy(layers="conv", widths=[2, 3], slope=0.2)
TRAINING = {"fce/game.py", "fce/supply.py", "fce/watch.py", "fce/stages/joint.py"}


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.file.startswith("eval/")])
def test_a_measure_computes_with_nothing_that_trains(name: str) -> None:
    """So that an edit of the training loops asks for no measure of a finished model again."""
    assert set(sources("fce/stages/joint.py")) >= TRAINING
    assert [file for file in sources(STAGES[name].file) if file in TRAINING or file.startswith("fce/stages/")] == []


def gaussian(x: torch.Tensor, mean: float) -> torch.Tensor:
    return -0.5 * (x.double() - mean).square().sum(1) - math.log(2 * math.pi)


def test_divergences_of_two_gaussians_are_their_closed_forms() -> None:
    cells = grid(9.0, 600)
    p, q = gaussian(cells, -0.5), gaussian(cells, 0.5)
    assert integral(p.exp(), 9.0) == pytest.approx(1, abs=1e-6)
    assert divergence(p, q, 9.0) == pytest.approx(1.0, abs=1e-6)  # |difference of means|^2 / 2, in two dimensions
    assert divergence(p, p, 9.0) == 0
    assert 0 < jensen_shannon(p, q, 9.0) < math.log(2)
    assert jensen_shannon(p, q, 9.0) == pytest.approx(jensen_shannon(q, p, 9.0), abs=1e-9)


def points_of(truth: toy.Density) -> Points:
    x = truth.sample(500, torch.Generator().manual_seed(0))
    return Points({"test": x.numpy(), "test_log_prob": truth.log_prob(x).numpy()}, truth, "cpu")


def measured(name, log_density, data: Points, points: int):
    grids = [Cells.of(data, *each) for each in ((5, points), (5, points // 2), (10, points))]
    return measure(name, log_density, data, grids)


@pytest.fixture
def points() -> Points:
    return points_of(toy.ring(modes=8, radius=2.0, std=0.3))


def test_lost_and_spilled_mass_is_found() -> None:
    """A model that has lost half of a checkerboard, and one whose standard deviation is twice the data's."""
    board = points_of(toy.density("checkerboard", squares=4, side=1.0))

    def left(x):
        return board.density.log_prob(x).clamp(min=-60) - 60 * (x[:, 0] > 0)

    half = measured("ebm", left, board, 400)
    found = {score.name: score.value for score in half[0]}
    assert found["smallest_mode_mass"] == pytest.approx(0, abs=1e-6)
    masses = [value for name, value in found.items() if name.startswith("mode_mass_")]
    assert sorted(masses) == pytest.approx([0] * 4 + [2] * 4, abs=1e-3)
    assert found["mass_outside"] == pytest.approx(0, abs=1e-3)
    assert all(math.isfinite(value) for value in found.values())
    one = points_of(toy.ring(modes=1, radius=1e-9, std=0.5))
    wide = measured("flow", lambda x: -x.double().square().sum(1) / 2 - math.log(2 * math.pi), one, 400)
    outside = next(score.value for score in wide[0] if score.name == "mass_outside")
    assert outside == pytest.approx(0.01 ** 0.25, abs=2e-3)  # P(|x| > r) = exp(-r^2 / 2 sd^2), r^2 = -2 log(0.01) / 4


@pytest.mark.parametrize("offset", [0.0, 0.7])
def test_the_true_density_up_to_a_constant_has_no_error_but_its_constant(points: Points, offset: float) -> None:
    scores, log_z = measured("ebm", lambda x: points.density.log_prob(x) + offset, points, 300)
    found = {score.name: score.value for score in scores}
    assert log_z == pytest.approx(offset, abs=1e-4)
    assert found["log_z_error"] == pytest.approx(offset, abs=1e-4)
    assert found["mse_log_density"] == pytest.approx(offset**2, abs=1e-4)
    for name in ("kl", "jsd", "total_variation", "mse_log_density_normalised", "quadrature_error"):
        assert found[name] == pytest.approx(0, abs=1e-3), name


def test_escaping_mass_is_reported(points: Points, caplog) -> None:
    """A tenth of the mass in a strip that only the larger box has."""

    def spilled(x):
        aside = ((x[:, 0] > 6) & (x[:, 0] < 7)).double() * 0.1 / 20
        return (points.density.log_prob(x).exp() * 0.9 + aside).clamp(min=1e-30).log()

    scores, _ = measured("ebm", spilled, points, 300)
    found = {score.name: score for score in scores}
    assert found["log_z_error"].quadrature_error == pytest.approx(math.log(1 / 0.9), abs=1e-3)
    assert found["quadrature_error"].value >= found["kl"].quadrature_error > 0.05
    assert found["log_likelihood"].quadrature_error is None
    assert "does mass escape?" in caplog.text


def image_data(train: np.ndarray, test: np.ndarray, levels: int) -> Images:
    parts = {"train": train, "validation": test, "test": test}
    arrays = {f"{name}_images": value for name, value in parts.items()}
    labels = {f"{name}_labels": np.zeros(len(value), int) for name, value in parts.items()}
    return Images({"levels": np.array(levels), **arrays, **labels}, "cpu")


def test_simple_codes_cost_what_they_should() -> None:
    constant = np.full((15, 8, 8, 1), 3, np.uint8)
    uniform, histogram = simple_codes(image_data(constant, constant[:4], levels=16))
    assert uniform.value == 4
    assert histogram.value == pytest.approx(-math.log2(16 / 31))  # 15 of its level seen, and one of each level


def test_the_standard_error_is_the_bootstraps() -> None:
    rng = np.random.default_rng(0)
    a, b = torch.from_numpy(rng.random(300) < 0.9), torch.from_numpy(5 * rng.standard_normal(400))
    for samples in ((a,), (b,), (a, b)):
        drawn = bootstrap([x.double().numpy() for x in samples], lambda *x, axis: sum(y.mean(axis) for y in x) / len(x),
                          n_resamples=4000, method="percentile", rng=rng)
        assert standard_error(*samples) == pytest.approx(drawn.standard_error, rel=0.05)
    assert standard_error(b) == standard_error(b)
    assert standard_error(b[:1]) is None
    for alike in (torch.ones(25), torch.zeros(25)):  # Wilson's interval of 25 of 25 begins at 0.867
        assert standard_error(alike) == pytest.approx((1 - 0.8668) / 1.96, rel=1e-3)
    assert standard_error(torch.full((25,), 2.5)) == 0


def test_an_accuracy_keeps_its_draws_and_its_error_is_over_test_images() -> None:
    right = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    score = accuracy_score("accuracy", "features", right, "here", 50)
    assert (score.value, score.n, score.labels) == (pytest.approx(4 / 6), 6, 50)
    assert score.draws == pytest.approx([3 / 6, 4 / 6, 5 / 6])
    assert score.standard_error == pytest.approx(right.double().mean(0).std().item() / 6**0.5)
    assert score.protocol == "here; mean over 3 draws of labels"


def noise_images(counts: dict[str, int]) -> Images:
    """So many images of each part, without structure, of 17 levels."""
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 17, (n, 8, 8, 1)).astype(np.uint8) for part, n in counts.items()}
    labels = {f"{part}_labels": np.arange(n) % 10 for part, n in counts.items()}
    return Images({"levels": np.array(17), **arrays, **labels}, "cpu")


def save_players(path: Path) -> Path:
    """The checkpoint of an untrained EBM, and a Gaussian as its noise model."""
    shape, energy = (1, 8, 8), ENERGY.model_dump()
    save(path, {
        "kind": "joint", "shape": list(shape), "joint_params": {"energy": "plain", "noise": "gaussian"},
        "energy_params": energy, "flow_params": {},
        "energy": make_energy(shape, **energy).state_dict() | {"c": torch.tensor(-100.0)},
        "flow": Gaussian(shape).state_dict()})
    return path


PARAMS = Sections.model_construct(
    energy=ENERGY,
    probe=Probe(labels=[20], draws=3, validation=0, inverse_l2=[0.1]),
    supervised=Supervised(batch=8, updates=2, epochs=1, validations=1, lr=[1e-3], weight_decay=[0.01]),
    bits_per_dim=BitsPerDim(draws=2, batch=20),
    log_z=LogZ(samples=512, batch=256, level=0.99, chains=4, temperatures=2, leapfrog=1),
)


def scores_of(stage: Any, monkeypatch: pytest.MonkeyPatch, **job: Any) -> dict[tuple[str, str, int | None], Score]:
    """{(name, model, labels): score} of a stage that is run on PARAMS."""
    found: list[Score] = []
    monkeypatch.setattr(stage, "write_scores", lambda _, scores: found.extend(scores))
    record = SimpleNamespace(log=lambda *_, **__: None)
    stage.run(Job(stage.__name__.removeprefix("eval."), PARAMS, Path("out.json"), record=record, **job))
    return {(score.name, score.model, score.labels): score for score in found}


def test_what_is_measured_per_image_has_a_standard_error(tmp_path, monkeypatch) -> None:
    """The stages themselves, on noise: a seed that is alone has an interval then."""
    data, model = noise_images(dict.fromkeys(PARTS, 40)), save_players(tmp_path / "joint.pt")
    found = {stage: scores_of(stage, monkeypatch, data=data,
                              inputs={} if stage in (probe, supervised) else {"model": model})
             for stage in (bits_per_dim, log_z, probe, supervised)}
    assert all(score.standard_error > 0 for score in found[bits_per_dim].values())
    assert found[bits_per_dim]["bits_per_dim", "ebm", None].n == 40
    assert found[log_z]["told_apart", "ebm", None].standard_error is not None
    for stage, name in ((probe, "features"), (supervised, "network")):
        few, every = (found[stage]["accuracy", name, count] for count in (20, 40))
        assert (len(few.draws), len(every.draws)) == (3, 1) and few.n == every.n == 40
        assert few.standard_error > 0


def test_all_models_of_a_seed_see_the_same_images_with_the_same_noise(tmp_path, monkeypatch) -> None:
    """In both stages, so that the learned c gives one number; of the training part as many images as of the test's."""
    data, seen = noise_images({"train": 90, "validation": 0, "test": 40}), list[tuple[int, torch.Tensor]]()

    def look(images: torch.Tensor, levels: int, generator: torch.Generator) -> torch.Tensor:
        x = dequantize(images, levels, generator)
        seen.append((generator.initial_seed(), x))
        return x

    monkeypatch.setattr(bits_per_dim, "dequantize", look)
    found, inputs = {}, {"model": save_players(tmp_path / "joint.pt")}
    for seed, arm, stage in [(0, "joint", bits_per_dim), (0, "tilted", bits_per_dim), (0, "joint", log_z),
                             (0, "tilted", log_z), (1, "joint", bits_per_dim)]:
        seen.clear()
        scores = scores_of(stage, monkeypatch, data=data, seed=seed, tags={"arm": arm}, inputs=inputs)
        drawn = {part: torch.cat([x for at, x in seen if at == part]) for part, _ in seen}
        found[seed, arm, stage] = scores, drawn
    scores, drawn = found[0, "joint", bits_per_dim]
    assert len(drawn) == 2 and {name for name, _, _ in scores} == {"bits_per_dim", "bits_per_dim_train"}
    for stage in (bits_per_dim, log_z):
        for arm in ("joint", "tilted"):
            others = found[0, arm, stage][1]
            assert drawn.keys() == others.keys()  # the test's noise, and the training images'
            assert all(torch.equal(drawn[part][:40], x[:40]) for part, x in others.items())
    assert not drawn.keys() & found[1, "joint", bits_per_dim][1].keys()  # another seed has its own
    by_log_z = found[0, "tilted", log_z][0]
    assert by_log_z["bits_per_dim_learned", "ebm", None].value == pytest.approx(
        scores["bits_per_dim", "ebm", None].value, abs=1e-6)
    assert {score.n for score in scores.values()} == {40} == {
        by_log_z[f"told_apart_data{part}", "ebm", None].n for part in ("", "_test")}


def test_training_images_are_told_apart_by_the_training_images(tmp_path, monkeypatch) -> None:
    """Training images are dark and test images bright; an EBM that is above its flow on dark ones knows the first."""
    dark, bright = np.zeros((60, 8, 8, 1), np.uint8), np.full((40, 8, 8, 1), 16, np.uint8)
    energy = SimpleNamespace(log_ratio=lambda x, log_q: -x.flatten(1).sum(1) - log_q)
    flow = SimpleNamespace(log_prob=lambda x: torch.zeros(len(x)))
    job = Job("log_z", PARAMS, tmp_path, {}, data=image_data(dark, bright, 17))
    found = {score.name: score for score in log_z.told_apart(energy, flow, torch.ones(30).double(), job)}
    values = {name: score.value for name, score in found.items()}
    assert values == {"told_apart": 1, "told_apart_data": 1, "told_apart_gen": 1, "told_apart_test": 0.5,
                      "told_apart_data_test": 0}
    assert (found["told_apart"].n, found["told_apart_data"].n) == (70, 40)
    assert "training images" in found["told_apart"].protocol and "test images" in found["told_apart_test"].protocol


def test_labelled_subsets_are_balanced_nested_and_drawn_by_seed() -> None:
    labels = np.repeat(np.arange(10), 30)
    small, large = subset(labels, 50, seed=1), subset(labels, 120, seed=1)
    assert list(large[:50]) == list(small)
    assert (np.bincount(labels[small]) == 5).all()
    assert len(set(large)) == 120
    assert set(subset(labels, 50, seed=2)) != set(small)


def test_draws_are_subsets_and_at_last_all_labels_once() -> None:
    labels = np.repeat(np.arange(10), 12)
    found = list(draws(labels, Probe(labels=[50, 100, 120, 500], draws=3, validation=0, inverse_l2=[1.0])))
    assert [(count, len(chosen)) for count, chosen in found] == [(50, 3), (100, 3), (120, 1)]
    assert all((index == subset(labels, count, seed)).all() for count, chosen in found[:2]
               for seed, index in enumerate(chosen))
    assert sorted(found[2][1][0]) == list(range(120))


def test_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0].astype(np.float32)
    sides = np.repeat(np.vstack([np.eye(7), -np.eye(7)]), 3, axis=0).astype(np.float32)  # seven directions alike
    assert effective_rank(torch.from_numpy(sides @ basis[:7] + 100)) == pytest.approx(7, rel=1e-3)
    sides[:, 0] *= 1e4
    assert effective_rank(torch.from_numpy(sides @ basis[:7])) == pytest.approx(1, rel=1e-3)


def test_features_are_the_top_layer_or_all_layers_pooled() -> None:
    images = np.random.default_rng(0).integers(0, 17, (5, 32, 32, 1)).astype(np.uint8)
    data = image_data(images, images, levels=17)
    energy = Energy(layers="conv", widths=[2, 3, 4], slope=0.2)
    job = Job("probe", Sections.model_construct(energy=energy), Path("probe.json"), {}, seed=3, data=data)
    maps = open_maps(job)
    with torch.no_grad():
        first, second, third = maps(middle(data.images["test"], 17))
    top, every = extract(maps, data, "test").values()
    assert (top == third.flatten(1)).all() and top.shape == (5, 4 * 4 * 4)
    assert every.shape == (5, (2 + 3 + 4) * 4 * 4) and (every[:, -64:] == top).all()
    assert every[0, 0] == first[0, 0, :4, :4].max() and every[0, 32] == second[0, 0, :2, :2].max()
    job.seed = 4  # another random EBM
    assert not (extract(open_maps(job), data, "test")[""] == top).all()


def test_the_probe_separates_what_is_separable_and_guesses_what_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = {part: np.arange(400) % 10 for part in ("train", "validation", "test")}
    noise = {part: torch.from_numpy(rng.normal(size=(400, 30))).float() for part in labels}
    clear = {part: noise[part] + 8 * torch.eye(30)[labels[part]] for part in labels}
    index = subset(labels["train"], 100, seed=0)
    assert classify(clear, labels, index, [0.01, 1.0]).mean() > 0.99
    assert classify(noise, labels, index, [0.01, 1.0]).mean() < 0.25


@pytest.mark.parametrize("images", [40, 300])  # fewer than the 60 features, and more
def test_logistic_regression_finds_scikit_learns_minimum(images) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, 20)) @ (rng.normal(size=(20, 60)) * np.logspace(0, -3, 60))  # collinear
    x, y = (x - x.mean(0)) / x.std(0), rng.permutation(np.arange(images) % 3)
    found = fits(torch.from_numpy(x), torch.from_numpy(y), (1e-3, 1e-1))
    for c, (weights, bias) in zip((1e-3, 1e-1), found, strict=True):
        model = LogisticRegression(C=c, tol=1e-8, max_iter=10_000).fit(x, y)
        assert np.abs(model.coef_.T - weights.numpy()).max() < 1e-3 * np.abs(model.coef_).max()
        assert np.ptp(model.intercept_ - bias.numpy()) < 1e-3  # a constant more in all of them changes nothing


def test_logistic_regression_bears_copies_of_a_feature_and_almost_no_penalty() -> None:
    x = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).repeat(1, 40)
    y = (x[:, 0] > 0).long()
    weights, bias = list(fits(x - x.mean(0), y, [1e9]))[-1]
    assert ((x @ weights.float() + bias).argmax(1) == y).float().mean() > 0.95


def test_features_that_never_change_and_labels_of_any_name_are_classified() -> None:
    labels = {part: np.array([7, 300])[np.arange(40) % 2] for part in ("train", "validation", "test")}
    features = {part: torch.stack([torch.full((40,), 0.1), torch.from_numpy(y / 100.0).float()], 1)
                for part, y in labels.items()}
    assert classify(features, labels, np.arange(40), [1.0]).all()


def test_the_histograms_code_is_that_of_each_pixel() -> None:
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 5, (n, 4, 4, 1)).astype(np.uint8) for n in (30, 7))
    shares = [[(1 + (train[:, i, j, 0] == level).sum()) / 35 for level in range(5)] for i in range(4) for j in range(4)]
    expected = np.mean([-sum(np.log2(shares[k][image.ravel()[k]]) for k in range(16)) / 16 for image in test])
    found = {score.name: score.value for score in simple_codes(image_data(train, test, 5))}
    assert found["bits_per_dim_histogram"] == pytest.approx(expected, abs=1e-6)
    assert found["bits_per_dim_uniform"] == pytest.approx(np.log2(5))
