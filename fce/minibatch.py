"""A minibatch of the game: data and samples with their log q, and V (eq. 4) as the flow sees it."""

from typing import NamedTuple

import torch
from torch import Tensor

from fce.objective import value
from fce.stack import Stack

Drawn = tuple[Tensor, Tensor, Tensor, Tensor]  # x [S, B, ...], log q(x) [S, B]; x~, log q(x~) of noise_ratio * B


class Minibatch(NamedTuple):
    """Data x [S, B, ...] and samples x~ = g(eps) with their log q, from which gradients find back into the flow."""

    x: Tensor
    eps: Tensor
    log_q: Tensor
    x_gen: Tensor
    log_q_gen: Tensor

    @classmethod
    def of(cls, flow: Stack, x: Tensor, eps: Tensor) -> "Minibatch":
        """One pass of the flow in each direction: log q(x~) comes with the sample."""
        x_gen, log_q_gen = flow("decode", eps)
        return cls(x, eps, flow.log_prob(x), x_gen, log_q_gen)

    def detached(self) -> Drawn:
        return self.x, self.log_q.detach(), self.x_gen.detach(), self.log_q_gen.detach()


def flow_value(energy: Stack, batch: Minibatch, noise_ratio: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """V (eq. 4) [S] with the gradients that the flow needs; log p - log q on data and on samples.

    They pass through x~ = g(eps) into f, through log q(x~) and through log q(x); f(x) has none.
    """
    with torch.no_grad():
        log_p = energy.log_prob(batch.x)
    log_p_gen = energy.log_prob(batch.x_gen)
    v = value(log_p, batch.log_q, log_p_gen, batch.log_q_gen, noise_ratio)
    return v, log_p - batch.log_q, log_p_gen - batch.log_q_gen


def take(values: Tensor, which: Tensor) -> Tensor:
    """values[s, which[s]] for each run s."""
    return values[torch.arange(len(which), device=which.device)[:, None], which]
