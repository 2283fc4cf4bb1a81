"""Inception's weights for FID, from your own file (in FCE_DATA) or a download.

The checksum must hold. FCE_ANY_WEIGHTS=1 takes other weights of the same network; what is measured through them is
called FD, never FID.
"""

import os
import pickle
from pathlib import Path
from typing import Any

from pipeline.checkpoint import load
from pipeline.errors import UserError
from pipeline.fetch import WEIGHTS as FILE
from pipeline.fetch import obtain, way
from pipeline.files import atomic, sha256
from pipeline.job import Job
from pipeline.progress import log

ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # its beginning stands in the file's name
NETWORK = "inception-v3-compat"  # torch-fidelity's name of it


def run(job: Job) -> None:
    how = way(ADDRESS, SHA256)
    with atomic(job.out) as partial:
        obtain(FILE, ADDRESS, partial, how)
        if not is_official(found := sha256(partial)):
            if os.environ.get("FCE_ANY_WEIGHTS") != "1":
                raise UserError(
                    f"{FILE} has a wrong checksum ({found[:16]}...); {how}, or set FCE_ANY_WEIGHTS=1 to use it as it is"
                )
            open_network(partial, "2048", "cpu", FILE)
            log.warning("other weights than those of 2015-12-05 (%s...): distances are FD, not FID", found[:16])


def is_official(digest: str) -> bool:
    """Whether this is the SHA-256 of the weights of 2015-12-05, through which a distance is FID."""
    return digest == SHA256


def open_network(path: Path, layer: str, device: str, what: str) -> Any:
    """torch-fidelity's Inception with the weights of a file; UserError, which begins with `what`, where it has none."""
    from torch_fidelity.utils import create_feature_extractor  # takes seconds to import

    try:
        load(path)  # tensors only: torch-fidelity would run what code an unknown file holds
        return create_feature_extractor(
            NETWORK, [layer], cuda=device == "cuda", feature_extractor_weights_path=str(path), verbose=False
        )
    except (EOFError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        raise UserError(
            f"{what} is no state of torch-fidelity's Inception network ({reason}); {way(ADDRESS, SHA256)}"
        ) from None
