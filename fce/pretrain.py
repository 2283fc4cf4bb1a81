"""Stage: pretrain. Glow by maximum likelihood (the paper starts joint training from it, section 3.2)."""

import csv
import math
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from fce import parallel
from fce.data.data import Images, Points, open_data
from fce.data.images import bits_per_dim
from fce.data.toy import MAKERS
from fce.flow.coupling import net_precision
from fce.flow.glow import Glow, make_glow
from fce.optim import Average, lr_factor, make_optimizer, set_lr
from fce.progress import log, steps
from fce.stack import Stack, State
from fce.stage import Job, Stopped, main
from fce.state import atomic, save

LOOK_EVERY = 20  # steps: to look at the loss stops a GPU, and once it is no number it stays so
INIT_BATCH = 1024  # points or images for the data-dependent initialisation (openai/glow: 256)


def run(jobs: list[Job]) -> None:
    """Runs on points train side by side, in one stack; images fill a machine alone."""
    side_by_side = jobs[0].params["data"]["source"] in MAKERS
    for group in [jobs] if side_by_side else [[job] for job in jobs]:
        train(group)


def train(jobs: list[Job]) -> None:
    settings, device = jobs[0].params["pretrain"], jobs[0].device
    data = [open_data(job.inputs["data"], job.params["data"], device) for job in jobs]
    generators = [points.generator(job.seed_for("batches")) for job, points in zip(jobs, data, strict=True)]
    flows = []
    for job, points, generator in zip(jobs, data, generators, strict=True):
        torch.manual_seed(job.seed_for("torch"))
        flows.append(start_flow(points, job.params["flow"], generator, device))
    flow, shape = Stack(flows, jobs[0].compiled), list(flows[0].shape)
    optimizer = make_optimizer(settings["optimizer"], flow.learned.values(), settings["lr"])
    average = Average(flow, settings["ema"])
    validation = data[0].part("validation", torch.Generator().manual_seed(0))
    keeper = jobs[0].keeper(
        f"training-{jobs[0].seed}", flow=flow, optimizer=optimizer, average=average, data=data, generators=generators
    )
    done: dict[str, Any] = keeper.load() or {
        "step": 0,
        "clipped": torch.zeros(len(jobs), dtype=torch.long),
        "rows": [[] for _ in jobs],
        "best": [(math.inf, state) for state in flow.split(average.state)],
    }
    done["clipped"] = clipped = done["clipped"].to(device)
    rows, best = done["rows"], done["best"]
    for step, progress in steps(settings["steps"], settings["batch"] * len(jobs), done["step"]):
        factor = lr_factor(settings["decay"], settings["warmup"], step - 1, step / settings["steps"])
        set_lr(optimizer, [settings["lr"]], factor)
        x = torch.stack([points.batch(settings["batch"], g) for points, g in zip(data, generators, strict=True)])
        with net_precision(settings["precision"]):
            torch.compiler.cudagraph_mark_step_begin()
            loss = -flow.log_prob(parallel.share(x, 1)).mean(1)
            flow.backward(loss)
        norms = flow.clip(settings["clip"])
        clipped += norms > settings["clip"]
        optimizer.step()
        average.update()
        due = step % settings["validate_every"] == 0 or step == settings["steps"]
        if due or step % LOOK_EVERY == 0:
            loss = parallel.average([loss.detach()])[0]
            if not torch.isfinite(loss).all():
                keep_aside(jobs, [checkpoint(job, shape, state) for job, (_, state) in zip(jobs, best, strict=True)], (
                    f"pretrain: the loss is {loss.tolist()} at step {step}; lower pretrain.lr, or raise "
                    "pretrain.warmup or flow.scale_floor"
                ))
        if due:
            with average.applied():
                scores = [unit(data[0], log_q) for log_q in evaluate(flow, validation)]
            scales = flow("max_log_scale").tolist()
            for i, state in enumerate(flow.split(average.state)):
                best[i] = min(best[i], (scores[i], state), key=lambda pair: pair[0])
                row = {
                    "step": step,
                    "train": unit(data[0], -loss[i].item()),
                    "validation": scores[i],
                    "gradient_norm": norms[i].item(),
                    "clipped": int(clipped[i]),
                    "lr": settings["lr"] * factor,
                    "max_log_scale": scales[i],
                }
                rows[i].append(row)
                jobs[i].record.log(**row)
            log.info("step %d: validation %s, gradients clipped %s times", step,
                     ", ".join(f"{score:.4f}" for score in scores), clipped.tolist())
        progress(step, loss=loss.detach().mean(), gradient=norms.max())
        done["step"] = step
        keeper.tick(lambda: done)
    keeper.save(done)
    for job, curve, (_, chosen), last in zip(jobs, rows, best, flow.split(average.state), strict=True):
        write_csv(job.out.with_suffix(".csv"), curve)
        state = chosen if settings["select"] == "validation" else last
        save(job.out, {**checkpoint(job, shape, state), "provenance": job.provenance()})


def checkpoint(job: Job, shape: list[int], state: State) -> dict[str, Any]:
    """What load_flow reads."""
    return {"flow": state, "flow_params": job.params["flow"], "shape": shape, "data_params": job.params["data"]}


def keep_aside(jobs: list[Job], states: list[dict[str, Any]], why: str) -> NoReturn:
    """Save the last good states beside the outputs, and stop."""
    asides = [job.out.with_suffix(".stopped.pt") for job in jobs]
    for aside, state in zip(asides, states, strict=True):
        save(aside, state)
    raise Stopped(f"{why}. The last good state is kept in {', '.join(map(str, asides))}")


def start_flow(data: Points | Images, params: dict[str, Any], generator: torch.Generator, device: str) -> Glow:
    """A Glow with its weights drawn and its actnorms initialised on data."""
    shape = (2,) if isinstance(data, Points) else data.shape
    flow = make_glow(shape, params).to(device)
    flow.initialize(initial_batch(data, generator))
    return flow


def initial_batch(data: Points | Images, generator: torch.Generator, images: int = INIT_BATCH) -> Tensor:
    """The data that a noise model's statistics are initialised on: points, or at most so many images."""
    return data.batch(INIT_BATCH if isinstance(data, Points) else min(images, len(data.images["train"])), generator)


@torch.no_grad()
def evaluate(flow: Stack, x: Tensor, batch: int = 500) -> list[float]:
    """Mean log q of x [B, ...], in nats, of each flow."""
    parts = [flow.log_prob(part.expand(flow.size, *part.shape)) for part in x.split(batch)]
    means: list[float] = torch.cat(parts, 1).double().mean(1).tolist()
    return means


def unit(data: Points | Images, log_prob: float) -> float:
    """Bits/dim for images, nats for points; lower is better."""
    if isinstance(data, Images):
        return bits_per_dim(
            torch.tensor(log_prob, dtype=torch.float64), data.levels, data.dims, math.prod(data.shape)
        ).item()
    return -log_prob


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with atomic(path) as partial, open(partial, "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def load_flow(checkpoint: dict[str, Any], key: str = "flow") -> Glow:
    """The flow of a checkpoint, on the CPU."""
    flow = make_glow(tuple(checkpoint["shape"]), checkpoint["flow_params"])
    flow.load_state_dict(checkpoint[key])
    return flow


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data"], several=True, resumes=True, trains=True))
