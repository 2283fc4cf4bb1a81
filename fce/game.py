"""The two players of flow contrastive estimation (section 2.3), and one update of each.

The EBM ascends V (eq. 4) with the flow's samples and densities held fixed; the flow descends the same V, with
gradients through x = g(z), through log q(g(z)) and through log q(x).
"""

import torch
from torch import Tensor, nn

from fce.data.data import Points, open_data
from fce.energy import EnergyModel, make_energy
from fce.flow.glow import Gaussian, Glow
from fce.objective import accuracy, calibrate, value
from fce.optim import lr_factor, make_optimizer, set_lr
from fce.pretrain import initial_batch, load_flow, start_flow
from fce.progress import log
from fce.stage import Job, Stopped
from fce.state import load

CALIBRATION = 20  # minibatches of each class for the start's constant c
AHEAD = 16  # minibatches drawn in one pass while the flow stands still


Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # x, log q(x), x~, log q(x~)


class Game:
    """The two players, their optimisers and averages, and one update of each."""

    def __init__(self, job: Job):
        self.job, self.settings = job, job.params["joint"]
        self.data = open_data(job.inputs["data"], job.params["data"], job.device)
        self.generator = torch.Generator().manual_seed(job.seed_for("batches"))
        self.noise = self.make_noise()
        base = load_flow(load(job.need("flow"))).to(job.device) if self.settings["energy"] == "residual" else None
        self.energy = make_energy(self.noise.shape, job.params["energy"], base).to(job.device)
        self.learns = self.settings["noise"] == "flow"
        self.ebm_parameters = [p for name, p in self.energy.named_parameters() if name != "c" and p.requires_grad]
        self.ebm_lrs = [self.settings["ebm_lr"], self.settings["c_lr"]]
        self.ebm_optimizer = make_optimizer("adam", [{"params": self.ebm_parameters}, {"params": [self.energy.c]}], 1.0)
        self.flow_optimizer = make_optimizer("adamax", self.noise.parameters(), 1.0) if self.learns else None
        self.ebm_updates = self.flow_updates = self.ebm_clipped = self.flow_clipped = self.dropped = 0
        self.last: dict[str, float] = {}
        # While the flow stands still, several minibatches are drawn in one pass: the same law, less overhead.
        self.stock: list[Batch] = []
        self.ahead = AHEAD

    def make_noise(self) -> Glow | Gaussian:
        if self.settings["noise"] == "gaussian":
            noise = Gaussian((2,) if isinstance(self.data, Points) else self.data.shape).to(self.job.device)
            noise.initialize(initial_batch(self.data, self.generator))
            return noise
        if self.settings["start"] == "random":
            return start_flow(self.data, self.job.params["flow"], self.generator, self.job.device)
        return load_flow(load(self.job.need("flow"))).to(self.job.device)

    @torch.no_grad()
    def draw(self) -> Batch:
        """A minibatch of data and one of samples, each with its log q; non-finite samples are counted and left out."""
        if not self.stock:
            x = torch.cat([self.data.batch(self.settings["batch"], self.generator) for _ in range(self.ahead)])
            x_gen, log_q_gen = self.noise.rsample_with_log_prob(len(x))
            keep = finite(x_gen, log_q_gen)
            self.dropped += int((~keep).sum())
            if keep.sum() < self.ahead:
                raise Stopped("the flow's samples are not finite; raise flow.scale_floor or lower joint.flow_lr")
            parts = (x, self.noise.log_prob(x), x_gen[keep], log_q_gen[keep])
            self.stock = list(zip(*(part.tensor_split(self.ahead) for part in parts), strict=True))
        return self.stock.pop()

    def start(self) -> None:
        """Give f a start onto log q by regression where asked, then c by root-finding."""
        total = self.settings["warm_start"]
        if total:
            _, log_q, _, log_q_gen = self.draw()
            with torch.no_grad():
                self.energy.c.fill_(-torch.cat([log_q, log_q_gen]).mean())
            for step in range(total):
                x, log_q, x_gen, log_q_gen = self.draw()
                residual = self.energy.log_prob(torch.cat([x, x_gen])) - torch.cat([log_q, log_q_gen])
                set_lr(self.ebm_optimizer, self.ebm_lrs, lr_factor("cosine", 0, step, step / total))
                self.step_ebm(residual.square().mean())
            log.info(
                "warm start: f - c follows log q to %.3g nats rms after %d steps",
                residual.detach().square().mean().sqrt().item(),
                total,
            )
            self.ebm_clipped = 0
            self.ebm_optimizer.state.clear()
        w_data, w_gen = self.ratios()
        with torch.no_grad():
            shift = calibrate(w_data, w_gen)
            self.energy.c.add_(shift)
        spread = torch.cat([w_data, w_gen]) - shift
        self.limit = self.settings["alarms"]["ratio_growth"] * max(
            spread.abs().mean().item(), self.settings["alarms"]["ratio_floor"]
        )
        log.info(
            "start: c = %.4g, mean |r| = %.3g nats; the alarm is set at %.3g",
            self.energy.c.item(),
            spread.abs().mean().item(),
            self.limit,
        )

    @torch.no_grad()
    def ratios(self) -> tuple[Tensor, Tensor]:
        """log p - log q on some minibatches of data and of samples."""
        data, gen = [], []
        for _ in range(CALIBRATION):
            x, log_q, x_gen, log_q_gen = self.draw()
            data.append(self.energy.log_prob(x) - log_q)
            gen.append(self.energy.log_prob(x_gen) - log_q_gen)
        return torch.cat(data), torch.cat(gen)

    def update_ebm(self) -> float:
        """One ascent of V by the EBM; returns the classification accuracy."""
        x, log_q, x_gen, log_q_gen = self.draw()
        both = self.energy.log_prob(torch.cat([x, x_gen]))
        log_p, log_p_gen = both[: len(x)], both[len(x) :]
        v = value(log_p, log_q, log_p_gen, log_q_gen)
        set_lr(self.ebm_optimizer, self.ebm_lrs, self.factor(0, self.ebm_updates))
        require_finite(v)
        self.step_ebm(-v)
        self.ebm_updates += 1
        return self.note(v, log_p - log_q, log_p_gen - log_q_gen)

    def step_ebm(self, loss: Tensor) -> None:
        self.ebm_optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.ebm_parameters, self.settings["ebm_clip"])
        self.ebm_clipped += bool(norm > self.settings["ebm_clip"])
        self.ebm_optimizer.step()

    def update_flow(self) -> float:
        """One descent of V by the flow; the EBM's weights stand still, but gradients pass through it to x."""
        assert self.flow_optimizer is not None
        assert isinstance(self.noise, Glow)
        x = self.data.batch(self.settings["batch"], self.generator)
        eps = torch.randn(len(x), self.noise.dims).to(x.device)
        self.energy.requires_grad_(False)
        v, r_data, r_gen = flow_value(self.energy, self.noise, x, eps)
        if not v.isfinite():  # a NaN poisons the gradient even where it is masked: decode the others anew
            with torch.no_grad():
                keep = finite(*self.noise.decode(eps))
            self.dropped += int((~keep).sum())
            v, r_data, r_gen = flow_value(self.energy, self.noise, x, eps[keep])
        require_finite(v)
        self.flow_optimizer.zero_grad(set_to_none=True)
        v.backward()
        self.energy.c.requires_grad_(True)
        for parameter in self.ebm_parameters:
            parameter.requires_grad_(True)
        norm = nn.utils.clip_grad_norm_(self.noise.parameters(), self.settings["flow_clip"])
        self.flow_clipped += bool(norm > self.settings["flow_clip"])
        set_lr(
            self.flow_optimizer,
            [self.settings["flow_lr"]],
            self.factor(self.settings["flow_warmup"], self.flow_updates),
        )
        self.flow_optimizer.step()
        self.flow_updates += 1
        self.stock.clear()  # drawn from the flow as it was
        self.ahead = self.settings["ebm_per_round"] if self.settings["rule"] == "ratio" else 1
        return self.note(v, r_data, r_gen)

    def factor(self, warmup: int, update: int) -> float:
        return lr_factor(self.settings["decay"], warmup, update, self.ebm_updates / self.settings["ebm_updates"])

    def note(self, v: Tensor, r_data: Tensor, r_gen: Tensor) -> float:
        """Remember what the last minibatch showed; returns the mean of both classes' accuracies."""
        with torch.no_grad():
            size = torch.cat([r_data, r_gen]).abs()
            numbers = {
                "value": v,
                "accuracy_data": accuracy(r_data, real=True),
                "accuracy_gen": accuracy(r_gen, real=False),
                "r_data_mean": r_data.mean(),
                "r_data_std": r_data.std(),
                "r_gen_mean": r_gen.mean(),
                "r_gen_std": r_gen.std(),
                "r_abs": size.mean(),
                "saturated": (size > 20).float().mean(),
            }
            self.last = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        return 0.5 * (self.last["accuracy_data"] + self.last["accuracy_gen"])

    def row(self) -> dict[str, float]:
        """What the last minibatch and the counters say, for the curve."""
        return {
            "ebm_updates": self.settings["warm_start"] + self.ebm_updates,  # regression updates the EBM too
            "flow_updates": self.flow_updates,
            **self.last,
            "c": self.energy.c.item(),
            "ebm_clipped": self.ebm_clipped,
            "flow_clipped": self.flow_clipped,
            "dropped": self.dropped,
        }

    def watch(self) -> None:
        """Raise Stopped where the run must not go on."""
        limits, last = self.settings["alarms"], self.last
        if last["saturated"] > 0.9:
            log.warning(
                "%.0f %% of the log-ratios are beyond 20 nats: the players hardly learn", 100 * last["saturated"]
            )
        if last["r_abs"] > self.limit:
            raise Stopped(f"mean |log p - log q| is {last['r_abs']:.3g}, over {self.limit:.3g}; lower joint.flow_lr")
        if self.learns and isinstance(self.noise, Glow):
            with torch.no_grad():  # in x, not in eps: near the box's walls a logit magnifies float32's rounding
                x = self.noise.sample(64)
                x = x[x.flatten(1).isfinite().all(1)]
                error = (self.noise.decode(self.noise.encode(x)[0])[0] - x).abs().max().item()
            if error > limits["round_trip"]:
                raise Stopped(
                    f"encode then decode is off by {error:.3g}, over {limits['round_trip']}; lower joint.flow_lr"
                )
            if (scale := self.noise.max_log_scale().item()) > limits["log_scale"]:
                raise Stopped(f"a log-scale is {scale:.3g}, over {limits['log_scale']}; lower joint.flow_lr")


def flow_value(energy: EnergyModel, flow: Glow, x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """V (eq. 4) with the gradients that the flow needs, and r = log p - log q on data x and on samples g(eps).

    They pass through x~ = g(eps) into f, through log q(x~), which comes with the sample, and through log q(x).
    """
    x_gen, log_q_gen = flow.decode(eps)
    log_q = flow.log_prob(x)
    log_p, log_p_gen = energy.log_prob(x), energy.log_prob(x_gen)
    return value(log_p, log_q, log_p_gen, log_q_gen), log_p - log_q, log_p_gen - log_q_gen


def require_finite(v: Tensor) -> None:
    if not v.isfinite():
        raise Stopped(f"V is {v.item()}; lower joint.flow_lr and joint.ebm_lr")


def finite(x: Tensor, log_q: Tensor) -> Tensor:
    """Which samples [B] are finite, with their log q."""
    return x.flatten(1).isfinite().all(1) & log_q.isfinite()
