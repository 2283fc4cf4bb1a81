"""Stage: pretrain. Glow by maximum likelihood (the paper starts joint training from it, section 3.2)."""

import csv
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fce.data.data import Images, Points, open_data
from fce.data.images import bits_per_dim
from fce.flow.glow import Glow, make_glow
from fce.optim import Average, lr_factor, make_optimizer, set_lr
from fce.progress import log, steps
from fce.stage import Job, Stopped, main
from fce.state import atomic, save

INIT_BATCH = 1024  # points or images for the data-dependent initialisation (openai/glow: 256)


def run(job: Job) -> None:
    settings = job.params["pretrain"]
    data = open_data(job.inputs["data"], job.params["data"], job.device)
    generator = torch.Generator().manual_seed(job.seed_for("batches"))
    flow = start_flow(data, job.params["flow"], generator, job.device)
    optimizer = make_optimizer(settings["optimizer"], flow.parameters(), settings["lr"])
    average = Average(flow, settings["ema"])
    validation = data.part("validation", torch.Generator().manual_seed(0))
    best, clipped, rows = (math.inf, average.state), 0, []
    for step, progress in steps(settings["steps"], settings["batch"]):
        factor = lr_factor(settings["decay"], settings["warmup"], step - 1, step / settings["steps"])
        set_lr(optimizer, [settings["lr"]], factor)
        loss = -flow.log_prob(data.batch(settings["batch"], generator)).mean()
        if not torch.isfinite(loss):
            raise Stopped(
                f"pretrain: the loss is {loss.item()} at step {step}; lower pretrain.lr, or raise "
                "pretrain.warmup or flow.scale_floor"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(flow.parameters(), settings["clip"])
        clipped += bool(norm > settings["clip"])
        optimizer.step()
        average.update(flow)
        if step % settings["validate_every"] == 0 or step == settings["steps"]:
            with average.applied(flow):
                score = unit(data, evaluate(flow, validation))
                if score < best[0]:
                    best = (score, {name: value.clone() for name, value in average.state.items()})
            row = {
                "step": step,
                "train": unit(data, -loss.item()),
                "validation": score,
                "gradient_norm": norm.item(),
                "clipped": clipped,
                "lr": settings["lr"] * factor,
                "max_log_scale": flow.max_log_scale().item(),
            }
            rows.append(row)
            job.record.log(**row)
            log.info(
                "step %d: train %.4f, validation %.4f, gradients clipped %d times", step, row["train"], score, clipped
            )
        progress(step, loss=loss.item(), gradient=norm.item())
    write_csv(job.out.with_suffix(".csv"), rows)
    state = best[1] if settings["select"] == "validation" else average.state
    save(
        job.out,
        {
            "flow": state,
            "flow_params": job.params["flow"],
            "shape": list(flow.shape),
            "data_params": job.params["data"],
            "provenance": job.provenance(),
        },
    )


def start_flow(data: Points | Images, params: dict[str, Any], generator: torch.Generator, device: str) -> Glow:
    """A Glow with its weights drawn and its actnorms initialised on data."""
    shape = (2,) if isinstance(data, Points) else data.shape
    flow = make_glow(shape, params).to(device)
    flow.initialize(initial_batch(data, generator))
    return flow


def initial_batch(data: Points | Images, generator: torch.Generator) -> Tensor:
    """The data that a flow's statistics are initialised on."""
    return data.batch(INIT_BATCH if isinstance(data, Points) else min(INIT_BATCH, len(data.images["train"])), generator)


@torch.no_grad()
def evaluate(flow: Glow, x: Tensor, batch: int = 500) -> float:
    """Mean log q of x, in nats."""
    return torch.cat([flow.log_prob(part) for part in x.split(batch)]).double().mean().item()


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
    sys.exit(main(__doc__, run, inputs=["data"]))
