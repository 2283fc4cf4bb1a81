"""Features of images, and the Fréchet distance between sets of them, by torch-fidelity."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch_fidelity import metric_fid

Moments = dict[str, np.ndarray]  # mu [F], sigma [F, F]


@torch.no_grad()
def features_of(images: np.ndarray, look: Callable[[np.ndarray], Tensor], batch: int,
                tell: Callable[[int], None] = lambda _: None) -> Tensor:
    """Features [N, F] that `look` makes of uint8 images [N, H, W, C], in double precision, as TTUR takes their means.

    `tell` hears how many images are done.
    """
    found = []
    for start in range(0, len(images), batch):
        found.append(look(images[start : start + batch]).cpu().double())
        tell(min(start + batch, len(images)))
    return torch.cat(found)


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features [N, F]."""
    found: Moments = metric_fid.fid_features_to_statistics(features)
    return found


def frechet(features: Tensor, reference: Moments) -> float:
    """The Fréchet distance of features [N, F] to what has these moments."""
    found = metric_fid.fid_statistics_to_metric(moments(features), reference, verbose=False)
    return float(found[metric_fid.KEY_METRIC_FID])
