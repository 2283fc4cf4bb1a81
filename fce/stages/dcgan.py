"""DCGAN, with which Table 1 compares: trained here, and measured as the flows are.

The paper's DCGAN column is that of TTUR (arXiv 1706.08500), not a run of its authors.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fce.dcgan import make_dcgan
from pipeline.checkpoint import save
from pipeline.errors import Stopped
from pipeline.job import Job
from pipeline.progress import steps
from pipeline.resume import State


class Updates(State):
    """How far it has come, and what the losses were; a state in which they are no numbers is never saved."""

    def __init__(self, job: Job):
        self.step, self.losses = 0, dict[str, Tensor]()
        self.told = f"lower dcgan.{job.params.dcgan.rates}. States of earlier updates, if any, lie below {job.resume}"

    def numbers(self) -> dict[str, float]:
        found = {name: loss.item() for name, loss in self.losses.items()}
        if not all(map(math.isfinite, found.values())):
            raise Stopped(f"dcgan: the losses are {found} at update {self.step}; {self.told}")
        return found

    def state_dict(self) -> dict[str, Any]:
        self.numbers()
        return super().state_dict()


def run(job: Job) -> None:
    settings, data = job.params.dcgan, job.data
    rates = settings.orig if settings.rates == "orig" else settings.ttur
    random = data.generator(job.seed_for("batches"))
    players = generator, discriminator = make_dcgan(data.shape, settings.latent, settings.widths)
    for player in players:
        player.to(job.device).to(memory_format=torch.channels_last)  # 1.15 times as fast on a CPU at 32x32
    optimizers = [torch.optim.Adam(player.parameters(), lr=lr, betas=(settings.beta1, 0.999), fused=True)
                  for player, lr in ((discriminator, rates.discriminator_lr), (generator, rates.generator_lr))]
    done = Updates(job)
    keeper = job.keeper("training", done=done, generator=generator, discriminator=discriminator, optimizers=optimizers,
                        data=data, random=random)
    keeper.load()
    for step, progress in steps(rates.updates, settings.batch, done.step):
        done.step = step
        x = generator(generator.noise(settings.batch, random))
        # real and generated images in batches of their own: batch norm sees one kind at a time, as in TTUR's code
        real, fake = discriminator(data.batch(settings.batch, random)), discriminator(x.detach())
        d_loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        update(optimizers[0], d_loss)
        g_loss = F.softplus(-discriminator(x)).mean()  # the same z, the new discriminator
        update(optimizers[1], g_loss)
        done.losses = {"discriminator": d_loss.detach(), "generator": g_loss.detach()}
        if step % settings.log_every == 0 or step == rates.updates:
            losses = done.numbers()
            job.record.log(step, **losses)
            progress(step, **losses)
        keeper.tick()
    keeper.save()
    save(job.out, {"kind": "dcgan", "generator": generator.state_dict(), "discriminator": discriminator.state_dict(),
                   "shape": list(data.shape), "dcgan_params": settings.model_dump(), "provenance": job.provenance()})


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the gradient of `loss`, which this optimiser's parameters alone collect."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()
