"""Files from elsewhere: your own, in the folder that FCE_DATA names, or a download, over https only.

Neither is used before its SHA-256 holds. (torchvision's own download falls back from https to http in silence.)
"""

import os
import shutil
from http import HTTPStatus
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pipeline.errors import UserError
from pipeline.progress import log

TRIES = 3  # of a download


def way(address: str, sha256: str) -> str:
    """How a user gets a file by hand."""
    return f"get it from {address} (sha256 {sha256}) and put it into the folder that FCE_DATA names"


def own_folder() -> Path:
    """The folder of your own files: the one that FCE_DATA names, else the present one.

    Raises:
        UserError: FCE_DATA names what is no folder.
    """
    folder = Path(os.environ.get("FCE_DATA") or ".").expanduser()
    if not folder.is_dir():
        raise UserError(f"FCE_DATA names {folder}, which is no folder; mend its name, or unset it to download")
    return folder


def obtain(file: str, address: str, target: Path, how: str) -> None:
    """Write `file`, not checked yet, to `target`; `how` a user gets it by hand is said where that fails."""
    folder = own_folder()
    try:
        if own := next((path for path in (folder / file, *folder.glob(f"*/{file}")) if path.exists()), None):
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
