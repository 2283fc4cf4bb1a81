"""Image data: SVHN and CIFAR-10 (torchvision), scikit-learn's digits, a user's own npz.

`FCE_DATA` names a folder of files you already have (the official archives, npz files, Inception weights); what
is downloaded goes to build/downloads. Conventions: uint8 images, NHWC on disk, NCHW in training; the models'
coordinates are x = (k + u) / levels - 1/2 with u uniform on [0, 1), for grey level k.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fce.arrays import read_arrays
from fce.data.fetch import obtain, way
from fce.stage import UserError
from fce.state import atomic, sha256

DOWNLOADS = Path("build/downloads")
OFFICIAL = {  # file: (address, sha256, as public code has it beside torchvision's md5, which its loaders check too)
    "svhn": {
        "train_32x32.mat": (
            "https://ufldl.stanford.edu/housenumbers/train_32x32.mat",
            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
        ),
        "test_32x32.mat": (
            "https://ufldl.stanford.edu/housenumbers/test_32x32.mat",
            "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
        ),
    },
    "cifar10": {
        "cifar-10-python.tar.gz": (
            "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        ),
    },
}
SIZES = {"svhn": (73_257, 26_032), "cifar10": (50_000, 10_000)}
OWN = ("train_images", "train_labels", "test_images", "test_labels")  # what a user's npz holds
EDGE = 1e-4  # the noise keeps this far from its bin's walls, so that float32 cannot round it into the next bin


def load(data: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays {train,validation,test}_{images,labels} and `levels`, as a `data:` section of params.yaml says.

    Raises:
        UserError: a file is missing, has a wrong checksum, or holds something other than labelled images.
    """
    source = data["source"]
    if source == "digits":
        arrays = digits(data["test"], data["split_seed"])
        levels = 17
    elif source == "npz":
        arrays, levels = read_arrays(find_npz(data["file"]), OWN), data["levels"]
    else:
        arrays, levels = official(source), 256
    check(arrays, levels, source)
    arrays = split(arrays, data["validation"], data["split_seed"])
    return {**arrays, "levels": np.array(levels)}


def digits(test: int, seed: int) -> dict[str, np.ndarray]:
    """scikit-learn's 1,797 digits, 8x8x1, grey levels 0 to 16, with a fixed stratified test part."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
    train, held = train_test_split(np.arange(len(labels)), test_size=test, stratify=labels, random_state=seed)
    return {
        "train_images": images[train],
        "train_labels": labels[train],
        "test_images": images[held],
        "test_labels": labels[held],
    }


def official(name: str) -> dict[str, np.ndarray]:
    """SVHN (train, test; label 10 read as 0) or CIFAR-10 through torchvision."""
    from torchvision import datasets

    root = DOWNLOADS / name
    root.mkdir(parents=True, exist_ok=True)
    for file, (address, checksum) in OFFICIAL[name].items():
        fetch(file, address, checksum, root)
    if name == "svhn":
        train, test = (datasets.SVHN(str(root), split=part, download=False) for part in ("train", "test"))
        pairs = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
    else:
        train, test = (datasets.CIFAR10(str(root), train=part, download=True) for part in (True, False))
        pairs = [(part.data, np.array(part.targets)) for part in (train, test)]
    for (images, _), expected, part in zip(pairs, SIZES[name], ("training", "test"), strict=True):
        if len(images) != expected:
            raise UserError(f"{name}: {len(images)} {part} images instead of {expected}; delete {root} and try again")
    (train_images, train_labels), (test_images, test_labels) = pairs
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def fetch(file: str, address: str, checksum: str, root: Path) -> None:
    """Put `file` into `root`: from FCE_DATA where it is there, else from its address; its SHA-256 must hold."""
    target, how = root / file, way(address, checksum)
    if target.exists() and sha256(target) == checksum:
        return
    with atomic(target) as partial:
        obtain(file, address, partial, how)
        if sha256(partial) != checksum:
            raise UserError(f"{file} has a wrong checksum; {how}")


def find_npz(file: str) -> Path:
    folder = Path(os.environ.get("FCE_DATA", "."))
    path = Path(file) if Path(file).is_absolute() else folder / file
    if not path.exists():
        raise UserError(
            f"{path} does not exist; data.file is looked for in the folder that FCE_DATA names "
            f"({os.environ.get('FCE_DATA') or 'not set: here'})"
        )
    return path


def check(
    arrays: dict[str, np.ndarray], levels: int, source: str, parts: tuple[str, ...] = ("train", "test")
) -> None:
    """Refuse what is not uint8 NHWC images of `levels` grey levels, or labels that do not fit them."""
    for part in parts:
        images, labels = arrays[f"{part}_images"], arrays.get(f"{part}_labels")
        where = f"{source}, {part}_images"
        if images.dtype != np.uint8:
            raise UserError(f"{where}: dtype {images.dtype}, but grey levels are uint8; convert with .astype('uint8')")
        if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] not in (1, 3):
            raise UserError(f"{where}: shape {images.shape}, but square images [N, H, W, 1 or 3] are needed")
        if images.shape[1:] != arrays["train_images"].shape[1:]:
            raise UserError(f"{where}: shape {images.shape}, but train_images have {arrays['train_images'].shape}")
        if images.shape[1] < 8:
            raise UserError(f"{where}: side {images.shape[1]}; images of 8 pixels or more are needed")
        if labels is not None and labels.ndim != 1:
            raise UserError(f"{source}, {part}_labels: shape {labels.shape}, but one label per image is needed")
        if len(images) == 0 or (labels is not None and len(images) != len(labels)):
            raise UserError(f"{where}: {len(images)} images" + ("" if labels is None else f" and {len(labels)} labels"))
        if images.max() >= levels:
            raise UserError(f"{where}: grey level {images.max()}, but data.levels is {levels}")
        if labels is None:
            continue
        if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() > 9:
            raise UserError(f"{source}, {part}_labels: integers from 0 to 9 are needed")


def split(arrays: dict[str, np.ndarray], validation: int, seed: int) -> dict[str, np.ndarray]:
    """Cut a validation part from the training part, never from the test part, by index."""
    images, labels = arrays["train_images"], arrays["train_labels"]
    if validation > len(images) - 2:
        raise UserError(f"data.validation: {validation} of only {len(images)} training images; leave 2 or more")
    order = np.random.default_rng(seed).permutation(len(images))
    held, kept = np.sort(order[:validation]), np.sort(order[validation:])
    return {
        "train_images": images[kept],
        "train_labels": labels[kept].astype(np.int64),
        "validation_images": images[held],
        "validation_labels": labels[held].astype(np.int64),
        "test_images": arrays["test_images"],
        "test_labels": arrays["test_labels"].astype(np.int64),
    }


def padded(side: int) -> int:
    """The side the models see: 28 is padded to 32, an even side stays."""
    return 4 * math.ceil(side / 4) if side != 28 else 32


def to_tensor(images: np.ndarray) -> Tensor:
    """uint8 NHWC arrays as uint8 NCHW tensors, padded with level 0 where the models need it."""
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    extra = padded(x.shape[2]) - x.shape[2]
    return F.pad(x, (extra // 2, extra - extra // 2) * 2) if extra else x


def to_images(x: Tensor, side: int) -> np.ndarray:
    """The inverse of to_tensor."""
    start = (x.shape[2] - side) // 2
    return x[:, :, start : start + side, start : start + side].permute(0, 2, 3, 1).cpu().numpy()


def dequantize(images: Tensor, levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Model coordinates x in (-1/2, 1/2) from uint8 images, with fresh uniform noise."""
    noise = torch.rand(images.shape, generator=generator, device=generator.device if generator else images.device)
    noise = noise.to(images.device).clamp(EDGE, 1 - EDGE)
    return (images + noise) / levels - 0.5


def quantize(x: Tensor, levels: int) -> Tensor:
    """uint8 grey levels of model coordinates: floor, then clip into the box."""
    return ((x + 0.5) * levels).floor().clamp(0, levels - 1).to(torch.uint8)


def bits_per_dim(log_prob: Tensor, levels: int, dims: int, seen: int | None = None) -> Tensor:
    """Bits per dimension from log-densities in nats of dequantised x in [-1/2, 1/2): Theis et al., eq. 8.

    Where padding adds to an image's `dims` dimensions, the density is over `seen` of them, and so is its code.
    """
    return ((seen or dims) * math.log2(levels) - log_prob / math.log(2)) / dims
