"""A minibatch of the game: data and samples with their log q, and V (eq. 4) as the flow sees it."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fce.energy import Tilted
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
    if isinstance(energy.first, Tilted):
        return tilted_value(energy, batch, noise_ratio)
    with torch.no_grad():
        log_p = energy.log_prob(batch.x)
    r_data, r_gen = log_p - batch.log_q, energy("log_ratio", batch.x_gen, batch.log_q_gen)
    return value(r_data, r_gen, noise_ratio), r_data, r_gen


def tilted_value(energy: Stack, batch: Minibatch, noise_ratio: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """As flow_value, of a tilted EBM, p = q exp(h) with h = g - c: p is held fixed while the flow descends V.

    With q0 the flow as it is now, p = q0 exp(h) and r = h + log q0 - log q, which is h at q = q0. There, with s the
    sigmoid, t = log nu and d the derivative by the flow's parameters (nu = noise_ratio; all at q = q0),

        d E_data log s(r - t)    = -E_data[s(t - h) d log q(x)]
        d nu E_q log s(t - r)    = nu E_q[(log s(t - h) + s(h - t)) d log q(x)]    (a score function times F(h), where
                                                                                 d r = -d log q gave the second part)
                                 = nu E_eps[d F(h(x~))],  x~ = g(eps), F(h) = log s(t - h) + s(h - t)

    The last line, the same expectation by reparametrisation, has far less variance, and needs neither log q(x~) nor a
    pass of x~ through the flow: with F' = -s(h - t)^2 a sample moves up h, the more the surer it is taken for real.
    """
    tie = math.log(noise_ratio)
    with torch.no_grad():
        h_data = energy("log_ratio", batch.x, batch.log_q)
    h_gen = energy("log_ratio", batch.x_gen, batch.log_q_gen.detach())
    on_data = -(torch.sigmoid(tie - h_data) * batch.log_q).mean(-1)
    on_samples = noise_ratio * (logsigmoid(tie - h_gen) + torch.sigmoid(h_gen - tie)).mean(-1)
    slope = on_data + on_samples
    return value(h_data, h_gen.detach(), noise_ratio) + slope - slope.detach(), h_data, h_gen


def take(values: Tensor, which: Tensor) -> Tensor:
    """values[s, which[s]] for each run s."""
    return values[torch.arange(len(which), device=which.device)[:, None], which]
