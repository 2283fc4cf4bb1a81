"""What is looked at while a flow trains, what a Fréchet distance sees, and a game whose log-ratios are saturated."""

import json
from typing import ClassVar

import numpy as np
import pytest
import torch
from tiny import flags, run_stage, write_slices

from eval import distortions
from eval.score import read_scores
from fce.data.batches import Images
from fce.flow.glow import Glow
from fce.game import Diverged
from fce.models import open_players
from fce.optim import Average
from fce.stack import Stack
from fce.stages import images
from fce.stages.moments import Moments
from fce.watch import Watch
from pipeline.checkpoint import load
from pipeline.fetch import own_data
from pipeline.files import read_arrays
from pipeline.job import Job
from pipeline.schema.training import Trajectory


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Tiny digits with a flow, two games and a classifier."""
    home = write_slices(tmp_path_factory.mktemp("trajectory"), {}) / "digits"
    for stage in ("data", "pretrain", "classifier"):
        assert run_stage(stage, *flags(stage, home)) == 0
    assert run_stage("joint", *flags("joint", home, arms=("joint", "tilted"))) == 0
    return home


def test_a_trajectory_starts_where_pre_training_ended_for_every_arm(place):
    before = load(place / "seed-0/pretrain.pt")["trajectory"]
    assert before["updates"] == [0, 20, 40]
    for arm in ("joint", "tilted"):
        found = load(place / f"seed-0/{arm}/joint.pt")["trajectory"]
        assert found["updates"] == [0, 6, 12] and found["images"].shape == (3, 40, 8, 8, 1)
        assert torch.equal(found["images"][0], before["images"][-1])  # the same noise, and at first the same flow
        assert found["bits_per_dim"][0] == pytest.approx(before["bits_per_dim"][-1], abs=1e-6)


def test_a_tilted_checkpoint_is_one_density_whose_c_fits_the_averaged_weights(place):
    checkpoint = load(place / "seed-0/tilted/joint.pt")
    energy, flow = open_players(checkpoint)
    x = torch.rand(50, 1, 8, 8) - 0.5
    ratio = energy.log_ratio(x, flow.log_prob(x))
    assert torch.allclose(energy.log_prob(x) - flow.log_prob(x), ratio, atol=1e-3)
    assert checkpoint["energy"]["c"] != checkpoint["energy_raw"]["c"]
    drawn, log_q = flow.rsample_with_log_prob(4000)
    log_z = torch.logsumexp(energy.log_ratio(drawn, log_q) + energy.c, 0) - np.log(4000)
    assert energy.c.item() == pytest.approx(log_z.item(), abs=0.05)  # a tilt this small: c is log Z


def test_the_stage_measures_each_moment_and_keeps_the_first_samples(place):
    assert run_stage("trajectory", *flags("trajectory", place, arms=("tilted",))) == 0
    out = place / "seed-0/tilted/trajectory.json"
    kept = read_arrays(out.with_suffix(".npz"), ("updates", "distance", "bits_per_dim", "images"))
    assert kept["updates"].tolist() == [0, 6, 12] and kept["images"].shape == (3, 32, 8, 8, 1)
    found = {score.name: score.value for score in read_scores(out).scores}
    assert found["frechet_distance_change"] == pytest.approx(kept["distance"][-1] - kept["distance"][0])
    assert found["bits_per_dim_change"] == pytest.approx(kept["bits_per_dim"][-1] - kept["bits_per_dim"][0])


def test_moments_are_looked_at_once_and_go_on_from_a_state():
    flow = Glow((1, 8, 8), 2, 1, 4, "conv", "additive", 0.0, "centered")
    flow.initialize(torch.randn(32, 1, 8, 8))
    parts = {f"{part}_images": np.full((30, 8, 8, 1), 3, np.uint8) for part in ("train", "validation")}
    job = Job("joint", None, None, {}, data=Images({**parts, "levels": np.array(17)}, "cpu"))
    stack = Stack([flow])
    average, moments = Average(stack, 0.9), Moments(job, Trajectory(moments=4, images=20), 100)
    for update in (0, 0, 10, 25, 50, 50):
        moments.look(update, stack, average)
    assert moments.updates == [0, 25, 50] and torch.equal(moments.images[0], moments.images[2])
    again = Moments(job, Trajectory(moments=4, images=20), 100)
    again.load_state_dict(moments.state_dict())
    again.look(50, stack, average)
    again.look(100, stack, average)
    assert again.updates == [0, 25, 50, 100] and again.content()["trajectory"]["images"].shape == (4, 20, 8, 8, 1)
    assert Moments(job, Trajectory(moments=0, images=2), 100).content() == {}


def test_a_classifiers_curve_of_distortions_lies_beside_it(place):
    lines = (place / "classifier.csv").read_text().splitlines()
    assert lines[0] == "distortion,strength,distance" and len(lines) == 1 + 5 * 6
    assert isinstance(load(place / "classifier.pt")["blind"], list)


def test_a_distance_of_plain_pixels_rises_with_every_distortion_and_one_that_sees_nothing_is_named():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 80)
    shade = np.linspace(20, 200, 10)[labels][:, None, None, None]
    images = (shade + 40 * random.standard_normal((800, 16, 16, 3)).cumsum(1) / 4).clip(0, 255).astype(np.uint8)

    def look(x):
        return torch.nn.functional.avg_pool2d(torch.from_numpy(x).permute(0, 3, 1, 2).double(), 4).flatten(1)

    def edges(x):
        x = torch.from_numpy(x).double()
        return torch.cat([x.diff(dim=1).square().mean((1, 2)), x.mean((1, 2)), x.std((1, 2))], 1)

    rows = distortions.curve(edges, images, labels, 256)
    assert len(rows) == 30 and not {"noise", "contrast", "missing classes"} & set(distortions.not_ordered(rows))
    assert "noise" in distortions.not_ordered(distortions.curve(lambda x: look(x) * 0 + 1, images, labels, 256))
    two = [row for row in distortions.curve(edges, images, labels // 5, 256) if row["distortion"] == "missing classes"]
    assert [row["strength"] for row in two] == [0.0, 0.5] and two[0]["distance"] < two[1]["distance"]


class Saturated:
    """A game of two runs, of which the second is saturated."""

    learns = False
    longest: ClassVar = [3, 600]
    last: ClassVar = {"saturated": [0.0, 1.0], "r_abs": [1.0, 1.0]}


@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_long_saturation_is_said_once_of_its_run_or_ends_the_game(action, caplog):
    limits = type("Alarms", (), {"saturated": 500, "when_saturated": action})
    watch = Watch(Saturated(), limits, ["one", "two"])
    watch.limit = torch.tensor([100.0, 100.0])
    if action == "stop":
        with pytest.raises(Diverged, match="600 updates of the EBM in a row had"):
            watch.look()
        return
    watch.look()
    again = Watch(Saturated(), limits, ["one", "two"])
    again.load_state_dict(watch.state_dict())
    again.look()
    assert [record.message[:10] for record in caplog.records] == ["600 update"]


def test_an_own_copy_stands_in_for_the_official_archive_where_that_is_not_at_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    assert own_data("cifar10") is None
    arrays = {f"{part}_{what}": np.zeros((6, 32, 32, 3)[: 4 if what == "images" else 1], np.uint8)
              for part in ("train", "test") for what in ("images", "labels")}
    np.savez(tmp_path / "cifar10.npz", **arrays)
    assert own_data("cifar10") == tmp_path / "cifar10.npz"
    assert images.official("cifar10")["train_images"].shape == (6, 32, 32, 3)
    (tmp_path / "cifar-10-python.tar.gz").touch()
    assert own_data("cifar10") is None
    (tmp_path / "cifar-10-batches-py").mkdir()  # which says nothing of SVHN
    (tmp_path / "svhn.npz").touch()
    assert own_data("svhn") == tmp_path / "svhn.npz"
    (tmp_path / "svhn").mkdir()
    (tmp_path / "svhn/train_32x32.mat").touch()  # where files are looked for, too
    assert own_data("svhn") is None


def test_a_curve_counts_the_longest_row_of_saturated_updates(place):
    rows = (place / "seed-0/joint/joint.csv").read_text().splitlines()
    column = rows[0].split(",").index("longest_saturated")
    assert all(0 <= int(row.split(",")[column]) <= 12 for row in rows[1:])
    params = json.loads((place / "params/joint/tilted.json").read_text())["joint"]
    assert params["energy"] == "tilted" and params["warm_start"] == 0
