"""Benchmark: our Glow against normflows and nflows (benchmarks/peers.py), at equal sizes, on one machine.

Training step, log-probability and sampling of all three and a matrix product run in the same interleaved rounds
(benchmarks/timing.py), all in fp32; each model's training step has the same fused Adam. Then come the error of
x -> noise -> x, the memory of a training step, and how our training step's cost grows with the batch, the flow steps
and the pixels. `python -m benchmarks.glow --out benchmarks/results/glow.json`; a peer that isn't installed is left out.
"""

import argparse
import math
import multiprocessing
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.models import OURS, Sizes, flops, images, make_model, reconstruction_error
from benchmarks.peers import installed
from benchmarks.timing import Step, clock, interleaved, interval, ratio, write_results
from fce.optim import make_optimizer
from pipeline.numerics import settle

GEMM = {"cpu": 2048, "cuda": 8192}  # side of the square matrices whose product is the machine's best rate


def train_step(model: Any, x: Tensor) -> Step:
    """One step of maximum likelihood with fused Adam; the rate is so small that every step costs the same."""
    optimizer = make_optimizer("adam", model.parameters(), 1e-5)

    def step() -> None:
        optimizer.zero_grad()
        (-model.log_prob(x).mean()).backward()
        optimizer.step()

    return step


def uses(model: Any, x: Tensor) -> dict[str, Step]:
    """What is timed of a model."""
    return {
        "train": train_step(model, x),
        "log_prob": torch.no_grad()(lambda: model.log_prob(x)),
        "sample": torch.no_grad()(lambda: model.sample(len(x))),
    }


def products(device: str) -> dict[str, Step]:
    """One product of two square matrices for each precision."""
    side, kinds = GEMM[device], ("float32", "bfloat16") if device == "cuda" else ("float32",)

    def product(kind: str) -> Step:
        a, b = torch.randn(2, side, side, device=device, dtype=getattr(torch, kind))
        return lambda: a @ b

    return {kind: product(kind) for kind in kinds}


def speed(models: dict[str, Any], x: Tensor, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Images/s, ratios of ours to each peer, and the shares of the fp32 matrix rate, over the same rounds."""
    device, batch = x.device.type, len(x)
    steps = {(name, use): step for name, model in models.items() for use, step in uses(model, x).items()}
    matrix = {("gemm", kind): step for kind, step in products(device).items()}
    times = interleaved(steps | matrix, rounds, device)
    product = 2 * GEMM[device] ** 3
    found = []
    for name, use in steps:
        own = times[name, use]
        work = batch * flops(sizes) * (3 if use == "train" else 1)
        low, share, high = (work / product * part for part in ratio(times["gemm", "float32"], own))
        line = {"model": name, "use": use, "images_per_second": batch / statistics.median(own), "seconds": own,
                "utilisation": share, "utilisation_interval": [low, high]}
        if name != OURS:
            low, middle, high = ratio(own, times[OURS, use])
            line |= {"speedup_of_ours": middle, "speedup_interval": [low, high]}
        found.append(line)
        print(f"{name} {use}: {line['images_per_second']:.1f} images/s, {share:.0%} of the matrix rate"
              + (f"; ours is {middle:.2f} times as fast [{low:.2f}, {high:.2f}]" if name != OURS else ""), flush=True)
    rates = {kind: product / statistics.median(times["gemm", kind]) for _, kind in matrix}
    print("matrix product, GFLOP/s: " + ", ".join(f"{kind} {rate / 1e9:.0f}" for kind, rate in rates.items()))
    return {"gemm_flops_per_second": rates, "results": found}


def memory(name: str, sizes: Sizes, batch: int, device: str) -> float:
    """MiB that two training steps need above the model, at their peak; a function for a process of its own."""
    settle(0, 1)
    x = images(batch, sizes.side, device)
    return peak_mib(train_step(make_model(name, sizes, x), x), device)


def peak_mib(step: Step, device: str) -> float:
    """MiB that a step and another one, which has the optimiser's state, need above what there is, at their peak.

    On a CPU of the process's resident memory.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        with suppress(OSError):  # forget the peak of what came before, where that is allowed
            Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
    step()
    step()
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return (peak - before) / 2**20


def resident(field: str) -> int:
    """Bytes of this process's memory now (VmRSS) or at its peak (VmHWM); getrusage would tell the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def scaling(sizes: Sizes, batch: int, device: str, rounds: int) -> dict[str, Any]:
    """Time of our training step against batch, flow steps and pixels, each alone; the pixels with few flow steps."""
    few = max(1, sizes.steps // 4)
    sweeps = {
        "batch": {n: (sizes, n) for n in (batch // 4, batch // 2, batch, 2 * batch)},
        "steps": {n: (replace(sizes, steps=n), batch) for n in sorted({few, max(1, sizes.steps // 2), sizes.steps})},
        "pixels": {n * n: (replace(sizes, side=n, steps=few), batch)
                   for n in (sizes.side // 2, sizes.side, 2 * sizes.side)},
    }
    found = {}
    for name, points in sweeps.items():
        steps = {}
        for value, (size, count) in points.items():
            x = images(count, size.side, device)
            steps[value] = train_step(make_model(OURS, size, x), x)
        times = interleaved(steps, rounds, device)
        low, middle, high = interval([exponent(list(times), seconds) for seconds in zip(*times.values(), strict=True)])
        found[name] = {"values": list(times), "seconds": list(times.values()), "exponent": middle,
                       "interval": [low, high]}
        print(f"our training step's time grows with {name} to the power {middle:.2f} [{low:.2f}, {high:.2f}]",
              flush=True)
    return found


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """a of the power law cost ~ size^a, by least squares in logs."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.glow", description=__doc__)
    defaults = Sizes()
    for name in ("side", "levels", "steps", "width"):
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name))
    parser.add_argument("--coupling", choices=("additive", "affine"), default=defaults.coupling)
    parser.add_argument("--batch", type=int, help="at least 4; default: 16 on a CPU, 64 on a GPU")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    sizes = Sizes(given.side, given.levels, given.steps, given.width, given.coupling)
    device, batch = given.device, given.batch or (64 if given.device == "cuda" else 16)
    settle(0, given.threads)
    peers = installed()
    x = images(batch, sizes.side, device)
    models = {name: make_model(name, sizes, x) for name in (OURS, *peers)}
    errors = {name: reconstruction_error(name, model, x) for name, model in models.items()}
    content = {"sizes": asdict(sizes), "batch": batch, "rounds": given.rounds, "clock": clock(device)[0],
               "flops_per_image": flops(sizes), **speed(models, x, sizes, given.rounds), "models": {},
               "peers": {name: version(name) for name in peers}}
    for name, model in models.items():
        content["models"][name] = {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "reconstruction_error": errors[name],
            "train_step_mib": in_own_process(memory, name, sizes, batch, device),
        }
        print(f"{name}: {content['models'][name]}", flush=True)
    del models
    content["scaling"] = scaling(sizes, batch, device, given.rounds)
    write_results(given.out, content)


if __name__ == "__main__":
    main()
