"""The measures against closed forms and independent computations."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval import bits_per_dim, log_z, probe, supervised
from eval.bits_per_dim import simple_codes
from eval.density import Cells, divergence, integral, jensen_shannon, measure
from eval.labelled import draws, middle, subset
from eval.probe import classify, effective_rank, extract, open_maps
from eval.score import accuracy_score, standard_error
from fce.data.data import Images, Points
from fce.data.toy import grid
from fce.energy import make_energy
from fce.flow.glow import Gaussian
from fce.stage import Job

PARTS = ("train", "validation", "test")
RING = {"source": "ring", "modes": 8, "radius": 2.0, "std": 0.3, "validation": 10, "test": 500}


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


def open_points(tmp_path, data) -> Points:
    from fce.data.toy import density

    truth = density(data)
    x = truth.sample(500, torch.Generator().manual_seed(0))
    np.savez(tmp_path / "data.npz", test=x.numpy(), test_log_prob=truth.log_prob(x).numpy())
    return Points(tmp_path / "data.npz", data, "cpu")


def measured(name, log_density, data: Points, points: int):
    grids = [Cells.of(data, *each) for each in ((5, points), (5, points // 2), (10, points))]
    return measure(name, log_density, data, grids)


@pytest.fixture
def points(tmp_path) -> Points:
    return open_points(tmp_path, RING)


def test_lost_and_spilled_mass_is_found(tmp_path) -> None:
    """A model that has lost half of a checkerboard, and one whose standard deviation is twice the data's."""
    board = open_points(tmp_path, {"source": "checkerboard", "squares": 4, "side": 1.0})

    def left(x):
        return board.density.log_prob(x).clamp(min=-60) - 60 * (x[:, 0] > 0)

    half = measured("ebm", left, board, 400)
    found = {score.name: score.value for score in half[0]}
    assert found["smallest_mode_mass"] == pytest.approx(0, abs=1e-6)
    masses = [value for name, value in found.items() if name.startswith("mode_mass_")]
    assert sorted(masses) == pytest.approx([0] * 4 + [2] * 4, abs=1e-3)
    assert found["mass_outside"] == pytest.approx(0, abs=1e-3)
    assert all(math.isfinite(value) for value in found.values())
    one = open_points(tmp_path, {"source": "ring", "modes": 1, "radius": 1e-9, "std": 0.5})
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


def image_data(tmp_path, train: np.ndarray, test: np.ndarray, levels: int) -> Images:
    parts = {"train": train, "validation": test, "test": test}
    arrays = {f"{name}_images": value for name, value in parts.items()}
    labels = {f"{name}_labels": np.zeros(len(value), int) for name, value in parts.items()}
    np.savez(tmp_path / "images.npz", levels=levels, **arrays, **labels)
    return Images(tmp_path / "images.npz", "cpu")


def test_simple_codes_cost_what_they_should(tmp_path) -> None:
    constant = np.full((15, 8, 8, 1), 3, np.uint8)
    uniform, histogram = simple_codes(image_data(tmp_path, constant, constant[:4], levels=16))
    assert uniform.value == 4
    assert histogram.value == pytest.approx(-math.log2(16 / 31))  # 15 of its level seen, and one of each level


def test_the_bootstraps_error_is_the_formulas_and_the_same_each_time() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(300, generator=generator) < 0.9, 5 * torch.randn(400, generator=generator)
    errors = [x.double().std(correction=0).item() / len(x) ** 0.5 for x in (a, b)]
    assert standard_error(b) == pytest.approx(errors[1], rel=0.1)
    assert standard_error(a, b) == pytest.approx(math.hypot(*errors) / 2, rel=0.1)
    assert standard_error(b) == standard_error(b)
    assert standard_error(b[:1]) is None


def test_an_accuracy_keeps_its_draws_and_its_error_is_over_test_images() -> None:
    right = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0]]).bool()
    score = accuracy_score("accuracy", "features", right, "here", 50)
    assert (score.value, score.n, score.labels) == (pytest.approx(4 / 6), 6, 50)
    assert score.draws == pytest.approx([3 / 6, 4 / 6, 5 / 6])
    assert score.standard_error == pytest.approx(right.double().mean(0).std(correction=0).item() / 6**0.5, rel=0.1)
    assert score.protocol == "here; mean over 3 draws of labels"


def test_what_is_measured_per_image_has_a_standard_error(tmp_path, monkeypatch) -> None:
    """The stages themselves, on noise: a seed that is alone has an interval then."""
    rng = np.random.default_rng(0)
    arrays = {f"{part}_images": rng.integers(0, 17, (40, 8, 8, 1)).astype(np.uint8) for part in PARTS}
    np.savez(tmp_path / "data.npz", levels=17, **arrays, **{f"{part}_labels": np.arange(40) % 10 for part in PARTS})
    energy = {"layers": "conv", "widths": [2, 3], "slope": 0.2}
    params = {
        "energy": energy,
        "probe": {"labels": [20], "draws": 3, "inverse_l2": [0.1]},
        "supervised": {"batch": 8, "updates": 2, "epochs": 1, "validations": 1, "lr": [1e-3], "weight_decay": [0.01]},
        "bits_per_dim": {"draws": 2, "batch": 20},
        "log_z": {"samples": 512, "batch": 256, "level": 0.99, "chains": 4, "temperatures": 2, "leapfrog": 1},
    }
    inputs = {"data": tmp_path / "data.npz", "model": tmp_path / "joint.pt"}
    models = make_energy((1, 8, 8), energy).requires_grad_(False), Gaussian((1, 8, 8))
    found: dict[str, dict] = {}
    for stage in (bits_per_dim, log_z, probe, supervised):
        name = stage.__name__.removeprefix("eval.")
        needed = {key: inputs[key] for key in (["data"] if stage in (probe, supervised) else inputs)}
        job = Job(name, params, tmp_path, needed, seed=0, device="cpu", tags={}, command="")
        job.record = SimpleNamespace(log=lambda *_, **__: None)
        monkeypatch.setattr(stage, "load_models", lambda *_: models, raising=False)
        monkeypatch.setattr(stage, "write_scores", lambda _, scores, name=name: found.update(
            {name: {(score.name, score.labels): score for score in scores}}))
        stage.run(job)
    assert all(score.standard_error > 0 for score in found["bits_per_dim"].values())
    assert found["bits_per_dim"]["bits_per_dim", None].n == 40
    assert found["log_z"]["told_apart", None].standard_error is not None
    for name in ("probe", "supervised"):
        few, every = (found[name]["accuracy", count] for count in (20, 40))
        assert (len(few.draws), len(every.draws)) == (3, 1) and few.n == every.n == 40
        assert few.standard_error > 0


def test_labelled_subsets_are_balanced_nested_and_drawn_by_seed() -> None:
    labels = np.repeat(np.arange(10), 30)
    small, large = subset(labels, 50, seed=1), subset(labels, 120, seed=1)
    assert list(large[:50]) == list(small)
    assert (np.bincount(labels[small]) == 5).all()
    assert len(set(large)) == 120
    assert set(subset(labels, 50, seed=2)) != set(small)


def test_draws_are_subsets_and_at_last_all_labels_once() -> None:
    labels = np.repeat(np.arange(10), 12)
    found = list(draws(labels, {"labels": [50, 100, 120, 500], "draws": 3}))
    assert [(count, len(chosen)) for count, chosen in found] == [(50, 3), (100, 3), (120, 1)]
    assert all((index == subset(labels, count, seed)).all() for count, chosen in found[:2]
               for seed, index in enumerate(chosen))
    assert sorted(found[2][1][0]) == list(range(120))


def test_effective_rank_counts_directions() -> None:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(40, 40)))[0].astype(np.float32)
    sides = np.repeat(np.vstack([np.eye(7), -np.eye(7)]), 3, axis=0).astype(np.float32)  # seven directions alike
    assert effective_rank(sides @ basis[:7] + 100) == pytest.approx(7, rel=1e-3)
    sides[:, 0] *= 1e4
    assert effective_rank(sides @ basis[:7]) == pytest.approx(1, rel=1e-3)


def test_features_are_the_top_layer_or_all_layers_pooled(tmp_path) -> None:
    images = np.random.default_rng(0).integers(0, 17, (5, 32, 32, 1)).astype(np.uint8)
    data = image_data(tmp_path, images, images, levels=17)
    energy = {"layers": "conv", "widths": [2, 3, 4], "slope": 0.2}
    job = Job("probe", {"energy": energy}, tmp_path / "probe.json", {}, seed=3, device="cpu", tags={}, command="")
    maps = open_maps(job, data)
    with torch.no_grad():
        first, second, third = maps(middle(data.images["test"], 17))
    top, every = (extract(maps, data, "test", layers) for layers in ("", "_all_layers"))
    assert (top == third.flatten(1).numpy()).all() and top.shape == (5, 4 * 4 * 4)
    assert every.shape == (5, (2 + 3 + 4) * 4 * 4) and (every[:, -64:] == top).all()
    assert every[0, 0] == first[0, 0, :4, :4].max() and every[0, 32] == second[0, 0, :2, :2].max()
    job.seed = 4  # another random EBM
    assert not (extract(open_maps(job, data), data, "test", "") == top).all()


def test_the_probe_separates_what_is_separable_and_guesses_what_is_not() -> None:
    rng = np.random.default_rng(0)
    labels = {part: np.arange(400) % 10 for part in ("train", "validation", "test")}
    noise = {part: rng.normal(size=(400, 30)) for part in labels}
    clear = {part: noise[part] + 8 * np.eye(30)[labels[part]] for part in labels}
    index = subset(labels["train"], 100, seed=0)
    assert classify(clear, labels, index, [0.01, 1.0]).mean() > 0.99
    assert classify(noise, labels, index, [0.01, 1.0]).mean() < 0.25
