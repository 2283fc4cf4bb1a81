"""Glow by maximum likelihood: what joint training starts from (section 3.2)."""

import math
from typing import Any

import torch
from torch import Tensor

from fce import parallel
from fce.data.batches import at_once
from fce.flow.coupling import net_precision
from fce.flow.start import start_flow
from fce.optim import Average, lr_factor, make_optimizer, set_lr
from fce.stack import Stack
from fce.stack import State as Weights
from fce.stages.moments import Moments
from pipeline.checkpoint import save
from pipeline.files import write_csv
from pipeline.job import Job, keep_aside
from pipeline.progress import log, steps
from pipeline.resume import State
from pipeline.schema.data import Points

LOOK_EVERY = 20  # steps: to look at the loss stops a GPU, and once it is no number it stays so


def run(jobs: list[Job]) -> None:
    """Runs on points train side by side, in one stack; images fill a machine alone."""
    side_by_side = isinstance(jobs[0].params.data, Points)
    for group in [jobs] if side_by_side else [[job] for job in jobs]:
        train(group)


class Course(State):
    """How far training has come: steps, clipped gradients, and of each run its curve and its best (score, weights)."""

    def __init__(self, flow: Stack, average: Average):
        self.step, self.clipped = 0, torch.zeros(flow.size, dtype=torch.long)
        self.rows: list[list[dict[str, Any]]] = [[] for _ in range(flow.size)]
        self.best = [(math.inf, weights) for weights in flow.split(average.state)]


def train(jobs: list[Job]) -> None:
    settings, data = jobs[0].params.pretrain, [job.data for job in jobs]
    generators = [points.generator(job.seed_for("batches")) for job, points in zip(jobs, data, strict=True)]
    flows = []
    for job, points, generator in zip(jobs, data, generators, strict=True):
        torch.manual_seed(job.seed_for("torch"))
        flows.append(start_flow(points, job.params.flow.model_dump(), generator, job.device))
    flow = Stack(flows, jobs[0].compiled)
    optimizer = make_optimizer(settings.optimizer, flow.learned.values(), settings.lr)
    average = Average(flow, settings.ema)
    validation = data[0].part("validation", torch.Generator().manual_seed(0))
    course, moments = Course(flow, average), Moments(jobs[0], settings.trajectory, settings.steps)
    keeper = jobs[0].keeper(f"training-{jobs[0].seed}", flow=flow, optimizer=optimizer, average=average, data=data,
                            generators=generators, course=course, moments=moments)
    keeper.load()
    moments.look(course.step, flow, average)
    course.clipped = course.clipped.to(jobs[0].device)
    for step, progress in steps(settings.steps, settings.batch * len(jobs), course.step):
        factor = lr_factor(settings.decay, settings.warmup, step - 1, step / settings.steps)
        set_lr(optimizer, [settings.lr], factor)
        x = torch.stack([points.batch(settings.batch, g) for points, g in zip(data, generators, strict=True)])
        with net_precision(settings.precision):
            flow.begin_step()
            loss = -flow.log_prob(parallel.share(x, 1)).mean(1)
            flow.backward(loss)
        norms = flow.clip(settings.clip)
        course.clipped += norms > settings.clip
        optimizer.step()
        average.update()
        due = step % settings.validate_every == 0 or step == settings.steps
        if due or step % LOOK_EVERY == 0:
            loss = parallel.average([loss.detach()])[0]
            require_finite(jobs, course, loss, step)
        if due:
            facts = {"step": step, "lr": settings.lr * factor}
            validate(jobs, flow, average, course, validation, loss, norms, facts)
        progress(step, loss=loss.detach().mean(), gradient=norms.max())
        moments.look(step, flow, average)
        course.step = step
        keeper.tick()
    keeper.save()
    for job, curve, (_, chosen), last in zip(jobs, course.rows, course.best, flow.split(average.state), strict=True):
        write_csv(job.out.with_suffix(".csv"), curve)
        weights = chosen if settings.select == "validation" else last
        save(job.out, {**content(job, weights), **moments.content(), "provenance": job.provenance()})


def validate(jobs: list[Job], flow: Stack, average: Average, course: Course, validation: Tensor, loss: Tensor,
             norms: Tensor, facts: dict[str, Any]) -> None:
    """Add a row to each run's curve, and keep its weights where they are its best, or without validation its latest."""
    data, scores = jobs[0].data, list[float | None]([None] * flow.size)
    if len(validation):
        with average.applied():
            scores = [data.loss(log_q) for log_q in evaluate(flow, validation)]
    scales = flow("max_log_scale").tolist()
    for i, weights in enumerate(flow.split(average.state)):
        score = scores[i]
        if score is None or score < course.best[i][0]:
            course.best[i] = (math.inf if score is None else score, weights)
        row = {"step": facts["step"], "train": data.loss(-loss[i].item()), "validation": scores[i],
               "gradient_norm": norms[i].item(), "clipped": int(course.clipped[i]), "lr": facts["lr"],
               "max_log_scale": scales[i]}
        course.rows[i].append(row)
        jobs[i].record.log(**{name: value for name, value in row.items() if value is not None})
    name = "validation" if len(validation) else "train"
    log.info("step %d: %s %s, gradients clipped %s times", facts["step"], name,
             ", ".join(f"{rows[-1][name]:.4f}" for rows in course.rows), course.clipped.tolist())


def require_finite(jobs: list[Job], course: Course, loss: Tensor, step: int) -> None:
    """Stop where the loss is no number, and keep each run's best weights."""
    if not torch.isfinite(loss).all():
        keep_aside(jobs, [content(job, weights) for job, (_, weights) in zip(jobs, course.best, strict=True)], (
            f"pretrain: the loss is {loss.tolist()} at step {step}; lower pretrain.lr, or raise "
            "pretrain.warmup or flow.scale_floor"
        ))


@torch.no_grad()
def evaluate(flow: Stack, x: Tensor) -> list[float]:
    """Mean log q of x [B, ...], in nats, of each flow."""
    parts = [flow.log_prob(part.expand(flow.size, *part.shape)) for part in x.split(at_once(x.shape[1:], 500))]
    means: list[float] = torch.cat(parts, 1).double().mean(1).tolist()
    return means


def content(job: Job, weights: Weights) -> dict[str, Any]:
    """The checkpoint of one run."""
    return {"kind": "pretrain", "flow": weights, "shape": list(job.data.shape),
            **{f"{name}_params": section for name, section in job.params.model_dump(include={"flow", "data"}).items()}}
