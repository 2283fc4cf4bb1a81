"""Stage: weights. Inception's weights for FID: your own file (in FCE_DATA) or a download; the checksum must hold."""

import os
import shutil
import sys
from pathlib import Path

from fce.progress import log
from fce.stage import Job, UserError, main
from fce.state import atomic, sha256

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256_PREFIX = "6726825d"  # as the file's name says


def run(job: Job) -> None:
    import torch

    how = (
        f"get it from {ADDRESS} (its sha256 begins with {SHA256_PREFIX}) and put it into the folder that FCE_DATA names"
    )
    own = Path(os.environ.get("FCE_DATA", "")) / FILE
    with atomic(job.out) as partial:
        if os.environ.get("FCE_DATA") and own.exists():
            shutil.copy(own, partial)
        else:
            log.info("downloading %s", ADDRESS)
            try:
                torch.hub.download_url_to_file(ADDRESS, str(partial), progress=False)
            except OSError as error:
                raise UserError(f"{FILE} is missing and could not be downloaded ({error}); {how}") from None
        if not sha256(partial).startswith(SHA256_PREFIX):
            raise UserError(f"{FILE} has a wrong checksum ({sha256(partial)[:16]}...); {how}")


if __name__ == "__main__":
    sys.exit(main(__doc__, run, sliced=False, seeded=False))
