"""Step times for `make gpu`: Glow's maximum likelihood and the game, eager, compiled and as CUDA graphs."""

import math
import statistics
import subprocess
import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.glow import GEMM, resident
from benchmarks.models import OURS, Sizes, flops, images, make_model
from benchmarks.timing import Step, clock, seconds
from fce.data.batches import Images
from fce.energy import make_energy
from fce.flow.coupling import Precision, net_precision
from fce.game import Game
from fce.optim import Average, make_optimizer
from fce.stack import Stack
from fce.supply import Supply
from pipeline.catalogue import ROOT
from pipeline.params import load
from pipeline.schema.experiment import ImageExperiment

ROUNDS, LEAST = 5, 0.3  # measurements, and seconds of each
PASSES = {"train": 3, "joint": 6}  # of the flow, for each image: a backward pass counts as two
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """What is timed: `train` (a step of maximum likelihood), `joint` (an update of each player) or `matrix`."""

    what: str
    steps: int = 8
    batch: int = 64
    mode: str = "graphs"
    width: int = 512
    side: int = 32

    @property
    def name(self) -> str:
        return self.what if self.what == "matrix" else f"{self.what}, K={self.steps}, batch {self.batch}, {self.mode}"


def waves(width: int = 512, side: int = 32, few: int = 8, many: int = 32, small: int = 64,
          large: int = 512) -> list[list[Case]]:
    """The cases, those that matter most first; the last wave's need most of an 80 GB card's memory."""
    def cases(*rows: tuple[str, int, int, str]) -> list[Case]:
        return [Case(*row, width, side) for row in rows]

    modes = "graphs", "eager", "compiled"
    first = cases(*((what, few, small, mode) for what in ("train", "joint") for mode in modes),
                  ("train", few, large, "eager"), ("train", many, small, "eager"), ("joint", many, small, "eager"))
    second = cases(("train", many, small, "graphs"), ("train", few, large, "graphs"), ("joint", many, small, "graphs"))
    third = cases(("train", many, large, "eager"), ("train", few, large, "compiled"),
                  ("train", many, small, "compiled"), ("joint", many, small, "compiled"))
    last = cases(*(("train", many, large, mode) for mode in ("graphs", "compiled")))
    return [[Case("matrix"), *first], second, third, last]


class WithoutGraphs(Stack):
    """Compiled, and launched kernel by kernel."""

    graphs = "default"


def stack(model: Any, mode: str) -> Stack:
    return WithoutGraphs([model], True) if mode == "compiled" else Stack([model], mode == "graphs")


def cifar10() -> ImageExperiment:
    experiment = load(ROOT / "params.yaml").experiments["full"]["cifar10"]
    assert isinstance(experiment, ImageExperiment)
    return experiment


def train_step(case: Case, device: str) -> dict[str, Step]:
    """A step as fce/stages/pretrain.py takes it, on the same minibatch; the rate is too small to change anything."""
    settings, x = cifar10().pretrain, images(case.batch, case.side, device)
    flow = stack(make_model(OURS, Sizes(case.side, steps=case.steps, width=case.width), x), case.mode)
    optimizer, average = make_optimizer(settings.optimizer, flow.learned.values(), 1e-9), Average(flow, settings.ema)

    def step() -> None:
        with net_precision(settings.precision):
            flow.begin_step()
            flow.backward(-flow.log_prob(x[None]).mean(1))
        flow.clip(settings.clip)
        optimizer.step()
        average.update()

    return {"seconds": step}


def joint_steps(case: Case, device: str) -> dict[str, Step]:
    """Updates of the game itself: one of each player, and the EBM's alone; the rates are too small to change them."""
    small = {name: 1e-9 for name in ("ebm_lr", "c_lr", "flow_lr")}
    settings = cifar10().arms["joint"].model_copy(update={"batch": case.batch, **small})
    x = images(2 * case.batch, case.side, "cpu")
    levels = ((x + 0.5) * 256).byte().permute(0, 2, 3, 1).numpy()
    data = Images({"train_images": levels, "levels": np.array(256)}, device)
    flow = stack(make_model(OURS, Sizes(case.side, steps=case.steps, width=case.width), x.to(device)), case.mode)
    energy = Stack([make_energy(flow.first.shape, **cifar10().energy.model_dump()).to(device)])  # as the stage has it
    game = Game(flow, energy, Supply([data], [data.generator(0)], flow, settings), settings)
    averages = Average(energy, settings.ema), Average(flow, settings.ema)

    def update_ebm() -> None:
        with net_precision(game.precision):
            game.update_ebm()
        averages[0].update()

    def update_each() -> None:
        update_ebm()
        with net_precision(game.precision):
            game.update_flow()
        averages[1].update()

    return {"seconds": update_each, "ebm_seconds": update_ebm}


def matrix_rates(device: str) -> Row:
    """Floating-point operations per second of a product of large square matrices, by precision."""
    side, now, rates = GEMM[device], clock(device)[1], {}
    kinds: list[tuple[str, Precision]] = [("fp32", "fp32"), ("tf32", "tf32"), ("bf16", "tf32")]
    for name, precision in kinds[:3 if device == "cuda" else 1]:
        a, b = torch.randn(2, side, side, device=device, dtype=torch.bfloat16 if name == "bf16" else torch.float32)
        with net_precision(precision):
            times = [seconds(partial(torch.matmul, a, b), 5, now) for _ in range(1 + ROUNDS)][1:]
        rates[name] = 2 * side**3 / statistics.median(times)
    return rates


def watts() -> float | None:
    """What the card draws now; None where nothing tells."""
    try:
        return torch.cuda.power_draw() / 1000
    except Exception:  # of a missing module, or NVML's own kinds: the next way is tried
        ask = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.run(ask, capture_output=True, text=True, timeout=5).stdout.splitlines()[0])
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired):
        return None


def timed(step: Step, device: str) -> tuple[list[float], float | None]:
    """Seconds of a call in each round, and the median of the watts drawn meanwhile."""
    now, drawn, over = clock(device)[1], list[float](), threading.Event()

    def listen() -> None:
        while not over.wait(0.2):
            if (power := watts()) is not None:
                drawn.append(power)

    listener = threading.Thread(target=listen, daemon=True)
    if device == "cuda":
        listener.start()
    repeats = max(1, math.ceil(LEAST / max(seconds(step, 1, now), 1e-6)))
    times = [seconds(step, repeats, now) for _ in range(ROUNDS)]
    over.set()
    return times, statistics.median(drawn) if drawn else None


def timing_of(case: Case, steps: dict[str, Step], device: str) -> Row:
    """The medians, and what the first of the steps takes of the card."""
    name, *others = steps
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    times, power = timed(steps[name], device)
    middle = statistics.median(times)
    work = PASSES[case.what] * case.batch * flops(Sizes(case.side, steps=case.steps, width=case.width))
    row = {name: middle, "lowest": min(times), "highest": max(times), "images_per_second": case.batch / middle,
           "flops_per_second": work / middle, "watts": power}
    if device == "cuda":
        row |= {"peak_mib": torch.cuda.max_memory_allocated() / 2**20,
                "reserved_mib": torch.cuda.max_memory_reserved() / 2**20}
    else:
        row["peak_mib"] = resident("VmHWM") / 2**20
    return row | {other: statistics.median(timed(steps[other], device)[0]) for other in others}
