"""The value function of flow contrastive estimation and what steers its players: pure functions.

r(x) = log p(x) - log q(x) is the log-ratio; sigmoid(r) is the posterior that x is real. Both densities are of
the same, dequantised and scaled x.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from pipeline.schema.training import Joint


def value(r_data: Tensor, r_gen: Tensor, noise_ratio: float = 1.0) -> Tensor:
    """V(theta, alpha) of eq. 4, as means over the batch (the last dimension): -2 log 2 where p = q.

    The EBM ascends it, the flow descends it. Written with logsigmoid of the log-ratio: exact where p/(p+q) is not.
    With nu = noise_ratio negatives for each positive, section 2.3's "higher prior probability", it is
    E_data log(p / (p + nu q)) + nu E_q log(nu q / (p + nu q)).

    Args:
        r_data, r_gen: log p - log q, in nats, on data and on samples of q.
    """
    tie = math.log(noise_ratio)  # the log-ratio at which both classes are equally probable
    return logsigmoid(r_data - tie).mean(-1) + noise_ratio * logsigmoid(tie - r_gen).mean(-1)


def chance(noise_ratio: float = 1.0) -> float:
    """V where p = q, -2 log 2 for one negative a positive: an EBM that is below it knows less than a coin."""
    zero = torch.zeros(1, dtype=torch.float64)
    return value(zero, zero, noise_ratio).item()


def accuracy(r: Tensor, real: bool) -> Tensor:
    """Share of points (the last dimension) that the posterior assigns to the right class; a tie counts one half."""
    right = (r > 0) if real else (r < 0)
    return right.float().mean(-1) + 0.5 * (r == 0).float().mean(-1)


def calibrate(w_data: Tensor, w_gen: Tensor, noise_ratio: float = 1.0) -> float:
    """The constant c that maximises V for fixed f, from w = f - log q on data and on samples.

    With nu = noise_ratio and k = c + log nu, the root of mean sigmoid(k - w_data) = nu mean sigmoid(w_gen - k):
    dV/dc = 0, the bridge-sampling equation with data in place of samples from p. The left side rises and the right
    side falls in k, so bisection finds it.
    """
    data, gen = w_data.double(), w_gen.double()
    low, high = (float(f(torch.cat([data, gen]))) + s for f, s in ((torch.min, -50.0), (torch.max, 50.0)))
    for _ in range(200):
        k = 0.5 * (low + high)
        if torch.sigmoid(k - data).mean() < noise_ratio * torch.sigmoid(gen - k).mean():
            low = k
        else:
            high = k
    return 0.5 * (low + high) - math.log(noise_ratio)


@dataclass
class Switch:
    """Whose turn it is.

    `accuracy` (section 3 of the paper): the EBM until the classification accuracy is above 1/2, then the flow until
    it is below; a running average of the accuracy decides, and each turn has a cap, without which it may never end.
    An accuracy of exactly 1/2 ends no turn. `ratio`: fixed numbers of updates.

    Attributes:
        turns: how many have ended, the head start apart.
        capped: how many of these were ended by a cap, not by the accuracy: where many were, the rule did not rule.
    """

    rule: str
    ebm_per_round: int
    flow_per_round: int
    decay: float
    head_start: int = 0
    turn: str = "ebm"
    done: int = 0
    average: float = 0.5
    seen: int = 0
    turns: int = 0
    capped: int = 0

    @classmethod
    def of(cls, joint: "Joint") -> "Switch":
        """As a `joint:` section of params.yaml says."""
        return cls(joint.rule, joint.ebm_per_round, joint.flow_per_round, joint.accuracy_decay, joint.head_start)

    def update(self, batch_accuracy: float) -> str:
        """Tell of one update and its accuracy (mean of the two classes'); returns whose turn is next."""
        self.seen += 1
        self.done += 1
        decay = min(self.decay, (self.seen - 1) / self.seen)  # the average of what was seen, at first
        self.average = decay * self.average + (1 - decay) * batch_accuracy
        cap = self.ebm_per_round if self.turn == "ebm" else self.flow_per_round
        if self.turn == "ebm" and self.head_start > 0:
            self.head_start -= 1
            over = self.head_start == 0
        else:
            reached = self.rule == "accuracy" and (self.average > 0.5 if self.turn == "ebm" else self.average < 0.5)
            over = reached or self.done >= cap
            self.turns += over
            self.capped += over and not reached
        if over:
            self.turn, self.done = ("flow" if self.turn == "ebm" else "ebm"), 0
        return self.turn
