"""The two players of flow contrastive estimation (section 2.3), and one update of each.

The EBM ascends V (eq. 4) with the flow's samples and densities held fixed; the flow descends the same V, with
gradients through x = g(z), through log q(g(z)) and through log q(x). Runs of equal settings play side by side:
tensors have a leading dimension S, the runs; a single run is a stack of one.
"""

import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fce import parallel
from fce.flow.coupling import Precision
from fce.minibatch import Minibatch, flow_value, take
from fce.objective import accuracy, calibrate, chance, value
from fce.optim import Average, lr_factor, make_optimizer, set_lr
from fce.stack import Stack
from fce.supply import Supply

if TYPE_CHECKING:
    from pipeline.schema.training import Joint

log = logging.getLogger("fce")
CALIBRATION = 20  # minibatches of each class for the start's constant c
COUNTS = ("warm_updates", "ebm_updates", "flow_updates", "ebm_clipped", "flow_clipped", "last", "sums", "in_row",
          "longest")
SATURATED = 0.9  # share of the log-ratios beyond 20 nats, from which on an update of the EBM counts as saturated
MEANS = ("value", "accuracy_data", "accuracy_gen", "saturated")  # of what a curve has the mean over all EBM updates


class Diverged(RuntimeError):
    """A game that must not go on: what happened, and what to lower."""


class Game:
    """The two players of each run, their optimisers, and one update of each.

    Args:
        noise, energy: the players, a stack of S models each.
        supply: of their minibatches.
        settings: a `joint:` section of params.yaml.
    """

    def __init__(self, noise: Stack, energy: Stack, supply: Supply, settings: "Joint"):
        self.noise, self.energy, self.supply, self.settings = noise, energy, supply, settings
        self.device, self.noise_ratio, self.runs = supply.device, settings.noise_ratio, noise.size
        self.learns = settings.noise == "flow"
        # a Gaussian is itself a product of matrices, and no coupling net
        self.precision: Precision = "fp32" if settings.noise == "gaussian" else settings.precision
        weights = [p for name, p in energy.learned.items() if name != "c"]
        decay = settings.ebm_weight_decay
        groups = [{"params": weights, "weight_decay": decay}, {"params": [energy.learned["c"]], "weight_decay": 0.0}]
        self.ebm_lrs = [settings.ebm_lr, settings.c_lr]
        self.ebm_optimizer = make_optimizer("adamw", groups, 1.0)
        self.flow_optimizer = make_optimizer("adamax", noise.learned.values(), 1.0) if self.learns else None
        self.warm_updates = self.ebm_updates = self.flow_updates = 0
        self.ebm_clipped = torch.zeros(self.runs, dtype=torch.long, device=self.device)
        self.flow_clipped = self.ebm_clipped.clone()
        self.last: dict[str, list[float]] = {}
        self.sums = {name: [0.0] * self.runs for name in (*MEANS, "below_chance")}
        self.in_row, self.longest = [0] * self.runs, [0] * self.runs  # saturated updates, now and at most
        self.chance = chance(self.noise_ratio)

    def start(self, tick: Callable[[], None] = lambda: None) -> Tensor:
        """Give f a start onto log q by regression where asked, then c by root-finding; median |log p - log q| [S].

        `tick` is called after each update of the regression, which goes on from the game's state.
        """
        if self.settings.warm_start:
            self.regress(self.settings.warm_start, tick)
        w_data, w_gen = self.ratios()
        shift = self.best_c(w_data, w_gen)
        with torch.no_grad():
            self.energy.learned["c"].add_(self.scalar(shift))
        return (torch.cat([w_data, w_gen], 1) - shift[:, None]).abs().median(1).values

    def best_c(self, w_data: Tensor, w_gen: Tensor) -> Tensor:
        """What to add to each run's c [S], by its log-ratios on data and on samples [S, n]."""
        pairs = zip(w_data, w_gen, strict=True)
        return torch.tensor([calibrate(*pair, self.noise_ratio) for pair in pairs], device=self.device)

    @torch.no_grad()
    def settle(self, energy: Average, noise: Average) -> None:
        """Give the averaged weights their own c where the base moves with the flow; the game is over then.

        An averaged g on an averaged flow is a density of its own, for which nothing has learned a c.
        """
        if self.settings.energy == "tilted":
            with energy.applied(), noise.applied():
                self.supply.flow_moved()
                self.supply.kept = None
                shift = self.best_c(*self.ratios())
            energy.state["c"].add_(self.scalar(shift))

    def regress(self, total: int, tick: Callable[[], None]) -> None:
        """Bring f - c onto log q by `total` updates of least squares."""
        if not self.warm_updates:
            _, log_q, _, log_q_gen = self.supply.draw()
            (mean,) = parallel.average([-torch.cat([log_q, log_q_gen], 1).mean(1)])
            with torch.no_grad():
                self.energy.learned["c"].copy_(self.scalar(mean))
        for step in range(self.warm_updates, total):
            x, log_q, x_gen, log_q_gen = self.supply.draw()
            residual = self.energy.log_prob(torch.cat([x, x_gen], 1)) - torch.cat([log_q, log_q_gen], 1)
            set_lr(self.ebm_optimizer, [self.settings.warm_lr, self.settings.c_lr],
                   lr_factor("cosine", 0, step, step / total))
            self.energy.backward(residual.square().mean(1))
            self.step_ebm()
            self.warm_updates += 1
            if self.warm_updates == total:
                rms = residual.detach().square().mean(1).sqrt().tolist()
                log.info("warm start: f - c follows log q to %s nats rms after %d steps", words(rms), total)
                if not all(map(math.isfinite, rms)):
                    raise Diverged(f"the warm start ended at {words(rms)} nats rms; lower joint.warm_lr")
            tick()
        self.ebm_clipped.zero_()
        self.ebm_optimizer.state.clear()

    def scalar(self, values: Tensor) -> Tensor:
        """Values [S] in the shape of the runs' constants c."""
        return values.view(self.energy.learned["c"].shape)

    def constants(self) -> list[float]:
        constants: list[float] = self.energy.learned["c"].detach().flatten().tolist()
        return constants

    @torch.no_grad()
    def ratios(self) -> tuple[Tensor, Tensor]:
        """log p - log q on some minibatches of data and of samples."""
        data, gen = [], []
        for _ in range(CALIBRATION):
            x, log_q, x_gen, log_q_gen = self.supply.draw()
            data.append(self.energy("log_ratio", x, log_q))
            gen.append(self.energy("log_ratio", x_gen, log_q_gen))
        return parallel.gather(torch.cat(data, 1), 1), parallel.gather(torch.cat(gen, 1), 1)

    def update_ebm(self) -> float:
        """One ascent of V by the EBM; returns the classification accuracy."""
        x, log_q, x_gen, log_q_gen = self.supply.draw()
        r = self.energy("log_ratio", torch.cat([x, x_gen], 1), torch.cat([log_q, log_q_gen], 1))
        r_data, r_gen = r.split([x.shape[1], x_gen.shape[1]], 1)
        v = value(r_data, r_gen, self.noise_ratio)
        self.energy.backward(-v)
        found = self.note(v, r_data, r_gen)
        self.require_finite()
        set_lr(self.ebm_optimizer, self.ebm_lrs, self.factor(0, self.ebm_updates))
        self.step_ebm()
        self.ebm_updates += 1
        self.add_up()
        return found

    def add_up(self) -> None:
        """Add what the EBM's last update showed to the sums over all of them."""
        seen = {**self.last, "below_chance": [float(v < self.chance) for v in self.last["value"]]}
        self.sums = {name: [a + b for a, b in zip(total, seen[name], strict=True)] for name, total in self.sums.items()}
        pairs = zip(self.in_row, self.last["saturated"], strict=True)
        self.in_row = [row + 1 if share > SATURATED else 0 for row, share in pairs]
        self.longest = list(map(max, self.longest, self.in_row))

    def step_ebm(self) -> None:
        norms = self.energy.clip(self.settings.ebm_clip, but=["c"])
        self.ebm_clipped += norms > self.settings.ebm_clip
        self.ebm_optimizer.step()

    def update_flow(self) -> float:
        """One descent of V by the flow; gradients pass through the EBM to x, and leave its weights alone."""
        assert self.flow_optimizer is not None
        batch = self.supply.for_flow()
        found = self.turn_flow(batch)
        if not all(map(math.isfinite, self.last["value"])):  # of samples that are no numbers; decode others instead
            which = self.supply.choose_finite(batch.x_gen.detach(), batch.log_q_gen.detach())
            found = self.turn_flow(Minibatch.of(self.noise, batch.x, take(batch.eps, which)))
        self.require_finite()
        norms = self.noise.clip(self.settings.flow_clip)
        self.flow_clipped += norms > self.settings.flow_clip
        factor = self.factor(self.settings.flow_warmup, self.flow_updates)
        set_lr(self.flow_optimizer, [self.settings.flow_lr], factor)
        self.flow_optimizer.step()
        self.flow_updates += 1
        self.supply.flow_moved()
        return found

    def turn_flow(self, batch: Minibatch) -> float:
        """Give the flow's parameters the gradient that this minibatch has for them; returns the accuracy."""
        v, r_data, r_gen = flow_value(self.energy, batch, self.noise_ratio)
        likelihood = batch.log_q.mean(1)
        self.noise.backward(self.settings.value_weight * v - self.settings.mle_weight * likelihood)
        return self.note(v, r_data, r_gen)

    def factor(self, warmup: int, update: int) -> float:
        return lr_factor(self.settings.decay, warmup, update, self.ebm_updates / self.settings.ebm_updates)

    @torch.no_grad()
    def note(self, v: Tensor, r_data: Tensor, r_gen: Tensor) -> float:
        """Remember what a minibatch showed of each run; returns the mean accuracy of classes and runs.

        This is where an update looks at the device, once: all numbers come in one copy.
        """
        (v,), r_data, r_gen = parallel.average([v]), parallel.gather(r_data, 1), parallel.gather(r_gen, 1)
        size, tie = torch.cat([r_data, r_gen], 1).abs(), math.log(self.noise_ratio)
        numbers = {
            "value": v,
            "accuracy_data": accuracy(r_data - tie, real=True), "accuracy_gen": accuracy(r_gen - tie, real=False),
            "r_data_mean": r_data.mean(1), "r_data_std": r_data.std(1),
            "r_gen_mean": r_gen.mean(1), "r_gen_std": r_gen.std(1), "r_abs": size.median(1).values,
            "saturated": (size > 20).float().mean(1), "not_finite": parallel.average([self.supply.lost])[0],
        }
        self.last = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        both = self.last["accuracy_data"] + self.last["accuracy_gen"]
        return sum(both) / len(both)

    def require_finite(self) -> None:
        """Raise Diverged where the last V, or most samples, were no numbers; no step has been taken on them."""
        if max(self.last["not_finite"]) > 0.5:
            raise Diverged("most of the flow's samples are not finite; raise flow.scale_floor or lower joint.flow_lr")
        if not all(map(math.isfinite, self.last["value"])):
            raise Diverged(f"V is {self.last['value']}; lower joint.flow_lr and joint.ebm_lr")

    def rows(self) -> list[dict[str, float]]:
        """What the last minibatch, the counters and the means over all EBM updates say of each run, for its curve."""
        return [
            {"ebm_updates": self.settings.warm_start + self.ebm_updates,  # regression updates the EBM too
             "flow_updates": self.flow_updates, **{name: values[i] for name, values in self.last.items()},
             "c": self.constants()[i], "ebm_clipped": int(self.ebm_clipped[i]),
             "flow_clipped": int(self.flow_clipped[i]), "dropped": int(self.supply.dropped[i]),
             "longest_saturated": self.longest[i],
             **{f"mean_{name}": total[i] / max(1, self.ebm_updates) for name, total in self.sums.items()}}
            for i in range(self.runs)
        ]

    def optimizers(self) -> list[torch.optim.Optimizer]:
        return [each for each in (self.ebm_optimizer, self.flow_optimizer) if each]

    def state_dict(self) -> dict[str, Any]:
        return {"energy": self.energy.state_dict(), "noise": self.noise.state_dict(),
                "optimizers": [each.state_dict() for each in self.optimizers()], "supply": self.supply.state_dict(),
                **{name: getattr(self, name) for name in COUNTS}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.energy.load_state_dict(state["energy"])
        self.noise.load_state_dict(state["noise"])
        for optimizer, own in zip(self.optimizers(), state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self.supply.load_state_dict(state["supply"])  # which passes what it kept through the flow
        for name in COUNTS:
            fact = state[name]
            setattr(self, name, fact.to(self.device) if isinstance(fact, Tensor) else fact)


def words(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
