"""Multinomial logistic regression on many correlated features: scikit-learn's minimum, on the features' device.

scikit-learn's L-BFGS takes hundreds of passes where features are as collinear as an EBM's (48,000 x 7,168: a quarter of
an hour), and gives up before the minimum. In coordinates in which the Hessian at zero weights is the identity, twenty
are enough.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

PASSES = 100


def fits(x: Tensor, labels: Tensor, inverse_l2: Sequence[float]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights [F, K] and bias [K] for each C in turn: the minimum of the summed cross-entropy + |weights|² / 2C.

    Args:
        x: features [N, F], of mean zero.
        labels: classes [N], 0 to K - 1.
        inverse_l2: the Cs; from small to large is fastest, as each search starts where the one before it ended.
    """
    basis = None
    if len(x) < x.shape[1]:  # weights of least norm lie in the span of the images
        basis, corner = torch.linalg.qr(x.T)
        x = corner.T.contiguous()
    classes, features = int(labels.max()) + 1, x.shape[1]
    curvature = (x.T @ x).double() / classes  # at zero weights, but for the classes' mean, which nothing depends on
    weights, bias = curvature.new_zeros(features, classes), curvature.new_zeros(classes)
    for c in inverse_l2:
        half = root(curvature, 1 / c)
        weights, bias = search(x, labels, c, half, weights, bias)
        yield weights if basis is None else (basis @ weights.to(basis.dtype)).double(), bias


def root(matrix: Tensor, ridge: float) -> Tensor:
    """The Cholesky factor of a matrix with a ridge on its diagonal, raised where it is singular but for rounding."""
    for share in (0.0, 1e-6, 1e-4, 1e-2):
        ridged = matrix.clone()
        ridged.diagonal().add_(ridge + share * (matrix.diagonal().mean() + ridge))
        factor, fault = torch.linalg.cholesky_ex(ridged)
        if not fault:
            return factor
    raise ArithmeticError("features are not finite")


def search(x: Tensor, labels: Tensor, c: float, half: Tensor, weights: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum for one C by L-BFGS over half^T weights, from these weights and bias on."""
    unit = (len(x) / len(bias)) ** 0.5  # the bias' part of the same factor

    def opened(flat: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        point = torch.from_numpy(flat.reshape(-1, len(bias))).to(x.device).requires_grad_()
        return point, torch.linalg.solve_triangular(half.T, point[:-1], upper=True), point[-1] / unit

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        point, weights, bias = opened(flat)
        logits = (x @ weights.to(x.dtype)).double() + bias
        value = F.cross_entropy(logits, labels, reduction="sum") + weights.square().sum() / (2 * c)
        value.backward()
        assert point.grad is not None
        return value.item(), point.grad.cpu().numpy().ravel()

    start = torch.cat([half.T @ weights, (bias * unit)[None]]).cpu().numpy().ravel()
    found = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": PASSES, "ftol": 1e-7, "gtol": 1e-3})
    _, weights, bias = opened(found.x)
    return weights.detach(), bias.detach()
