"""Benchmark: runs side by side in one process (fce/stack.py) against the same runs one by one.

Rounds are interleaved (benchmarks/timing.py); what counts is the ratio of each round's times.
`python -m benchmarks.stack --out benchmarks/results/stack.json`, one thread.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.timing import clock, interleaved, ratio, write_results
from fce.energy import make_energy
from fce.flow.glow import make_glow
from fce.minibatch import Minibatch, flow_value
from fce.objective import value
from fce.stack import Stack
from pipeline.catalogue import ROOT
from pipeline.params import load


def steps(
    runs: int, flow_params: dict[str, Any], energy_params: dict[str, Any], batch: int
) -> dict[str, Callable[[], None]]:
    """One step of each kind for `runs` stacked runs: gradients, without the optimiser, which is one call in both."""
    x, eps = torch.randn(2, runs, batch, 2)
    glows = [make_glow((2,), **flow_params) for _ in range(runs)]
    for glow in glows:
        glow.initialize(torch.randn(1024, 2))
    flow, energy = Stack(glows), Stack([make_energy((2,), **energy_params) for _ in range(runs)])

    def pretrain() -> None:
        flow.backward(-flow.log_prob(x).mean(1))

    def joint_ebm() -> None:
        with torch.no_grad():
            x_gen, log_q_gen = flow("decode", eps)
            log_q = flow.log_prob(x)
        r = energy("log_ratio", torch.cat([x, x_gen], 1), torch.cat([log_q, log_q_gen], 1))
        energy.backward(-value(*r.split(batch, 1)))

    def joint_flow() -> None:
        v: Tensor = flow_value(energy, Minibatch.of(flow, x, eps))[0]
        flow.backward(v)

    return {"glow maximum likelihood": pretrain, "joint, EBM update": joint_ebm, "joint, flow update": joint_flow}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stack", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="runs side by side")
    parser.add_argument("--rounds", type=int, default=9, help="interleaved rounds")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ring = load(ROOT / "params.yaml").experiments["full"]["ring"]
    sizes = ring.flow.model_dump(), ring.energy.model_dump(), ring.pretrain.batch
    alone, stacked = steps(1, *sizes), steps(arguments.runs, *sizes)
    found = []
    for name in alone:
        times = interleaved({"alone": alone[name], "stacked": stacked[name]}, arguments.rounds)
        one, many = times["alone"], [seconds / arguments.runs for seconds in times["stacked"]]
        low, middle, high = ratio(one, many)
        milliseconds = [1000 * statistics.median(seconds) for seconds in (one, many)]
        found.append({"step": name, "speedup": middle, "interval": [low, high],
                      "ms_a_run_alone": milliseconds[0], "ms_a_run_stacked": milliseconds[1]})
        print(f"{name}: {middle:.2f} times faster [{low:.2f}, {high:.2f}], "
              f"{milliseconds[0]:.1f} -> {milliseconds[1]:.1f} ms a run")
    write_results(arguments.out, {"runs": arguments.runs, "rounds": arguments.rounds, "clock": clock("cpu")[0],
                                  "results": found})


if __name__ == "__main__":
    main()
