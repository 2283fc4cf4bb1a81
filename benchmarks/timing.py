"""What the benchmarks share: steps timed in interleaved rounds, the ratios of their times, and the results' file.

A busy machine slows all steps of a round alike, so what counts is the ratio of two times of the same round.
"""

import json
import math
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from scipy.stats import t

from pipeline.provenance import environment

Step = Callable[[], Any]
Name = TypeVar("Name", bound=Hashable)
LEAST = 0.3  # seconds: a step is repeated until one measurement takes as long


def clock(device: str) -> tuple[str, Callable[[], float]]:
    """The clock's name and the clock, in seconds; on a GPU it waits until all that was launched is done.

    One CPU thread is timed by the process's own CPU time, which leaves out what others take of the machine.
    """
    if device == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return "wall clock", synchronized
    if torch.get_num_threads() == 1:
        return "CPU time of the process", time.process_time
    return "wall clock", time.perf_counter


def seconds(step: Step, repeats: int, now: Callable[[], float]) -> float:
    """Time of one call of the step, a mean over `repeats` calls in a row."""
    started = now()
    for _ in range(repeats):
        step()
    return (now() - started) / repeats


def interleaved(steps: Mapping[Name, Step], rounds: int, device: str = "cpu") -> dict[Name, list[float]]:
    """Seconds of one call of each step, in each round.

    Every step runs once to warm up and once more to see how many calls take LEAST seconds; so many, after an untimed
    one, are one measurement. Each round has all steps in another order.
    """
    now = clock(device)[1]
    repeats = {}
    for name, step in steps.items():
        step()
        repeats[name] = max(1, math.ceil(LEAST / max(seconds(step, 1, now), 1e-6)))
    times: dict[Name, list[float]] = {name: [] for name in steps}
    for number in range(rounds):
        for name in order(list(steps), number):
            steps[name]()  # the memory and the caches are then as this step leaves them, not as another did
            times[name].append(seconds(steps[name], repeats[name], now))
    return times


def order(names: list[Name], number: int) -> list[Name]:
    """Who goes when in a round: rotated every second round, reversed in between, so that neighbours change too."""
    start = number // 2 % len(names)
    rotated = names[start:] + names[:start]
    return rotated[::-1] if number % 2 else rotated


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(low, mean, high): the mean over rounds and its 95 % t-interval."""
    mean = statistics.mean(values)
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean, mean + half


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> tuple[float, float, float]:
    """(low, middle, high): geometric mean over rounds of numerator / denominator, and its 95 % t-interval in logs."""
    low, middle, high = interval([math.log(a / b) for a, b in zip(numerator, denominator, strict=True)])
    return math.exp(low), math.exp(middle), math.exp(high)


def write_results(path: Path, content: dict[str, Any]) -> None:
    """The results, with what they were measured on, as JSON."""
    place = environment() | {"processor": processor(), "threads": torch.get_num_threads()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | {"environment": place}, indent=1) + "\n")


def processor() -> str:
    """The CPU's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else "unknown"
