"""Where a number comes from: commit, dirty flag, lock, device, versions."""

import platform
import subprocess
from functools import cache
from typing import Any

from pipeline.catalogue import ROOT
from pipeline.files import sha256


@cache
def environment(device: str = "cuda") -> dict[str, Any]:
    """What made a number on a kind of device; `cuda` is the CPU where there is no GPU."""
    import torch  # takes seconds, and who only reads records does without

    lock = ROOT / "envs" / "requirements.lock"
    gpu = device == "cuda" and torch.cuda.is_available()
    return {"commit": git("rev-parse", "HEAD") or "not a git checkout",
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", ":(exclude)dvc.lock")),  # a result
            "lock": sha256(lock)[:16] if lock.exists() else "none",
            "device": torch.cuda.get_device_name() if gpu else f"{platform.machine()} CPU",
            "python": platform.python_version(), "torch": str(torch.__version__)}


def git(*arguments: str) -> str:
    try:
        trusted = ["git", "-c", f"safe.directory={ROOT}"]  # whose code runs already, whoever owns it
        done = subprocess.run([*trusted, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
