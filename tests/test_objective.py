"""The value function, its constant, its gradient with respect to the flow, and whose turn it is."""

import copy
import math

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy.optimize import brentq
from scipy.stats import qmc

from fce.energy import EnergyModel, Tilted
from fce.flow.glow import Glow
from fce.flow.sampler import Gaussian
from fce.minibatch import Minibatch, flow_value
from fce.objective import Switch, accuracy, calibrate, chance, value
from fce.stack import Stack

SMALLEST = -2 * math.log(2)


def test_v_is_minus_two_log_two_at_p_equal_q_and_flat_there():
    log_p = (3000 * torch.randn(40, dtype=torch.float64)).requires_grad_()
    r = log_p - log_p.detach()
    v = value(r[:20], r[20:])
    assert v.item() == pytest.approx(SMALLEST, abs=1e-12)
    # where data and samples are the same points, the gradient cancels point by point
    v = value(r, r)
    assert torch.equal(torch.autograd.grad(v, log_p)[0], torch.zeros_like(log_p))
    assert accuracy(torch.zeros(5), True) == accuracy(torch.zeros(5), False) == 0.5


@pytest.mark.parametrize("r", [1e4, -1e4])
@pytest.mark.parametrize("side", ["data", "gen"])
def test_v_is_exact_for_huge_log_ratios_in_float32(r, side):
    log_p, zero = torch.tensor([r], requires_grad=True), torch.tensor([0.0])
    v = value(log_p, zero) if side == "data" else value(zero, log_p)
    wrong = r < 0 if side == "data" else r > 0  # a wrong posterior costs |r|, a right one nothing
    assert v.item() == pytest.approx(-math.log(2) - (1e4 if wrong else 0.0), rel=1e-6)
    slope = torch.autograd.grad(v, log_p)[0].item()
    assert slope == (0.0 if not wrong else 1.0 if side == "data" else -1.0)


def test_swapping_the_densities_and_the_samples_keeps_v():
    r_data, r_gen = 10 * torch.randn(2, 50)
    assert value(r_data, r_gen) == value(-r_gen, -r_data)


def test_v_is_at_most_minus_two_log_two_plus_two_jensen_shannon_and_reaches_it_at_the_true_ratio():
    counts = torch.tensor([[7, 2, 1, 0], [1, 1, 4, 4]])
    p, q = counts.double() / 10
    data, gen = (torch.arange(4).repeat_interleave(row) for row in counts)  # draws of these frequencies
    middle = (p + q) / 2
    jensen_shannon = (torch.special.xlogy(p, p / middle) + torch.special.xlogy(q, q / middle)).sum() / 2
    r = p.log() - q.log()
    best = value(r[data], r[gen])
    assert best.item() == pytest.approx(SMALLEST + 2 * jensen_shannon.item(), abs=1e-12)
    for wrong in 0.3 * torch.randn(50, 4, dtype=torch.float64):
        assert value((r + wrong)[data], (r + wrong)[gen]) < best


@pytest.mark.parametrize("ratio", [1, 3, 20])
def test_v_with_more_negatives_is_its_formula_written_out(ratio):
    log_p, log_q = 3 * torch.randn(2, 40, dtype=torch.float64)
    p, q = log_p.exp(), log_q.exp()
    real = (p[:10] / (p[:10] + ratio * q[:10])).log().mean()
    fake = (ratio * q[10:] / (p[10:] + ratio * q[10:])).log().mean()
    r = log_p - log_q
    v = value(r[:10], r[10:], ratio)
    assert v.item() == pytest.approx((real + ratio * fake).item(), rel=1e-12)
    even = value(0 * r, 0 * r, ratio).item()  # p = q: the posterior is the prior
    assert even == pytest.approx(-math.log(1 + ratio) + ratio * math.log(ratio / (1 + ratio)), rel=1e-12)
    assert chance(ratio) == pytest.approx(even, rel=1e-12)


@pytest.mark.parametrize("ratio", [1, 3])
def test_v_is_that_of_p_over_p_plus_nu_q_in_eighty_digits(ratio):
    """Where exp(log p) is far beyond float64, and the posterior as near to 0 or 1 as 1e-130."""
    log_p = 3000 * torch.randn(40, dtype=torch.float64)
    log_q = log_p + 100 * torch.randn(40, dtype=torch.float64)
    with mp.workdps(80):
        pairs = [(mp.exp(p), ratio * mp.exp(q)) for p, q in zip(log_p.tolist(), log_q.tolist(), strict=True)]
        real = mp.fsum(mp.log(p / (p + q)) for p, q in pairs[:20]) / 20
        fake = mp.fsum(mp.log(q / (p + q)) for p, q in pairs[20:]) / 20
        exact = float(real + ratio * fake)
    r = log_p - log_q
    assert value(r[:20], r[20:], ratio).item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("r", [1e4, -1e4])
def test_v_with_more_negatives_is_finite_where_saturated(r):
    log_p = torch.tensor([r], requires_grad=True)
    v = value(log_p, log_p, 5.0)
    assert v.item() == pytest.approx(-1e4 - math.log(5) if r < 0 else -5e4 + 5 * math.log(5), rel=1e-6)
    assert torch.autograd.grad(v, log_p)[0].item() == (1.0 if r < 0 else -5.0)


@pytest.mark.parametrize(
    ("r", "real", "share"),
    [
        ([2.0, -1.0, 3.0, 4.0], True, 0.75),
        ([2.0, -1.0, 3.0, 4.0], False, 0.25),
        ([1.0, 0.0], True, 0.75),
        ([1.0, 0.0], False, 0.25),
        ([0.0, 0.0], True, 0.5),
        ([-1e4], False, 1.0),
    ],
)
def test_accuracy_counts_a_tie_as_one_half(r, real, share):
    assert accuracy(torch.tensor(r), real).item() == share


@pytest.mark.parametrize(
    ("shift", "sizes", "ratio"),
    [(0.0, (300, 300), 1), (12_000.0, (300, 700), 1), (-9_000.0, (1, 50), 1), (500.0, (300, 900), 3)],
)
def test_calibrate_is_where_v_is_stationary_in_c(shift, sizes, ratio):
    w_data, w_gen = (
        shift + mean + 5 * torch.randn(n, dtype=torch.float64) for n, mean in zip(sizes, (4, -4), strict=True)
    )

    def slope(c):
        c = torch.tensor(c, dtype=torch.float64, requires_grad=True)
        return torch.autograd.grad(value(w_data - c, w_gen - c, ratio), c)[0].item()

    c = calibrate(w_data, w_gen, ratio)
    assert c == pytest.approx(brentq(slope, shift - 60, shift + 60, xtol=1e-10), abs=1e-8)
    assert abs(slope(c)) < 1e-10
    assert calibrate(w_data + 100, w_gen + 100, ratio) == pytest.approx(c + 100, abs=1e-8)


def gaussian_ratios(dims, n):
    """w = f - log q for f = -|x|^2 / 2, on data from N(0, I) and on noise from N(1/2, 4/3 I); and log Z."""
    noise = Gaussian((dims,))
    noise.mean.fill_(0.5)
    noise.factor.copy_(math.sqrt(4 / 3) * torch.eye(dims))
    data, gen = torch.randn(n, dims), noise.sample(n)
    w_data, w_gen = (-0.5 * x.square().sum(1) - noise.log_prob(x) for x in (data, gen))
    return w_data, w_gen, 0.5 * dims * math.log(2 * math.pi)


def standard_error(w_data, w_gen, c):
    """Of the root c of mean sigmoid(c - w_data) = mean sigmoid(w_gen - c), by the delta method."""
    data, gen = torch.sigmoid(c - w_data), torch.sigmoid(w_gen - c)
    slope = (data * (1 - data)).mean() + (gen * (1 - gen)).mean()
    return ((data.var() / len(data) + gen.var() / len(gen)).sqrt() / slope).item()


@pytest.mark.parametrize("dims", [2, 10])
def test_contrastive_estimation_recovers_the_log_normaliser(dims):
    w_data, w_gen, log_z = gaussian_ratios(dims, 20_000)
    c = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([c], lr=0.3)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 0.3 * 0.985**step
        optimizer.zero_grad()
        (-value(w_data - c, w_gen - c)).backward()
        optimizer.step()
    error = standard_error(w_data, w_gen, c.item())
    assert error < 0.05
    assert abs(c.item() - log_z) < 3 * error
    assert calibrate(w_data, w_gen) == pytest.approx(c.item(), abs=0.1 * error)


def test_the_constant_of_a_wrong_model_is_not_its_log_normaliser():
    """f = -|x|^2 / 2, while data and flow agree on variance 1.1: a classifier cannot see that c is wrong."""
    n, dims, log_z = 20_000, 100, 50 * math.log(2 * math.pi)
    squares = 1.1 * torch.randn(2, n, dims).square().sum(2)
    w_data, w_gen = -0.5 * squares + 0.5 * squares / 1.1 + 50 * math.log(2 * math.pi * 1.1)
    kl = 50 * (0.1 - math.log(1.1))  # of the flow from p
    importance_sampled = torch.logsumexp(w_gen, 0).item() - math.log(n)
    assert importance_sampled == pytest.approx(log_z, abs=0.03)
    assert calibrate(w_data, w_gen) == pytest.approx(log_z - kl, abs=0.05)
    assert kl > 0.2


@pytest.mark.parametrize(
    ("rule", "head_start", "accuracies", "turns"),
    [
        ("accuracy", 0, [0.4, 0.4, 0.9, 0.6, 0.4], "eeffe"),  # above 1/2: to the flow; below: back
        ("accuracy", 0, [0.4] * 6, "eeefee"),  # the EBM's cap of 4, then at once below 1/2
        ("accuracy", 0, [0.9] * 7, "fffefff"),  # the flow's cap of 3, then at once above 1/2
        ("accuracy", 0, [0.5] * 8, "eeefffee"),  # a tie ends no turn before its cap
        ("ratio", 0, [0.9, 0.1] * 5, "eeefffeeee"),
        ("ratio", 6, [0.9] * 10, "eeeeefffee"),  # the head start comes before the first turn of the flow
        ("accuracy", 6, [0.9] * 10, "eeeeefffef"),
    ],
)
def test_the_switch_follows_its_script(rule, head_start, accuracies, turns):
    switch = Switch(rule, 4, 3, decay=0.0, head_start=head_start)
    seen = [switch.update(batch_accuracy) for batch_accuracy in accuracies]
    expected = {"e": "ebm", "f": "flow"}
    assert seen == [expected[turn] for turn in turns]


@pytest.mark.parametrize("decay", [0.0, 0.7, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("turn", ["ebm", "flow"])
def test_ties_never_end_a_turn_before_its_cap(decay, turn):
    switch = Switch("accuracy", 2000, 2000, decay, turn=turn)
    assert {switch.update(0.5) for _ in range(1999)} == {turn}
    assert switch.update(0.5) != turn


def test_the_switch_counts_the_turns_that_a_cap_ended():
    switch = Switch("accuracy", 3, 2, decay=0.0, head_start=1)
    for batch_accuracy in (0.9, 0.6, 0.4, 0.6, 0.3, 0.3, 0.3, 0.9):
        switch.update(batch_accuracy)
    # head start; flow: .6, .4 reached; EBM: .6 reached; flow: .3 reached; EBM: .3, .3 and .9, reached with its last
    assert (switch.turns, switch.capped) == (4, 0)
    for batch_accuracy in (0.9, 0.9, 0.3, 0.3, 0.3):
        switch.update(batch_accuracy)  # flow: at its cap of 2; EBM: at its cap of 3
    assert (switch.turns, switch.capped) == (6, 2)


def test_the_switch_averages_all_accuracies_at_first_and_the_latest_later():
    switch = Switch("accuracy", 10**6, 10**6, 0.9)
    for n in range(1, 10):
        switch.update(0.1 * n)
        assert switch.average == pytest.approx(0.1 * (n + 1) / 2)
    before = switch.average
    for _ in range(3):
        switch.update(1.0)
    assert switch.average == pytest.approx(1 - 0.9**3 * (1 - before))


def players(coupling):
    """A tiny flow and EBM in float64, data, and the noise that both differences share."""
    flow = Glow((1, 4, 4), 2, 2, 4, "conv", coupling, 0.1, "centered").double()
    flow.initialize(torch.randn(64, 1, 4, 4, dtype=torch.float64))
    energy = EnergyModel((1, 4, 4), "conv", [4, 8], 0.2).double().requires_grad_(False)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        x, eps = torch.randn(6, 1, 4, 4, dtype=torch.float64), torch.randn(6, 16, dtype=torch.float64)
        x_gen, log_q_gen = flow.decode(eps)
        energy.c.fill_(calibrate(energy(x) - flow.log_prob(x), energy(x_gen) - log_q_gen))
    return Stack([flow]), Stack([energy]), x[None], eps[None]


class Cut:
    """A flow that takes one path of the gradient away: through x~, through log q(x~) or through log q(x)."""

    def __init__(self, flow, path):
        self.flow, self.path = flow, path

    def __call__(self, method, eps):
        x_gen, log_q_gen = self.flow(method, eps)
        return (
            x_gen.detach() if self.path == "x_gen" else x_gen,
            log_q_gen.detach() if self.path == "log_q_gen" else log_q_gen,
        )

    def log_prob(self, x):
        log_q = self.flow.log_prob(x)
        return log_q.detach() if self.path == "log_q" else log_q


def slopes(coupling, cut):
    """dV/d alpha along random directions, by autograd and by central differences."""
    flow, energy, x, eps = players(coupling)
    parameters = list(flow.learned.values())
    gradients = torch.autograd.grad(flow_value(energy, Minibatch.of(Cut(flow, cut), x, eps))[0], parameters)
    pairs, step = [], 1e-6
    for _ in range(4):
        direction = [torch.randn_like(parameter) for parameter in parameters]
        along = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True))
        values = []
        with torch.no_grad():
            for move in (step, -2 * step):
                for parameter, d in zip(parameters, direction, strict=True):
                    parameter.add_(move * d)
                values.append(flow_value(energy, Minibatch.of(flow, x, eps))[0])
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.add_(step * d)
        pairs.append((along.item(), ((values[0] - values[1]) / (2 * step)).item()))
    return torch.tensor(pairs, dtype=torch.float64).T


@pytest.mark.parametrize("coupling", ["additive", "affine"])
def test_the_flows_gradient_of_v_is_its_finite_difference(coupling):
    by_autograd, by_differences = slopes(coupling, "")
    assert by_differences.abs().max() > 0.1
    assert torch.allclose(by_autograd, by_differences, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("cut", ["x_gen", "log_q_gen", "log_q"])
def test_each_path_of_the_flows_gradient_counts(coupling, cut):
    by_autograd, by_differences = slopes(coupling, cut)
    assert (by_autograd - by_differences).abs().max() > 0.01 * by_differences.abs().max()


@pytest.mark.parametrize("ratio", [1, 3])
def test_a_tilted_ebms_flow_descends_v_with_p_held_fixed(ratio):
    """V by its definition, p = q0 exp(h) with q0 a copy of the flow, against the flow's gradient where it is q0.

    Samples are of low-discrepancy noise: score and pathwise gradient agree in expectation only.
    """
    flow = Glow((2,), 1, 2, 4, "fc", "affine", 0.1, "identity").double()
    flow.initialize(torch.randn(64, 2, dtype=torch.float64))
    for parameter in flow.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    base, energy = copy.deepcopy(flow), Tilted((2,), layers="fc", widths=[8], slope=0.2).double().requires_grad_(False)
    for parameter in energy.parameters():
        parameter.add_(0.5 * torch.randn_like(parameter))
    x = 1.5 * torch.randn(50, 2, dtype=torch.float64)
    uniform = torch.from_numpy(qmc.Sobol(2, rng=np.random.default_rng(0)).random(2**17))
    eps = torch.special.ndtri(uniform.clamp(1e-12, 1 - 1e-12))
    stacks = Stack([flow]), Stack([energy])
    parameters = list(flow.parameters())
    v, *_ = flow_value(stacks[1], Minibatch.of(stacks[0], x[None], eps[None]), ratio)
    gradients = torch.autograd.grad(v, parameters)

    @torch.no_grad()
    def exact():
        x_gen, log_q_gen = flow.decode(eps)
        h = [energy.log_ratio(each, each) for each in (x, x_gen)]
        r_data, r_gen = h[0] + base.log_prob(x) - flow.log_prob(x), h[1] + base.log_prob(x_gen) - log_q_gen
        return value(r_data, r_gen, ratio).item()

    assert v.item() == pytest.approx(exact(), abs=1e-9)
    for _ in range(4):
        direction = [torch.randn_like(parameter) for parameter in parameters]
        found = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
        ends = []
        for move in (1e-5, -2e-5):
            for parameter, d in zip(parameters, direction, strict=True):
                parameter.data.add_(move * d)
            ends.append(exact())
        for parameter, d in zip(parameters, direction, strict=True):
            parameter.data.add_(1e-5 * d)
        assert found == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=2e-3, abs=2e-3)
