"""Fréchet distances against closed forms and independent computations, and through torch-fidelity's own road."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits
from tiny import ROOT, run_stage

from eval import features, fid, inception
from eval.classifier import Classifier
from eval.features import Extractor, extract
from eval.fid import Reference, extrapolate, frechet, kernel_distance, moments, precision_recall
from pipeline.checkpoint import save
from pipeline.errors import UserError
from pipeline.files import sha256
from pipeline.job import Job
from pipeline.params import load
from pipeline.schema.experiment import Sections
from pipeline.schema.measures import Fid, Infinity, Kernel, Neighbours

KINDS = {"mle": "pretrain", "joint": "joint", "dcgan": "dcgan"}  # of the checkpoints that the samples are of
SETTINGS = {
    "features": "classifier",
    "batch": 64,
    "draws": 4,
    "infinity": {"points": 5, "smallest": 0.2},
    "kid": {"subsets": 10, "size": 50},
    "neighbours": {"images": 100, "k": 3},
}
NOTHING = Extractor(torch.from_numpy, torch.Tensor.double, 1, "themselves", features.OTHER)


def normal(seed: int, n: int, f: int = 5, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, f, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference(features: torch.Tensor, seed: int = 0) -> Reference:
    return Reference(features, moments(features), NOTHING, np.random.default_rng(seed), "cpu")


def real_digits() -> np.ndarray:
    return load_digits().images[..., None].astype(np.uint8)


def look_through(tmp_path: Path, size: int = 6, side: int = 8, levels: int = 17) -> Path:
    """A classifier with random weights."""
    build = {"channels": 1, "side": side, "levels": levels, "width": 4, "features": size}
    content = {"kind": "classifier", "classifier": Classifier(**build).state_dict(), "build": build,
               "accuracy": {"test": 0.5}, "blind": []}
    save(tmp_path / "classifier.pt", content)
    return tmp_path / "classifier.pt"


def test_distance_is_that_of_scipys_square_root() -> None:
    mix = normal(0, 5)
    a, b = (normal(1, 300) @ mix).numpy(), (normal(2, 200) + 0.3).numpy()

    def by_hand(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        centred = x - x.sum(0) / len(x)
        return x.sum(0) / len(x), centred.T @ centred / (len(x) - 1)

    (m, s), (n, t) = by_hand(a), by_hand(b)
    expected = ((m - n) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet(torch.from_numpy(a), moments(torch.from_numpy(b))) == pytest.approx(expected, rel=1e-6)


def test_distances_are_those_of_pytorch_fid_and_clean_fid() -> None:
    """What pytorch-fid 0.3.0 and clean-fid 0.1.35 give for these features, to rounding.

    `calculate_frechet_distance` and `frechet_distance`, of means and `np.cov(x, rowvar=False)`, equal to each other;
    `kernel_distance(a, b, num_subsets=1, max_subset_size=300)`, of 300 rows each, so that its draw is all of them.
    """
    scales = np.diag([1, 2, 1, 0.5, 1, 3])
    a, b = (torch.from_numpy(np.random.RandomState(seed).standard_normal((n, 6)) @ scales * by + shift)
            for seed, n, by, shift in ((0, 300, 1, 0), (1, 400, 1.2, 0.3)))
    assert frechet(a, moments(b)) == pytest.approx(1.8611990038741055, rel=1e-12)
    whole = Kernel(subsets=2, size=300)
    assert kernel_distance(a, reference(b[:300]), whole)[0] == pytest.approx(7.276711695924475, rel=1e-12)


def test_precision_and_recall_are_the_shares_within_balls_of_the_other_sets_neighbours() -> None:
    """By brute force: a point is covered by the ball of a point whose radius reaches its k-th neighbour."""
    found, real = normal(1, 60, 3) + 0.4, normal(0, 60, 3)

    def covered(points: np.ndarray, others: np.ndarray, k: int) -> float:
        within = 0
        for point in points:
            within += any(np.linalg.norm(point - other) <= sorted(np.linalg.norm(others - other, axis=1))[k]
                          for other in others)  # place 0 is the point itself
        return within / len(points)

    for k in (1, 3, 10):
        expected = covered(found.numpy(), real.numpy(), k), covered(real.numpy(), found.numpy(), k)
        assert precision_recall(found, reference(real), Neighbours(images=60, k=k))[:2] == pytest.approx(expected)


def test_distance_of_gaussians_is_the_closed_form_and_zero_on_itself() -> None:
    white = normal(0, 500)
    white = white - white.mean(0)
    white = white @ torch.linalg.inv(torch.linalg.cholesky(white.T.cov())).T  # mean 0, covariance 1, exactly
    s, t, shift = torch.tensor([1.0, 2, 3, 4, 5]), torch.tensor([2.0, 2, 1, 1, 3]), torch.arange(5)
    expected = (shift.square().sum() + (s - t).square().sum()).item()
    assert frechet(white * s, moments(white * t + shift)) == pytest.approx(expected, rel=1e-6)
    assert frechet(white * s, moments(white.flip(0) * s)) == pytest.approx(0, abs=1e-9)


def test_neither_batch_nor_order_matters_and_noise_does(tmp_path: Path) -> None:
    look, digits = features.classifier(look_through(tmp_path), "cpu"), real_digits()
    clean = moments(extract(look, digits, 64, "cpu"))
    rng = np.random.default_rng(0)
    found = []
    for amount in (1, 2, 4, 8):
        noise = rng.integers(-amount, amount + 1, digits.shape)
        found.append((digits + noise).clip(0, 16).astype(np.uint8))
    distances = [frechet(extract(look, images, 64, "cpu"), clean) for images in found]
    assert all(low < high for low, high in zip([0, *distances], distances, strict=False))
    other = frechet(extract(look, found[0][::-1].copy(), 50, "cpu"), clean)
    assert other == pytest.approx(distances[0], rel=1e-5)
    assert frechet(extract(look, digits[::-1].copy(), 50, "cpu"), clean) == pytest.approx(0, abs=1e-6 * distances[0])


def test_kernel_distance_is_the_unbiased_one_and_zero_between_samples_of_one_law() -> None:
    same, other = normal(0, 400), normal(2, 400, scale=1.5)
    settings = Kernel(subsets=2, size=1000)  # more than there are: then all of them
    value, _, size = kernel_distance(other, reference(same), settings)
    k_xx, k_xy, k_yy = ((x @ y.T / 5 + 1) ** 3 for x, y in ((other, other), (other, same), (same, same)))
    within = sum(k.fill_diagonal_(0).sum() / (400 * 399) for k in (k_xx, k_yy))
    assert size == 400
    assert value == pytest.approx((within - 2 * k_xy.mean()).item(), rel=1e-9)
    twins = [kernel_distance(normal(i, 400), reference(normal(100 + i, 400)), settings)[0] for i in range(10, 30)]
    assert abs(np.mean(twins)) < 3 * np.std(twins) / 20**0.5 < 0.03 * value  # a biased estimate would be 0.06 off


def test_a_lost_mode_costs_recall_and_a_new_one_precision() -> None:
    settings = Neighbours(images=300, k=3)
    one, two = normal(0, 400), torch.cat([normal(1, 200), normal(2, 200) + 50])
    both = reference(two[torch.randperm(400)])
    assert precision_recall(one, both, settings)[0] > 0.8
    assert precision_recall(one, both, settings)[1] == pytest.approx(0.5, abs=0.1)
    assert precision_recall(two, reference(one), settings)[0] == pytest.approx(0.5, abs=0.1)
    assert precision_recall(normal(3, 400), reference(one), settings)[2] == 300


def test_extrapolation_removes_the_bias_of_a_finite_sample() -> None:
    """Samples of the reference's own law, of 30 features: the distance is a bias, which falls as 1/N."""
    exact = reference(normal(0, 4000, 30))
    exact = Reference(exact.features, {"mu": np.zeros(30), "sigma": np.eye(30)}, NOTHING, exact.rng, "cpu")
    found = normal(1, 3000, 30)
    value, error, sizes = extrapolate(found, exact, Infinity(points=15, smallest=0.1))
    assert (sizes[0], sizes[-1], len(sizes)) == (300, 3000, 15)
    assert frechet(found, exact.moments) > 0.08
    assert abs(value) < 3 * error < 0.02


def test_the_standard_error_is_the_spread_of_samples_drawn_again() -> None:
    settings = Fid.model_validate({**SETTINGS, "infinity": {"points": 3, "smallest": 0.5}})
    real = reference(normal(0, 1000, 3))
    scores = [fid.of_samples(normal(seed, 400, 3, scale=1.4), real, settings, "flow", "")[0] for seed in range(1, 61)]
    spread = np.std([score.value for score in scores], ddof=1)
    errors = np.mean([score.standard_error**2 for score in scores]) ** 0.5
    assert errors == pytest.approx(spread, rel=0.3)


def population(counts: np.ndarray, seed: int) -> torch.Tensor:
    """Images of ten classes, so many of each, as features [N, 4]: unit normals about means that are far apart."""
    means = 2 * normal(0, 10, 4)
    return means.repeat_interleave(torch.from_numpy(counts), 0) + normal(seed, int(counts.sum()), 4)


def test_the_floor_is_that_of_independent_images_though_the_test_part_is_stratified() -> None:
    """In expectation over test parts, each of 40 images of every class; plain subsets of them are far below."""
    rng, shares, stratified = np.random.default_rng(0), np.full(10, 0.1), np.full(10, 40)
    labels = np.repeat(np.arange(10), 40)
    real = reference(population(np.full(10, 200), 1))
    settings = Fid.model_validate({**SETTINGS, "draws": 2, "kid": {"subsets": 2, "size": 200},
                                   "neighbours": {"images": 9, "k": 3}})
    n, parts = fid.independent_size(labels), 40
    assert n == 284

    def estimates(values: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
        return np.mean(values, 0), np.std(values, 0, ddof=1) / parts**0.5

    floors, whole, truly = [], [], []
    for seed in range(parts):
        part = population(stratified, 100 + seed)
        floors.append([score.value for score in fid.of_test(part, labels, real, settings)[:2]])
        every = population(rng.multinomial(n, shares), 1000 + seed)
        for found, images in ((truly, every), (whole, part[torch.from_numpy(rng.permutation(400)[:n])])):
            found.append([score.value for score in fid.compare(images, real, settings, "data", "")[:2]])
    (floor, error), (true, true_error), (low, low_error) = map(estimates, (floors, truly, whole))
    assert (abs(floor - true) < 3 * np.hypot(error, true_error)).all()
    assert low[0] < 0.7 * true[0] < true[0] - 3 * np.hypot(low_error, true_error)[0]
    assert abs(true[1]) < 3 * true_error[1] and low[1] < -3 * low_error[1]  # the kernel distance of one law is 0


def test_the_images_of_a_floor_are_drawn_without_replacement_and_as_many_as_that_allows() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([3, 5, 9], [500, 300, 200]))
    n = fid.independent_size(labels)
    drawn = [fid.independent(labels, n, np.random.default_rng(seed)) for seed in range(300)]
    counts = np.array([np.bincount(labels[each], minlength=10)[[3, 5, 9]] for each in drawn])
    assert counts.mean(0) == pytest.approx(n * np.array([0.5, 0.3, 0.2]), rel=0.01)
    assert counts.var(0) == pytest.approx(n * np.array([0.25, 0.21, 0.16]), rel=0.3)  # multinomial
    repeats = [n - len(set(each)) for each in drawn]
    assert np.mean(repeats) / n == pytest.approx(fid.REPEATS, rel=0.5) and n > 900
    for times in (np.bincount(each, minlength=1000) for each in drawn[:50]):  # each once, before any comes twice
        assert all(np.ptp(times[labels == label]) <= 1 for label in (3, 5, 9))
    assert fid.independent_size(np.zeros(50, int)) == 50  # one class has no counts to vary
    assert fid.independent_size(np.repeat(np.arange(10), 1000)) == 9570  # CIFAR-10's test part


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Data and samples of 8 x 8 pixels, and a classifier with six features."""
    digits = real_digits()
    return write_files(tmp_path, digits[:600], digits[600:700], digits[700:])


def write_files(tmp_path: Path, train: np.ndarray, test: np.ndarray, samples: np.ndarray, levels: int = 17, **others):
    parts = {"train": train[50:], "validation": train[:50], "test": test}
    arrays = {f"{part}_images": images for part, images in parts.items()}
    labels = {f"{part}_labels": np.arange(len(images)) % 10 for part, images in parts.items()}
    np.savez(tmp_path / "data.npz", levels=levels, **arrays, **labels)
    np.savez(tmp_path / "samples.npz", images=samples, **others)
    classifier = look_through(tmp_path, side=features.to_tensor(train[:1]).shape[2], levels=levels)
    return {"data": tmp_path / "data.npz", "samples": tmp_path / "samples.npz", "features": classifier}


def measured(files: dict[str, Path], arm: str = "mle", **changes) -> int:
    """The stage as a user runs it; returns its exit code."""
    out = files["data"].parent / f"build/quick/digits/seed-0/{arm}/fid.json"
    slice_file = files["data"].parent / "fid.params.json"
    slice_file.write_text(json.dumps({"fid": {**SETTINGS, **changes}}))
    drawn = dict(np.load(files["samples"]))
    np.savez(files["samples"], **drawn | {"kind": KINDS[arm]})
    paths = [part for name, path in files.items() for part in (f"--{name}", path)]
    return run_stage("fid", "--params", slice_file, "--seed", "0", "--arm", arm, "--out", out, "--threads", "1",
                     "--device", "cpu", *paths)


def scores(files: dict[str, Path], arm: str = "mle") -> dict[str, dict]:
    content = json.loads((files["data"].parent / f"build/quick/digits/seed-0/{arm}/fid.json").read_text())
    return {score["name"]: score for score in content["scores"]}


def test_every_score_says_what_it_is_and_none_is_called_fid(files) -> None:
    assert measured(files) == 0 and measured(files, "joint") == 0
    found, joint = scores(files), scores(files, "joint")
    samples = {"frechet_distance", "frechet_distance_infinity", "frechet_distance_test", "kernel_distance", "precision",
               "recall", "class_coverage"}
    floors = {"frechet_distance_floor", "frechet_distance_halves", "kernel_distance_floor"}
    assert set(joint) == samples and 0 < joint["class_coverage"]["value"] <= 1
    assert set(found) == samples | floors | {"precision_floor", "recall_floor"}
    assert {score["unit"] for score in found.values()} == {"FD", "KD", "share"}
    assert all("not FID" in score["protocol"] for score in found.values())
    assert all((score["model"] == "flow") == (name in samples) for name, score in found.items())
    distance = found["frechet_distance"]
    assert "1097 floor-quantised samples, against all 600 training images" in distance["protocol"]
    assert "4 disjoint parts of 274" in distance["protocol"]
    assert 0 < distance["standard_error"] < distance["value"]
    assert [name for name, score in found.items() if score["standard_error"]] == ["frechet_distance"]
    assert "whose subsets overlap" in found["frechet_distance_infinity"]["protocol"]
    floor = found["frechet_distance_floor"]
    assert floor["n"] == fid.independent_size(np.arange(100) % 10) and found["frechet_distance_halves"]["n"] == 300
    assert f"{floor['n']} of the 100 real test images, drawn as samples are" in floor["protocol"]
    assert re.search(r"the first of 4 such draws.*; the value is their mean .*, standard error \S+$", floor["protocol"])
    for name in ("frechet_distance", "frechet_distance_floor", "frechet_distance_halves"):  # all are real digits
        assert 0 < found[name]["value"] < 0.2 * frechet_of_noise(files), name


def test_the_real_images_features_are_made_once_for_all_arms_and_anew_for_other_images(files, monkeypatch) -> None:
    looked: list[int] = []
    for module in (features, fid):
        monkeypatch.setattr(module, "extract", lambda look, images, *how: looked.append(len(images)) or extract(
            look, images, *how))
    assert measured(files) == 0 and measured(files, "joint") == 0
    assert looked == [600, 100, 1097, 1097]  # training, test, samples; samples
    first = scores(files)
    assert measured(files) == 0 and scores(files) == first and len(looked) == 5
    write_files(files["data"].parent, real_digits()[1:601], real_digits()[601:701], real_digits()[701:])
    assert measured(files) == 0 and looked[5:] == [600, 100, 1096]


def test_the_secondary_distance_is_to_the_test_images(files) -> None:
    """By numpy and scipy, from the same features."""
    assert measured(files, "joint") == 0
    look = features.classifier(files["features"], "cpu")
    drawn, test = (extract(look, images, 64, "cpu").numpy() for images in (real_digits()[700:], real_digits()[600:700]))
    s, t = np.cov(drawn.T), np.cov(test.T)
    expected = ((drawn.mean(0) - test.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert {score["model"] for score in scores(files, "joint").values()} == {"flow"}
    assert measured(files, "dcgan") == 0
    assert {score["model"] for score in scores(files, "dcgan").values()} == {"generator"}
    score = scores(files, "joint")["frechet_distance_test"]
    assert score["value"] == pytest.approx(expected, rel=1e-6)
    assert "against the 100 test images" in score["protocol"]


def frechet_of_noise(files: dict[str, Path]) -> float:
    look, rng = features.classifier(files["features"], "cpu"), np.random.default_rng(0)
    noise = rng.integers(0, 17, (500, 8, 8, 1)).astype(np.uint8)
    return frechet(extract(look, noise, 64, "cpu"), moments(extract(look, real_digits(), 64, "cpu")))


def test_the_protocol_takes_the_temperature_from_the_samples_and_images_may_be_padded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    train, test, drawn = (rng.integers(0, 256, (n, 28, 28, 1)).astype(np.uint8) for n in (120, 60, 80))
    files = write_files(tmp_path, train, test, drawn, levels=256, temperature=0.7)
    assert measured(files) == 0
    assert "80 floor-quantised samples, temperature 0.7," in scores(files)["frechet_distance"]["protocol"]


@pytest.mark.parametrize(
    ("size", "changes", "says"),
    [
        (700, {}, "the training part: 600 images; a covariance of 700 features needs 701: .*lower classifier.features"),
        (
            6,
            {"draws": 200},
            "fid.draws: each of 200 parts of 1097 samples: 5 images.*: lower it, or raise",
        ),
        (6, {"infinity": {"points": 5, "smallest": 0.005}}, "fid.infinity.smallest: .*: 5 images.*: raise it"),
        (6, {"features": "inception"}, "fid.features: inception needs 256 grey levels.*set it to classifier"),
    ],
)
def test_too_few_images_are_refused_with_the_way_out(files, tmp_path, capfd, size, changes, says) -> None:
    look_through(tmp_path, size)
    assert measured(files, **changes) == 2
    assert re.search(f"^error: {says}", capfd.readouterr().err.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        (np.zeros((6, 8, 8, 1), np.uint8), "sample.count: 6 images.*raise it"),
        (np.zeros((90, 8, 8, 1)), "float64.*uint8"),
    ],
)
def test_samples_that_cannot_be_measured_are_refused(files, capfd, samples, says) -> None:
    np.savez(files["samples"], images=samples)
    assert measured(files) == 2
    assert re.search(says, capfd.readouterr().err)


def test_floors_are_left_out_where_only_they_have_too_few_images(files, tmp_path, capfd) -> None:
    look_through(tmp_path, 350)
    assert measured(files, draws=2, infinity={"points": 3, "smallest": 0.5}) == 0
    assert not any(name.endswith(("_floor", "_halves", "_test")) for name in scores(files))
    said = capfd.readouterr().err
    assert re.search(r"no floor: \d\d of the 100 test images.*too few for 350 features", said)
    assert "no distance to the 100 test images" in said
    assert "no distance of halves: 300 training images" in said


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of torch-fidelity's Inception, under the name of the official file."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("inception") / inception.FILE
    with pytest.MonkeyPatch.context() as patch:  # torch-fidelity builds the network with downloaded weights only
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        torch.save(module.FeatureExtractorInceptionV3(inception.NETWORK, ["2048"]).state_dict(), path)
    return path


def take_weights(tmp_path: Path, monkeypatch, content: bytes, anyway: str = "") -> Path:
    """The stage inception with this content in the user's folder; returns its output."""
    (tmp_path / inception.FILE).write_bytes(content)
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    monkeypatch.setenv("FCE_ANY_WEIGHTS", anyway)
    out = tmp_path / "build" / "inception.pth"
    inception.run(Job("inception", Sections.model_construct(), out, {}))
    return out


def test_wrong_weights_are_refused_and_leave_nothing(tmp_path, monkeypatch, inception_file) -> None:
    whole = inception_file.read_bytes()
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.ones(2, 2)}, other)
    for content in (b"not the weights", whole[: len(whole) // 2], other.read_bytes()):
        with pytest.raises(UserError, match=r"wrong checksum.*get it from https.*FCE_ANY_WEIGHTS=1"):
            take_weights(tmp_path, monkeypatch, content)
        with pytest.raises(UserError, match=r"no state of torch-fidelity's Inception network.*get it from https"):
            take_weights(tmp_path, monkeypatch, content, anyway="1")
    assert list((tmp_path / "build").iterdir()) == []


def test_other_weights_of_the_same_network_are_taken_when_the_user_says_so(
    tmp_path, monkeypatch, inception_file
) -> None:
    with pytest.raises(UserError, match="wrong checksum"):
        take_weights(tmp_path, monkeypatch, inception_file.read_bytes())
    out = take_weights(tmp_path, monkeypatch, inception_file.read_bytes(), anyway="1")
    assert out.read_bytes() == inception_file.read_bytes()


def colours(n: int, seed: int) -> np.ndarray:
    """Images [n, 8, 8, 3] of one colour with noise, for which random features differ."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 200, (n, 1, 1, 3)) + rng.integers(0, 56, (n, 8, 8, 3))).astype(np.uint8)


def test_inception_gives_what_torch_fidelity_gives(inception_file, monkeypatch) -> None:
    from torch_fidelity import calculate_metrics

    class Set(torch.utils.data.Dataset):
        def __init__(self, images: np.ndarray):
            self.images = images

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, i: int) -> torch.Tensor:
            return torch.from_numpy(self.images[i].transpose(2, 0, 1))

    first, second = colours(30, seed=0), colours(30, seed=1) // 2
    assert extract(features.inception(inception_file, "cpu"), first[:2], 2, "cpu").shape == (2, 2048)
    monkeypatch.setattr(features, "LAYER", "64")  # the first pooling: fewer features and quick
    look = features.inception(inception_file, "cpu")
    generated, real = extract(look, first, 7, "cpu"), reference(extract(look, second, 30, "cpu"))
    theirs = calculate_metrics(
        input1=Set(first),
        input2=Set(second),
        cuda=False,
        fid=True,
        kid=True,
        kid_subset_size=30,
        prc=True,
        feature_extractor=inception.NETWORK,
        feature_extractor_weights_path=str(inception_file),
        feature_layer_fid="64",
        feature_layer_kid="64",
        feature_layer_prc="64",
        cache=False,
        save_cpu_ram=True,  # no loader workers
        verbose=False,
    )
    kernel, _, _ = kernel_distance(generated, real, Kernel.model_construct(subsets=1, size=30))
    precision, recall, _ = precision_recall(generated, real, Neighbours(images=30, k=3))
    assert frechet(generated, real.moments) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert kernel == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert (precision, recall) == (theirs["precision"], theirs["recall"])


def test_only_the_official_weights_make_it_fid(tmp_path, monkeypatch, inception_file) -> None:
    monkeypatch.setattr(features, "LAYER", "64")
    files = write_files(tmp_path, colours(66, 0), colours(4, 1), colours(132, 2), levels=256)
    files["features"] = inception_file
    changes = {"features": "inception", "draws": 2, "infinity": {"points": 3, "smallest": 0.5}}
    assert measured(files, "joint", **changes) == 0
    found = scores(files, "joint")
    assert found["frechet_distance"]["unit"] == "FD"
    assert "other weights: not FID" in found["frechet_distance"]["protocol"]
    monkeypatch.setattr(inception, "SHA256", sha256(inception_file))
    official = features.inception(inception_file, "cpu")
    assert (official.names, official.words) == (features.INCEPTION, "Inception 2015-12-05")


def test_the_paper_sizes_are_enough_for_inception_and_2048_images_are_not() -> None:
    """By the numbers of the official sets, which are not at hand."""
    experiments = load(ROOT / "params.yaml").experiments
    for name, train, test in (("svhn", 73257, 26032), ("cifar10", 50000, 10000)):
        whole = experiments["full"][name]
        fid.refuse_too_few(2048, whole.fid, whole.sample.count, train, test, "")
    with pytest.raises(UserError, match=r"sample.count: 2048 images; .* 2048 features needs 2049: raise it"):
        fid.refuse_too_few(2048, whole.fid, 2048, 50000, 10000, "")
