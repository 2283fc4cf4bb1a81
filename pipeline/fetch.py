"""Files from elsewhere: your own, in the folder that FCE_DATA names, or a download, over https only.

Neither is used before its SHA-256 holds. (torchvision's own download falls back from https to http in silence.)
"""

import os
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

from pipeline.errors import UserError
from pipeline.progress import log


def way(address: str, sha256: str) -> str:
    """How a user gets a file by hand."""
    return f"get it from {address} (sha256 {sha256}) and put it into the folder that FCE_DATA names"


def obtain(file: str, address: str, target: Path, how: str) -> None:
    """Write `file`, not checked yet, to `target`; `how` a user gets it by hand is said where that fails."""
    folder = os.environ.get("FCE_DATA")
    try:
        if folder and (own := Path(folder) / file).exists():
            shutil.copy(own, target)
        else:
            log.info("downloading %s", address)
            download(address, target)
    except (OSError, HTTPException) as error:
        raise UserError(f"{file} is missing and could not be downloaded ({error}); {how}") from None


def download(address: str, target: Path) -> None:
    if not address.startswith("https://"):
        raise OSError(f"{address} is not https")
    with urlopen(Request(address, headers={"User-Agent": "fce"}), timeout=60) as response, open(target, "wb") as file:
        if not response.url.startswith("https://"):
            raise OSError(f"{address} leads to {response.url}, which is not https")
        shutil.copyfileobj(response, file)
