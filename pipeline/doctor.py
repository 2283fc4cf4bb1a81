"""Look at what this machine has for a run: a line for each thing, `ok`, `note` or `mend`, and what to do.

It needs no package: what is not installed is a line. `note` is what some runs do without, `mend` what must be mended:
then the exit code is 1.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pipeline import devices
from pipeline.catalogue import PLACES, ROOT
from pipeline.errors import UserError
from pipeline.fetch import DOWNLOADS, OFFICIAL, UNPACKED, WEIGHTS, fingerprint, own_data, own_file, own_folder

PYTHON = (3, 11)  # of envs/requirements.lock
PIN = re.compile(r"^([\w.-]+==[^\\]+?) *\\?$", re.MULTILINE)  # a package of the lock, with its marker
LEAST_DISK, IMAGES_DISK = 2, 30  # GB: of a quick run, and of all of SVHN and CIFAR-10
LEAST_MEMORY = 1500  # MB: of a quick run
COMPILERS = ("g++", "c++", "clang++")
INSTALL = "make install, then source .venv/bin/activate"
PATIENCE = 3  # seconds, of one request
SHOWN = 3  # of the packages that differ


class Found(NamedTuple):
    """What a check found, and what to do about it."""

    state: str
    what: str
    cure: str = ""


def python() -> Found:
    right = sys.version_info[:2] == PYTHON
    return Found("ok" if right else "mend", platform.python_version(), "" if right else
                 "make install PYTHON=/where/it/is/python3.11, then source .venv/bin/activate")


def packages() -> Found:
    """Whether what is installed is what the lock pins."""
    from packaging.requirements import Requirement  # not in a bare Python

    pinned = [Requirement(line) for line in PIN.findall((ROOT / "envs/requirements.lock").read_text())]
    pinned, wrong = [each for each in pinned if each.marker is None or each.marker.evaluate()], list[str]()
    for each in pinned:
        try:
            if not each.specifier.contains(found := version(each.name), prereleases=True):
                wrong.append(f"{each.name} {found} instead of {str(each.specifier)[2:]}")
        except PackageNotFoundError:
            wrong.append(f"no {each.name}")
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        return Found("mend", f"{', '.join(wrong[:SHOWN])}{more}", INSTALL)
    return Found("ok", f"all {len(pinned)} as envs/requirements.lock pins them")


def disk() -> Found:
    free = shutil.disk_usage(".").free / 1e9
    state = "mend" if free < LEAST_DISK else "note" if free < IMAGES_DISK else "ok"
    return Found(state, f"{free:.1f} GB free", "" if state == "ok" else
                 f"a quick run takes {LEAST_DISK} GB, SVHN and CIFAR-10 in full {IMAGES_DISK}: make room for them")


def memory() -> Found:
    free = devices.memory()
    return Found("ok" if free >= LEAST_MEMORY else "mend", f"{free} MB free", "" if free >= LEAST_MEMORY else
                 f"a quick run takes {LEAST_MEMORY} MB: end other programs, or raise the container's limit")


def gpu() -> Found:
    """Whether torch can use the GPU that the driver shows; `choose` says how to mend it where it can't."""
    count = devices.gpus()
    if devices.choose("auto") == "cpu":
        return Found("note", "none: jobs take the CPU", "densities and digits need none; of SVHN and CIFAR-10 take "
                     "`make small`, or a machine with a GPU")
    import torch  # takes seconds, which only this check needs

    return Found("ok", f"{count} by the driver, torch {torch.__version__} uses {torch.cuda.get_device_name()}")


def compiler() -> Found:
    path = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), *COMPILERS))), None)
    if path:
        return Found("ok", path)
    return Found("mend" if devices.gpus() else "note", "none, and torch.compile needs one",
                 "install g++, or set FCE_COMPILE=no; without a GPU nothing is compiled unless FCE_COMPILE=yes")


def data(name: str) -> Found:
    """Whether the official files of a data set, or an own copy, are at hand."""
    if path := own_data(name):
        return Found("ok", f"{path}, which is not the official archive")
    if name == "cifar10" and (own_folder() / UNPACKED).is_dir():
        return Found("ok", str(own_folder() / UNPACKED))
    missing = []
    for file, (_, checksum) in OFFICIAL[name].items():
        taken, own = DOWNLOADS / name / file, own_file(file)
        if taken.exists() and fingerprint(taken) == checksum:
            continue
        if own and fingerprint(own) != checksum:
            return Found("mend", f"{own} has a wrong checksum", "remove it: then it is downloaded")
        if not own:
            missing.append(file)
    if missing:
        return Found("note", f"to be downloaded: {', '.join(missing)}", f"or put what you have into {own_folder()}")
    return Found("ok", f"{', '.join(OFFICIAL[name])}, with the right checksum")


def weights() -> Found:
    """Whether Inception's weights are at hand; their file's name ends with the beginning of their SHA-256."""
    path = next((each for each in (Path(PLACES["inception"]), own_file(WEIGHTS)) if each and each.exists()), None)
    if path is None:
        return Found("note", f"to be downloaded: {WEIGHTS}", f"or put the file into {own_folder()}")
    if fingerprint(path).startswith(Path(WEIGHTS).stem.rpartition("-")[2]):
        return Found("ok", str(path))
    if os.environ.get("FCE_ANY_WEIGHTS") == "1":
        return Found("note", f"{path} has other weights: distances are FD, not FID")
    return Found("mend", f"{path} has a wrong checksum", "remove it, or set FCE_ANY_WEIGHTS=1 to use it as it is")


def network() -> Found:
    """Whether one of the data sets' hosts answers."""
    addresses = [next(iter(files.values()))[0] for files in OFFICIAL.values()]
    host = next((address.split("/")[2] for address in addresses if not silent(address)), "")
    return Found("ok", f"{host} answers") if host else Found(
        "note", "no data set's host answers", f"nothing can be downloaded: put files into {own_folder()}, or name a "
        "proxy in https_proxy")


def mlflow() -> Found:
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if urlsplit(uri).scheme not in ("http", "https"):
        return Found("ok", uri or "MLFLOW_TRACKING_URI names no server: records go to mlflow.db")
    why = silent(f"{uri.rstrip('/')}/health")
    return Found("mend", f"{uri} does not answer ({why})", "start it, mend MLFLOW_TRACKING_URI, or unset it; "
                 "`fce send` sends later what it missed") if why else Found("ok", f"{uri} answers")


def silent(address: str) -> str:
    """Why a server does not answer; "" where it does, whatever it says."""
    try:
        urlopen(Request(address, method="HEAD", headers={"User-Agent": "fce"}), timeout=PATIENCE).close()
    except HTTPError:  # an answer
        return ""
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def repository() -> Found:
    from pipeline.provenance import git  # takes NumPy with it

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return Found("note", "not a git checkout, or no git", "numbers will not say which commit made them; DVC needs "
                     "`dvc config --local core.no_scm true`")
    return Found("ok", commit + ", with changes" * bool(git("status", "--porcelain", "--untracked-files=no")))


def remote() -> Found:
    done = subprocess.run([sys.executable, "-m", "dvc", "remote", "list"], cwd=ROOT, capture_output=True, text=True,
                          timeout=30)
    if done.returncode:
        return Found("note", f"dvc: {(done.stderr.strip() or 'no answer').splitlines()[-1]}", "make install")
    names = [line.split()[0] for line in done.stdout.splitlines() if line.strip()]
    return Found("ok", ", ".join(names)) if names else Found(
        "note", "none", "for `make pull`: dvc remote add --default NAME PLACE (a folder, ssh://..., s3://...)")


LOOKS: dict[str, Callable[[], Found]] = {
    "Python": python, "packages": packages, "disk": disk, "memory": memory, "GPU": gpu, "C++ compiler": compiler,
    **{name: partial(data, name) for name in OFFICIAL}, "Inception": weights, "network": network, "MLflow": mlflow,
    "git": repository, "DVC remote": remote}


def look(check: Callable[[], Found]) -> Found:
    """What a check finds; one that fails says so, and the others go on."""
    try:
        return check()
    except UserError as error:  # which says the cure
        return Found("mend", str(error))
    except ImportError as error:
        return Found("mend", str(error), INSTALL)
    except Exception as error:  # of whatever kind: the other lines are worth having
        said = (str(error).splitlines() or [""])[0]
        return Found("note", f"could not be looked at ({type(error).__name__}: {said})")


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="fce doctor", description=__doc__,
                            formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    mend = False
    with ThreadPoolExecutor(len(LOOKS)) as pool:  # most of them wait
        for name, found in zip(LOOKS, pool.map(look, LOOKS.values()), strict=True):
            mend = mend or found.state == "mend"
            sys.stdout.write(f"{found.state:<6}{name:<14}{found.what}{found.cure and f'; {found.cure}'}\n")
            sys.stdout.flush()
    return int(mend)
