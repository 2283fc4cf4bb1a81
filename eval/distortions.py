"""What a Fréchet distance sees: its rise with blur, noise, lost contrast, JPEG and missing classes.

One random half of the training images is the reference, the other is distorted more and more. A distance that does not
rise each time says nothing about models that differ in this way.
"""

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from eval.frechet import features_of, frechet, moments
from fce.data.batches import at_once

Distort = Callable[[np.ndarray, float], np.ndarray]  # images in [0, 1], [N, H, W, C], and how much
MOST = 3_000  # images of a half
BATCH = 500  # of them at once, where they are of 32x32


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    return gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest")


def noisy(x: np.ndarray, std: float) -> np.ndarray:
    return x + std * np.random.default_rng(0).standard_normal(x.shape, dtype=np.float32)


def paler(x: np.ndarray, lost: float) -> np.ndarray:
    mean = x.mean((1, 2, 3), keepdims=True)
    return mean + (1 - lost) * (x - mean)


def compressed(x: np.ndarray, loss: float) -> np.ndarray:
    """JPEG of quality 100 - loss."""
    found = []
    for image in (x * 255 + 0.5).astype(np.uint8):
        file = io.BytesIO()
        Image.fromarray(image.squeeze()).save(file, "JPEG", quality=round(100 - loss))
        found.append(np.asarray(Image.open(file)).reshape(image.shape))
    return np.stack(found).astype(np.float32) / 255


DISTORTIONS: dict[str, tuple[Distort, tuple[float, ...]]] = {  # with five strengths
    "blur": (blurred, (0.5, 0.75, 1.0, 1.5, 2.0)),  # standard deviation, pixels
    "noise": (noisy, (0.02, 0.05, 0.1, 0.2, 0.4)),  # standard deviation, share of the range
    "contrast": (paler, (0.1, 0.25, 0.5, 0.7, 0.9)),  # share lost
    "jpeg": (compressed, (10, 30, 50, 75, 90)),  # 100 - quality
}
CLASSES = (0.1, 0.2, 0.4, 0.6, 0.8)  # shares of the classes that are missing, in whole classes


def curve(look: Callable[[np.ndarray], Tensor], images: np.ndarray, labels: np.ndarray, levels: int
          ) -> list[dict[str, Any]]:
    """Rows {distortion, strength, distance}; strength 0 is the undistorted half.

    Args:
        look: makes features of uint8 images [B, H, W, C].
        images, labels: [N, H, W, C] and [N].
    """
    order, batch = np.random.default_rng(0).permutation(len(images))[: 2 * MOST], at_once(images.shape[3:0:-1], BATCH)
    first, second = np.array_split(order, 2)
    reference = moments(features_of(images[first], look, batch))
    plain, labels = images[second], labels[second]
    features = features_of(plain, look, batch)
    start = frechet(features, reference)
    rows = []
    for name, (distort, strengths) in DISTORTIONS.items():
        rows.append((name, 0.0, start))
        for strength in strengths:
            moved = features_of(distorted(plain, levels, distort, strength), look, batch)
            rows.append((name, strength, frechet(moved, reference)))
    names = np.unique(labels)
    rows.append(("missing classes", 0.0, start))
    for missing in sorted({max(1, round(share * len(names))) for share in CLASSES} - {len(names)}):
        kept = np.isin(labels, names[missing:])
        rows.append(("missing classes", missing / len(names), frechet(features[torch.from_numpy(kept)], reference)))
    return [dict(zip(("distortion", "strength", "distance"), row, strict=True)) for row in rows]


def distorted(images: np.ndarray, levels: int, distort: Distort, strength: float) -> np.ndarray:
    """uint8 images [N, H, W, C] of these grey levels, distorted and rounded back to them."""
    parts = [distort(part.astype(np.float32) / (levels - 1), strength)
             for part in np.array_split(images, max(1, len(images) // BATCH))]
    return (np.concatenate(parts).clip(0, 1) * (levels - 1) + 0.5).astype(np.uint8)


def not_ordered(rows: list[dict[str, Any]]) -> list[str]:
    """The distortions whose distance does not rise with every step."""
    found = []
    for name, group in itertools.groupby(rows, lambda row: row["distortion"]):
        distances = [row["distance"] for row in group]
        if any(b <= a for a, b in itertools.pairwise(distances)):
            found.append(str(name))
    return found
