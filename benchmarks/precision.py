"""What reduced precision inside the coupling nets does to log q: measured on a Glow that has learned something.

A log-ratio log p - log q is what either player of the game sees, so an error of log q counts in nats.
`python -m benchmarks.precision --out benchmarks/results/precision.json`.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.models import Sizes, make_ours
from benchmarks.timing import write_results
from fce.flow.coupling import CouplingNet, Layers, collect, gather, net_precision, padded
from fce.optim import lr_factor, make_optimizer, set_lr
from pipeline.numerics import settle


def rounded_to_tf32(x: Tensor) -> Tensor:
    """float32 with TF32's ten bits of mantissa, to the nearest, as tensor cores read it."""
    return ((x.contiguous().view(torch.int32) + 2**12) & -(2**13)).view(torch.float32)


@contextmanager
def imitated_tf32() -> Iterator[None]:
    """Inside the block coupling nets round both operands of each product, as hardware with TF32 does."""

    def forward(net: CouplingNet, x: Tensor, layers: Layers) -> Tensor:
        w1, b1, w2, b2, w3, b3 = layers
        h = F.linear(rounded_to_tf32(gather(padded(x))), rounded_to_tf32(w1), b1).relu()
        h = F.linear(rounded_to_tf32(h), rounded_to_tf32(w2), b2).relu()
        return collect(F.linear(rounded_to_tf32(h), rounded_to_tf32(w3)), x.shape) + b3

    plain, CouplingNet.forward = CouplingNet.forward, forward  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        CouplingNet.forward = plain  # type: ignore[method-assign]


@torch.no_grad()
def log_q(flow: Any, x: Tensor) -> Tensor:
    return torch.cat([flow.log_prob(part) for part in x.split(16)]).double()


def photographs(count: int, side: int, device: str) -> Tensor:
    """Crops of scikit-learn's two photographs at half their size, with dequantisation noise, [count, 3, side, side].

    Real images, since what the flow learns of them decides how much it enlarges an error of its nets.
    """
    from sklearn.datasets import load_sample_images

    whole = torch.stack([torch.from_numpy(image.copy()) for image in load_sample_images().images]).permute(0, 3, 1, 2)
    half = F.avg_pool2d(whole.float(), 2).round()
    which, row, column = (torch.randint(most, (count,)) for most in (2, *(n - side + 1 for n in half.shape[2:])))
    rows = [half[i, :, y : y + side, x : x + side] for i, y, x in zip(which, row, column, strict=True)]
    crops = torch.stack(rows)
    return ((crops + torch.rand(crops.shape)) / 256 - 0.5).to(device)


def errors(sizes: Sizes, steps: int, batch: int, device: str) -> dict[str, Any]:
    """Mean, standard deviation and maximum over images of the error of log q in nats, after `steps` training steps.

    Trained from Glow's own start: what benchmarks/models.py adds to it would count as learned.
    """
    flow = make_ours(sizes).to(device)
    flow.initialize(photographs(256, sizes.side, device))
    optimizer = make_optimizer("adamax", flow.parameters(), 1e-3)
    for step in range(steps):
        set_lr(optimizer, [1e-3], lr_factor("constant", steps // 3, step, 0.0))
        optimizer.zero_grad()
        (-flow.log_prob(photographs(batch, sizes.side, device)).mean()).backward()
        optimizer.step()
    x = photographs(64, sizes.side, device)
    exact, off = log_q(flow, x), {}
    imitated = device != "cuda"
    with imitated_tf32() if imitated else net_precision("tf32"):
        off["tf32"] = log_q(flow, x) - exact
    with net_precision("bf16"):
        off["bf16"] = log_q(flow, x) - exact
    found: dict[str, Any] = {
        name: {"mean": each.mean().item(), "std": each.std().item(), "max": each.abs().max().item()}
        for name, each in off.items()
    }
    bits = 8 - exact.mean().item() / (flow.dims * math.log(2))
    found |= {"dims": flow.dims, "training_steps": steps, "bits_per_dim": bits, "tf32_imitated": imitated}
    print(f"error of log q in nats: {found}", flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    for name in ("side", "steps", "width"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Sizes(), name))
    parser.add_argument("--training", type=int, default=150, help="training steps")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args(arguments)
    settle(0, 0)
    sizes = Sizes(side=given.side, steps=given.steps, width=given.width)
    write_results(given.out, {"sizes": asdict(sizes), **errors(sizes, given.training, given.batch, given.device)})


if __name__ == "__main__":
    main()
