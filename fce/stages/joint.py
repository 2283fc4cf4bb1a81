"""Flow contrastive estimation (section 2.3), and the arms that change one thing of it."""

import time
from typing import Any

import torch
from torch import Tensor

from fce.data.batches import Images, Points
from fce.data.toy import grid, log_mass
from fce.energy import make_energy
from fce.flow.coupling import net_precision
from fce.flow.glow import Glow
from fce.flow.sampler import Gaussian
from fce.flow.start import initial_batch, open_flow, start_flow
from fce.game import Diverged, Game
from fce.objective import Switch
from fce.optim import Average
from fce.stack import Stack
from fce.stages.moments import Moments
from fce.supply import Supply
from fce.watch import Watch
from pipeline.checkpoint import load, save
from pipeline.files import digest, write_csv
from pipeline.job import Job, keep_aside
from pipeline.progress import Progress, log
from pipeline.resume import State
from pipeline.schema.data import Points as PointData

TRUTH_POINTS = 150  # cells along a side of the grid that normalises the EBM in the curves
MOMENTS = 20_000  # training images for the Gaussian noise's mean and covariance


def run(jobs: list[Job]) -> None:
    for group in side_by_side(jobs):
        train(group)


def side_by_side(jobs: list[Job]) -> list[list[Job]]:
    """Runs that can share each step: on points, of equal settings, but for the start.

    By the accuracy rule each has its own turns, and images fill a machine alone.
    """
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        shares = job.params.joint.rule == "ratio" and isinstance(job.params.data, PointData)
        alone = None if shares else id(job)
        groups.setdefault((digest(job.params.joint.model_dump(exclude={"start"})), alone), []).append(job)
    return list(groups.values())


def make_game(jobs: list[Job]) -> Game:
    """A game of the jobs' runs, as it stands before its start."""
    settings, data = jobs[0].params.joint, [job.data for job in jobs]
    generators = [each.generator(job.seed_for("batches")) for job, each in zip(jobs, data, strict=True)]
    noises, energies = [], []
    for job, each, generator in zip(jobs, data, generators, strict=True):
        torch.manual_seed(job.seed_for("torch"))
        noises.append(make_noise(job, each, generator).requires_grad_(settings.noise == "flow"))
        base = open_flow(load(job.need("flow")), job.device) if settings.energy == "residual" else None
        network = job.params.energy.model_dump()
        energies.append(make_energy(noises[-1].shape, settings.energy, base, **network).to(job.device))
    # of a game the flow alone is compiled: the EBM is small, and on an H200 its compiled backward failed (torch 2.11)
    noise, energy = Stack(noises, jobs[0].compiled), Stack(energies)
    return Game(noise, energy, Supply(data, generators, noise, settings), settings)


def make_noise(job: Job, data: Points | Images, generator: torch.Generator) -> Glow | Gaussian:
    """The noise model that a run starts with."""
    if job.params.joint.noise == "gaussian":
        noise = Gaussian(data.shape).to(job.device)
        noise.initialize(initial_batch(data, generator, images=MOMENTS))  # a covariance takes many points a dimension
        return noise
    if job.params.joint.start == "random":
        return start_flow(data, job.params.flow.model_dump(), generator, job.device)
    return open_flow(load(job.need("flow")), job.device)


class Course(State):
    """Whose turn it is, each run's curve, and the processor's seconds so far, without what measures the runs."""

    def __init__(self, switch: Switch, runs: int):
        self.switch, self.rows = switch, list[list[dict[str, Any]]]([] for _ in range(runs))
        self.seconds, self.since = 0.0, time.process_time()

    def clock(self) -> float:
        """Count what has passed."""
        now = time.process_time()
        self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def state_dict(self) -> dict[str, Any]:
        return {"switch": vars(self.switch), "rows": self.rows, "seconds": self.clock()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self.switch).update(state["switch"])
        self.rows, self.seconds, self.since = state["rows"], state["seconds"], time.process_time()


def train(jobs: list[Job]) -> None:
    """FCE of some runs of equal settings."""
    first, settings, course = jobs[0], jobs[0].params.joint, Course(Switch.of(jobs[0].params.joint), len(jobs))
    game = make_game(jobs)
    averages = Average(game.energy, settings.ema), Average(game.noise, settings.ema)
    watch = Watch(game, settings.alarms, [f"{job.tags.get('arm', 'the run')}, seed {job.seed}" for job in jobs])
    name = f"{first.tags.get('arm', first.out.parent.name)}-{first.seed}"
    moments = Moments(first, settings.trajectory, settings.ebm_updates)
    keeper = first.keeper(name, averages=averages, game=game, watch=watch, course=course, moments=moments)
    with net_precision(game.precision):
        keeper.load()
        if not game.ebm_updates + game.flow_updates:
            warming = Progress(settings.warm_start, settings.batch * len(jobs), game.warm_updates)

            def tick() -> None:
                warming(game.warm_updates)
                keeper.tick()

            watch.begin(game.start(tick))
    turn, kept = course.switch.turn, contents(jobs, game, *averages)
    progress = Progress(settings.ebm_updates, settings.batch * len(jobs), game.ebm_updates)

    def look() -> None:
        if game.learns:
            course.clock()
            moments.look(game.ebm_updates, game.noise, averages[1])
            course.since = time.process_time()

    try:
        look()
        while game.ebm_updates < settings.ebm_updates:
            with net_precision(game.precision):
                right = game.update_ebm() if turn == "ebm" else game.update_flow()
            averages[turn == "flow"].update()
            last = {name: sum(values) / len(values) for name, values in game.last.items()}
            progress(game.ebm_updates, V=last["value"], real=last["accuracy_data"], fake=last["accuracy_gen"])
            due = game.ebm_updates % settings.log_every == 0 or game.ebm_updates == settings.ebm_updates
            if turn == "ebm" and due:
                course.clock()
                watch.look()
                kept = contents(jobs, game, *averages)
                measure(jobs, game, averages[0], course)
            turn = course.switch.update(right) if game.learns else "ebm"
            look()
            keeper.tick()
    except Diverged as stop:
        when = f"EBM update {game.ebm_updates}, flow update {game.flow_updates}"
        keep_aside(jobs, kept, f"joint: stopped at {when}: {stop}")
    keeper.save()  # until the stage's other runs are done
    game.settle(*averages)
    log.info("V is %.4f at p = q; at the end: %s", game.chance, {k: round(v, 4) for k, v in course.rows[0][-1].items()})
    for job, curve, content in zip(jobs, course.rows, contents(jobs, game, *averages), strict=True):
        write_csv(job.out.with_suffix(".csv"), curve)
        save(job.out, {**content, **moments.content(), "provenance": job.provenance()})


def measure(jobs: list[Job], game: Game, average: Average, course: Course) -> None:
    """Add a row to each run's curve; a run's seconds are its share, up to when its measuring began."""
    seconds, switch = course.seconds / len(jobs), course.switch
    turns = {"turns": switch.turns}
    if switch.rule == "accuracy":  # else numbers of updates end every turn, and are no caps
        turns["capped"] = switch.capped
    for job, curve, row, errors in zip(jobs, course.rows, game.rows(), truth(jobs, game, average), strict=True):
        curve.append(row | turns | {"seconds": seconds} | errors)
        job.record.log(game.ebm_updates, **curve[-1])
    course.since = time.process_time()


@torch.no_grad()
def truth(jobs: list[Job], game: Game, average: Average) -> list[dict[str, float]]:
    """In 2D: mean squared error of the log-density on held-out points (Figure 2), c learned or by quadrature."""
    data = jobs[0].data  # all runs hold out the same points
    if not isinstance(data, Points):
        return [{} for _ in jobs]
    x, exact = data.arrays["validation"].to(game.device), data.arrays["validation_log_prob"]
    box = 2.0 * x.abs().max().item()
    cells = grid(box, TRUTH_POINTS, x.device)

    def errors(log_p: Tensor) -> list[float]:
        values: list[float] = (log_p.cpu() - exact).square().mean(1).tolist()
        return values

    together = x.expand(len(jobs), *x.shape)
    raw = game.energy.log_prob(together)
    with average.applied():
        mean = game.energy.log_prob(together)
        on_grid = game.energy.log_prob(cells.expand(len(jobs), *cells.shape))
    log_z = torch.tensor([log_mass(each, box) for each in on_grid], device=mean.device)
    named = {"mse_raw": raw, "mse_ema": mean, "mse_ema_normalised": mean - log_z[:, None]}
    columns = {name: errors(log_p) for name, log_p in named.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(jobs))]


def contents(jobs: list[Job], game: Game, energy_average: Average, noise_average: Average) -> list[dict[str, Any]]:
    """What each run's checkpoint holds: both players, averaged and raw, and how to build them."""
    players = ("energy", game.energy, energy_average), ("flow", game.noise, noise_average)
    weights = {f"{name}{suffix}": stack.split(state) for name, stack, average in players
               for suffix, state in (("", average.state), ("_raw", stack.state_dict()))}
    return [
        {"kind": "joint", "shape": list(job.data.shape), **{name: states[i] for name, states in weights.items()},
         **{f"{name}_params": section for name, section in job.params.model_dump().items()},
         "updates": {"ebm": game.ebm_updates, "flow": game.flow_updates, "dropped": int(game.supply.dropped[i])}}
        for i, job in enumerate(jobs)
    ]
