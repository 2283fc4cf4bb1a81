"""Stage: weights. Inception's weights for FID: your own file (in FCE_DATA) or a download; the checksum must hold.

FCE_ANY_WEIGHTS=1 takes other weights of the same network; what is measured through them is called FD, never FID.
"""

import os
import pickle
import shutil
import sys
from pathlib import Path

from fce.progress import log
from fce.stage import Job, UserError, main
from fce.state import atomic, load, sha256

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256_PREFIX = "6726825d"  # as the file's name says
NETWORK = "inception-v3-compat"  # torch-fidelity's name of it


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
        if not is_official(found := sha256(partial)):
            if os.environ.get("FCE_ANY_WEIGHTS") != "1":
                raise UserError(
                    f"{FILE} has a wrong checksum ({found[:16]}...); {how}, or set FCE_ANY_WEIGHTS=1 to use it as it is"
                )
            check_network(partial, how)
            log.warning("other weights than those of 2015-12-05 (%s...): distances are FD, not FID", found[:16])


def is_official(digest: str) -> bool:
    """Whether this is the SHA-256 of the weights of 2015-12-05, through which a distance is FID."""
    return digest.startswith(SHA256_PREFIX)


def check_network(path: Path, how: str) -> None:
    """Raise UserError where the file is not a state of Inception."""
    from torch_fidelity.utils import create_feature_extractor

    try:
        load(path)  # tensors only: torch-fidelity would run what code an unknown file holds
        create_feature_extractor(NETWORK, ["2048"], cuda=False, feature_extractor_weights_path=str(path), verbose=False)
    except (EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{FILE} is no state of torch-fidelity's Inception network ({reason}); {how}") from None


if __name__ == "__main__":
    sys.exit(main(__doc__, run, sliced=False, seeded=False))
