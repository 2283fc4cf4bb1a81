"""The state of a stage that trains, kept so that the same command goes on where it stopped.

It lies in `.resume/` beside the output: neither engine declares that folder, so neither deletes it. Below it, a folder
is named after everything the result depends on (parameters, seeds, inputs, code, torch, kind of device), so that a
state made otherwise is never used. On a CPU the resumed result is the undisturbed one, bit for bit.
"""

import hashlib
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import processes
from pipeline.checkpoint import load, packed
from pipeline.errors import Interrupted
from pipeline.files import sha256, write_bytes
from pipeline.progress import log

KEPT = 2  # the newest states, so that one may be broken
SIGNALS = (signal.SIGTERM, signal.SIGINT)  # clusters and Ctrl-C ask before they kill
asked: list[int] = []  # the signal that asked this process to stop


@contextmanager
def listening() -> Iterator[None]:
    """Inside the block the first signal only asks the loop to stop; a second one ends the process."""
    asked.clear()

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        signal.signal(number, before[number])

    before: dict[int, Any] = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class State:
    """Plain values that a loop goes on from, as a base class: its attributes, whatever they are."""

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


class Keeper:
    """Keeps the state of one loop: its `parts`, which change in place, and all sources of chance.

    Args:
        folder: where states lie; None keeps nothing.
        every: seconds between two of them.
        parts: things with state_dict and load_state_dict, random generators, or lists of these; restored in this order.
    """

    def __init__(self, folder: Path | None = None, every: float = 0.0, **parts: Any):
        self.folder, self.every, self.parts = folder, every, parts
        self.saved, self.count = time.monotonic(), 0

    def load(self) -> bool:
        """Bring the parts back to the newest whole state; whether there was one."""
        found = self.newest()
        processes.wait()  # before the first process drops a state, all have read theirs
        return found

    def newest(self) -> bool:
        for path in self.states():
            number, digest = path.stem.split("-")
            self.count = max(self.count, int(number))
            if sha256(path)[:16] != digest:
                log.warning("%s is broken; the state before it is used", path)
                continue
            state = load(path)
            for name, part in self.parts.items():
                restore(part, state["parts"][name])
            restore_chance(state["chance"])
            log.info("going on from the state of %s", time.strftime("%F %T", time.localtime(path.stat().st_mtime)))
            return True
        return False

    def states(self) -> list[Path]:
        """The newest first."""
        return sorted(self.folder.glob("*.pt"), reverse=True) if self.folder else []

    def tick(self) -> None:
        """Call between two steps: saves now and then, and ends the run with Interrupted where it was asked to stop."""
        stop = processes.anyone(bool(asked))
        if self.folder and (stop or time.monotonic() - self.saved >= self.every):
            self.save()
        if stop:
            number = (asked or [signal.SIGTERM])[0]
            kept = "its state is kept; the same command goes on from there" if self.states() else "nothing was kept"
            raise Interrupted(f"stopped by {signal.Signals(number).name}; {kept}", number)

    def save(self) -> None:
        """Save a state, and drop all but the newest; a full disk costs a warning, and the run goes on."""
        if not self.folder or processes.rank():
            return
        self.count += 1
        parts = {name: state_of(part) for name, part in self.parts.items()}
        try:
            content = packed({"parts": parts, "chance": chance()})
            newest = self.folder / "newest"  # one name: what a kill leaves of it is written over
            write_bytes(newest, content)
            newest.rename(self.folder / f"{self.count:06d}-{hashlib.sha256(content).hexdigest()[:16]}.pt")
            for old in self.states()[KEPT:]:
                old.unlink()
        except OSError as error:
            log.warning("no state could be saved in %s (%s); an older one stays", self.folder, error)
        self.saved = time.monotonic()


def state_of(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [state_of(each) for each in part]
    return part.get_state() if isinstance(part, torch.Generator) else part.state_dict()


def restore(part: Any, state: Any) -> None:
    if isinstance(part, list | tuple):
        for each, own in zip(part, state, strict=True):
            restore(each, own)
    elif isinstance(part, torch.Generator):
        part.set_state(state)
    else:
        part.load_state_dict(state)


def chance() -> dict[str, Any]:
    """The states of the global random generators: Python's, NumPy's, torch's on the CPU and on this job's GPU."""
    kind, key, *rest = np.random.get_state(legacy=True)
    gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return {"python": random.getstate(), "numpy": (kind, torch.from_numpy(np.asarray(key, dtype=np.int64)), *rest),
            "torch": torch.get_rng_state(), "cuda": gpu}


def restore_chance(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    kind, key, *rest = state["numpy"]
    np.random.set_state((kind, key.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
