"""Why the paper's plain EBM saturates at 3,072 dimensions, and what might help: a study stated beforehand.

Eight settings of joint training from one small Glow of CIFAR-10, tuning seed 100, looked at on validation images and by
the FD of the data set's own classifier. SETTINGS was fixed before the runs. The same command goes on where it stopped;
the table and the figure go to one folder.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from eval.score import read_scores
from fce.data.batches import Images
from fce.flow.start import open_flow
from fce.minibatch import Minibatch, flow_value
from fce.models import open_players
from fce.stack import Stack
from pipeline import stage
from pipeline.catalogue import ROOT
from pipeline.checkpoint import load
from pipeline.files import read_arrays, write_csv, write_json
from pipeline.params import Params, alone, merge, read
from pipeline.progress import log, open_door
from pipeline.provenance import environment

PROFILE, NAME, SEED = "study", "cifar10", 100
HOME = Path("build", PROFILE, NAME)
BASE: dict[str, Any] = {  # of the profile small: a Glow for minutes
    "flow": {"steps": 4, "width": 64},
    "pretrain": {"steps": 1500, "trajectory": {"moments": 1, "images": 1000}},
    "joint": {"ebm_updates": 150, "warm_start": 500, "log_every": 10, "trajectory": {"moments": 2, "images": 1000}},
}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {  # name: what it changes, in words and of `joint:` (or `energy:`)
    "as-paper": ("the paper's literal setting: no warm start", {"joint": {"warm_start": 0}}),
    "as-paper-long": ("the same, ten times as long",
                      {"joint": {"warm_start": 0, "ebm_updates": 1500, "log_every": 50}}),
    "warm": ("a warm start of 500 updates (ours)", {}),
    "warmer": ("a warm start of 2,000 updates, twice the rate", {"joint": {"warm_start": 2000, "warm_lr": 2.0e-3}}),
    "wide": ("f twice as wide, warm start", {"energy": {"widths": [128, 256, 512]}}),
    "decay": ("weight decay 0.1 on f, warm start", {"joint": {"ebm_weight_decay": 0.1}}),
    "slow-flow": ("flow rate at which an update moves log q by a nat, warm start", {"joint": {"flow_lr": "one nat"}}),
    "tilted": ("tilted EBM", {"joint": {"energy": "tilted", "warm_start": 0, "head_start": 50, "ebm_per_round": 5,
                                         "flow_per_round": 5, "ebm_lr": 1.0e-4, "c_lr": 1.0e-3}}),
}


def make_params(changes: dict[str, Any]) -> Params:
    """The small profile's CIFAR-10 with BASE, these changes and the arm `joint` alone, which is the setting."""
    raw = read(ROOT / "params.yaml")
    raw["defaults"]["images"]["arms"] = {}
    raw["experiments"][NAME]["arms"] = {"joint": {}}
    small = {key: value for key, value in raw["small"]["overrides"][NAME].items() if key != "arms"}
    return alone(raw, PROFILE, NAME, SEED, merge(small, BASE, changes))


def run(name: str, params: Path, out: Path, **inputs: Path) -> None:
    """A stage in this process, unless its output is there.

    Raises:
        SystemExit: it failed, and said why.
    """
    if not out.exists():
        log.info("%s: %s", name, out)
        flags = [word for flag, path in inputs.items() for word in (f"--{flag}", str(path))]
        code = stage.main(name, ["--params", str(params), *flags, "--seed", str(SEED), "--out", str(out)])
        if code:
            raise SystemExit(code)


def write_slices(folder: Path, changes: dict[str, Any]) -> dict[str, Path]:
    """{stage: slice} of a setting, below its own folder."""
    places = {}
    for path, text in make_params(changes).slices(PROFILE, NAME).items():
        place = folder / "params" / Path(path).name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
        places[place.stem] = place
    return places


@torch.no_grad()
def one_nat_rate(flow: Path, data: Path) -> float:
    """The rate at which Adamax's first step, along the likelihood's gradient of 32 images, moves log q by a nat rms."""
    model, rate = open_flow(load(flow)), 1.0e-5
    images = Images(read_arrays(data, ("train_images", "levels")), "cpu")
    random = images.generator(SEED)
    x, held = images.batch(32, random), images.batch(256, random)
    before = model.log_prob(held)
    optimizer = torch.optim.Adamax(model.parameters(), lr=rate)
    with torch.enable_grad():
        model.log_prob(x).mean().backward()
    optimizer.step()
    moved = (model.log_prob(held) - before).square().mean().sqrt().item()
    log.info("a step at rate %g moves log q by %.3g nats rms", rate, moved)
    return rate / moved


def gradients(checkpoint: Path, data: Path) -> dict[str, float]:
    """Norms of both parts of V's gradient by the flow's parameters, at the end: through the data, and the samples."""
    energy, flow = open_players(load(checkpoint), raw=True)
    noise, images = Stack([flow.requires_grad_()]), Images(read_arrays(data, ("train_images", "levels")), "cpu")
    random = images.generator(SEED)
    x, eps = images.batch(128, random)[None], torch.randn(1, 128, flow.dims, generator=random)
    batch = Minibatch.of(noise, x, eps)
    parts = {"data": batch._replace(x_gen=batch.x_gen.detach(), log_q_gen=batch.log_q_gen.detach()),
             "samples": batch._replace(log_q=batch.log_q.detach())}
    weights, norms = list(flow.parameters()), {}
    for name, part in parts.items():
        value, _, _ = flow_value(Stack([energy]), part)
        found = torch.autograd.grad(value.sum(), weights, retain_graph=True, allow_unused=True)
        norms[f"gradient_{name}"] = torch.stack([each.norm() for each in found if each is not None]).norm().item()
    return norms


def measured(name: str, folder: Path, data: Path) -> dict[str, Any]:
    """A row of the table: how the game went, and what became of Glow."""
    curve = pd.read_csv(folder / "joint.csv")
    last, late = curve.iloc[-1], curve.iloc[len(curve) * 3 // 4 :]
    changed = {score.name: score.value for score in read_scores(folder / "trajectory.json").scores}
    moments = read_arrays(folder / "trajectory.npz", ("distance", "bits_per_dim"))
    whole = {key: int(last[key]) for key in ("ebm_updates", "flow_updates", "longest_saturated")}
    means = {key: last[f"mean_{key}"] for key in ("value", "saturated", "accuracy_data", "accuracy_gen")}
    return {"setting": name, "what": SETTINGS[name][0], **whole, **means, "flow_lr": flow_rate(folder),
            "first_median_ratio": curve["r_abs"].iloc[0], "late_value": late["value"].mean(),
            "fd_start": moments["distance"][0], "fd_change": changed["frechet_distance_change"],
            "bits_start": moments["bits_per_dim"][0], "bits_change": changed["bits_per_dim_change"],
            **gradients(folder / "joint.pt", data), "cpu_seconds": last["seconds"]}


def flow_rate(folder: Path) -> float:
    return float(json.loads((folder / "params/joint.json").read_text())["joint"]["flow_lr"])


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """Share of saturated log-ratios, V and accuracy along training, and FD against it."""
    canvas, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for i, row in enumerate(rows):
        curve = pd.read_csv(HOME / f"seed-{SEED}" / row["setting"] / "joint.csv")
        x, look = np.linspace(0, 1, len(curve)), {"color": f"C{i}", "label": row["setting"]}
        axes[0, 0].plot(x, curve["saturated"], **look)
        axes[0, 1].plot(x, -curve["value"], **look)
        axes[1, 0].plot(x, (curve["accuracy_data"] + curve["accuracy_gen"]) / 2, **look)
        axes[1, 1].scatter(-row["value"], row["fd_change"], **look)
    axes[0, 0].set(title="log-ratios beyond 20 nats", ylim=(-0.03, 1.03))
    axes[0, 1].set(title="−V (1.386 where p = q)", yscale="log")
    axes[1, 0].set(title="accuracy", xlabel="share of the run", ylim=(0, 1))
    axes[1, 1].set(title="FD, end minus start", xlabel="−V, mean over the run", xscale="log")
    axes[0, 1].axhline(2 * np.log(2), color="0.6")
    axes[1, 1].axhline(0, color="0.6")
    axes[1, 0].legend(frameon=False, ncols=2, fontsize=8)
    canvas.savefig(out / "saturation.png", dpi=130)
    plt.close(canvas)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plain_ebm", description=__doc__)
    parser.add_argument("--classifier", type=Path, required=True, help="a classifier.pt of the same data")
    parser.add_argument("--data", type=Path, required=True, help="the small profile's data.npz")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="which; default: all")
    parser.add_argument("--out", type=Path, default=Path("build/study/results"), help="the folder of results")
    given = parser.parse_args()
    open_door()
    given.out.mkdir(parents=True, exist_ok=True)
    home = HOME / f"seed-{SEED}"
    slices = write_slices(HOME, {})
    flow = home / "pretrain.pt"
    run("pretrain", slices["pretrain"], flow, data=given.data)
    rows = []
    for name in given.settings:
        folder, changes = home / name, SETTINGS[name][1]
        if changes.get("joint", {}).get("flow_lr") == "one nat":
            changes = {"joint": {"flow_lr": one_nat_rate(flow, given.data)}}
        slices = write_slices(folder, changes)
        run("joint", slices["joint"], folder / "joint.pt", data=given.data, flow=flow)
        run("trajectory", slices["trajectory"], folder / "trajectory.json", data=given.data, model=folder / "joint.pt",
            features=given.classifier)
        rows.append(measured(name, folder, given.data))
        write_csv(given.out / "saturation.csv", rows)
        draw(rows, given.out)
    write_json(given.out / "provenance.json", {**environment(), "base": BASE, "seed": SEED})


if __name__ == "__main__":
    main()
