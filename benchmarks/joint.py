"""Benchmark: one iteration of the game, an update of each player on one minibatch, against its naive form.

The naive form draws and encodes for each player anew: 12 passes of the flow (a backward pass counts as two) where
fce/game.py takes 6, from the same minibatch, with the same gradients (tests/test_game.py). Then comes the peak memory
of such an iteration at CIFAR-10's size. `python -m benchmarks.joint --out benchmarks/results/joint.json`.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.glow import in_own_process, peak_mib
from benchmarks.models import OURS, Sizes, images, make_model
from benchmarks.timing import Step, clock, interleaved, ratio, write_results
from fce.energy import make_energy
from fce.minibatch import Minibatch, flow_value
from fce.objective import value
from fce.optim import make_optimizer
from fce.stack import Stack
from pipeline.catalogue import ROOT
from pipeline.numerics import settle
from pipeline.params import load


def players(sizes: Sizes, x: Tensor) -> tuple[Stack, Stack]:
    """The EBM of Table 4 and a Glow, alone in their stacks."""
    energy = load(ROOT / "params.yaml").experiments["full"]["cifar10"].energy.model_dump()
    flow = make_model(OURS, sizes, x)
    return Stack([make_energy(flow.shape, **energy).to(x.device)]), Stack([flow])


def iterations(energy: Stack, flow: Stack, x: Tensor) -> dict[str, Step]:
    """An update of either player, in the game's way and the naive one; the rates are too small to change it."""
    ebm_optimizer = make_optimizer("adam", energy.learned.values(), 1e-9)
    flow_optimizer = make_optimizer("adamax", flow.learned.values(), 1e-9)
    x = x[None]

    def noise() -> Tensor:
        return torch.randn(1, x.shape[1], flow.first.dims, device=x.device)

    def update_ebm(log_q: Tensor, x_gen: Tensor, log_q_gen: Tensor) -> None:
        r = energy("log_ratio", torch.cat([x, x_gen], 1), torch.cat([log_q, log_q_gen], 1))
        energy.backward(-value(*r.split(x.shape[1], 1)))
        ebm_optimizer.step()

    def update_flow(v: Tensor) -> None:
        flow.backward(v)
        flow_optimizer.step()

    def ours() -> None:
        batch = Minibatch.of(flow, x, noise())
        update_ebm(*batch.detached()[1:])
        update_flow(flow_value(energy, batch)[0])

    def naive() -> None:
        with torch.no_grad():
            x_gen = flow("decode", noise())[0]
            update = flow.log_prob(x), x_gen, flow.log_prob(x_gen)
        update_ebm(*update)
        x_gen = flow("decode", noise())[0]
        r_data, r_gen = (energy.log_prob(each) - flow.log_prob(each) for each in (x, x_gen))
        update_flow(value(r_data, r_gen))

    return {"ours": ours, "naive": naive}


def speed(sizes: Sizes, x: Tensor, rounds: int) -> dict[str, Any]:
    times = interleaved(iterations(*players(sizes, x), x), rounds, x.device.type)
    low, middle, high = ratio(times["naive"], times["ours"])
    milliseconds = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    print(f"joint iteration: {middle:.2f} times as fast as the naive form [{low:.2f}, {high:.2f}]; ms: {milliseconds}",
          flush=True)
    return {"speedup": middle, "interval": [low, high], "milliseconds": milliseconds, "seconds": times}


def memory(sizes: Sizes, batch: int, device: str) -> float:
    """MiB that two iterations need above the models, at their peak; a function for a process of its own."""
    settle(0, 0)
    x = images(batch, sizes.side, device)
    return peak_mib(iterations(*players(sizes, x), x)["ours"], device)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint", description=__doc__)
    parser.add_argument("--steps", type=int, default=Sizes().steps, help="of the flow, for the speed")
    parser.add_argument("--width", type=int, default=Sizes().width)
    parser.add_argument("--side", type=int, default=Sizes().side)
    parser.add_argument("--batch", type=int, help="for the speed; default: 16 on a CPU, 64 on a GPU")
    parser.add_argument("--deep", type=int, default=32, help="steps of the flow for the memory: CIFAR-10's in Table 3")
    parser.add_argument("--large", type=int, default=64, help="batch for the memory: the paper's")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for the speed")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    device, batch = given.device, given.batch or (64 if given.device == "cuda" else 16)
    sizes = Sizes(side=given.side, steps=given.steps, width=given.width)
    settle(0, given.threads)
    x = images(batch, sizes.side, device)
    content = {"sizes": asdict(sizes), "batch": batch, "rounds": given.rounds, "clock": clock(device)[0],
               "iteration": speed(sizes, x, given.rounds)}
    peak = in_own_process(memory, replace(sizes, steps=given.deep), given.large, device)
    content["memory"] = {"steps": given.deep, "batch": given.large, "peak_mib": peak}
    print(f"peak memory of a joint iteration, K={given.deep}, batch {given.large}: {peak:.0f} MiB above the models")
    write_results(given.out, content)


if __name__ == "__main__":
    main()
