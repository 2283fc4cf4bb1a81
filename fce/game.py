"""The two players of flow contrastive estimation (section 2.3), and one update of each.

The EBM ascends V (eq. 4) with the flow's samples and densities held fixed; the flow descends the same V, with
gradients through x = g(z), through log q(g(z)) and through log q(x). Runs of equal settings play side by side:
tensors have a leading dimension S, the runs; a single run is a stack of one.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from fce import parallel
from fce.data.data import Images, Points, open_data
from fce.energy import make_energy
from fce.flow.glow import Gaussian, Glow
from fce.minibatch import Drawn, Minibatch, flow_value, take
from fce.objective import accuracy, calibrate, value
from fce.optim import lr_factor, make_optimizer, set_lr
from fce.pretrain import initial_batch, load_flow, start_flow
from fce.progress import log
from fce.schema import Precision
from fce.stack import Stack
from fce.stage import Job, Stopped
from fce.state import load

CALIBRATION = 20  # minibatches of each class for the start's constant c
FEW_FLY = 0.9  # of the samples must be decoded and encoded exactly
MOMENTS = 20_000  # training images for the Gaussian noise's mean and covariance
AHEAD = 16  # minibatches drawn in one pass while the flow stands still
FACTS = ("ebm_updates", "flow_updates", "ebm_clipped", "flow_clipped", "dropped", "last", "stock", "ahead", "limit")


class Game:
    """The two players of each run, their optimisers, and one update of each."""

    def __init__(self, jobs: list[Job]):
        self.jobs, self.settings = jobs, jobs[0].params["joint"]
        self.device, self.noise_ratio = jobs[0].device, jobs[0].params["joint"]["noise_ratio"]
        self.data = [open_data(job.inputs["data"], job.params["data"], job.device) for job in jobs]
        self.generators = [data.generator(job.seed_for("batches")) for job, data in zip(jobs, self.data, strict=True)]
        noises: list[Glow | Gaussian] = []
        energies = []
        for job, data, generator in zip(jobs, self.data, self.generators, strict=True):
            torch.manual_seed(job.seed_for("torch"))
            noises.append(make_noise(job, data, generator).requires_grad_(self.settings["noise"] == "flow"))
            base = load_flow(load(job.need("flow"))).to(job.device) if self.settings["energy"] == "residual" else None
            energies.append(make_energy(noises[-1].shape, job.params["energy"], base).to(job.device))
        self.shape, self.dims = noises[0].shape, noises[0].dims
        self.noise, self.energy = (Stack(models, jobs[0].compiled) for models in (noises, energies))
        self.learns = self.settings["noise"] == "flow"
        # a Gaussian is itself a product of matrices, and no coupling net
        self.precision: Precision = "fp32" if self.settings["noise"] == "gaussian" else self.settings["precision"]
        weights = [p for name, p in self.energy.learned.items() if name != "c"]
        groups = [{"params": weights}, {"params": [self.energy.learned["c"]]}]
        self.ebm_lrs = [self.settings["ebm_lr"], self.settings["c_lr"]]
        self.ebm_optimizer = make_optimizer("adam", groups, 1.0)
        self.flow_optimizer = make_optimizer("adamax", self.noise.learned.values(), 1.0) if self.learns else None
        self.ebm_updates = self.flow_updates = 0
        self.ebm_clipped, self.flow_clipped, self.dropped = torch.zeros(
            3, len(jobs), dtype=torch.long, device=self.device)
        self.lost = torch.zeros(len(jobs), device=self.device)  # the share of the last samples that were not finite
        self.last: dict[str, list[float]] = {}
        # While the flow stands still, several minibatches are drawn in one pass: the same law, less overhead. The
        # EBM's last one before the flow's turn is drawn alone, with its way through the flow: that is the flow's first.
        self.stock: list[Drawn] = []
        self.ahead = AHEAD
        self.kept: Minibatch | None = None

    def parts(self) -> dict[str, Any]:
        """What changes in place as the game goes on (see fce.resume.Keeper)."""
        optimizers = [each for each in (self.ebm_optimizer, self.flow_optimizer) if each]
        return {"energy": self.energy, "noise": self.noise, "optimizers": optimizers, "data": self.data,
                "generators": self.generators}

    def facts(self) -> dict[str, Any]:
        """What else a game goes on from."""
        kept = (self.kept.x, self.kept.eps) if self.kept else None
        facts = {"kept": kept, **{name: getattr(self, name) for name in FACTS}}
        # of several processes each holds its own share of a minibatch, and one saves: they will draw others
        return facts | ({"kept": None, "stock": []} if parallel.size() > 1 else {})

    def go_on(self, facts: dict[str, Any]) -> None:
        """Take up the facts of an earlier process."""
        for name, fact in tree_map_only(Tensor, lambda tensor: tensor.to(self.device), facts).items():
            if name == "kept":
                self.kept = Minibatch.of(self.noise, *fact) if fact else None
            else:
                setattr(self, name, fact)

    def points(self, batches: int = 1) -> Tensor:
        """Training data [S, batches * B, ...] of each run; of several processes each has its share of every batch."""
        pairs = list(zip(self.data, self.generators, strict=True))
        parts = [[data.batch(self.settings["batch"], g) for _ in range(batches)] for data, g in pairs]
        return torch.stack([torch.cat([parallel.share(batch, 0) for batch in part]) for part in parts])

    def eps(self, batches: int = 1) -> Tensor:
        """Standard normal noise [S, batches * noise_ratio * B, D] for the samples that go with `points`."""
        n = self.noise_ratio * self.settings["batch"]
        return parallel.share(self.normal(batches * n).unflatten(1, (batches, n)), 2).flatten(1, 2)

    def normal(self, n: int) -> Tensor:
        """Standard normal noise [S, n, D], drawn where the generators live; the same in all processes."""
        drawn = [torch.randn(n, self.dims, generator=g, device=g.device) for g in self.generators]
        return torch.stack(drawn).to(self.device)

    def minibatch(self) -> Minibatch:
        """A minibatch alone, with its way through the flow."""
        torch.compiler.cudagraph_mark_step_begin()
        return Minibatch.of(self.noise, self.points(), self.eps())

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
        if self.flow_updates:
            self.ahead = 0
        return self.stock.pop()

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

    def start(self) -> None:
        """Give f a start onto log q by regression where asked, then c by root-finding."""
        total = self.settings["warm_start"]
        if total:
            _, log_q, _, log_q_gen = self.draw()
            (mean,) = parallel.average([-torch.cat([log_q, log_q_gen], 1).mean(1)])
            with torch.no_grad():
                self.energy.learned["c"].copy_(self.scalar(mean))
            for step in range(total):
                x, log_q, x_gen, log_q_gen = self.draw()
                residual = self.energy.log_prob(torch.cat([x, x_gen], 1)) - torch.cat([log_q, log_q_gen], 1)
                set_lr(self.ebm_optimizer, self.ebm_lrs, lr_factor("cosine", 0, step, step / total))
                self.energy.backward(residual.square().mean(1))
                self.step_ebm()
            rms = residual.detach().square().mean(1).sqrt().tolist()
            log.info("warm start: f - c follows log q to %s nats rms after %d steps", words(rms), total)
            self.ebm_clipped.zero_()
            self.ebm_optimizer.state.clear()
        w_data, w_gen = (parallel.gather(ratios, 1) for ratios in self.ratios())
        pairs = zip(w_data, w_gen, strict=True)
        shift = torch.tensor([calibrate(*pair, self.noise_ratio) for pair in pairs], device=self.device)
        with torch.no_grad():
            self.energy.learned["c"].add_(self.scalar(shift))
        spread = (torch.cat([w_data, w_gen], 1) - shift[:, None]).abs().median(1).values
        limits = self.settings["alarms"]
        self.limit = limits["ratio_growth"] * spread.clamp(min=limits["ratio_floor"])
        log.info("start: c = %s, median |r| = %s nats; the alarm is set at %s", words(self.constants()),
                 words(spread.tolist()), words(self.limit.tolist()))

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
            x, log_q, x_gen, log_q_gen = self.draw()
            data.append(self.energy.log_prob(x) - log_q)
            gen.append(self.energy.log_prob(x_gen) - log_q_gen)
        return torch.cat(data, 1), torch.cat(gen, 1)

    def update_ebm(self) -> float:
        """One ascent of V by the EBM; returns the classification accuracy."""
        x, log_q, x_gen, log_q_gen = self.draw()
        log_p, log_p_gen = self.energy.log_prob(torch.cat([x, x_gen], 1)).split([x.shape[1], x_gen.shape[1]], 1)
        v = value(log_p, log_q, log_p_gen, log_q_gen, self.noise_ratio)
        self.energy.backward(-v)
        found = self.note(v, log_p - log_q, log_p_gen - log_q_gen)
        self.require_finite()
        set_lr(self.ebm_optimizer, self.ebm_lrs, self.factor(0, self.ebm_updates))
        self.step_ebm()
        self.ebm_updates += 1
        return found

    def step_ebm(self) -> None:
        norms = self.energy.clip(self.settings["ebm_clip"], but=["c"])
        self.ebm_clipped += norms > self.settings["ebm_clip"]
        self.ebm_optimizer.step()

    def update_flow(self) -> float:
        """One descent of V by the flow; gradients pass through the EBM to x, and leave its weights alone."""
        assert self.flow_optimizer is not None
        batch = self.kept or self.minibatch()
        self.kept = None
        found = self.turn_flow(batch)
        if not all(map(math.isfinite, self.last["value"])):  # of samples that are no numbers; decode others instead
            which = self.choose_finite(batch.x_gen.detach(), batch.log_q_gen.detach())
            found = self.turn_flow(Minibatch.of(self.noise, batch.x, take(batch.eps, which)))
        self.require_finite()
        norms = self.noise.clip(self.settings["flow_clip"])
        self.flow_clipped += norms > self.settings["flow_clip"]
        factor = self.factor(self.settings["flow_warmup"], self.flow_updates)
        set_lr(self.flow_optimizer, [self.settings["flow_lr"]], factor)
        self.flow_optimizer.step()
        self.flow_updates += 1
        self.stock.clear()  # drawn from the flow as it was
        self.ahead = self.settings["ebm_per_round"] - 1 if self.settings["rule"] == "ratio" else 0
        return found

    def turn_flow(self, batch: Minibatch) -> float:
        """Give the flow's parameters the gradient that this minibatch has for them; returns the accuracy."""
        v, r_data, r_gen = flow_value(self.energy, batch, self.noise_ratio)
        likelihood = batch.log_q.mean(1)
        self.noise.backward(self.settings["value_weight"] * v - self.settings["mle_weight"] * likelihood)
        return self.note(v, r_data, r_gen)

    def factor(self, warmup: int, update: int) -> float:
        return lr_factor(self.settings["decay"], warmup, update, self.ebm_updates / self.settings["ebm_updates"])

    @torch.no_grad()
    def note(self, v: Tensor, r_data: Tensor, r_gen: Tensor) -> float:
        """Remember what a minibatch showed of each run; returns the mean accuracy of classes and runs.

        This is where an update looks at the device, once: all numbers come in one copy.
        """
        (v,), r_data, r_gen = parallel.average([v]), parallel.gather(r_data, 1), parallel.gather(r_gen, 1)
        size, tie = torch.cat([r_data, r_gen], 1).abs(), math.log(self.noise_ratio)
        numbers = {
            "value": v,
            "accuracy_data": accuracy(r_data - tie, real=True),
            "accuracy_gen": accuracy(r_gen - tie, real=False),
            "r_data_mean": r_data.mean(1),
            "r_data_std": r_data.std(1),
            "r_gen_mean": r_gen.mean(1),
            "r_gen_std": r_gen.std(1),
            "r_abs": size.median(1).values,
            "saturated": (size > 20).float().mean(1),
            "not_finite": parallel.average([self.lost])[0],
        }
        self.last = dict(zip(numbers, torch.stack(list(numbers.values())).tolist(), strict=True))
        both = self.last["accuracy_data"] + self.last["accuracy_gen"]
        return sum(both) / len(both)

    def require_finite(self) -> None:
        """Raise Stopped where the last V, or most samples, were no numbers; no step has been taken on them."""
        if max(self.last["not_finite"]) > 0.5:
            raise Stopped("most of the flow's samples are not finite; raise flow.scale_floor or lower joint.flow_lr")
        if not all(map(math.isfinite, self.last["value"])):
            raise Stopped(f"V is {self.last['value']}; lower joint.flow_lr and joint.ebm_lr")

    def rows(self) -> list[dict[str, float]]:
        """What the last minibatch and the counters say of each run, for its curve."""
        return [
            {
                "ebm_updates": self.settings["warm_start"] + self.ebm_updates,  # regression updates the EBM too
                "flow_updates": self.flow_updates,
                **{name: values[i] for name, values in self.last.items()},
                "c": self.constants()[i],
                "ebm_clipped": int(self.ebm_clipped[i]),
                "flow_clipped": int(self.flow_clipped[i]),
                "dropped": int(self.dropped[i]),
            }
            for i in range(len(self.jobs))
        ]

    def watch(self) -> None:
        """Raise Stopped where a run must not go on.

        Medians and quantiles, not means: where a coupling's scale is near 0, one sample of a hundred may fly far off
        (r of -1e6 on the pinwheel), which teaches nobody anything and harms nothing; a divergence moves them all.
        """
        limits, last = self.settings["alarms"], self.last
        if max(last["saturated"]) > 0.9:
            log.warning("%.0f %% of the log-ratios are beyond 20 nats: the players hardly learn",
                        100 * max(last["saturated"]))
        for i, (size, limit) in enumerate(zip(last["r_abs"], self.limit.tolist(), strict=True)):
            if size > limit:
                raise Stopped(f"the median of |log p - log q| is {size:.3g}, over {limit:.3g}, in {self.name(i)}; "
                              "lower joint.flow_lr")
        if not self.learns:
            return
        with torch.no_grad():  # in x, not in eps: near the box's walls a logit magnifies float32's rounding
            x = self.noise("decode", self.normal(64))[0]
            back = self.noise("decode", self.noise("encode", x)[0])[0]
            error = torch.where(x.isfinite(), back - x, 0).abs().flatten(2).amax(2).quantile(FEW_FLY, dim=1)
            scale = self.noise("max_log_scale")
        for i in range(len(self.jobs)):
            if error[i] > limits["round_trip"]:
                raise Stopped(f"encode then decode is off by {error[i].item():.3g}, over {limits['round_trip']}, "
                              f"in {self.name(i)}; lower joint.flow_lr")
            if scale[i] > limits["log_scale"]:
                raise Stopped(f"a log-scale is {scale[i].item():.3g}, over {limits['log_scale']}, in {self.name(i)}; "
                              "lower joint.flow_lr")

    def name(self, i: int) -> str:
        return f"{self.jobs[i].tags.get('arm', 'the run')}, seed {self.jobs[i].seed}"


def make_noise(job: Job, data: Points | Images, generator: torch.Generator) -> Glow | Gaussian:
    """The noise model that a run starts with."""
    settings = job.params["joint"]
    if settings["noise"] == "gaussian":
        noise = Gaussian((2,) if isinstance(data, Points) else data.shape).to(job.device)
        noise.initialize(initial_batch(data, generator, images=MOMENTS))  # a covariance takes many points a dimension
        return noise
    if settings["start"] == "random":
        return start_flow(data, job.params["flow"], generator, job.device)
    return load_flow(load(job.need("flow"))).to(job.device)


def words(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)
