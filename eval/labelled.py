"""The labelled images of Figure 4: the same draws, seen in the same way, for every arm."""

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from fce.data.batches import Images, at_once
from pipeline.schema.measures import Probe


def with_validation(data: Images, probe: Probe) -> Images:
    """The data with a validation part: its own or, where it has none, `probe.validation` of its training images.

    The models whose features are classified have seen those then, as all training images, without their labels.
    """
    if len(data.labels["validation"]):
        return data
    order = np.random.default_rng(0).permutation(data.count)
    parts = {"validation": np.sort(order[: probe.validation]), "train": np.sort(order[probe.validation :])}
    cut = {f"{part}_{what}": data.arrays[f"train_{what}"][index]
           for part, index in parts.items() for what in ("images", "labels")}
    return Images({**data.arrays, **cut}, data.device)


def subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Indices of `count` training images: balanced over classes, and nested in `count` for one seed."""
    random = np.random.default_rng(seed)
    by_class = [random.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    queue = [indices[i] for i in range(max(map(len, by_class))) for indices in by_class if i < len(indices)]
    return np.array(queue[:count])


def draws(labels: np.ndarray, probe: Probe) -> Iterator[tuple[int, list[np.ndarray]]]:
    """(count, the draws of so many labelled training images) as a `probe:` section asks; at last all of them, once."""
    for count in [count for count in probe.labels if count < len(labels)]:
        yield count, [subset(labels, count, seed) for seed in range(probe.draws)]
    yield len(labels), [np.arange(len(labels))]


def looks(data: Images, part: str) -> tuple[Tensor, ...]:
    """The images of a part, as many at once as a network's layers have memory for."""
    found: tuple[Tensor, ...] = data.images[part].split(at_once(data.shape, 250))
    return found


def middle(x: Tensor, levels: int) -> Tensor:
    """uint8 images in model coordinates, at the middle of each grey level."""
    return (x + 0.5) / levels - 0.5
