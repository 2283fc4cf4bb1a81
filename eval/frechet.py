"""The Fréchet distance between sets of features, by torch-fidelity."""

import numpy as np
from torch import Tensor
from torch_fidelity import metric_fid

Moments = dict[str, np.ndarray]  # mu [F], sigma [F, F]


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features [N, F]."""
    found: Moments = metric_fid.fid_features_to_statistics(features)
    return found


def frechet(features: Tensor, reference: Moments) -> float:
    """The Fréchet distance of features [N, F] to what has these moments."""
    found = metric_fid.fid_statistics_to_metric(moments(features), reference, verbose=False)
    return float(found[metric_fid.KEY_METRIC_FID])
