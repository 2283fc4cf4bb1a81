"""Which device a job uses: asked of the driver and of torch, never of what lies on the PATH."""

import ctypes
import fcntl
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pipeline.errors import UserError
from pipeline.progress import log


@cache
def gpus() -> int:
    """How many NVIDIA GPUs the driver shows this process; CUDA_VISIBLE_DEVICES hides them."""
    try:
        driver, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
    except OSError:  # no driver
        return 0
    return count.value if driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def choose(wanted: str) -> str:
    """`cuda` or `cpu` for `auto`, `cuda` or `cpu`; of several GPUs the process gets one of its own.

    Raises:
        UserError: there is a GPU that torch can't use, or none where one is asked for.
    """
    import torch  # takes seconds to import, and Snakemake asks the driver alone

    if wanted == "cpu":
        return wanted
    count = torch.cuda.device_count()
    try:
        if count > 1:
            own = os.environ.get("LOCAL_RANK")  # which torchrun sets for each of its own
            torch.cuda.set_device(take([int(own)] if own else range(count)))
        torch.zeros(1, device="cuda").add_(1)  # a card that this torch has no kernels for fails here
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        if gpus() or wanted == "cuda":
            why = str(error).splitlines()[0]
            raise UserError(f"torch can't use a GPU here ({why}); mend the driver, or take a newer card, or the "
                            "CPU: --device cpu, or CUDA_VISIBLE_DEVICES= before snakemake") from None
        if torch.backends.mps.is_available():
            log.info("Apple's GPU is not used: log-densities are summed in float64, which it lacks")
        return "cpu"
    return "cuda"


def take(indices: Sequence[int]) -> int:
    """The first of these GPUs that no other job of this machine holds; where all are held, one of them.

    The lock lasts as long as the process.
    """
    for index in indices:
        path = Path(tempfile.gettempdir()) / f"fce-gpu-{os.getuid()}-{index}.lock"
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
        except OSError as error:
            log.warning("%s can't be locked (%s): jobs may meet on one GPU", path, error)
            break
        else:
            return index
    return indices[os.getpid() % len(indices)]
