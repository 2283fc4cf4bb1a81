"""The processes that time the cases of `make gpu`.

Each case has one of its own: what runs out of memory, fails to compile or takes too long costs only itself. The cases
of a wave warm up side by side, since the compiler takes one core and minutes; then they are timed in turn.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from multiprocessing.connection import Connection

from benchmarks.gpu_steps import Case, Row, joint_steps, matrix_rates, timing_of, train_step
from benchmarks.timing import clock
from pipeline.numerics import settle

WARM = 4  # calls before a case is timed: a CUDA graph is recorded in the third
TURN = 5.0  # seconds kept for the timing of each case of a wave
CORES = 12  # from so many on, the next wave compiles while one is timed


def work(case: Case, device: str, pipe: Connection) -> None:
    """A case's process: warms up, says so, waits for its turn, and sends its row."""
    try:
        settle(0, 0)
        started = time.monotonic()
        steps = {} if case.what == "matrix" else (train_step if case.what == "train" else joint_steps)(case, device)
        for step in steps.values():
            for _ in range(WARM):
                step()
        clock(device)[1]()  # waits for the device
        pipe.send({"warm_up_seconds": time.monotonic() - started})
        pipe.recv()
        pipe.send(timing_of(case, steps, device) if steps else matrix_rates(device))
    except Exception as error:  # whatever it is, it is this case's result
        pipe.send({"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:300]})


def hear(pipe: Connection, until: float, doing: str) -> Row:
    """What a case's process says, by then."""
    try:
        if pipe.poll(max(0.0, until - time.monotonic())):
            row: Row = pipe.recv()
            return row
        return {"error": f"no time was left while {doing}"}
    except (EOFError, OSError):
        return {"error": f"its process died while {doing}"}


class Crew:
    """The processes of one wave's cases, which warm up from now on."""

    def __init__(self, cases: Sequence[Case], device: str):
        context = multiprocessing.get_context("forkserver")
        # what takes seconds is imported once, and what forks has seen no GPU before
        context.set_forkserver_preload([__name__, "torch._dynamo"])
        self.members = []
        for case in cases:
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(case, device, theirs), daemon=True)
            process.start()
            theirs.close()
            self.members.append((case, ours, process))

    def rows(self, until: float, before: Callable[[], None]) -> list[Row]:
        """A row for each case, by the time `until` (monotonic); `before` is called when all are warm."""
        late = until - TURN * len(self.members)
        warm = [hear(pipe, late, "warming up or compiling") for _, pipe, _ in self.members]
        before()
        rows = []
        for (case, pipe, process), row in zip(self.members, warm, strict=True):
            if "error" not in row:
                pipe.send("go")
                row |= hear(pipe, max(until, time.monotonic() + TURN), "it was timed")
            process.kill()
            process.join()
            rows.append({"name": case.name, "case": asdict(case), **row})
            print(f"{case.name}: {said(row)}", flush=True)
        return rows

    def stop(self) -> None:
        for _, _, process in self.members:
            process.kill()


def measure(waves: Sequence[Sequence[Case]], until: float, device: str,
            before: Callable[[], None] = lambda: None) -> Iterator[list[Row]]:
    """The rows of each wave, by the time `until` (monotonic); `before` is called before any is timed.

    Where there are CORES, the next wave compiles meanwhile.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "4")  # else each process starts one for every core
    crews: list[Crew] = []
    try:
        for i in range(len(waves)):
            if i and until - time.monotonic() < TURN * len(waves[i]):
                break
            ahead = 2 if (os.cpu_count() or 1) >= CORES else 1
            crews += [Crew(cases, device) for cases in waves[len(crews) : i + ahead]]
            yield crews[i].rows(until, before)
    finally:
        for crew in crews:
            crew.stop()


def said(row: Row) -> str:
    if "seconds" in row:
        return f"{1000 * row['seconds']:.2f} ms, {row['images_per_second']:.0f} images/s"
    return str(row.get("error") or ", ".join(f"{name} {rate / 1e12:.3g} TFLOP/s" for name, rate in row.items()
                                             if name != "warm_up_seconds"))
