"""The bounds on log Z against models whose constant is known."""

import math
from copy import deepcopy
from dataclasses import FrozenInstanceError
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom

from eval.log_z_control import interval
from fce.annealing import Annealing, Path, adapt
from fce.bounds import (
    RANKS,
    certificate,
    effective_sample_size,
    importance,
    markov,
    order_statistics,
    pareto_k,
)
from fce.flow.glow import make_glow
from fce.flow.sampler import normal_log_prob
from fce.objective import calibrate

FLOW = {"levels": 3, "steps": 2, "width": 8, "layers": "conv", "coupling": "affine", "scale_floor": 0.3,
        "input": "logit"}
LEVEL = 0.99
TRIALS = 1000


def allowed(chance: float, trials: int = TRIALS) -> int:
    """Failures that a bound which fails with this probability exceeds once in a thousand such tests."""
    return int(binom.ppf(0.999, trials, chance))


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_order_statistics_fail_at_most_as_often_as_they_say(spread):
    """Weights exp(spread N(0, 1)) have mean exp(spread^2 / 2)."""
    generator = torch.Generator().manual_seed(0)
    w = spread * torch.randn(TRIALS, 2000, generator=generator)
    bounds = np.array([order_statistics(row, LEVEL) for row in w])
    assert np.isfinite(bounds).all()  # a bound of minus infinity never fails, and says nothing
    assert (bounds > spread**2 / 2).sum() <= allowed(1 - LEVEL)


def test_order_statistics_of_a_constant_weight_lose_only_the_clopper_pearson_term():
    n = 5000
    term = math.log(beta.ppf((1 - LEVEL) / (sum(k < n for k in RANKS) + 1), n, 1))
    assert 0 > term > -0.01
    assert order_statistics(torch.full((n,), 7.0), LEVEL) == pytest.approx(7.0 + term, abs=1e-6)


def test_weights_of_known_mean():
    w = 0.5 * torch.randn(200_000, generator=torch.Generator().manual_seed(1)) + 2.0
    assert importance(w) == pytest.approx(2.125, abs=0.01)
    assert w.mean() < importance(w) and order_statistics(w, LEVEL) < importance(w)
    assert effective_sample_size(w) / len(w) == pytest.approx(math.exp(-0.25), abs=0.01)
    assert effective_sample_size(torch.zeros(50)) == pytest.approx(50)
    assert importance(torch.tensor([0.0, -math.inf])) == pytest.approx(-math.log(2))


def test_pareto_k_is_the_tails_shape():
    uniform = torch.rand(100_000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for shape, error in ((0.3, 0.1), (0.9, 0.1), (3.0, 0.5), (30.0, 10.0)):  # U^-shape has a tail of that shape
        assert pareto_k(-shape * uniform.log()) == pytest.approx(shape, abs=error)
    assert pareto_k(1000 * torch.randn(10_000, generator=torch.Generator().manual_seed(3))) > 1  # most weights are 0


def test_a_misspecified_model_has_a_wrong_c_and_a_right_importance_estimate():
    """Noise N(0, 1), an EBM of variance 1.2 with log Z = 5, data of variance 1.8, in 30 dimensions."""
    generator, dims = torch.Generator().manual_seed(3), 30
    noise, data = (torch.randn(200_000, dims, generator=generator) for _ in range(2))

    def w(x):
        return normal_log_prob(x / math.sqrt(1.2)) - 0.5 * dims * math.log(1.2) + 5.0 - normal_log_prob(x)

    assert importance(w(noise)) == pytest.approx(5.0, abs=0.05)
    assert abs(calibrate(w(math.sqrt(1.8) * data), w(noise)) - 5.0) > 0.3
    assert calibrate(w(math.sqrt(1.2) * data), w(noise)) == pytest.approx(5.0, abs=0.05)  # the right model, the right c


def gaussian_weight(eps, mean=1.0, spread=0.5):
    """The EBM N(mean, spread^2) with log Z = 3, seen from N(0, 1)."""
    return normal_log_prob((eps - mean) / spread) - eps.shape[1] * math.log(spread) + 3.0 - normal_log_prob(eps)


def exact_samples(n, dims, generator, mean=1.0, spread=0.5):
    """Of that EBM."""
    return mean + spread * torch.randn(n, dims, generator=generator)


def test_annealing_in_one_step_is_importance_sampling():
    eps = torch.randn(100, 5, generator=torch.Generator().manual_seed(4))
    annealing = Annealing(Path(gaussian_weight, 5, 1, 3), (0.2, 0.2))
    found = annealing.forward(100, torch.Generator().manual_seed(4))
    assert torch.allclose(found.log_weights.float(), gaussian_weight(eps)) and math.isnan(found.accepted)


def test_annealing_finds_the_constant_where_importance_sampling_is_lost():
    generator, dims = torch.Generator().manual_seed(5), 20
    path = Path(gaussian_weight, dims, 300, 4)
    annealing = Annealing(path, adapt(path, 100, generator))
    found = annealing.forward(400, generator)
    assert found.accepted == pytest.approx(0.65, abs=0.15)  # the target
    high = -importance(annealing.reverse(exact_samples(400, dims, generator), generator).log_weights)
    low = importance(found.log_weights)
    assert importance(gaussian_weight(path.noise(400, generator))) < 1.0 < 2.9 < low < 3.1
    assert 2.9 < high < 3.1


def test_the_mean_weight_of_few_steps_has_the_expectation_z_and_backwards_1_over_z():
    """What Markov's inequality needs, of kernels that are far from converged: 2 temperatures, of bad step sizes."""
    generator, n, place = torch.Generator().manual_seed(7), 40_000, {"mean": 0.8, "spread": 0.85}
    annealing = Annealing(Path(partial(gaussian_weight, **place), 2, 2, 2), (0.5, 1.4, 0.1))
    forward = annealing.forward(n, generator).log_weights
    reverse = annealing.reverse(exact_samples(n, 2, generator, **place), generator).log_weights
    assert forward.mean() < 3 - 0.15 and -reverse.mean() > 3 + 0.15  # Jensen's gaps
    for ratio in ((forward - 3).exp(), (reverse + 3).exp()):
        error = ratio.std().item() / math.sqrt(n)
        assert error < 0.02 and ratio.mean().item() == pytest.approx(1, abs=4 * error)


def test_a_chain_does_not_leave_a_place_where_the_density_has_no_slope():
    """Half of the noise stands where w is a number and its slope is none; if it moved, Z would seem twice as large."""
    def log_weight(eps):
        x = eps[:, 0]
        return torch.where(x > 0, 6.0 + 0.0 * (x * (x > 0)).sqrt(), torch.zeros(()))

    path = Path(log_weight, 1, 4, 3)
    found = Annealing(path, (0.5,) * 5).forward(20_000, torch.Generator().manual_seed(8)).log_weights
    assert importance(found) == pytest.approx(math.log((math.exp(6) + 1) / 2), abs=0.05)


# A certificate


@pytest.mark.parametrize("chains", [1, 2, 5])
def test_markovs_bound_fails_as_often_as_it_says_and_no_more(chains):
    """All of Z in one place of q, the worst case: what a hit proves is above Z only where hits are rare enough."""
    delta, trials, generator = 0.005, 20 * TRIALS, torch.Generator().manual_seed(9)
    for share, fewest, most in ((0.95, 0.7 * delta * trials, allowed(delta, trials)), (1.05, 0, allowed(1e-4, trials))):
        hits = torch.rand(trials, chains, generator=generator) < share * delta / chains
        bounds = np.array([markov(row, delta) for row in torch.where(hits, 0.0, -math.inf)])
        assert fewest <= (bounds > math.log(share * delta / chains)).sum() <= most


@pytest.mark.parametrize(("mean", "spread", "dims", "chains", "temperatures"), [
    (1.0, 0.5, 4, 5, 3), (1.0, 0.5, 8, 2, 5), (2.5, 0.1, 1, 2, 2)  # the last: a narrow mode, which few chains find
])
def test_the_certificate_of_a_planted_constant_fails_at_most_as_often_as_it_says(
    mean, spread, dims, chains, temperatures
):
    """1,000 trials, each of a few chains along far too few temperatures, and of 100 samples of the flow."""
    generator, one_percent = torch.Generator().manual_seed(10), TRIALS // 100
    path = Path(partial(gaussian_weight, mean=mean, spread=spread), dims, temperatures, 2)
    annealing = Annealing(path, adapt(path, 200, generator))
    forward = annealing.forward(TRIALS * chains, generator).log_weights.view(TRIALS, chains)
    exact = exact_samples(TRIALS * chains, dims, generator, mean, spread)
    reverse = annealing.reverse(exact, generator).log_weights.view(TRIALS, chains)
    w = path.log_weight(path.noise(TRIALS * 100, generator)).view(TRIALS, 100)
    bounds = np.array([certificate(*each, LEVEL)[0] for each in zip(w, forward, strict=True)])
    assert (bounds > 3).sum() <= one_percent and bounds.max() > 3 - 7  # true, and not empty
    assert sum(markov(row, 1 - LEVEL) > 3 for row in forward) <= one_percent
    low, high = np.array([interval(*each, LEVEL) for each in zip(w, forward, reverse, strict=True)]).T
    assert ((low > 3) | (high < 3)).sum() <= one_percent and (high - low).min() < 14
    assert (low < bounds).all()  # a side of two has half the chance to fail


def test_the_certificate_is_the_larger_of_its_two_parts_and_says_which():
    near, far = torch.zeros(5000), 20 * torch.randn(5000, generator=torch.Generator().manual_seed(11))
    chains = torch.full((10,), 1.0)
    value, words = certificate(near, chains, LEVEL)
    assert value == order_statistics(near, 0.995) and "by order statistics of the flow's samples, 4.3 nats" in words
    value, words = certificate(far - far.max(), chains, LEVEL)
    assert value == pytest.approx(1 + math.log(0.005)) and "by Markov's inequality on annealed chains, " in words
    lost = torch.full((10,), -math.inf)  # of chains that are no numbers; it takes nothing from the other part
    assert certificate(near, lost, LEVEL)[0] == order_statistics(near, 0.995)


def test_a_chain_that_is_no_number_counts_as_weight_0():
    def log_weight(eps):
        return torch.where(eps[:, 0] > 0, math.nan, 2.0) + 0.0 * eps.sum(1)

    annealing = Annealing(Path(log_weight, 1, 2, 1), (0.1,) * 3)
    found = annealing.forward(1000, torch.Generator().manual_seed(12)).log_weights
    assert {-math.inf, 2.0} == set(found.tolist()) and importance(found) == pytest.approx(2 - math.log(2), abs=0.1)


def test_a_run_cannot_change_its_step_sizes_and_none_were_learned_from_its_chains():
    """The certificate needs sizes fixed beforehand: the wrong ways are impossible, or raise."""
    seen: list[torch.Tensor] = []

    def log_weight(eps):
        seen.append(eps.detach())
        return gaussian_weight(eps)

    path = Path(log_weight, 3, 4, 2)
    with pytest.raises(TypeError):
        adapt(path, path.noise(50, torch.Generator()), torch.Generator())  # chains to learn from can't be given
    sizes = adapt(path, 50, torch.Generator().manual_seed(13))
    learned = torch.cat(seen)
    seen.clear()
    given = list(sizes)
    annealing = Annealing(path, given)
    first = annealing.forward(50, torch.Generator().manual_seed(13))  # the same chance as `adapt` was given
    assert not torch.isin(torch.cat(seen), learned).any()  # and yet no place in common
    given[0] = 1.0
    annealing.forward(50, torch.Generator().manual_seed(14))
    again = annealing.forward(50, torch.Generator().manual_seed(13))
    assert annealing.sizes == sizes and torch.equal(first.log_weights, again.log_weights)
    with pytest.raises(FrozenInstanceError):
        annealing.sizes = (1.0,) * 5
    with pytest.raises(TypeError):
        annealing.sizes[0] = 1.0
    with pytest.raises(TypeError):
        annealing.forward(path.noise(50, torch.Generator()), torch.Generator())  # nor chains to run
    with pytest.raises(ValueError, match="sizes: 4, but the path has 5 temperatures"):
        Annealing(path, sizes[:-1])


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
    path = Path(log_weight, flow.dims, temperatures, 3)
    annealing = Annealing(path, adapt(path, chains // 2, generator))
    low = importance(annealing.forward(chains, generator).log_weights)
    with torch.no_grad():
        eps = flow.encode(planted.sample(chains, generator=generator))[0]
    high = -importance(annealing.reverse(eps, generator).log_weights)
    assert low - 0.5 < constant < high + 0.5
    assert high - low < 2.5  # E_q w, the Jensen bound, is 3 to 4 nats below the constant
