"""DCGAN: TTUR's network at side 32, other sides by rule, samples as the other measures need them."""

import json

import numpy as np
import pytest
import torch
from tiny import run_stage

from fce.data.pixels import quantize
from fce.dcgan import Discriminator, Generator, make_dcgan
from fce.models import open_dcgan
from pipeline.checkpoint import load

WIDTHS = [64, 128, 256, 512]
SMALL = {"latent": 5, "widths": [4, 8]}


def test_parameters_at_side_32_are_counted_by_hand():
    generator, discriminator = Generator((3, 32, 32), 100, WIDTHS), Discriminator((3, 32, 32), WIDTHS)
    norms = 2 * (512 + 256 + 128 + 64)
    up = 25 * (512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 3
    assert sum(p.numel() for p in generator.parameters()) == 100 * 2048 + 2048 + norms + up == 4_514_371
    down = 25 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + 64
    norms = 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in discriminator.parameters()) == down + norms + 2048 + 1 == 4_309_505


@pytest.mark.parametrize(("side", "kept"), [(8, [256, 512]), (16, [128, 256, 512]), (32, [64, 128, 256, 512])])
def test_small_images_are_halved_less_often(side, kept):
    shape = (1, side, side)
    generator, discriminator = Generator(shape, 10, WIDTHS), Discriminator(shape, WIDTHS)
    x = generator(generator.noise(3, None))
    assert x.shape == (3, *shape)
    sides = [side // 2 ** (i + 1) for i in range(len(kept))]
    expected = [(3, width, s, s) for width, s in zip(kept, sides, strict=True)]
    assert [tuple(m.shape) for m in discriminator.maps(x)] == expected
    assert sides[-1] == 2
    assert discriminator(x).shape == (3,)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32)])
def test_gradients_reach_every_parameter_of_each_player(shape):
    generator, discriminator = make_dcgan(shape, **SMALL)
    x = generator(generator.noise(16, None))
    logits = discriminator(x)
    gradients = torch.autograd.grad(logits.square().sum(), [*generator.parameters(), *discriminator.parameters()])
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_weights_start_at_the_articles_spread():
    generator, discriminator = make_dcgan((3, 32, 32), latent=100, widths=WIDTHS)
    assert generator.start[0].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert generator.layers[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    cut = discriminator.hidden[3][0].weight
    assert cut.abs().max() <= 0.04 and cut.std().item() == pytest.approx(0.0176, rel=0.02)  # a normal cut at 2 sd


def test_samples_lie_in_the_box_reach_all_levels_and_do_not_depend_on_their_batch():
    generator = make_dcgan((1, 8, 8), **SMALL)[0]
    with torch.no_grad():
        generator.layers[-2].weight.mul_(100)
    for _ in range(100):
        generator(generator.noise(200, None))  # batch norm's statistics
    generator.eval()
    x = generator.sample(200, generator=torch.Generator().manual_seed(0))
    assert x.min() >= -0.5 and x.max() <= 0.5 and x.abs().max() > 0.49
    levels = quantize(x, 17)
    assert levels.dtype == torch.uint8 and set(levels.flatten().tolist()) == set(range(17))
    again = torch.Generator().manual_seed(0)
    parts = torch.cat([generator.sample(120, generator=again), generator.sample(80, generator=again)])
    assert torch.allclose(x, parts, atol=1e-6)


def train(folder, d_lr, g_lr):
    """A few updates of the stage on noise images, at `ttur` rates; returns its checkpoint's path."""
    rng, parts = np.random.default_rng(0), ("train", "validation", "test")
    arrays = {f"{part}_images": rng.integers(0, 17, (40, 8, 8, 1), np.uint8) for part in parts}
    arrays |= {f"{part}_labels": np.zeros(40, int) for part in parts}
    np.savez(folder / "data.npz", levels=17, **arrays)
    rates = {"discriminator_lr": d_lr, "generator_lr": g_lr, "updates": 6}
    never = {"discriminator_lr": 1.0, "generator_lr": 1.0, "updates": 99}
    settings = {**SMALL, "batch": 8, "beta1": 0.5, "rates": "ttur", "orig": never, "ttur": rates, "log_every": 3}
    (folder / "params.json").write_text(json.dumps({"dcgan": settings}))
    out = folder / f"{d_lr}-{g_lr}.pt"
    paths = ["--params", folder / "params.json", "--data", folder / "data.npz", "--out", out]
    assert run_stage("dcgan", *paths, "--seed", "0", "--device", "cpu", "--threads", "1") == 0
    return out


def test_each_player_moves_by_its_own_rate_of_the_chosen_setting(tmp_path):
    still, d_moved, g_moved = (open_dcgan(load(train(tmp_path, *lrs)))
                               for lrs in ((1e-12, 1e-12), (1e-3, 1e-12), (1e-12, 1e-3)))

    def distance(first, second):
        return max((a - b).abs().max() for a, b in zip(first.parameters(), second.parameters(), strict=True))

    for moved, at in ((d_moved, 1), (g_moved, 0)):
        assert 1e-3 < distance(moved[at], still[at]) < 7e-3  # Adam's steps are as long as the rate, here 6 of them
        assert distance(moved[1 - at], still[1 - at]) < 1e-9
    assert not any(player.training for player in still)
