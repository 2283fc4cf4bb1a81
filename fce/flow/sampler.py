"""Densities that are sampled by decoding noise: what Glow and the Gaussian share, and the Gaussian."""

import math

import torch
from torch import Tensor, nn

from fce.flow.layers import sum_features


def normal_log_prob(eps: Tensor) -> Tensor:
    """log N(eps; 0, I), summed over the features."""
    return sum_features(-0.5 * eps.square() - 0.5 * math.log(2 * math.pi))


class Sampler(nn.Module):
    """A density whose samples are decoded noise: what Glow and the Gaussian share."""

    dims: int

    def log_prob(self, x: Tensor) -> Tensor:
        """log q(x) [B] in nats."""
        raise NotImplementedError

    def decode(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        """(x, log q(x) [B]) from eps [B, D]."""
        raise NotImplementedError

    def rsample_with_log_prob(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """n samples and their log q, with gradients through both."""
        eps = torch.randn(n, self.dims, generator=generator)
        return self.decode(temperature * eps.to(next(self.buffers()).device))

    @torch.no_grad()
    def sample(self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
        return self.rsample_with_log_prob(n, temperature, generator)[0]


class Gaussian(Sampler):
    """A Gaussian with the data's mean and covariance, with Glow's interface: the noise of plain NCE."""

    mean: Tensor
    factor: Tensor

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.shape, self.dims = tuple(shape), math.prod(shape)
        self.register_buffer("mean", torch.zeros(self.dims))
        self.register_buffer("factor", torch.eye(self.dims))

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        flat = x.flatten(1).double()
        self.mean.copy_(flat.mean(0))
        self.factor.copy_(torch.linalg.cholesky(flat.T.cov() + 1e-6 * torch.eye(self.dims, device=x.device)))

    def log_prob(self, x: Tensor) -> Tensor:
        white = torch.linalg.solve_triangular(self.factor, (x.flatten(1) - self.mean).T, upper=False).T
        return normal_log_prob(white) - self.factor.diagonal().log().sum()

    def decode(self, eps: Tensor) -> tuple[Tensor, Tensor]:
        x = self.mean + eps @ self.factor.T
        return x.view(-1, *self.shape), normal_log_prob(eps) - self.factor.diagonal().log().sum()
