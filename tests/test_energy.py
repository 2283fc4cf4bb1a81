"""The EBM is the paper's Table 4 at side 32, follows other sides by rule, and starts where it should."""

import pytest
import torch

from fce.data.pixels import padded
from fce.energy import EnergyModel, Residual, make_energy
from fce.flow.glow import Glow, make_glow
from fce.flow.layers import halvings

IMAGE = {"layers": "conv", "widths": [64, 128, 256], "slope": 0.2}
POINT = {"layers": "fc", "widths": [128, 128, 128], "slope": 0.2}


@pytest.mark.parametrize(
    ("shape", "energy", "count"),
    [
        ((3, 32, 32), IMAGE, 3_136 + 131_200 + 524_544 + 4_097 + 1),
        ((2,), POINT, 33_537 + 1),
    ],
)
def test_parameter_counts_are_the_papers(shape, energy, count):
    assert sum(parameter.numel() for parameter in make_energy(shape, **energy).parameters()) == count


# the last of the widths are used; the last kernel is what remains of the side
@pytest.mark.parametrize(
    ("side", "widths", "kernel"),
    [
        (8, [128, 256], 2),
        (16, [64, 128, 256], 2),
        (32, [64, 128, 256], 4),
        (64, [64, 128, 256], 8),
        (12, [128, 256], 3),
    ],
)
def test_small_images_are_halved_less_often(side, widths, kernel):
    model, x = make_energy((1, side, side), **IMAGE), torch.randn(3, 1, side, side)
    assert [layer.out_channels for layer in model.hidden] == widths
    assert [layer.stride for layer in model.hidden] == [(2, 2)] * len(widths)
    assert model.head.kernel_size == (kernel, kernel)
    assert model.features(x).shape == (3, 256 * kernel**2)
    assert model(x).shape == model.log_prob(x).shape == (3,)


@pytest.mark.parametrize(
    ("side", "most", "count"),
    [
        (8, 3, 2),
        (16, 3, 3),
        (32, 3, 3),
        (64, 3, 3),
        (64, 9, 5),
        (2, 3, 0),
        (7, 3, 0),
        (28, 3, 2),
        (32, 0, 0),
    ],
)
def test_a_side_is_halved_while_it_is_even_and_stays_two_or_more(side, most, count):
    assert halvings(side, most) == count


@pytest.mark.parametrize(("shape", "energy", "features"), [((3, 32, 32), IMAGE, 4096), ((2,), POINT, 128)])
def test_features_are_the_top_layer_after_its_leaky_relu_and_f_is_linear_in_them(shape, energy, features):
    model, x = make_energy(shape, **energy), torch.randn(16, *shape)
    top = model.features(x)
    assert top.shape == (16, features)
    assert top.min() < 0 and top.min().abs() < top.max()  # the leaky ReLU keeps a fifth of the negative part
    assert torch.allclose(top @ model.head.weight.flatten() + model.head.bias, model(x), atol=1e-5)


@pytest.mark.parametrize("energy", [IMAGE, POINT])
def test_log_prob_is_f_minus_c(energy):
    shape = (2,) if energy is POINT else (3, 8, 8)
    model, x = make_energy(shape, **energy), torch.randn(4, *shape)
    with torch.no_grad():
        model.c.fill_(7.0)
    assert torch.allclose(model.log_prob(x), model(x) - 7.0)
    assert torch.autograd.grad(model.log_prob(x).sum(), model.c)[0] == -4.0


def make_residual():
    base = Glow((1, 8, 8), 2, 1, 8, "conv", "affine", 0.3, "logit")
    base.initialize(0.1 * torch.randn(64, 1, 8, 8))
    return base, make_energy((1, 8, 8), "residual", base, **IMAGE)


def test_without_a_base_the_model_is_plain():
    assert type(make_energy((1, 8, 8), **IMAGE)) is EnergyModel
    assert type(make_residual()[1]) is Residual


def test_residual_starts_at_exactly_log_q0():
    base, model = make_residual()
    x = 0.1 * torch.randn(8, 1, 8, 8)
    assert torch.equal(model(x), base.log_prob(x))
    assert torch.equal(model.log_prob(x), base.log_prob(x))


def test_residual_learns_g_and_leaves_q0_alone():
    base, model = make_residual()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(2):
        optimizer.zero_grad()
        model.log_prob(0.1 * torch.randn(8, 1, 8, 8)).sum().backward()
        optimizer.step()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    own = {name: p for name, p in model.named_parameters() if not name.startswith("base.")}
    assert all(parameter.grad.abs().max() > 0 for parameter in own.values())


def test_residual_passes_gradients_through_q0_to_x():
    base, model = make_residual()
    x = (0.1 * torch.randn(2, 1, 8, 8)).requires_grad_()
    through_model = torch.autograd.grad(model(x).sum(), x)[0]
    assert through_model.abs().max() > 0
    assert torch.allclose(through_model, torch.autograd.grad(base.log_prob(x).sum(), x)[0])


def test_a_tilted_ebm_is_its_flow_at_the_start_and_a_tilt_of_it_later():
    flow, _ = make_residual()
    model = make_energy((1, 8, 8), "tilted", **IMAGE)
    x = 0.1 * torch.randn(8, 1, 8, 8)
    log_q = flow.log_prob(x)
    assert torch.equal(model.log_ratio(x, log_q), torch.zeros(8))
    with pytest.raises(RuntimeError, match="the flow that it was trained with"):
        model.log_prob(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.base = flow
    ratio = model.log_ratio(x, log_q)
    assert ratio.std() > 0.01
    assert torch.allclose(model.log_prob(x) - log_q, ratio, atol=1e-4)


@pytest.mark.parametrize(("side", "levels"), [(8, 2), (16, 3), (28, 3), (32, 3), (64, 3)])
def test_glow_has_as_many_levels_as_the_side_allows(side, levels):
    seen = padded(side)
    glow = make_glow((1, seen, seen), levels=3, steps=1, width=4, layers="conv", coupling="additive", scale_floor=0.0,
                     input="centered")
    assert len(glow.levels) == levels
    assert glow.latents[-1][:2] == (seen // 2**levels,) * 2
    assert sum(latent[0] * latent[1] * latent[2] for latent in glow.latents) == seen**2
