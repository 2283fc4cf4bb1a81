"""Theorems about Glow: exact inverses and log-densities, openai/glow's formulas, gradients everywhere."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.nn import functional as F

from fce.flow.coupling import Coupling, CouplingNet
from fce.flow.glow import Gaussianize, Glow, squeeze
from fce.flow.layers import InvertibleLinear, Logit, linear, lu_inverses, lu_weights
from fce.flow.sampler import Gaussian
from fce.flow.steps import Steps

FLOWS = {  # shape, levels, steps, width, layers, coupling, scale_floor, input, edge
    "fc affine": ((2,), 1, 4, 16, "fc", "affine", 0.0, "identity"),
    "fc additive, odd": ((5,), 1, 3, 16, "fc", "additive", 0.0, "identity"),
    "conv additive, 1 level": ((3, 4, 4), 1, 3, 8, "conv", "additive", 0.0, "centered"),
    "conv additive, 3 levels": ((1, 8, 8), 3, 2, 8, "conv", "additive", 0.0, "centered"),
    "conv affine with floor, 2 levels": ((3, 4, 4), 2, 2, 8, "conv", "affine", 0.3, "centered"),
    "conv affine logit, 2 levels": ((1, 8, 8), 2, 2, 8, "conv", "affine", 0.3, "logit"),
    "conv additive with edges, 2 levels": ((3, 4, 4), 2, 2, 8, "conv", "additive", 0.0, "centered", True),
    "conv affine with edges, 2 levels": ((1, 8, 8), 2, 2, 8, "conv", "affine", 0.1, "centered", True),
}
LAYERS = {  # how to make it; the shape of one x, channels last
    "logit": (Logit, (3, 2, 2)),
    "prior learned fc": (lambda: Gaussianize(3, 0, "fc"), (3,)),
    "prior learned conv": (lambda: Gaussianize(4, 0, "conv"), (2, 3, 4)),
    "prior learned with edges": (lambda: Gaussianize(4, 0, "conv", True), (2, 3, 4)),
    "prior with context and edges": (lambda: Gaussianize(4, 2, "conv", True), (2, 3, 4)),
    "prior with context fc": (lambda: Gaussianize(3, 2, "fc"), (3,)),
    "prior with context conv": (lambda: Gaussianize(4, 2, "conv"), (2, 3, 4)),
    **{
        f"{count} blocks {name} {layers}": (lambda k=count, n=name, form=layers: Steps(k, 5, 8, form, n, 0.1), shape)
        for count in (1, 3)
        for name in ("additive", "affine")
        for layers, shape in (("fc", (5,)), ("conv", (2, 3, 5)))
    },
}


@torch.no_grad()
def perturb(module, size=0.1):
    """Move every parameter: at their zero starts half of the code does nothing."""
    for parameter in module.parameters():
        parameter.add_(size * torch.randn_like(parameter))
    return module


def box(n, shape, dtype=torch.float64):
    """Correlated points inside (-1/2, 1/2)^D."""
    x = torch.randn(n, *shape, dtype=dtype)
    return (0.15 * (x + 0.5 * x.roll(1, -1))).clamp(-0.45, 0.45)


def make_flow(name, dtype=torch.float64):
    """A flow without a zero among its parameters, and a few points."""
    shape, *arguments = FLOWS[name]
    flow = perturb(Glow(shape, *arguments).to(dtype))
    flow.initialize(box(256, shape, dtype))
    return perturb(flow, 0.02), box(4, shape, dtype)


def slogdet(function, x):
    """log |det| of the Jacobian of a function from [1, ...] to [1, ...] at one point x [...]."""
    matrix = jacobian(lambda v: function(v[None]).flatten(), x)
    return torch.linalg.slogdet(matrix.reshape(x.numel(), x.numel()))[1]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("name", FLOWS)
def test_decode_inverts_encode_and_log_q_agrees_both_ways(name, dtype, tolerance):
    flow, x = make_flow(name, dtype)
    eps, log_q = flow.encode(x)
    eps_gen = 0.5 * torch.randn(4, flow.dims, dtype=dtype)  # far tails meet float32 and the logit's walls
    x_gen, log_q_gen = flow.decode(eps_gen)
    pairs = [
        (x, flow.decode(eps)[0]),
        (log_q, flow.decode(eps)[1]),
        (log_q_gen, flow.encode(x_gen)[1]),
        (eps_gen, flow.encode(x_gen)[0]),
        (x_gen, flow.decode(flow.encode(x_gen)[0])[0]),
    ]
    for there, back in pairs:
        assert (back - there).abs().max() < tolerance * max(1.0, there.abs().max())


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_encode_inverts_decode_in_float32_at_the_depth_of_cifar10(coupling):
    flow = Glow((3, 8, 8), 3, 32, 8, "conv", coupling, 0.0, "centered")
    flow.initialize(box(64, (3, 8, 8), torch.float32))
    perturb(flow, 0.01)
    x, eps = box(4, (3, 8, 8), torch.float32), torch.randn(4, 192)
    assert (flow.encode(flow.decode(eps)[0])[0] - eps).abs().max() < 1e-4
    assert (flow.decode(flow.encode(x)[0])[0] - x).abs().max() < 1e-4


@pytest.mark.parametrize("name", LAYERS)
def test_log_det_of_a_layer_is_its_jacobians(name):
    make, shape = LAYERS[name]
    layer, x = perturb(make().double()), box(2, shape)
    given = ()
    if isinstance(layer, Gaussianize):
        given = (torch.randn(1, *shape[:-1], 2, dtype=torch.float64).repeat(2, *[1] * len(shape)),)
    one = tuple(context[:1] for context in given)
    y, log_det = layer.encode(x, *given)
    back, log_det_back = layer.decode(y, *given)
    assert (back - x).abs().max() < 1e-9
    for i in range(2):
        truth = slogdet(lambda v: layer.encode(v, *one)[0], x[i])
        assert log_det.expand(2)[i].item() == pytest.approx(truth.item(), abs=1e-9)
        truth = slogdet(lambda v: layer.decode(v, *one)[0], y[i].detach())
        assert log_det_back.expand(2)[i].item() == pytest.approx(truth.item(), abs=1e-9)


@pytest.mark.parametrize("name", FLOWS)
def test_log_q_is_change_of_variables(name):
    flow, x = make_flow(name)
    eps, log_q = flow.encode(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(eps).sum(1)
    assert (normal[0] + slogdet(lambda v: flow.encode(v)[0], x[0]) - log_q[0]).abs() < 1e-8
    assert (normal[0] - slogdet(lambda e: flow.decode(e)[0], eps[0].detach()) - log_q[0]).abs() < 1e-8


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_density_in_2d_integrates_to_one(coupling):
    flow = perturb(Glow((2,), 1, 4, 16, "fc", coupling, 0.0, "identity").double())
    flow.initialize(torch.randn(512, 2, dtype=torch.float64))
    perturb(flow, 0.02)
    with torch.no_grad():
        side = 1.5 * flow.decode(torch.randn(4000, 2, dtype=torch.float64))[0].abs().max().item()
        axis = torch.linspace(-side, side, 500, dtype=torch.float64)
        mass = flow.log_prob(torch.cartesian_prod(axis, axis)).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("name", [name for name in FLOWS if "affine" not in name])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_a_flow_that_only_permutes_and_scales_has_the_normal_density(name, scale):
    shape, *arguments = FLOWS[name]
    flow = Glow(shape, *arguments).double()
    flow.initialized.fill_(True)
    with torch.no_grad():
        for module in flow.modules():
            if isinstance(module, InvertibleLinear):
                module.packed.zero_()
        flow.levels[0][0].norm.logs.fill_(math.log(scale) / 3)
    x = torch.randn(3, *shape, dtype=torch.float64)
    expected = torch.distributions.Normal(0.0, 1 / scale).log_prob(x).flatten(1).sum(1)
    assert torch.allclose(flow.log_prob(x), expected, atol=1e-10)


def written_out(flow, x):
    """eps of a flow without logit, its layers one by one as on paper; and all normalised activations."""
    z, eps, seen = flow.channels_last(x), [], []
    for level, (steps, prior) in enumerate(zip(flow.levels, flow.priors, strict=True)):
        z = squeeze(z) if flow.conv else z
        for step in steps:
            seen.append(step.norm(z))
            z = seen[-1] @ lu_weights([step.linear])[0].T
            kept, moved = z.split(step.coupling.sizes, -1)
            h, inside = unfolded(step.coupling.net, kept)
            seen.extend(inside)
            if step.coupling.affine:
                scale = step.coupling.floor + (1 - step.coupling.floor) / (1 + torch.exp(-(h[..., 1::2] + 2)))
                z = torch.cat([kept, (moved + h[..., 0::2]) * scale], -1)
            else:
                z = torch.cat([kept, moved + h], -1)
        z, out = (None, z) if level == len(flow.levels) - 1 else z.chunk(2, -1)
        eps.append(prior.encode(out, z)[0].flatten(1))
    return torch.cat(eps, 1), seen


def unfolded(net, x):
    """A coupling net as written on paper, and its normalised activations."""
    normalised = []
    for weight, norm in zip(net.weights, net.norms, strict=True):
        normalised.append(norm(linear(x, weight)))
        x = normalised[-1].relu()
    return linear(x, net.last.weight, net.last.bias) * (3 * net.last.logs).exp(), normalised


@pytest.mark.parametrize("name", FLOWS)
def test_initialize_gives_every_actnorm_mean_zero_and_variance_one(name):
    shape, *arguments = FLOWS[name]
    flow = perturb(Glow(shape, *arguments).double())
    x = box(300, shape)
    flow.initialize(x)
    with torch.no_grad():
        seen = written_out(flow, flow.logit.encode(x)[0] if flow.logit else x)[1]
    assert len(seen) == 3 * arguments[0] * arguments[1]
    for activations in seen:
        flat = activations.flatten(0, -2)
        assert flat.mean(0).abs().max() < 1e-9
        assert (flat.var(0, correction=0) - 1).abs().max() < 0.01  # not exact: 1e-6 is added to the deviation


@pytest.mark.parametrize("name", [name for name in FLOWS if "logit" not in name])
def test_merged_layers_give_what_the_layers_give_one_by_one(name):
    flow, x = make_flow(name)
    assert torch.allclose(flow.encode(x)[0], written_out(flow, x)[0], atol=1e-10)


@pytest.mark.parametrize(("layers", "shape"), [("fc", (3,)), ("conv", (4, 5, 3))])
def test_folded_coupling_net_equals_the_unfolded(layers, shape):
    net, x = perturb(CouplingNet(3, 4, 16, layers).double()), torch.randn(2, *shape, dtype=torch.float64)
    assert torch.allclose(net(x), unfolded(net, x)[0], atol=1e-12)


@pytest.mark.parametrize("name", FLOWS)
def test_using_a_flow_leaves_its_state_unchanged(name):
    flow, x = make_flow(name)
    before = {key: value.clone() for key, value in flow.state_dict().items()}
    flow.decode(flow.encode(x)[0])
    flow.sample(2)
    assert all(torch.equal(value, before[key]) for key, value in flow.state_dict().items())


@pytest.mark.parametrize("use", [lambda flow, x: flow.encode(x), lambda flow, x: flow.sample(1)])
def test_an_uninitialised_flow_refuses_and_a_loaded_one_does_not(use):
    flow, x = make_flow("fc affine")
    other = Glow(FLOWS["fc affine"][0], *FLOWS["fc affine"][1:]).double()
    with pytest.raises(RuntimeError, match="not initialised"):
        use(other, x)
    other.load_state_dict(flow.state_dict())
    use(other, x)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))


@pytest.mark.parametrize("channels", [1, 2, 12, 48])
def test_lu_weight_starts_as_a_rotation_and_stays_exact(channels):
    one, eye = InvertibleLinear(channels), torch.eye(channels, dtype=torch.float64)
    assert torch.allclose(lu_weights([one])[0] @ lu_weights([one])[0].T, eye, atol=1e-5)
    layers = [perturb(one), perturb(InvertibleLinear(channels))]
    copy = InvertibleLinear(channels)
    copy.load_state_dict(one.state_dict())
    assert torch.equal(lu_weights([copy])[0], lu_weights(layers)[0])
    for layer, weight, inverse in zip(layers, lu_weights(layers), lu_inverses(layers), strict=True):
        assert abs(torch.linalg.slogdet(weight)[1] - layer.packed.double().trace()) < 1e-9
        assert torch.allclose(inverse @ weight, eye, atol=1e-9)


@pytest.mark.parametrize(("layers", "shape"), [("fc", (6,)), ("conv", (4, 4, 6))])
def test_affine_coupling_is_openai_glows(layers, shape):
    coupling = perturb(Coupling(6, 16, layers, "affine", 0.0).double())
    x = torch.randn(3, *shape, dtype=torch.float64)
    h = unfolded(coupling.net, x[..., :3])[0]
    shift, scale = h[..., [0, 2, 4]], 1 / (1 + torch.exp(-(h[..., [1, 3, 5]] + 2)))
    y, log_scale = coupling.encode(x)
    assert torch.allclose(y, torch.cat([x[..., :3], (x[..., 3:] + shift) * scale], -1), atol=1e-12)
    assert torch.allclose(log_scale, scale.log(), atol=1e-12)


def test_split_prior_is_openai_glows():
    prior = perturb(Gaussianize(3, 2, "conv").double())
    z, context = torch.randn(2, 4, 4, 3, dtype=torch.float64), torch.randn(2, 4, 4, 2, dtype=torch.float64)
    h = F.conv2d(context.permute(0, 3, 1, 2), prior.net.weight, prior.net.bias, padding=1)
    h = (h * (3 * prior.net.logs).exp().view(1, -1, 1, 1)).permute(0, 2, 3, 1)
    mean, logs = h[..., [0, 2, 4]], h[..., [1, 3, 5]]
    assert torch.allclose(prior.encode(z, context)[0], (z - mean) / logs.exp(), atol=1e-12)


def test_affine_scale_stays_above_its_floor():
    coupling = perturb(Coupling(4, 16, "fc", "affine", 0.3))
    scale = coupling.shift_and_log_scale(1000 * torch.randn(500, 2), None)[1].exp()
    assert 0.3 - 1e-6 <= scale.min() < 0.31 and scale.max() <= 1 + 1e-6


def test_squeeze_takes_channel_c_offset_dy_dx_to_channel_4c_2dy_dx():
    flow = Glow((2, 4, 6), 1, 1, 4, "conv", "additive", 0.0, "centered")
    flow.initialized.fill_(True)
    with torch.no_grad():
        linear = flow.levels[0][0].linear
        linear.packed.zero_()
        linear.permutation.copy_(torch.eye(8))
        linear.sign.fill_(1.0)
    x = torch.arange(48.0).view(1, 2, 4, 6)
    squeezed = flow.encode(x)[0].view(2, 3, 8).permute(2, 0, 1)
    assert squeezed[:, 0, 0].tolist() == [0, 1, 6, 7, 24, 25, 30, 31]  # by hand
    for c, dy, dx, i, j in torch.cartesian_prod(*map(torch.arange, (2, 2, 2, 2, 3))).tolist():
        assert squeezed[c * 4 + dy * 2 + dx, i, j] == x[0, c, 2 * i + dy, 2 * j + dx]


# The first numbers count openai/glow's top prior, a 96 -> 96 convolution of zeros with bias and logs: 83,136
# parameters. 82,944 of them are weights that multiply zeros and never learn; what acts is one mean and one
# log-scale for each of 48 channels, 96 parameters here: 83,040 fewer. In 2D the first number has no prior.
@pytest.mark.parametrize(
    ("arguments", "count"),
    [
        (((3, 32, 32), 3, 8, 512, "conv", "additive"), 9_549_840 - 83_040),
        (((3, 32, 32), 3, 32, 512, "conv", "additive"), 37_940_016 - 83_040),
        (((3, 32, 32), 3, 8, 512, "conv", "affine"), 11_098_800 - 83_040),
        (((2,), 1, 10, 128, "fc", "affine"), 172_920 + 4),
    ],
)
def test_parameter_counts_are_the_papers(arguments, count):
    with torch.device("meta"):
        flow = Glow(*arguments, 0.0, "identity")
    assert sum(parameter.numel() for parameter in flow.parameters()) == count
    if len(arguments[0]) == 3:
        assert flow.latents == [(16, 16, 6), (8, 8, 12), (4, 4, 48)]


def test_too_many_levels_are_refused():
    with pytest.raises(ValueError, match="at most 2 fit"):
        Glow((3, 12, 12), 3, 1, 8, "conv", "additive", 0.0, "centered")


@pytest.mark.parametrize("path", ["log_prob of x", "x of decode", "log q of rsample, and x"])
@pytest.mark.parametrize("name", FLOWS)
def test_gradients_reach_every_parameter(name, path):
    flow, x = make_flow(name)
    if path == "log_prob of x":
        loss = flow.log_prob(x).sum()
    else:
        x, log_q = flow.decode(torch.randn(8, flow.dims, dtype=torch.float64))
        loss = (x.sin() * torch.randn_like(x)).sum() + (log_q.sum() if "log q" in path else 0.0)
    loss.backward()
    for parameter_name, parameter in flow.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, parameter_name
        if parameter_name.endswith("packed"):
            assert (parameter.grad != 0).all(), parameter_name


@pytest.mark.parametrize("name", FLOWS)
def test_gradients_of_both_directions_agree_with_finite_differences(name):
    flow, x = make_flow(name)
    eps = torch.randn(1, flow.dims, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(flow.log_prob, x[:1].requires_grad_(), fast_mode=True)
    assert torch.autograd.gradcheck(flow.decode, eps, fast_mode=True)


def test_temperature_scales_the_noise_and_the_generator_fixes_it():
    flow, _ = make_flow("fc affine", torch.float32)
    eps = torch.randn(5, 2, generator=torch.Generator().manual_seed(3))
    x = flow.sample(5, temperature=0.5, generator=torch.Generator().manual_seed(3))
    assert torch.equal(x, flow.decode(0.5 * eps)[0])


@pytest.mark.parametrize("shape", [(2,), (1, 2, 3)])
def test_gaussian_noise_is_the_multivariate_normal_of_the_data(shape):
    noise, data = Gaussian(shape).double(), box(2000, shape) + 1.0
    noise.initialize(data)
    flat = data.flatten(1)
    covariance = flat.T.cov() + 1e-6 * torch.eye(noise.dims, dtype=torch.float64)
    truth = torch.distributions.MultivariateNormal(flat.mean(0), covariance)
    assert torch.allclose(noise.log_prob(data), truth.log_prob(flat), atol=1e-9)
    noise = noise.float()
    x, log_q = noise.rsample_with_log_prob(100)
    assert x.shape == (100, *shape)
    assert torch.allclose(noise.log_prob(x), log_q, atol=1e-4)
