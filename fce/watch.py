"""When a game must stop: alarms on its log-ratios, on the flow's round trip and on its scales."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fce.game import Diverged, Game, words

if TYPE_CHECKING:
    from pipeline.schema.training import Alarms

log = logging.getLogger("fce")
FEW_FLY = 0.9  # of the samples must be decoded and encoded exactly


class Watch:
    """Alarms of a game; `begin` sets the limit of the log-ratios from those at its start.

    Medians and quantiles, not means: where a coupling's scale is near 0, one sample of a hundred may fly far off (r of
    -1e6 on the pinwheel), which teaches nobody anything and harms nothing; a divergence moves them all.

    Args:
        limits: an `alarms:` section of params.yaml.
        names: of the runs, for messages.
    """

    def __init__(self, game: Game, limits: "Alarms", names: list[str]):
        self.game, self.limits, self.names, self.limit = game, limits, names, torch.empty(0)
        self.told = list[str]()  # the runs of which it has been said that they are saturated

    def begin(self, spread: Tensor) -> None:
        """Set the limit by the median |log p - log q| [S] that the game starts with."""
        self.limit = self.limits.ratio_growth * spread.clamp(min=self.limits.ratio_floor)
        log.info("start: c = %s, median |r| = %s nats; the alarm is set at %s", words(self.game.constants()),
                 words(spread.tolist()), words(self.limit.tolist()))

    def look(self) -> None:
        """Raise Diverged where a run must not go on."""
        last = self.game.last
        self.look_at_saturation()
        for name, size, limit in zip(self.names, last["r_abs"], self.limit.tolist(), strict=True):
            if size > limit:
                raise Diverged(f"the median of |log p - log q| is {size:.3g}, over {limit:.3g}, in {name}; "
                               "lower joint.flow_lr")
        if self.game.learns:
            self.look_at_flow()

    def look_at_saturation(self) -> None:
        """Say once of each run that it is saturated for long, or end it where the parameters ask for that."""
        limit = self.limits.saturated
        for name, longest in zip(self.names, self.game.longest, strict=True):
            if longest >= limit and name not in self.told:
                what = (f"{longest} updates of the EBM in a row had nine in ten log-ratios beyond 20 nats, in {name}: "
                        "the EBM learns the sign of an error there, the flow nothing of its size; a warm start that "
                        "ends nearer to log q, a lower flow_lr or energy: tilted may help")
                if self.limits.when_saturated == "stop":
                    raise Diverged(what)
                log.warning("%s", what)
                self.told.append(name)

    def look_at_flow(self) -> None:
        flow = self.game.noise
        with torch.no_grad():  # in x, not in eps: near the box's walls a logit magnifies float32's rounding
            own = torch.Generator().manual_seed(0)  # to look must not change what the players draw
            eps = torch.randn(flow.size, 64, flow.first.dims, generator=own).to(self.game.device)
            x = flow("decode", eps)[0]
            back = flow("decode", flow("encode", x)[0])[0]
            off = torch.where(x.isfinite(), back - x, 0).abs().nan_to_num(nan=torch.inf).flatten(2).amax(2)
            errors = off.quantile(FEW_FLY, dim=1).tolist()
            scales = flow("max_log_scale").tolist()
        for name, error, scale in zip(self.names, errors, scales, strict=True):
            if error > self.limits.round_trip:
                raise Diverged(f"encode then decode is off by {error:.3g}, over {self.limits.round_trip}, in {name}; "
                               "lower joint.flow_lr")
            if scale > self.limits.log_scale:
                raise Diverged(f"a log-scale is {scale:.3g}, over {self.limits.log_scale}, in {name}; "
                               "lower joint.flow_lr")

    def state_dict(self) -> dict[str, Any]:
        return {"limit": self.limit, "told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.limit, self.told = state["limit"], state["told"]
