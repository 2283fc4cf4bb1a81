"""Benchmark: runs side by side in one process (fce/stack.py) against the same runs one by one.

Rounds are interleaved, so that a busy machine slows both alike; the ratio of each round's times is what counts.
`python -m benchmarks.stack --out benchmarks/results/stack.json`, one thread.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t
from torch import Tensor

from fce.energy import make_energy
from fce.flow.glow import make_glow
from fce.game import flow_value
from fce.objective import value
from fce.params import load
from fce.stack import Stack
from fce.track import environment

ROOT = Path(__file__).resolve().parent.parent


def steps(
    runs: int, flow_params: dict[str, Any], energy_params: dict[str, Any], batch: int
) -> dict[str, Callable[[], None]]:
    """One step of each kind for `runs` stacked runs: gradients, without the optimiser, which is one call in both."""
    x, eps = torch.randn(2, runs, batch, 2)
    glows = [make_glow((2,), flow_params) for _ in range(runs)]
    for glow in glows:
        glow.initialize(torch.randn(1024, 2))
    flow, energy = Stack(glows), Stack([make_energy((2,), energy_params) for _ in range(runs)])

    def pretrain() -> None:
        flow.backward(-flow.log_prob(x).mean(1))

    def joint_ebm() -> None:
        with torch.no_grad():
            x_gen, log_q_gen = flow("decode", eps)
            log_q = flow.log_prob(x)
        log_p, log_p_gen = energy.log_prob(torch.cat([x, x_gen], 1)).split(batch, 1)
        energy.backward(-value(log_p, log_q, log_p_gen, log_q_gen))

    def joint_flow() -> None:
        v: Tensor = flow_value(energy, flow, x, eps)[0]
        flow.backward(v)

    return {"glow maximum likelihood": pretrain, "joint, EBM update": joint_ebm, "joint, flow update": joint_flow}


def seconds(step: Callable[[], None], repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - started) / repeats


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stack", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs side by side")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument("--repeats", type=int, default=10, help="steps of each run in a round")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ring = load(ROOT / "params.yaml").experiments["full"]["ring"]
    sizes = ring.flow.model_dump(), ring.energy.model_dump(), ring.pretrain.batch
    alone, stacked = steps(1, *sizes), steps(arguments.runs, *sizes)
    found = []
    for name in alone:
        for step in (alone[name], stacked[name]):
            step()  # warms up
        pairs = [(seconds(alone[name], arguments.repeats), seconds(stacked[name], arguments.repeats) / arguments.runs)
                 for _ in range(arguments.rounds)]
        logs = [math.log(one / many) for one, many in pairs]
        half = t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
        low, middle, high = (math.exp(statistics.mean(logs) + sign * half) for sign in (-1, 0, 1))
        milliseconds = [1000 * statistics.median(times) for times in zip(*pairs, strict=True)]
        found.append({"step": name, "speedup": middle, "interval": [low, high],
                      "ms_a_run_alone": milliseconds[0], "ms_a_run_stacked": milliseconds[1]})
        print(f"{name}: {middle:.2f} times faster [{low:.2f}, {high:.2f}], "
              f"{milliseconds[0]:.1f} -> {milliseconds[1]:.1f} ms a run")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    content = {"runs": arguments.runs, "rounds": arguments.rounds, "results": found, "environment": environment()}
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
