"""Measure: 2D densities against the truth by quadrature.

A flow is read as it is; an EBM both with its learned c and normalised by quadrature. The integrals are midpoint
sums over two boxes; the larger box has the coarser cells, and a disagreement of the two is reported.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eval.score import Score, write_scores
from fce.data.data import Points, open_data
from fce.data.toy import grid, log_mass
from fce.flow.glow import Gaussian
from fce.joint import load_models
from fce.pretrain import load_flow
from fce.progress import log
from fce.stage import Job, main
from fce.state import atomic, load

TOLERANCE = 1e-3  # nats by which the two boxes may differ before a warning


def run(job: Job) -> None:
    settings = job.params["density"]
    data = open_data(job.inputs["data"], job.params["data"], job.device)
    assert isinstance(data, Points)
    test, exact = data.arrays["test"], data.arrays["test_log_prob"]
    models = models_of(job)
    box, points = settings["boxes"][0], settings["points"]
    quadrature = f"midpoint rule, {points}x{points} cells on [-{box:g}, {box:g}]^2"
    n = len(test)
    scores = [
        Score(
            name="log_likelihood",
            model="data",
            value=exact.mean().item(),
            unit="nats",
            n=n,
            standard_error=exact.std().item() / math.sqrt(n),
            protocol="the true density on held-out points",
        )
    ]
    axis = grid(box, settings["plot_points"])
    plots = {"axis": axis[:: settings["plot_points"], 0].numpy(), "truth": data.density.log_prob(axis).numpy()}
    for name, log_density in models.items():
        cells = [grid(b, points) for b in settings["boxes"]]
        values = [log_density(c) for c in cells]
        log_z, log_z_wide = (log_mass(v, b) for v, b in zip(values, settings["boxes"], strict=True))
        if abs(log_z - log_z_wide) > TOLERANCE:
            log.warning("%s: log Z is %.4f on the small box and %.4f on the large one", name, log_z, log_z_wide)
        truth = data.density.log_prob(cells[0])
        log_p = values[0] - log_z
        at_test = log_density(test)

        def score(
            what: str,
            value: float,
            protocol: str = quadrature,
            unit: str = "nats",
            count: int = points**2,
            error: float | None = None,
            model: str = name,
        ) -> Score:
            return Score(
                name=what, model=model, value=value, unit=unit, n=count, protocol=protocol, standard_error=error
            )  # type: ignore[arg-type]

        squares = (at_test - exact).square()
        normalised = (at_test - log_z - exact).square()
        scores += [
            score("kl", divergence(truth, log_p, box), f"KL(data || {name}), {quadrature}"),
            score("jsd", jensen_shannon(truth, log_p, box), f"with the factor 1/2 that eq. 5 leaves out, {quadrature}"),
            score("total_variation", 0.5 * integral((truth.exp() - log_p.exp()).abs(), box), unit="probability"),
            score(
                "log_likelihood",
                (at_test - log_z).mean().item(),
                "normalised by quadrature, on held-out points",
                count=n,
                error=at_test.std().item() / math.sqrt(n),
            ),
            score(
                "mse_log_density",
                squares.mean().item(),
                "as trained, on held-out points",
                "nats^2",
                n,
                squares.std().item() / math.sqrt(n),
            ),
            score(
                "mse_log_density_normalised",
                normalised.mean().item(),
                "normalised by quadrature, on held-out points",
                "nats^2",
                n,
                normalised.std().item() / math.sqrt(n),
            ),
            score("log_z_error", log_z, f"log of the integral of the density as trained, {quadrature}"),
            score(
                "log_z_uncertainty",
                abs(log_z - log_z_wide),
                f"difference to [-{settings['boxes'][1]:g}, {settings['boxes'][1]:g}]^2",
            ),
        ]
        plots[name] = (log_density(axis) - log_z).numpy()
    side = settings["plot_points"]
    with atomic(job.out.with_suffix(".npz")) as partial:
        np.savez(
            partial,
            **{name: v if name == "axis" else v.reshape(side, side).astype(np.float32) for name, v in plots.items()},
        )
    write_scores(job, scores)


def models_of(job: Job) -> dict:
    """{flow, ebm}: log-density functions on the CPU, float64, of the models in the checkpoint `--model`."""
    path: Path = job.inputs["model"]
    if path.stem == "pretrain":
        found = {"flow": load_flow(load(path)).log_prob}
    else:
        energy, noise = load_models(path, "cpu")
        found = {"ebm": energy.log_prob} | ({} if isinstance(noise, Gaussian) else {"flow": noise.log_prob})

    def in_chunks(log_prob, x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([log_prob(part) for part in x.split(50_000)]).double()

    return {name: (lambda x, f=f: in_chunks(f, x)) for name, f in found.items()}


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
