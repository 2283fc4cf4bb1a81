"""Files from elsewhere: your own, in the folder that FCE_DATA names (else `data/`), or a download, over https only.

Neither is used before its SHA-256 holds. (torchvision's own download falls back from https to http in silence.)
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pipeline.errors import UserError
from pipeline.progress import log

TRIES = 3  # of a download
DOWNLOADS = Path("build/downloads")
OFFICIAL = {  # file: (address, sha256, as public code has it beside torchvision's md5, which its loaders check too)
    "svhn": {
        "train_32x32.mat": ("https://ufldl.stanford.edu/housenumbers/train_32x32.mat",
                            "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        "test_32x32.mat": ("https://ufldl.stanford.edu/housenumbers/test_32x32.mat",
                           "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b")},
    "cifar10": {
        "cifar-10-python.tar.gz": ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                                   "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce")},
}
UNPACKED = "cifar-10-batches-py"  # what CIFAR-10's archive holds; torchvision checks each file's md5
WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"


def way(address: str, sha256: str) -> str:
    """How a user gets a file by hand."""
    return f"get it from {address} (sha256 {sha256}) and put it into the folder that FCE_DATA names"


def own_folder() -> Path:
    """The folder of your own files: the one that FCE_DATA names, else `data`.

    Raises:
        UserError: FCE_DATA names what is no folder.
    """
    folder = Path(os.environ.get("FCE_DATA") or "data").expanduser()
    if os.environ.get("FCE_DATA") and not folder.is_dir():
        raise UserError(f"FCE_DATA names {folder}, which is no folder; mend its name, or unset it to download")
    return folder


def own_input(stage: str, data: Any = None) -> Path | None:
    """The file or folder of yours that a stage reads; `data` is its section of params.yaml."""
    if stage == "inception":
        return own_file(WEIGHTS)
    return own_data(data.source, getattr(data, "file", "")) if stage == "data" else None


def seen_input(stage: str, data: Any, warn: Callable[[str], None]) -> Path | None:
    """`own_input` for an engine: a wrong FCE_DATA is the stage's to say. Warns of what DVC does not see."""
    try:
        path = own_input(stage, data)
    except UserError:
        return None
    if path and "DVC_STAGE" in os.environ and Path("data").resolve() not in path.absolute().parents:
        warn(f"{path}: dvc does not see when this changes; it looks at data/, where a link to it does")
    return path


def own_data(source: str, file: str = "") -> Path | None:
    """The file or folder of yours that a `data:` section reads: the one it names or, where the official files of SVHN
    and CIFAR-10 are nowhere at hand, the npz of that name; None where nothing is there.
    """
    if file:
        path = own_folder() / Path(file).expanduser()  # which is the file alone where that is absolute
    elif source in OFFICIAL:
        path = own_folder() / f"{source}.npz"
        places = (own_folder(), DOWNLOADS / source)
        unpacked = source == "cifar10" and any((place / UNPACKED).exists() for place in places)
        if unpacked or any(own_file(name) or (DOWNLOADS / source / name).exists() for name in OFFICIAL[source]):
            return None
    else:
        return None
    return path if path.exists() else None


def own_file(name: str) -> Path | None:
    """A file in your folder, or in a folder of it."""
    folder = own_folder()
    return next((path for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists()), None)


def fingerprint(path: Path | None) -> str:
    """A hash of a file's content, or of the names, sizes and dates in a folder, which may be large; "" of none."""
    if path is None:
        return ""
    if path.is_file():
        return hash_of(path, path.stat().st_mtime_ns)
    found = hashlib.sha256()
    for each in sorted(path.rglob("*")):
        known = each.stat()
        found.update(f"{each.relative_to(path)} {known.st_size} {known.st_mtime_ns}\n".encode())
    return found.hexdigest()


@cache
def hash_of(path: Path, _: int) -> str:
    """Of a file as it was at that time: who asks again does not read it again."""
    from pipeline.files import sha256  # takes NumPy with it, and `snakemake -n` does without

    return sha256(path)


def obtain(file: str, address: str, target: Path, how: str) -> None:
    """Write `file`, not checked yet, to `target`; `how` a user gets it by hand is said where that fails."""
    try:
        if own := own_file(file):
            shutil.copy(own, target)
        else:
            log.info("downloading %s", address)
            download(address, target)
    except (OSError, HTTPException) as error:
        raise UserError(f"{file} is missing and could not be downloaded ({error}); {how}") from None


def download(address: str, target: Path) -> None:
    """Write what lies at `address` to `target`; a try that breaks off goes on from where it was, TRIES times in all."""
    if not address.startswith("https://"):
        raise OSError(f"{address} is not https")
    target.touch()
    for left in reversed(range(TRIES)):
        try:
            return download_rest(address, target)
        except HTTPError:  # the server's own answer: asking again gets the same
            raise
        except (OSError, HTTPException) as error:
            if not left:
                raise
            log.warning("the download broke off (%s); going on from %.1f MB", error, target.stat().st_size / 1e6)


def download_rest(address: str, target: Path) -> None:
    """Add to `target` what it lacks of a download; all of it, where the server can't begin in the middle."""
    had = target.stat().st_size
    headers = {"User-Agent": "fce"} | ({"Range": f"bytes={had}-"} if had else {})
    with urlopen(Request(address, headers=headers), timeout=60) as response:
        if not response.url.startswith("https://"):
            raise OSError(f"{address} leads to {response.url}, which is not https")
        goes_on = had and response.status == HTTPStatus.PARTIAL_CONTENT
        with open(target, "ab" if goes_on else "wb") as file:
            shutil.copyfileobj(response, file)
        if response.length:
            raise OSError(f"{response.length} bytes are missing")
