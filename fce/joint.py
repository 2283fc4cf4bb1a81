"""Stage: joint. Flow contrastive estimation (section 2.3), and the arms that change one thing of it."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fce.data.data import Points
from fce.data.toy import MAKERS, grid, log_mass
from fce.energy import EnergyModel, make_energy
from fce.flow.coupling import net_precision
from fce.flow.glow import Gaussian, Glow, make_glow
from fce.game import Game
from fce.objective import Switch, value
from fce.optim import Average
from fce.pretrain import keep_aside, write_csv
from fce.progress import Progress, log
from fce.stage import Job, Stopped, digest, main
from fce.state import load, save

TRUTH_POINTS = 150  # cells along a side of the grid that normalises the EBM in the curves


def run(jobs: list[Job]) -> None:
    for group in side_by_side(jobs):
        train(group)


def side_by_side(jobs: list[Job]) -> list[list[Job]]:
    """Runs that can share each step: on points, of equal settings, but for the start.

    By the accuracy rule each has its own turns, and images fill a machine alone.
    """
    groups: dict[Any, list[Job]] = {}
    for job in jobs:
        settings = {**job.params["joint"], "start": None}
        shares = settings["rule"] == "ratio" and job.params["data"]["source"] in MAKERS
        alone = None if shares else id(job)
        groups.setdefault((digest(settings), alone), []).append(job)
    return list(groups.values())


def train(jobs: list[Job]) -> None:
    """FCE of some runs of equal settings."""
    started = time.process_time()
    game = Game(jobs)
    settings = game.settings
    averages = Average(game.energy, settings["ema"]), Average(game.noise, settings["ema"])
    switch = Switch(
        rule=settings["rule"],
        ebm_per_round=settings["ebm_per_round"],
        flow_per_round=settings["flow_per_round"],
        decay=settings["accuracy_decay"],
        head_start=settings["head_start"],
    )
    first = jobs[0]
    name = f"{first.tags.get('arm', first.out.parent.name)}-{first.seed}"
    keeper = first.keeper(name, averages=averages, **game.parts())
    facts = keeper.load()
    with net_precision(game.precision):
        if facts:
            game.go_on(facts["game"])
            vars(switch).update(facts["switch"])
            started = time.process_time() - facts["seconds"]
        else:
            game.start()
    rows: list[list[dict[str, Any]]] = facts.get("rows") or [[] for _ in jobs]
    kept, turn, measuring = contents(game, *averages), switch.turn, 0.0
    progress = Progress(settings["ebm_updates"], settings["batch"] * len(jobs), game.ebm_updates)

    def state() -> dict[str, Any]:
        seconds = time.process_time() - started - measuring
        return {"game": game.facts(), "switch": vars(switch), "rows": rows, "seconds": seconds}

    try:
        while game.ebm_updates < settings["ebm_updates"]:
            with net_precision(game.precision):
                right = game.update_ebm() if turn == "ebm" else game.update_flow()
            averages[turn == "flow"].update()
            last = {name: sum(values) / len(values) for name, values in game.last.items()}
            progress(game.ebm_updates, V=last["value"], real=last["accuracy_data"], fake=last["accuracy_gen"])
            due = game.ebm_updates % settings["log_every"] == 0 or game.ebm_updates == settings["ebm_updates"]
            if turn == "ebm" and due:
                paused = time.process_time()
                game.watch()
                kept = contents(game, *averages)
                seconds = (paused - started - measuring) / len(jobs)  # each run's share, without what measures it
                for i, (row, errors) in enumerate(zip(game.rows(), truth(game, averages[0]), strict=True)):
                    rows[i].append(row | {"seconds": seconds} | errors)
                    jobs[i].record.log(game.ebm_updates, **rows[i][-1])
                measuring += time.process_time() - paused
            turn = switch.update(right) if game.learns else "ebm"
            keeper.tick(state)
    except Stopped as stop:
        when = f"EBM update {game.ebm_updates}, flow update {game.flow_updates}"
        keep_aside(jobs, kept, f"joint: stopped at {when}: {stop}")
    keeper.save(state())  # until the stage's other runs are done
    zero = torch.zeros(1)
    level = value(zero, zero, zero, zero, game.noise_ratio).item()
    log.info("V is %.4f at p = q; at the end: %s", level, {k: round(v, 4) for k, v in rows[0][-1].items()})
    for job, curve, content in zip(jobs, rows, contents(game, *averages), strict=True):
        write_csv(job.out.with_suffix(".csv"), curve)
        save(job.out, {**content, "provenance": job.provenance()})


@torch.no_grad()
def truth(game: Game, average: Average) -> list[dict[str, float]]:
    """In 2D: mean squared error of the log-density on held-out points (Figure 2), c learned or by quadrature."""
    if not isinstance(game.data[0], Points):
        return [{} for _ in game.jobs]
    arrays = game.data[0].arrays  # all runs hold out the same points
    x, exact = arrays["validation"].to(game.device), arrays["validation_log_prob"]
    box = 2.0 * x.abs().max().item()
    cells = grid(box, TRUTH_POINTS, x.device)

    def errors(log_p: Tensor) -> list[float]:
        values: list[float] = (log_p.cpu() - exact).square().mean(1).tolist()
        return values

    together = x.expand(len(game.jobs), *x.shape)
    raw = game.energy.log_prob(together)
    with average.applied():
        mean = game.energy.log_prob(together)
        on_grid = game.energy.log_prob(cells.expand(len(game.jobs), *cells.shape))
    log_z = torch.tensor([log_mass(each, box) for each in on_grid], device=mean.device)
    named = {"mse_raw": raw, "mse_ema": mean, "mse_ema_normalised": mean - log_z[:, None]}
    columns = {name: errors(log_p) for name, log_p in named.items()}
    return [{name: values[i] for name, values in columns.items()} for i in range(len(game.jobs))]


def contents(game: Game, energy_average: Average, noise_average: Average) -> list[dict[str, Any]]:
    """What each run's checkpoint holds: both players, averaged and raw, and how to build them."""
    states = zip(
        game.energy.split(energy_average.state),
        game.energy.split(game.energy.state_dict()),
        game.noise.split(noise_average.state),
        game.noise.split(game.noise.state_dict()),
        strict=True,
    )
    return [
        {
            **dict(zip(("energy", "energy_raw", "flow", "flow_raw"), state, strict=True)),
            "shape": list(game.shape),
            **{f"{name}_params": job.params[name] for name in ("flow", "energy", "joint", "data")},
            "updates": {"ebm": game.ebm_updates, "flow": game.flow_updates, "dropped": int(dropped)},
        }
        for job, state, dropped in zip(game.jobs, states, game.dropped, strict=True)
    ]


def load_models(path: Path, device: str, weights: str = "averaged") -> tuple[EnergyModel, Glow | Gaussian]:
    """The EBM and the noise model of a joint checkpoint, `averaged` or `raw`."""
    checkpoint = load(path)
    suffix = "" if weights == "averaged" else "_raw"
    shape, joint = tuple(checkpoint["shape"]), checkpoint["joint_params"]
    base = make_glow(shape, checkpoint["flow_params"]) if joint["energy"] == "residual" else None
    energy = make_energy(shape, checkpoint["energy_params"], base)
    energy.load_state_dict(checkpoint[f"energy{suffix}"])
    noise = Gaussian(shape) if joint["noise"] == "gaussian" else make_glow(shape, checkpoint["flow_params"])
    noise.load_state_dict(checkpoint[f"flow{suffix}"])
    return energy.eval().requires_grad_(False).to(device), noise.eval().requires_grad_(False).to(device)


if __name__ == "__main__":
    sys.exit(main(__doc__, run, inputs=["data"], optional=["flow"], several=True, resumes=True, trains=True))
