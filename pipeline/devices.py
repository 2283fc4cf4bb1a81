"""What this machine has for jobs: GPUs, as the driver and torch have them, and the memory and processors that are free.

Containers and schedulers allow less than the machine has: their limits are those of this process's cgroups.
"""

import ctypes
import fcntl
import math
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.progress import log

if TYPE_CHECKING:
    from psutil import Process

ASKED = {"utilization_percentage": "utilization.gpu", "memory_usage_megabytes": "memory.used",
         "power_usage_watts": "power.draw"}
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")  # of Linux; elsewhere there are none


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
            first = int(os.environ.get("LOCAL_RANK", 0))  # which torchrun sets for each of its own
            torch.cuda.set_device(take([*range(first, count), *range(first)]))
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
    return indices[0 if "LOCAL_RANK" in os.environ else os.getpid() % len(indices)]


def gpus_of_a_training() -> int:
    """How many GPUs one training of images takes: FCE_GPUS, or one."""
    given = os.environ.get("FCE_GPUS", "1")
    if not given.isdecimal():
        raise UserError(f"FCE_GPUS: {given!r}, but it is the number of GPUs that one training takes")
    return int(given)


def memory() -> int:
    """MB that are free for jobs."""
    import psutil  # a stage that ends within a minute does without

    limits = [text for name in ("memory.max", "memory.limit_in_bytes") for text in limits_in(name)]
    return min([psutil.virtual_memory().available, *(int(text) for text in limits if text.isdigit())]) // 2**20


def usage(device: str) -> dict[str, float]:
    """What this process takes now, and its GPU if `device` is cuda, under MLflow's names."""
    own = this_process()
    found = {"system/cpu_utilization_percentage": own.cpu_percent(),
             "system/memory_usage_megabytes": own.memory_info().rss / 2**20}
    if device == "cuda":
        import torch  # as above

        card = f"GPU-{torch.cuda.get_device_properties().uuid}"
        with suppress(OSError, ValueError, subprocess.SubprocessError):  # without the driver's tool it is not known
            ask = f"nvidia-smi --id={card} --query-gpu={','.join(ASKED.values())} --format=csv,noheader,nounits"
            said = subprocess.run(ask.split(), capture_output=True, text=True, timeout=10, check=True).stdout.split(",")
            found |= {f"system/gpu_{name}": float(value) for name, value in zip(ASKED, said, strict=True)}
    return found


@cache
def this_process() -> "Process":
    import psutil  # as in memory

    return psutil.Process()


def processors() -> float:
    """How many processors a quota leaves to jobs; infinity where there is none."""
    quotas = [text.split() for text in limits_in("cpu.max")]  # microseconds in a period, or "max 100000"
    quotas += [[text, "100000"] for text in limits_in("cpu.cfs_quota_us")]
    return min((int(quota) / int(period) for quota, period in quotas if quota.isdigit()), default=math.inf)


def limits_in(name: str) -> Iterator[str]:
    """The content of the files of this name in this process's cgroups, and in those around them."""
    for line in OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else ():
        _, kinds, place = line.split(":", 2)
        root = GROUPS / kinds.removeprefix("name=")
        group = root / place.lstrip("/")
        for folder in [group, *[each for each in group.parents if each.is_relative_to(root)]]:
            with suppress(OSError):
                yield (folder / name).read_text().strip()
