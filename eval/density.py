"""Measure: 2D densities against the truth by quadrature.

A flow is read as it is; an EBM both with its learned c and normalised by quadrature. The integrals are midpoint
sums over two boxes; the larger box has the coarser cells, and a disagreement of the two is reported.
"""

import math
import sys
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from eval.score import Model, Score, mean_score, write_scores
from fce.data.data import Points, open_data
from fce.data.toy import grid, log_mass
from fce.flow.glow import Gaussian
from fce.joint import load_models
from fce.pretrain import load_flow
from fce.progress import log
from fce.stage import Job, main
from fce.state import atomic, load

LogDensity = Callable[[Tensor], Tensor]  # points [n, 2] -> log-densities [n] in nats
REGION = 0.99  # of the truth; what a model puts outside is its over-dispersion
TOLERANCE = 1e-3  # nats by which the two boxes may differ before a warning


def run(job: Job) -> None:
    settings = job.params["density"]
    data = open_data(job.inputs["data"], job.params["data"], job.device)
    assert isinstance(data, Points)
    side = settings["plot_points"]
    plot = grid(settings["boxes"][0], side)
    pictures = {"truth": data.density.log_prob(plot)}
    scores = [
        mean_score("log_likelihood", "data", data.arrays["test_log_prob"], "nats", "the true density, held-out points")
    ]
    for name, log_density in models_of(job).items():
        found, log_z = measure(name, log_density, data, settings["boxes"], settings["points"])
        scores += found
        pictures[name] = log_density(plot) - log_z
    with atomic(job.out.with_suffix(".npz")) as partial:
        arrays = {name: values.reshape(side, side).numpy().astype(np.float32) for name, values in pictures.items()}
        np.savez(partial, allow_pickle=False, axis=plot[::side, 0].numpy(), **arrays)
    write_scores(job, scores)


def measure(
    name: Model, log_density: LogDensity, data: Points, boxes: list[float], points: int
) -> tuple[list[Score], float]:
    """All scores of one model, and its log Z."""
    box, wide = boxes
    how = f"midpoint rule, {points}x{points} cells on [-{box:g}, {box:g}]^2"
    cells = grid(box, points)
    truth, as_trained = data.density.log_prob(cells), log_density(cells)
    log_z, log_z_wide = log_mass(as_trained, box), log_mass(log_density(grid(wide, points)), wide)
    if abs(log_z - log_z_wide) > TOLERANCE:
        log.warning("%s: log Z is %.4f on the small box and %.4f on the large one", name, log_z, log_z_wide)
    log_p = as_trained - log_z
    at_test, exact = log_density(data.arrays["test"]), data.arrays["test_log_prob"]

    def score(what: str, value: float, protocol: str, unit: str = "nats") -> Score:
        return Score(name=what, model=name, value=value, unit=unit, n=points**2, protocol=protocol)

    held = "on held-out points"
    mode = data.density.mode_of(cells)
    shares = [
        integral(log_p.exp().where(mode == i, 0), box) / integral(truth.exp().where(mode == i, 0), box)
        for i in range(data.density.modes)
    ]
    return [
        *(score(f"mode_mass_{i}", share, f"of mode {i}, against the truth's, {how}", "ratio")
          for i, share in enumerate(shares)),
        score("smallest_mode_mass", min(shares), f"against the truth's of that mode, {how}", "ratio"),
        score("mass_outside", 1 - integral(log_p.exp().where(truth >= level(truth, REGION, box), 0), box),
              f"outside the smallest region that holds {REGION:.0%} of the truth, {how}", "probability"),
        score("kl", divergence(truth, log_p, box), f"KL(data || {name}), {how}"),
        score("jsd", jensen_shannon(truth, log_p, box), f"with the factor 1/2 that eq. 5 leaves out, {how}"),
        score("total_variation", 0.5 * integral((truth.exp() - log_p.exp()).abs(), box), how, "probability"),
        score("log_z_error", log_z, f"log of the integral of the density as trained, {how}"),
        score("log_z_uncertainty", abs(log_z - log_z_wide), f"difference to [-{wide:g}, {wide:g}]^2"),
        mean_score("log_likelihood", name, at_test - log_z, "nats", f"normalised by quadrature, {held}"),
        mean_score("mse_log_density", name, (at_test - exact).square(), "nats^2", f"as trained, {held}"),
        mean_score(
            "mse_log_density_normalised",
            name,
            (at_test - log_z - exact).square(),
            "nats^2",
            f"normalised by quadrature, {held}",
        ),
    ], log_z


def models_of(job: Job) -> dict[Model, LogDensity]:
    """{flow, ebm}: log-density functions on the CPU, float64, of the models in the checkpoint `--model`."""
    path = job.inputs["model"]
    if path.stem == "pretrain":
        return {"flow": in_chunks(load_flow(load(path)).log_prob)}
    energy, noise = load_models(path, "cpu")
    found: dict[Model, LogDensity] = {"ebm": in_chunks(energy.log_prob)}
    return found if isinstance(noise, Gaussian) else found | {"flow": in_chunks(noise.log_prob)}


def in_chunks(log_prob: LogDensity) -> LogDensity:
    @torch.no_grad()
    def log_density(x: Tensor) -> Tensor:
        return torch.cat([log_prob(part) for part in x.split(50_000)]).double()

    return log_density


def level(log_p: Tensor, share: float, box: float) -> float:
    """The log-density above which lies `share` of a density's mass."""
    falling = log_p.sort(descending=True).values
    mass = falling.exp().cumsum(0) * (2 * box) ** 2 / len(log_p)
    return falling[int((mass < share).sum().clamp(max=len(falling) - 1))].item()


def integral(values: Tensor, box: float) -> float:
    return values.sum().item() * (2 * box) ** 2 / len(values)


def divergence(log_p: Tensor, log_q: Tensor, box: float) -> float:
    """KL(p || q) in nats, from log-densities on a grid."""
    terms = log_p.exp() * (log_p - log_q)
    return integral(torch.where(log_p > -80, terms, torch.zeros_like(terms)), box)


def jensen_shannon(log_p: Tensor, log_q: Tensor, box: float) -> float:
    """(KL(p || m) + KL(q || m)) / 2 in nats, m the mean of both densities."""
    middle = torch.logaddexp(log_p, log_q) - math.log(2)
    return 0.5 * (divergence(log_p, middle, box) + divergence(log_q, middle, box))


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data", "model"]))
