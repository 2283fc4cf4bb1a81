"""Which minibatch comes next: data and samples with their log q, drawn so that no pass of the flow is wasted."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fce import parallel
from fce.data.batches import Images, Points
from fce.minibatch import Drawn, Minibatch, take
from fce.stack import Stack

if TYPE_CHECKING:
    from pipeline.schema.training import Joint

AHEAD = 16  # minibatches drawn in one pass while the flow stands still


class Supply:
    """Minibatches for both players of each of S runs.

    While the flow stands still, several minibatches are drawn in one pass: the same law, less overhead. The EBM's last
    one before the flow's turn is drawn alone, and kept with its way through the flow: that is the flow's first.

    Attributes:
        dropped: how many samples of each run [S] were no numbers.
        lost: their share in the last minibatch [S].
    """

    def __init__(self, data: list[Points | Images], generators: list[torch.Generator], noise: Stack,
                 settings: "Joint"):
        self.data, self.generators, self.noise, self.settings = data, generators, noise, settings
        self.device, self.dims, runs = data[0].device, noise.first.dims, len(data)
        self.dropped = torch.zeros(runs, dtype=torch.long, device=self.device)
        self.lost = torch.zeros(runs, device=self.device)
        self.stock: list[Drawn] = []
        self.kept: Minibatch | None = None
        self.ahead, self.moved = AHEAD, False

    def points(self, batches: int = 1) -> Tensor:
        """Training data [S, batches * B, ...] of each run; of several processes each has its share of every batch."""
        pairs = list(zip(self.data, self.generators, strict=True))
        parts = [[data.batch(self.settings.batch, g) for _ in range(batches)] for data, g in pairs]
        return torch.stack([torch.cat([parallel.share(batch, 0) for batch in part]) for part in parts])

    def eps(self, batches: int = 1) -> Tensor:
        """Standard normal noise [S, batches * noise_ratio * B, D] for the samples that go with `points`."""
        n = self.settings.noise_ratio * self.settings.batch
        return parallel.share(self.normal(batches * n).unflatten(1, (batches, n)), 2).flatten(1, 2)

    def normal(self, n: int) -> Tensor:
        """Standard normal noise [S, n, D], drawn where the generators live; the same in all processes."""
        drawn = [torch.randn(n, self.dims, generator=g, device=g.device) for g in self.generators]
        return torch.stack(drawn).to(self.device)

    def draw(self) -> Drawn:
        """A minibatch of data and one of samples, each with its log q; samples are finite."""
        if self.stock:
            return self.stock.pop()
        if self.ahead == 0:
            self.kept = self.minibatch()
            return self.finite(self.kept.detached())
        with torch.no_grad():
            together = self.finite(Minibatch.of(self.noise, self.points(self.ahead), self.eps(self.ahead)).detached())
        self.stock = list(zip(*(part.tensor_split(self.ahead, 1) for part in together), strict=True))
        if self.moved:
            self.ahead = 0
        return self.stock.pop()

    def for_flow(self) -> Minibatch:
        """A minibatch with its way through the flow."""
        batch, self.kept = self.kept or self.minibatch(), None
        return batch

    def minibatch(self) -> Minibatch:
        self.noise.begin_step()
        return Minibatch.of(self.noise, self.points(), self.eps())

    def flow_moved(self) -> None:
        """Drop what was drawn from the flow as it was."""
        self.stock.clear()
        self.moved, self.ahead = True, self.settings.ebm_per_round - 1 if self.settings.rule == "ratio" else 0

    def finite(self, drawn: Drawn) -> Drawn:
        x, log_q, x_gen, log_q_gen = drawn
        which = self.choose_finite(x_gen, log_q_gen)
        return x, log_q, take(x_gen, which), take(log_q_gen, which)

    def choose_finite(self, x: Tensor, log_q: Tensor) -> Tensor:
        """Indices [S, n] of finite samples; another finite one stands where a sample is not, and it is counted."""
        keep = x.flatten(2).isfinite().all(2) & log_q.isfinite()
        self.dropped += parallel.total((~keep).sum(1))
        self.lost = (~keep).float().mean(1)
        finite_first = keep.int().argsort(dim=1, descending=True, stable=True)
        count = keep.sum(1, keepdim=True).clamp(min=1)
        return finite_first.gather(1, torch.arange(keep.shape[1], device=x.device) % count)

    def state_dict(self) -> dict[str, Any]:
        state = {"data": [data.state_dict() for data in self.data], "chance": [g.get_state() for g in self.generators],
                 "ahead": self.ahead, "moved": self.moved, "dropped": self.dropped, "lost": self.lost}
        if parallel.size() > 1:  # each process holds its own share of a minibatch, and one saves: they will draw others
            return state | {"kept": None, "stock": []}
        return state | {"kept": (self.kept.x, self.kept.eps) if self.kept else None, "stock": self.stock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the flow has to be what it was."""
        state = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), {**state, "chance": []}) | {
            "chance": state["chance"]}
        for data, own in zip(self.data, state["data"], strict=True):
            data.load_state_dict(own)
        for generator, own in zip(self.generators, state["chance"], strict=True):
            generator.set_state(own)
        self.ahead, self.moved = state["ahead"], state["moved"]
        self.dropped, self.lost, self.stock = state["dropped"], state["lost"], state["stock"]
        self.kept = Minibatch.of(self.noise, *state["kept"]) if state["kept"] else None
