"""2D densities against the truth, by quadrature.

Flow and EBM are normalised by quadrature on the box; what they are as trained, the EBM with its learned c, is told too.
What a flow puts off the box is not counted as dispersion: `log_z_error` has it, below 0. Every integral is a midpoint
sum, taken anew with coarser cells and over a larger box: the largest difference is the quadrature's error.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eval.score import Model, Score, mean_score, write_scores
from fce.data.batches import Points
from fce.data.toy import grid, log_mass
from fce.flow.sampler import Gaussian
from fce.models import open_densities
from pipeline.checkpoint import load
from pipeline.errors import UserError
from pipeline.job import Job
from pipeline.progress import log

LogDensity = Callable[[Tensor], Tensor]  # points [n, 2] -> log-densities [n] in nats
REGION = 0.99  # of the truth; what a model puts outside is its over-dispersion
TOLERANCE = 1e-3  # nats or probability by which an integral's values may differ before a warning


@dataclass(frozen=True)
class Cells:
    """A grid on [-box, box]^2 and the true density there.

    Attributes:
        x: midpoints [n, 2].
        truth: log-densities [n] in nats.
        mode: the index [n] of the mode that a point most likely comes from, of `modes`.
        inside: whether a cell [n] belongs to the smallest region that holds REGION of the truth.
    """

    box: float
    x: Tensor
    truth: Tensor
    mode: Tensor
    modes: int
    inside: Tensor

    @classmethod
    def of(cls, data: Points, box: float, points: int) -> "Cells":
        x = grid(box, points)
        truth = data.density.log_prob(x)
        mode, modes = data.density.mode_of(x), data.density.modes
        mass = torch.zeros(modes, dtype=truth.dtype).index_add(0, mode, truth.exp())
        if not (mass > 0).all():
            raise UserError(f"density: {points}x{points} cells on [-{box:g}, {box:g}]^2 miss mode {int(mass.argmin())} "
                            "of the data; give larger density.boxes or more density.points")
        return cls(box, x, truth, mode, modes, truth >= level(truth, REGION, box))

    def integral(self, values: Tensor) -> float:
        return integral(values, self.box)


def run(jobs: list[Job]) -> None:
    """Models of one density share the truth on the grids."""
    settings, data = jobs[0].params.density, jobs[0].data
    (box, wide), (fine, coarse) = settings.boxes, settings.points
    grids = [Cells.of(data, *each) for each in ((box, fine), (box, coarse), (wide, fine))]
    plot = grid(box, settings.plot_points)
    truth = data.density.log_prob(plot)
    for job in jobs:
        compare(job, data, grids, plot, truth)


def compare(job: Job, data: Points, grids: list[Cells], plot: Tensor, truth: Tensor) -> None:
    """Write the scores of one checkpoint's models, and their log-densities on the grid `plot`, truth's beside them."""
    pictures, side = {"truth": truth}, math.isqrt(len(plot))
    scores = [mean_score("log_likelihood", "data", data.arrays["test_log_prob"], "the true density, held-out points")]
    for name, (log_density, parameters) in models_of(job).items():
        found, log_z = measure(name, log_density, data, grids)
        scores += [*found, Score(name="parameters", model=name, value=parameters, n=1,
                                 protocol="learned numbers of the network")]
        pictures[name] = log_density(plot) - log_z
    arrays = {name: values.reshape(side, side).float().numpy() for name, values in pictures.items()}
    write_scores(job, scores, {"axis": plot[::side, 0].numpy(), **arrays})


def measure(name: Model, log_density: LogDensity, data: Points, grids: list[Cells]) -> tuple[list[Score], float]:
    """All scores of one model, and its log Z."""
    cells, coarse, wide = grids
    log_p = [log_density(each.x) for each in grids]
    values, *others = [integrals(each, log_values) for each, log_values in zip(grids, log_p, strict=True)]
    errors = {what: max(abs(value - other[what]) for other in others) for what, value in values.items()}
    worst = max(errors, key=lambda what: errors[what])
    if errors[worst] > TOLERANCE:
        log.warning(
            "%s: the quadrature of %s is uncertain: %.5f with fine cells, %.5f with coarse ones, %.5f on the box of "
            "%g; does mass escape?", name, worst, values[worst], *(other[worst] for other in others), wide.box)
    side = math.isqrt(len(cells.x))
    how = f"midpoint rule, {side}x{side} cells on [-{cells.box:g}, {cells.box:g}]^2"
    log_z, modes = values["log_z_error"], [value for what, value in values.items() if what.startswith("mode_mass_")]

    def score(what: str, value: float, protocol: str) -> Score:
        return Score(name=what, model=name, value=value, n=len(cells.x), protocol=f"{protocol}, {how}",
                     quadrature_error=errors.get(what))

    at_test, exact = log_density(data.arrays["test"]), data.arrays["test_log_prob"]
    held = "on held-out points"
    return [
        *(score(f"mode_mass_{i}", mass, f"of mode {i}, against the truth's") for i, mass in enumerate(modes)),
        score("smallest_mode_mass", min(modes), "against the truth's of that mode"),
        score("mass_outside", values["mass_outside"],
              f"outside the smallest region that holds {REGION:.0%} of the truth"),
        score("kl", values["kl"], f"KL(data || {name})"),
        score("jsd", values["jsd"], "with the factor 1/2 that eq. 5 leaves out"),
        score("total_variation", values["total_variation"], "half the integral of the difference"),
        score("log_z_error", log_z, "log of the integral of the density as trained"),
        score("quadrature_error", errors[worst], f"of {worst}, the worst of all: largest difference to "
              f"{math.isqrt(len(coarse.x))} cells a side and to [-{wide.box:g}, {wide.box:g}]^2"),
        mean_score("log_likelihood", name, at_test - log_z, f"normalised by quadrature, {held}"),
        mean_score("mse_log_density", name, (at_test - exact).square(), f"as trained, {held}"),
        mean_score("mse_log_density_normalised", name, (at_test - log_z - exact).square(),
                   f"normalised by quadrature, {held}"),
    ], log_z


def integrals(cells: Cells, as_trained: Tensor) -> dict[str, float]:
    """What quadrature tells of a density, from its logs as trained at the cells."""
    log_z = log_mass(as_trained, cells.box)
    log_p = as_trained - log_z
    p, truth = log_p.exp(), cells.truth.exp()
    mass, true_mass = (torch.zeros(cells.modes, dtype=p.dtype).index_add(0, cells.mode, values)
                       for values in (p, truth))
    return {
        "kl": divergence(cells.truth, log_p, cells.box), "jsd": jensen_shannon(cells.truth, log_p, cells.box),
        "total_variation": 0.5 * cells.integral((truth - p).abs()), "log_z_error": log_z,
        "mass_outside": 1 - cells.integral(p.where(cells.inside, 0)),
        **{f"mode_mass_{i}": share for i, share in enumerate((mass / true_mass).tolist())},
    }


def models_of(job: Job) -> dict[Model, tuple[LogDensity, int]]:
    """{flow, ebm}: log-density functions on the CPU, float64, of the models in the checkpoint `--model`, and sizes."""
    return {name: (in_chunks(model.log_prob), sum(p.numel() for p in model.parameters()))
            for name, model in open_densities(load(job.inputs["model"])).items() if not isinstance(model, Gaussian)}


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
