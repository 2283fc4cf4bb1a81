"""The one door through which a stage speaks: log lines, and progress with the time left."""

import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("fce")
EVERY = 30.0  # seconds between progress lines where there is no terminal; fewer at first


def open_door() -> None:
    """Send log lines to standard error, so that standard output stays free."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False


class Progress:
    """One status line: rewritten in place on a terminal, fresh lines in a log, at first often, then every 30 s.

    Args:
        total: the number of steps to come.
        unit_size: images (or points) per step, for the rate.
        before: steps done by an earlier process.
    """

    def __init__(self, total: int, unit_size: int = 1, before: int = 0):
        self.total, self.unit_size, self.before = total, unit_size, before
        self.started = self.spoken = time.monotonic()
        self.terminal = sys.stderr.isatty() and not log.disabled

    def __call__(self, step: int, **values: Any) -> None:
        """Report that `step` steps are done, with the latest values; tensors are read only when they are spoken of."""
        now = time.monotonic()
        last = step >= self.total
        pause = 0.2 if self.terminal else min(EVERY, max(2.0, (now - self.started) / 4))
        if now - self.spoken < pause and not last:
            return
        self.spoken = now
        rate = (step - self.before) / max(now - self.started, 1e-9)
        line = (
            f"{step}/{self.total}  "
            + "  ".join(f"{name} {float(value):.4g}" for name, value in values.items())
            + f"  {rate * self.unit_size:.0f}/s  {clock((self.total - step) / max(rate, 1e-9))} left"
        )
        if self.terminal:
            sys.stderr.write("\r\x1b[K" + line + ("\n" if last else ""))
            sys.stderr.flush()
        else:
            log.info(line)


def steps(total: int, unit_size: int = 1, before: int = 0) -> Iterator[tuple[int, Progress]]:
    """(each step after `before` up to total, the progress line to call with values)."""
    progress = Progress(total, unit_size, before)
    for step in range(before + 1, total + 1):
        yield step, progress


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}"
