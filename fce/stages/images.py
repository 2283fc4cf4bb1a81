"""Where images come from: SVHN and CIFAR-10 (torchvision), scikit-learn's digits, a user's own npz or folder.

`FCE_DATA` names a folder of files you already have (the official archives, npz files, Inception weights), which is
`data` where it is not set; what is downloaded goes to build/downloads.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from pipeline.errors import UserError
from pipeline.fetch import DOWNLOADS, OFFICIAL, UNPACKED, obtain, own_data, own_folder, way
from pipeline.files import Arrays, Npz, atomic, read_arrays, sha256
from pipeline.progress import log
from pipeline.schema.data import Digits, Folder, Official, Own
from pipeline.schema.data import Npz as OwnNpz

MOST_CLASSES = 10_000  # more are no classes, but names of images
OWN = ("train_images", "test_images", "train_labels", "test_labels")  # what a user's npz holds; maybe no labels


def load(data: Digits | Official | OwnNpz | Folder) -> Arrays:
    """Arrays {train,validation,test}_{images,labels} and `levels`, as a `data:` section of params.yaml says.

    Raises:
        UserError: a file is missing, has a wrong checksum, or holds something other than images and their labels.
    """
    labelled = not isinstance(data, Own) or data.labels
    if isinstance(data, Digits):
        arrays, levels = digits(data.test, data.split_seed), 17
    elif isinstance(data, OwnNpz):
        arrays, levels = read_arrays(own(data), OWN if labelled else OWN[:2]), data.levels
    elif isinstance(data, Folder):
        arrays, levels = folder(own(data), data.side, data.channels, labelled), 256
    else:
        arrays, levels = official(data.source), 256
    check(arrays, levels, data.source, labelled=labelled)
    look_at(arrays, levels, data.source)
    arrays = split(arrays, data.validation, data.split_seed)
    return {**arrays, "levels": np.array(levels)}


def digits(test: int, seed: int) -> Arrays:
    """scikit-learn's 1,797 digits, 8x8x1, grey levels 0 to 16, with a fixed stratified test part."""
    from sklearn import datasets, model_selection  # takes seconds to import, and other data do without

    images, labels = datasets.load_digits(return_X_y=True)
    images = images.astype(np.uint8).reshape(-1, 8, 8, 1)
    index = np.arange(len(labels))
    train, held = model_selection.train_test_split(index, test_size=test, stratify=labels, random_state=seed)
    return parts(train=(images[train], labels[train]), test=(images[held], labels[held]))


def parts(**pairs: tuple[np.ndarray, np.ndarray]) -> Arrays:
    """{<part>_images, <part>_labels} of each part's images and labels."""
    return {f"{part}_{what}": array for part, pair in pairs.items()
            for what, array in zip(("images", "labels"), pair, strict=True)}


def folder(place: Path, side: int, channels: int, labelled: bool) -> Arrays:
    """The images below train/ and test/, cut to a square in the middle and scaled to `side`; labels by class folder.

    Raises:
        UserError: there are none, a class of test/ is not in train/, or a file is no image of 8 bits a channel.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes  # takes seconds to import

    found, classes = Arrays(), dict[str, int]()
    for part in ("train", "test"):
        try:
            known = find_classes(place / part)[1] if labelled else {"": 0}
        except FileNotFoundError as error:
            raise UserError(f"{error}; it needs a folder for each class, or data.labels: false") from None
        classes = classes or known
        if strangers := known.keys() - classes.keys():
            raise UserError(f"{place / part} has classes that train/ has not: {', '.join(sorted(strangers))}")
        files = [(path, classes[name]) for name in known for path in sorted((place / part / name).rglob("*"))
                 if path.suffix.lower() in IMG_EXTENSIONS]
        if not files:
            raise UserError(f"{place / part}: no images ({', '.join(IMG_EXTENSIONS)})")
        found[f"{part}_images"] = np.stack([square(path, side, channels) for path, _ in files])
        if labelled:
            found[f"{part}_labels"] = np.array([label for _, label in files])
    return found


def square(path: Path, side: int, channels: int) -> np.ndarray:
    """An image file as uint8 [side, side, channels]: its middle, scaled (Lanczos)."""
    try:
        with Image.open(path) as image:
            if image.mode[0] in "IF":
                raise UserError(f"{path}: more than 8 bits a channel ({image.mode}); scale it to 0..255 and save that")
            upright = ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
            fitted = ImageOps.fit(upright, (side, side), Image.Resampling.LANCZOS)
            return np.asarray(fitted).reshape(side, side, channels)
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path} is no whole image ({error}); mend it, or take it away") from None


def official(name: str) -> Arrays:
    """SVHN (train, test; label 10 read as 0) or CIFAR-10: the official files through torchvision, or an own copy."""
    if path := own_data(name):
        log.info("%s: from %s, which is not the official archive", name, path)
        return read_arrays(path, OWN)
    from torchvision import datasets  # takes seconds to import, and other data do without

    root = DOWNLOADS / name
    root.mkdir(parents=True, exist_ok=True)
    if name == "cifar10" and (own_folder() / UNPACKED).is_dir():
        root = own_folder()
    else:
        for file, (address, checksum) in OFFICIAL[name].items():
            fetch(file, address, checksum, root)
    if name == "svhn":
        train, test = (datasets.SVHN(str(root), split=part, download=False) for part in ("train", "test"))
        pairs = [(part.data.transpose(0, 2, 3, 1), part.labels) for part in (train, test)]
    else:
        try:
            train, test = (datasets.CIFAR10(str(root), train=part, download=root != own_folder())
                           for part in (True, False))
        except RuntimeError as error:  # a file of the unpacked folder is not what it was
            raise UserError(f"{root / UNPACKED}: {error}; remove it, or unpack the archive again") from None
        pairs = [(part.data, np.array(part.targets)) for part in (train, test)]
    return parts(train=pairs[0], test=pairs[1])


def fetch(file: str, address: str, checksum: str, root: Path) -> None:
    """Put `file` into `root`: from FCE_DATA where it is there, else from its address; its SHA-256 must hold."""
    target, how = root / file, way(address, checksum)
    if target.exists() and sha256(target) == checksum:
        return
    with atomic(target) as partial:
        obtain(file, address, partial, how)
        if sha256(partial) != checksum:
            raise UserError(f"{file} has a wrong checksum; {how}")


def own(data: OwnNpz | Folder) -> Path:
    """The file or folder that a section names; UserError where it is missing."""
    if path := own_data(data.source, data.file):
        return path
    raise UserError(f"{own_folder() / Path(data.file).expanduser()} does not exist; data.file is looked for in the "
                    f"folder that FCE_DATA names ({os.environ.get('FCE_DATA') or 'not set: data'})")


def check(arrays: Mapping[str, np.ndarray], levels: int, source: str, parts: tuple[str, ...] = ("train", "test"),
          labelled: bool = True) -> None:
    """Refuse what is not uint8 NHWC images of `levels` grey levels or, where `labelled`, labels that do not fit them.

    Of an npz file it reads headers, and content only where that can be wrong.
    """
    header = arrays.header if isinstance(arrays, Npz) else lambda name: (arrays[name].shape, arrays[name].dtype)
    first, _ = header("train_images")
    for part in parts:
        where, (shape, dtype) = f"{source}, {part}_images", header(f"{part}_images")
        if dtype != np.uint8:
            raise UserError(f"{where}: dtype {dtype}, but grey levels are uint8; {as_levels(arrays[f'{part}_images'])}")
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] not in (1, 3):
            raise UserError(f"{where}: shape {shape}, but square images [N, H, W, 1 or 3] are needed{as_nhwc(shape)}")
        if shape[1:] != first[1:]:
            raise UserError(f"{where}: shape {shape}, but train_images have {first}")
        if shape[1] < 8:
            raise UserError(f"{where}: side {shape[1]}; images of 8 pixels or more are needed")
        if shape[0] == 0:
            raise UserError(f"{where}: 0 images")
        if levels < 256 and (highest := arrays[f"{part}_images"].max()) >= levels:
            raise UserError(f"{where}: grey level {highest}, but data.levels is {levels}")
        if labelled:
            check_labels(arrays[f"{part}_labels"], shape[0], f"{source}, {part}")
            if (label := arrays[f"{part}_labels"].max()) > (highest := arrays["train_labels"].max()):
                raise UserError(f"{source}, {part}_labels: {label}, but the training images' labels end at {highest}")


def as_levels(images: np.ndarray) -> str:
    """How images of another type become uint8 without loss of what they show, by their range."""
    if not np.issubdtype(images.dtype, np.number) or not images.size:
        return "save grey levels as uint8"
    low, high, whole = images.min(), images.max(), np.issubdtype(images.dtype, np.integer)
    if not (np.isfinite(low) and np.isfinite(high)):
        return "some values are not finite: mend those first"
    ranges = [(0, 255, "images.astype('uint8')" if whole else "images.round().astype('uint8')")]
    if whole:
        top = 2 ** int(high).bit_length() - 1  # the same for both parts, whatever the brightest pixel of each
        ranges.append((0, top, f"(images / {top} * 255).round().astype('uint8')"))
    else:
        ranges = [(0, 1, "(images * 255).round().astype('uint8')"),
                  (-1, 1, "((images + 1) * 127.5).round().astype('uint8')"), *ranges]
    fits = (cure for bottom, top, cure in ranges if bottom <= low and high <= top)
    cure = next(fits, "them scaled to 0..255 and rounded")
    return f"they lie in {low:g}..{high:g}: save {cure}"


def as_nhwc(shape: tuple[int, ...]) -> str:
    """How images of another layout become [N, H, W, C]."""
    if len(shape) == 3:
        return "; of grey ones save images[..., None]"
    if len(shape) == 4 and shape[1] in (1, 3) and shape[2] == shape[3]:
        return "; these look like [N, C, H, W]: save images.transpose(0, 2, 3, 1)"
    if len(shape) == 4 and shape[3] == 4:
        return "; without their alpha channel they are images[..., :3], in the order R, G, B"
    return ""


def look_at(arrays: Mapping[str, np.ndarray], levels: int, source: str) -> None:
    """Warn of images that are legal and probably not what was meant; refuse what no flow can be started on."""
    images = arrays["train_images"]
    used, low = np.unique(images), images.min((0, 1, 2))
    for channel in np.flatnonzero(low == images.max((0, 1, 2))):
        cure = "save the other channels alone" if images.shape[3] > 1 else "give images that differ"
        raise UserError(f"{source}, train_images: channel {channel} is {low[channel]} in every pixel of all images; "
                        f"there is nothing to learn in it; {cure}")
    if (images == images[0]).all():
        log.warning("%s, train_images: all are equal; there is nothing to learn", source)
    elif len(used) <= 2 < levels:
        log.warning("%s, train_images: only the levels %s of data.levels: %d; of binary images save 0 and 1, and set "
                    "levels: 2", source, used.tolist(), levels)
    elif levels == 256 and used[-1] < 128:
        log.warning("%s, train_images: no level above %d of 255; if they have fewer, set data.levels", source, used[-1])
    elif images.shape[3] == 3 and (images[..., :1] == images).all():
        log.warning("%s, train_images: the three channels are alike; save grey images as [N, H, W, 1]", source)


def check_labels(labels: np.ndarray, images: int, where: str) -> None:
    if labels.ndim != 1:
        cure = {(images, 1): "; save labels.ravel()"}.get(labels.shape, "")
        cure = "; of one-hot labels save labels.argmax(1)" if labels.ndim == 2 and labels.shape[1] > 1 else cure
        raise UserError(f"{where}_labels: shape {labels.shape}, but one label per image is needed{cure}")
    if len(labels) != images:
        raise UserError(f"{where}_images: {images} images and {len(labels)} labels")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= MOST_CLASSES:
        raise UserError(f"{where}_labels: integers from 0 to {MOST_CLASSES - 1} are needed, one for each class; "
                        "numpy.unique(labels, return_inverse=True)[1] makes them of names and of any numbers")


def split(arrays: Arrays, validation: int, seed: int) -> Arrays:
    """Cut a validation part from the training part, never from the test part, by index."""
    images = arrays["train_images"]
    if validation > len(images) - 2:
        raise UserError(f"data.validation: {validation} of only {len(images)} training images; leave 2 or more")
    order = np.random.default_rng(seed).permutation(len(images))
    cut = {"train": np.sort(order[validation:]), "validation": np.sort(order[:validation])}
    found = {f"{part}_images": images[index] for part, index in cut.items()} | {"test_images": arrays["test_images"]}
    if "train_labels" in arrays:
        found |= {f"{part}_labels": arrays["train_labels"][index].astype(np.int64) for part, index in cut.items()}
        found["test_labels"] = arrays["test_labels"].astype(np.int64)
    return found
