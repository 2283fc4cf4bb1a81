"""Accuracy of a net trained end to end on the labelled images alone (Figure 4).

The EBM's network (Table 4) with a logit a class. The paper says nothing of its training, and a net without tuning loses
where labels are few: so learning rate, weight decay and the moment to stop are chosen for each draw of labels, on the
same validation labels as the linear classifiers' penalty.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eval.labelled import draws, looks, middle, with_validation
from eval.score import accuracy_score, write_scores
from fce.data.batches import Images
from fce.energy import make_energy
from pipeline.job import Job
from pipeline.progress import Progress, log
from pipeline.resume import State
from pipeline.schema import measures
from pipeline.schema.experiment import Sections
from pipeline.schema.training import Energy


class Supervised(nn.Module):
    """Logits [B, classes] of images [B, C, H, W] in model coordinates: the EBM's hidden layers and a linear map."""

    def __init__(self, shape: tuple[int, ...], energy: Energy, classes: int = 10):
        super().__init__()
        self.ebm = make_energy(shape, **energy.model_dump())
        self.ebm.head = nn.Linear(self.ebm.features(torch.zeros(1, *shape)).shape[1], classes)
        del self.ebm.c

    def forward(self, x: Tensor) -> Tensor:
        return self.ebm.head(self.ebm.features(x))


@dataclass(frozen=True)
class Choice:
    """The run and the moment that did best on the validation part, the earliest of equals.

    Attributes:
        test: whether it is right for each test image, [n].
    """

    lr: float
    weight_decay: float
    update: int
    validation: float
    test: Tensor = field(compare=False)


class Tuned(State):
    """What was chosen for each draw that is done; each has a seed of its own."""

    def __init__(self) -> None:
        self.choices: dict[str, dict[str, Any]] = {}


def run(job: Job) -> None:
    probe, tuned, scores = job.params.probe, Tuned(), []
    data = with_validation(job.data, probe)
    progress, keeper = Progress(len(probe.labels) + 1), job.keeper("draws", tuned=tuned)
    keeper.load()
    for done, (count, indices) in enumerate(draws(data.labels["train"], probe), 1):
        for i, index in enumerate(indices):
            if (draw := f"{count}/{i}") not in tuned.choices:
                tuned.choices[draw] = asdict(tune(data, index, job.params, job.seed_for(draw), keeper.tick))
        chosen = [Choice(**tuned.choices[f"{count}/{i}"]) for i in range(len(indices))]
        log.info("%d labels: %s", count, "; ".join(f"lr {c.lr:g}, decay {c.weight_decay:g}, {c.update} updates, "
                                                   f"validation {c.validation:.4f}" for c in chosen))
        protocol = (
            "the EBM's network with a logit a class, trained on the labelled images, test part; learning rate, decay "
            f"and number of updates chosen on {len(data.labels['validation'])} validation labels"
        )
        right = torch.stack([choice.test for choice in chosen])
        scores.append(accuracy_score("accuracy", "network", right, protocol, count))
        progress(done, labels=count, accuracy=scores[-1].value)
    write_scores(job, scores)


def tune(data: Images, index: np.ndarray, params: Sections, seed: int, pause: Callable[[], None] = lambda: None
         ) -> Choice:
    """Train on the training images `index` with every setting; what stands out on the validation part is chosen.

    `pause` is called now and then, where the process may be asked to stop.
    """
    settings, best = params.supervised, Choice(0.0, 0.0, 0, -1.0, torch.empty(0))
    for lr, weight_decay in itertools.product(settings.lr, settings.weight_decay):
        torch.manual_seed(seed)  # every setting from the same start
        net = Supervised(data.shape, params.energy, int(data.labels["train"].max()) + 1).to(data.device)
        optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
        for update in train(net, optimizer, data, index, settings):
            held = correct(net, data, "validation").double().mean().item()
            if held > best.validation:
                best = Choice(lr, weight_decay, update, held, correct(net, data, "test"))
            pause()
    return best


def train(net: Supervised, optimizer: torch.optim.Optimizer, data: Images, index: np.ndarray,
          settings: measures.Supervised) -> Iterator[int]:
    """Yield the number of updates done at each moment where training may end; the learning rate is constant."""
    at = torch.from_numpy(index).to(data.device)
    x, y = middle(data.images["train"][at], data.levels), torch.from_numpy(data.labels["train"][index]).to(data.device)
    batch = min(settings.batch, len(index))
    total = max(settings.updates, settings.epochs * len(index) // batch)
    moments = {total * i // settings.validations for i in range(1, settings.validations + 1)}
    for update in range(1, total + 1):
        drawn = torch.randint(len(index), (batch,), device=data.device)
        loss = F.cross_entropy(net(x[drawn]), y[drawn])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update in moments:
            yield update


@torch.no_grad()
def correct(net: Supervised, data: Images, part: str) -> Tensor:
    """Which of a part's images [n] the net classifies correctly."""
    guesses = torch.cat([net(middle(x, data.levels)).argmax(1).cpu() for x in looks(data, part)])
    return guesses == torch.from_numpy(data.labels[part])
