"""Train on tensors of one's own: Glow by maximum likelihood, then the game of section 2.3 between it and an EBM."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from fce.energy import EnergyModel, Residual, Tilted
from fce.flow.coupling import net_precision
from fce.flow.glow import Glow
from fce.flow.layers import one_of
from fce.game import Game
from fce.objective import Switch
from fce.optim import lr_factor, make_optimizer, set_lr
from fce.stack import Stack
from fce.supply import Supply


@dataclass(frozen=True)
class Settings:
    """Of the game, as `joint:` in params.yaml has them; the defaults are those of 2D densities, for a shorter game.

    Attributes:
        ebm_updates: how long the game is.
        batch: points of data for each update, and samples for each of them.
        warm_start: updates of f by regression onto log q, first; head_start: EBM updates before the flow's first.
        rule: `ratio`, fixed numbers of updates each, or `accuracy`, the paper's: the EBM until it tells more than half
            apart, then the flow until it tells fewer; then the numbers are caps.
        flow_lr: 0 lets the flow stand still, which is noise contrastive estimation.
        value_weight, mle_weight: the flow descends value_weight * V - mle_weight * mean log q(x). The paper's are 1, 0.
    """

    ebm_updates: int = 2000
    batch: int = 200
    noise_ratio: int = 1
    warm_start: int = 0
    warm_lr: float = 6e-3
    head_start: int = 0
    rule: str = "ratio"
    ebm_per_round: int = 5
    flow_per_round: int = 1
    accuracy_decay: float = 0.9
    ebm_lr: float = 6e-3
    ebm_weight_decay: float = 0.0
    c_lr: float = 6e-3
    flow_lr: float = 2e-3
    flow_warmup: int = 20
    value_weight: float = 1.0
    mle_weight: float = 1.0
    decay: str = "cosine"
    ebm_clip: float = 100.0
    flow_clip: float = 100.0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        one_of("rule", self.rule, "ratio", "accuracy")
        one_of("decay", self.decay, "cosine", "constant")
        one_of("precision", self.precision, "fp32", "tf32", "bf16")
        for name in ("ebm_updates", "batch", "noise_ratio", "ebm_per_round", "flow_per_round"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, but it is 1 at least")


class Rows:
    """A tensor [N, ...], served in minibatches drawn at random; `change` makes noise of each anew."""

    def __init__(self, x: Tensor, change: Callable[[Tensor], Tensor] | None):
        self.x, self.change, self.device = x, change, str(x.device)

    def batch(self, n: int, generator: torch.Generator) -> Tensor:
        """n rows [n, ...]."""
        rows = self.x[torch.randint(len(self.x), (n,), generator=generator).to(self.x.device)]
        return self.change(rows) if self.change else rows


def fit_glow(flow: Glow, x: Tensor, steps: int = 1000, batch: int = 200, lr: float = 1e-3, seed: int = 0,
             change: Callable[[Tensor], Tensor] | None = None) -> list[float]:
    """Train Glow by maximum likelihood, in place; returns the mean log q of each minibatch, in nats.

    Args:
        x: data [N, ...] in the flow's coordinates, on its device.
        change: called with each minibatch, e.g. to dequantise images anew.
    """
    generator, rows = torch.Generator().manual_seed(seed), Rows(x, change)
    if not flow.initialized:
        flow.initialize(rows.batch(max(batch, 1000), generator))
    optimizer, found = make_optimizer("adam", flow.parameters(), lr), list[float]()
    for step in range(steps):
        log_q = flow.log_prob(rows.batch(batch, generator)).mean()
        optimizer.zero_grad()
        (-log_q).backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 100.0)
        set_lr(optimizer, [lr], lr_factor("cosine", 50, step, step / steps))
        optimizer.step()
        found.append(log_q.item())
    return found


def play(flow: Glow, energy: EnergyModel, x: Tensor, settings: Settings | None = None, seed: int = 0,
         change: Callable[[Tensor], Tensor] | None = None) -> list[dict[str, float]]:
    """Flow contrastive estimation: train both players against each other, in place.

    Args:
        flow: initialised, e.g. by `fit_glow`.
        x, change: as there.

    Returns:
        A row for each EBM update: V (`value`; eq. 4), the accuracies on data and samples, c and more.

    Raises:
        fce.game.Diverged: a game that must not go on; what to lower.
    """
    kind = "tilted" if isinstance(energy, Tilted) else "residual" if isinstance(energy, Residual) else "plain"
    own = settings or Settings()
    known: Any = SimpleNamespace(**vars(own), energy=kind, noise="flow" if own.flow_lr > 0 else "frozen-flow")
    if kind == "tilted" and known.warm_start:
        raise ValueError("warm_start: a tilted EBM starts as its flow; set it to 0")
    if isinstance(energy, Tilted):
        energy.base = None  # of a game before
    noise, learner = Stack([flow]), Stack([energy])
    supply = Supply(cast(Any, [Rows(x, change)]), [torch.Generator().manual_seed(seed)], noise, known)
    game, switch, rows = Game(noise, learner, supply, known), Switch.of(known), list[dict[str, float]]()
    game.start()
    while game.ebm_updates < known.ebm_updates:
        of_ebm = switch.turn == "ebm" or not game.learns
        with net_precision(game.precision):
            right = game.update_ebm() if of_ebm else game.update_flow()
        if of_ebm:
            rows.append(game.rows()[0])
        if game.learns:
            switch.update(right)
    if isinstance(energy, Tilted):
        energy.base = deepcopy(flow).requires_grad_(False)  # which makes it a density of its own
    return rows
