"""The figure of benchmarks/glow.py, beside its results: `python -m benchmarks.plot benchmarks/results/glow.json`."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from reports.figures import WIDTH, save  # importing it sets the style

PALETTE = sns.color_palette("colorblind")
COLOUR = {"ours": PALETTE[2], "normflows": PALETTE[0], "nflows": PALETTE[1]}
HATCH = {"ours": "", "normflows": "////", "nflows": "...."}  # for grey prints
USES = {"train": "training step", "log_prob": "log-probability", "sample": "sampling"}
SWEEPS = {"batch": ("batch", "o", "-", PALETTE[3]), "steps": ("flow steps K", "s", "--", PALETTE[4]),
          "pixels": ("pixels", "^", ":", "0.1")}


def throughput(axes: list[Axes], content: dict[str, Any]) -> None:
    """For each use, a panel with a bar for each model; above a peer's, how many times as fast ours is."""
    for ax, (use, title) in zip(axes, USES.items(), strict=True):
        lines = [line for line in content["results"] if line["use"] == use]
        for place, line in enumerate(lines):
            height = line["images_per_second"]
            ax.bar(place, height, 0.72, color=COLOUR[line["model"]], hatch=HATCH[line["model"]], edgecolor="white")
            if "speedup_of_ours" in line:
                low, high = line["speedup_interval"]
                ax.annotate(f"ours {line['speedup_of_ours']:.2f}×\n[{low:.2f}, {high:.2f}]", (place, height), (0, 3),
                            textcoords="offset points", ha="center", fontsize=6.5)
        ax.set(title=title, ylabel="images/s" if use == "train" else "", xticks=range(len(lines)))
        ax.set_xticklabels([line["model"] for line in lines])
        ax.yaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.set_ylim(0, 1.25 * max(line["images_per_second"] for line in lines))


def utilisation(ax: Axes, content: dict[str, Any]) -> None:
    """Share of the matrix rate, for each use a group of bars."""
    models = list(dict.fromkeys(line["model"] for line in content["results"]))
    for line in content["results"]:
        place = list(USES).index(line["use"]) + 0.26 * (models.index(line["model"]) - (len(models) - 1) / 2)
        share, (low, high) = 100 * line["utilisation"], (100 * end for end in line["utilisation_interval"])
        ax.bar(place, share, 0.25, color=COLOUR[line["model"]], hatch=HATCH[line["model"]], edgecolor="white",
               yerr=[[share - low], [high - share]], error_kw={"elinewidth": 0.8},
               label=line["model"] if line["use"] == "train" else None)
    ax.set(title="share of the rate of an fp32 matrix product", ylabel="%", ylim=(0, 125),
           yticks=range(0, 101, 20), xticks=range(len(USES)))
    ax.set_xticklabels(USES.values())
    ax.legend(loc="upper left", ncols=3, handlelength=1.2, columnspacing=1)


def scaling(ax: Axes, content: dict[str, Any]) -> None:
    """Time of our training step against each size, both relative to the sweep's first point; grey: linear growth."""
    widest = 1.0
    for name, (label, marker, line, colour) in SWEEPS.items():
        sweep = content["scaling"][name]
        values, seconds = np.array(sweep["values"]), np.median(sweep["seconds"], axis=1)
        low, high = sweep["interval"]
        ends = f"{sweep['values'][0]:,}–{sweep['values'][-1]:,}"
        ax.plot(values / values[0], seconds / seconds[0], marker + line, color=colour, ms=4, mfc="none",
                label=f"{label}, {ends}: exponent {sweep['exponent']:.2f} [{low:.2f}, {high:.2f}]")
        widest = max(widest, values[-1] / values[0])
    ax.plot([1, widest], [1, widest], color="0.7", linewidth=1, zorder=0, label="linear growth")
    ticks = 2 ** np.arange(np.log2(widest) + 1)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set(title="growth of our training step", xlabel="size ÷ smallest size", ylabel="time ÷ time at the smallest",
           xticks=ticks, yticks=ticks)
    ax.set_xticklabels([f"{tick:.0f}" for tick in ticks])
    ax.set_yticklabels([f"{tick:.0f}" for tick in ticks])
    ax.legend(loc="upper left", fontsize=6.5, handlelength=2.4)
    ax.set_ylim(top=3.2 * widest)


def draw(content: dict[str, Any], out: Path) -> None:
    """The figure as <out>.png and <out>.svg."""
    sizes, place = content["sizes"], content["environment"]
    machine = place["device"] if "CPU" not in place["device"] else f"{place['processor']}, threads: {place['threads']}"
    canvas = plt.figure(figsize=(WIDTH, 5.2), layout="constrained")
    grid = canvas.add_gridspec(2, 6)
    throughput([canvas.add_subplot(grid[0, 2 * i : 2 * i + 2]) for i in range(3)], content)
    utilisation(canvas.add_subplot(grid[1, :3]), content)
    scaling(canvas.add_subplot(grid[1, 3:]), content)
    canvas.suptitle(
        f"Glow, {sizes['coupling']}, {sizes['levels']} levels of K = {sizes['steps']} steps, width {sizes['width']}, "
        f"{sizes['side']}×{sizes['side']}×3, batch {content['batch']}; {machine}\n"
        "above a peer's bar: our speed ÷ its speed, and the 95 % interval over rounds", fontsize=8)
    save(canvas, out.parent, out.name, None, "full")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("results", type=Path, help="the JSON file that benchmarks.glow wrote")
    results = parser.parse_args().results
    draw(json.loads(results.read_text()), results.with_suffix(""))


if __name__ == "__main__":
    main()
