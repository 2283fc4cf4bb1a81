"""Stage: joint. Flow contrastive estimation (section 2.3), and the arms that change one thing of it."""

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fce.data.data import Points
from fce.data.toy import grid, log_mass
from fce.energy import EnergyModel, make_energy
from fce.flow.glow import Gaussian, Glow, make_glow
from fce.game import Game
from fce.objective import Switch
from fce.optim import Average
from fce.pretrain import write_csv
from fce.progress import Progress, log
from fce.stage import Job, Stopped, main
from fce.state import load, save


def run(job: Job) -> None:
    game = Game(job)
    game.start()
    settings = game.settings
    averages = Average(game.energy, settings["ema"]), Average(game.noise, settings["ema"])
    switch = Switch(
        rule=settings["rule"],
        ebm_per_round=settings["ebm_per_round"],
        flow_per_round=settings["flow_per_round"],
        decay=settings["accuracy_decay"],
        head_start=settings["head_start"],
    )
    progress = Progress(settings["ebm_updates"], settings["batch"])
    rows: list[dict[str, Any]] = []
    kept, started, turn = contents(game, *averages), time.process_time(), "ebm"
    try:
        while game.ebm_updates < settings["ebm_updates"]:
            right = game.update_ebm() if turn == "ebm" else game.update_flow()
            averages[turn == "flow"].update(game.energy if turn == "ebm" else game.noise)
            last = game.last
            progress(game.ebm_updates, V=last["value"], real=last["accuracy_data"], fake=last["accuracy_gen"])
            due = game.ebm_updates % settings["log_every"] == 0 or game.ebm_updates == settings["ebm_updates"]
            if turn == "ebm" and due:
                game.watch()
                kept = contents(game, *averages)
                rows.append(game.row() | {"seconds": time.process_time() - started} | truth(game, averages[0]))
                job.record.log(game.ebm_updates, **rows[-1])
            turn = switch.update(right) if game.learns else "ebm"
    except Stopped as stop:
        aside = job.out.with_suffix(".stopped.pt")
        save(aside, kept)
        raise Stopped(
            f"joint: stopped at EBM update {game.ebm_updates}, flow update {game.flow_updates}: {stop}. "
            f"The last good state is kept in {aside}"
        ) from None
    log.info("V is -2 log 2 = -1.386 at p = q; at the end: %s", {k: round(v, 4) for k, v in rows[-1].items()})
    write_csv(job.out.with_suffix(".csv"), rows)
    save(job.out, {**contents(game, *averages), "provenance": job.provenance()})


def truth(game: Game, average: Average) -> dict[str, float]:
    """In 2D: mean squared error of the log-density on held-out points (Figure 2), by learned c and by quadrature."""
    if not isinstance(game.data, Points):
        return {}
    x, exact = game.data.arrays["validation"].to(game.job.device), game.data.arrays["validation_log_prob"]
    box = 2.0 * x.abs().max().item()
    with torch.no_grad():
        raw = game.energy.log_prob(x)
        with average.applied(game.energy):
            mean, log_z = game.energy.log_prob(x), log_mass(game.energy.log_prob(grid(box, 200, x.device)), box)
    errors = {"mse_raw": raw, "mse_ema": mean, "mse_ema_normalised": mean - log_z}
    return {name: (log_p.cpu() - exact).square().mean().item() for name, log_p in errors.items()}


def contents(game: Game, energy_average: Average, noise_average: Average) -> dict[str, Any]:
    """What a checkpoint holds: both players, averaged and raw, and how to build them."""

    def copy(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in state.items()}

    return {
        "energy": copy(energy_average.state),
        "energy_raw": copy(game.energy.state_dict()),
        "flow": copy(noise_average.state),
        "flow_raw": copy(game.noise.state_dict()),
        "shape": list(game.noise.shape),
        **{f"{name}_params": game.job.params[name] for name in ("flow", "energy", "joint", "data")},
        "updates": {"ebm": game.ebm_updates, "flow": game.flow_updates, "dropped": game.dropped},
    }


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
    sys.exit(main(__doc__, run, inputs=["data"], optional=["flow"]))
