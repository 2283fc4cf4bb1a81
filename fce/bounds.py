"""Bounds on log Z from log-weights w(x) = f(x) - log q(x), as Z = E_q exp(w), and how far to trust them."""

import math

import numpy as np
import torch
from scipy.special import betaincinv, softmax
from torch import Tensor

RANKS = tuple(r * 10**d for d in range(1, 8) for r in (1, 3))  # of the order statistics, fixed beforehand


def importance(w: Tensor) -> float:
    """log mean exp(w) in nats, of log-weights [N]."""
    return torch.logsumexp(w.double(), 0).item() - math.log(len(w))


def effective_sample_size(w: Tensor) -> float:
    """(sum of weights)^2 / sum of squared weights: N where all are equal, 1 where one outweighs the rest."""
    return math.exp(2 * torch.logsumexp(w.double(), 0).item() - torch.logsumexp(2 * w.double(), 0).item())


def pareto_k(w: Tensor) -> float:
    """Shape of the largest weights' generalised Pareto distribution (arXiv 1507.02646); above 0.7 don't trust them."""
    largest = min(len(w) // 5, math.ceil(3 * math.sqrt(len(w))))
    top = (w.double() - w.max()).exp().sort(descending=True).values[: largest + 1].numpy()
    excess = top[:-1] - top[-1]
    return generalised_pareto(excess) if excess[0] > 0 else -math.inf


def generalised_pareto(excess: np.ndarray) -> float:
    """Shape of the generalised Pareto distribution of values [n] above 0 (Zhang and Stephens, Technometrics 51, 2009).

    Shapes far above 1 come out too low, but above 1, where scipy's maximum of the likelihood is not found at all.
    """
    x = np.sort(excess).clip(1e-290)  # of weights that spread by 700 nats most are 0
    n, grid = len(x), 20 + math.isqrt(len(x))
    theta = 1 / x[-1] + (1 - np.sqrt(grid / (np.arange(grid) + 0.5))) / (3 * x[(n + 2) // 4 - 1])
    shapes = np.log1p(-np.outer(theta, x)).mean(1)
    weights = softmax(n * (np.log(-theta / shapes) - shapes - 1))
    return float(np.log1p(-(weights @ theta) * x).mean())


def order_statistics(w: Tensor, level: float) -> float:
    """A lower bound on log Z, in nats, that fails with probability at most 1 - level, from independent w [N].

    Z >= e^t P_q(w >= t) for every t. At t = the k-th largest of N weights, P is at least the (1 - level)-quantile of
    Beta(k, N - k + 1) (Clopper-Pearson), here for the ranks RANKS and N together (Bonferroni).
    """
    n, falling = len(w), w.double().sort(descending=True).values.numpy()
    ranks = np.array([k for k in RANKS if k < n] + [n])
    return float((falling[ranks - 1] + np.log(betaincinv(ranks, n - ranks + 1, (1 - level) / len(ranks)))).max())


def markov(log_weights: Tensor, delta: float) -> float:
    """A lower bound on log E weight, in nats, that fails with probability at most delta, from log-weights [B].

    The mean of weights >= 0 is 1 / delta times its expectation, or more, with probability delta at most (Markov's
    inequality). It takes no independence of the weights, and of annealed chains no convergence.
    """
    return importance(log_weights) + math.log(delta)


def certificate(w: Tensor, chains: Tensor, level: float) -> tuple[float, str]:
    """A lower bound on log Z, in nats, that fails with probability at most 1 - level, whatever q and f are; in words.

    It is the larger of two that fail with half of that each. Order statistics of the flow's samples w lose least where
    the EBM is a few nats from its flow; Markov's inequality on annealed chains loses log(2 / (1 - level)) nats (5.3 at
    level 0.99) beside what annealing lacks. (On the flow's samples it would beat order statistics only where w spreads
    by more than some 10 nats, and annealing is far above both there.)

    Args:
        w: log-weights of independent samples of the flow [N].
        chains: log-weights of annealed chains [B], by kernels that nobody chose by looking at them (fce/annealing.py).
    """
    half = (1 - level) / 2
    (low, loser), (high, winner) = sorted([(order_statistics(w, 1 - half), "order statistics of the flow's samples"),
                                           (markov(chains, half), "Markov's inequality on annealed chains")])
    return high, f"a lower bound with probability {level:g}: by {winner}, {high - low:.3g} nats above {loser}"
