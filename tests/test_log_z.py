"""The bounds on log Z against models whose constant is known."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.stats import beta

from eval.annealing import Annealing
from eval.bounds import RANKS, certificate, effective_sample_size, importance, pareto_k
from fce.flow.glow import make_glow
from fce.flow.sampler import normal_log_prob
from fce.objective import calibrate

FLOW = {"levels": 3, "steps": 2, "width": 8, "layers": "conv", "coupling": "affine", "scale_floor": 0.3,
        "input": "logit"}
LEVEL = 0.99


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_the_certificate_fails_at_most_as_often_as_it_says(spread):
    """Weights exp(spread N(0, 1)) have mean exp(spread^2 / 2); 99 % allow some 10 failures in 1,000, not over 20."""
    generator = torch.Generator().manual_seed(0)
    w = spread * torch.randn(1000, 2000, generator=generator)
    bounds = np.array([certificate(row, LEVEL) for row in w])
    assert np.isfinite(bounds).all()  # a bound of minus infinity never fails, and says nothing
    assert (bounds > spread**2 / 2).sum() <= 20


def test_the_certificate_of_a_constant_weight_loses_only_the_clopper_pearson_term():
    n = 5000
    term = math.log(beta.ppf((1 - LEVEL) / (sum(k < n for k in RANKS) + 1), n, 1))
    assert 0 > term > -0.01
    assert certificate(torch.full((n,), 7.0), LEVEL) == pytest.approx(7.0 + term, abs=1e-6)


def test_weights_of_known_mean():
    w = 0.5 * torch.randn(200_000, generator=torch.Generator().manual_seed(1)) + 2.0
    assert importance(w) == pytest.approx(2.125, abs=0.01)
    assert w.mean() < importance(w) and certificate(w, LEVEL) < importance(w)
    assert effective_sample_size(w) / len(w) == pytest.approx(math.exp(-0.25), abs=0.01)
    assert effective_sample_size(torch.zeros(50)) == pytest.approx(50)
    assert importance(torch.tensor([0.0, -math.inf])) == pytest.approx(-math.log(2))


def test_pareto_k_is_the_tails_shape():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for shape in (0.3, 0.9):  # U^-shape has a tail of that shape
        assert pareto_k(-shape * uniform.log()) == pytest.approx(shape, abs=0.1)


def test_a_misspecified_model_has_a_wrong_c_and_a_right_importance_estimate():
    """Noise N(0, 1), an EBM of variance 1.2 with log Z = 5, data of variance 1.8, in 30 dimensions."""
    generator, dims = torch.Generator().manual_seed(3), 30
    noise, data = (torch.randn(200_000, dims, generator=generator) for _ in range(2))

    def w(x):
        return normal_log_prob(x / math.sqrt(1.2)) - 0.5 * dims * math.log(1.2) + 5.0 - normal_log_prob(x)

    assert importance(w(noise)) == pytest.approx(5.0, abs=0.05)
    assert abs(calibrate(w(math.sqrt(1.8) * data), w(noise)) - 5.0) > 0.3
    assert calibrate(w(math.sqrt(1.2) * data), w(noise)) == pytest.approx(5.0, abs=0.05)  # the right model, the right c


def gaussian_weight(eps):
    """The EBM N(1, 0.5^2) with log Z = 3, seen from N(0, 1)."""
    return normal_log_prob((eps - 1.0) / 0.5) - eps.shape[1] * math.log(0.5) + 3.0 - normal_log_prob(eps)


def test_annealing_in_one_step_is_importance_sampling():
    generator = torch.Generator().manual_seed(4)
    eps = torch.randn(100, 5, generator=generator)
    assert torch.allclose(Annealing(gaussian_weight, 1, 3).forward(eps, generator).float(), gaussian_weight(eps))


def test_annealing_finds_the_constant_where_importance_sampling_is_lost():
    generator, dims = torch.Generator().manual_seed(5), 20
    eps = torch.randn(400, dims, generator=generator)
    annealing = Annealing(gaussian_weight, 300, 4)
    annealing.adapt(torch.randn(100, dims, generator=generator), generator)
    low = importance(annealing.forward(eps, generator))
    assert annealing.accepted == pytest.approx(annealing.target, abs=0.15)
    high = -importance(annealing.reverse(1.0 + 0.5 * torch.randn(400, dims, generator=generator), generator))
    assert importance(gaussian_weight(eps)) < 1.0 < 2.9 < low < 3.1
    assert 2.9 < high < 3.1


@pytest.mark.parametrize(("side", "spread", "chains", "temperatures"), [(8, 0.02, 50, 40), (32, 0.002, 6, 40)])
def test_annealing_sandwiches_a_planted_constant(side, spread, chains, temperatures):
    """The EBM is another flow's log-density plus a constant: Z and exact samples are known. D = 64 and 3,072."""
    shape = (1 if side == 8 else 3, side, side)
    torch.manual_seed(0)
    flow = make_glow(shape, **FLOW)
    flow.initialize(0.25 * torch.rand(64, *shape))
    planted = deepcopy(flow)
    with torch.no_grad():
        for parameter in planted.parameters():
            parameter.add_(spread * torch.randn_like(parameter))
    constant = 100.0

    def log_weight(eps):
        x, log_q = flow.decode(eps)
        return planted.log_prob(x) + constant - log_q

    generator = torch.Generator().manual_seed(6)
    annealing = Annealing(log_weight, temperatures, 3)
    annealing.adapt(torch.randn(chains // 2, flow.dims, generator=generator), generator)
    low = importance(annealing.forward(torch.randn(chains, flow.dims, generator=generator), generator))
    with torch.no_grad():
        eps = flow.encode(planted.sample(chains, generator=generator))[0]
    high = -importance(annealing.reverse(eps, generator))
    assert low - 0.5 < constant < high + 0.5
    assert high - low < 2.5  # E_q w, the Jensen bound, is 3 to 4 nats below the constant
