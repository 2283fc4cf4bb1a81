"""The supervised net: the EBM's network, better than chance in seconds, tuned without a look at the test part."""

import numpy as np
import pytest
import torch

from eval.labelled import subset
from eval.supervised import Supervised, train, tune
from fce.data.batches import Images
from fce.energy import make_energy
from fce.stages.images import load
from pipeline.files import Arrays
from pipeline.schema import measures
from pipeline.schema.data import Digits
from pipeline.schema.experiment import Sections
from pipeline.schema.training import Energy

ENERGY = Energy(layers="conv", widths=[16, 32], slope=0.2)
SETTINGS = measures.Supervised(batch=32, updates=40, epochs=2, validations=4, lr=[1e-6, 3e-3], weight_decay=[0.01])
PARAMS = Sections.model_construct(supervised=SETTINGS, energy=ENERGY)


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    return load(Digits(source="digits", validation=140, test=400, split_seed=0))


@pytest.fixture
def digits(arrays: Arrays) -> Images:
    """Labels and images of its own, which a test may change."""
    return Images({name: array.copy() for name, array in arrays.items()}, "cpu")


@pytest.mark.parametrize("side", [8, 16, 32])
def test_the_net_is_the_ebms_with_ten_classes(side: int) -> None:
    energy = Energy(layers="conv", widths=[64, 128, 256], slope=0.2)
    shape = (3, side, side)
    net, ebm, x = Supervised(shape, energy), make_energy(shape, **energy.model_dump()), torch.randn(4, *shape)
    assert net(x).shape == (4, 10)

    def hidden(model):
        return [tuple(parameter.shape) for parameter in model.hidden.parameters()]

    assert hidden(net.ebm) == hidden(ebm)
    top = ebm.features(x).shape[1]
    one, ten = top + 1 + 1, 10 * (top + 1)  # f's head and c; the ten classes' head
    count = sum(parameter.numel() for parameter in ebm.parameters()) - one + ten
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    gradients = torch.autograd.grad(net(x).square().sum(), list(net.parameters()))
    assert all(gradient.abs().max() > 0 for gradient in gradients)


def test_a_hundred_labels_beat_chance_and_the_rate_that_learns_is_chosen(digits: Images) -> None:
    choice = tune(digits, subset(digits.labels["train"], 100, seed=0), PARAMS, seed=0)
    assert choice.test.shape == (400,) and choice.test.double().mean() > 0.6  # chance: 0.1
    assert choice.lr == 3e-3 and choice.update in (10, 20, 30, 40)
    again = tune(digits, subset(digits.labels["train"], 100, seed=0), PARAMS, seed=0)
    assert again == choice and torch.equal(again.test, choice.test)


def test_the_test_part_chooses_nothing(digits: Images, arrays: Arrays) -> None:
    """Shuffled test labels and images leave every choice as it was; a shuffled validation part does not."""
    index = subset(digits.labels["train"], 50, seed=1)
    tuned = SETTINGS.model_copy(update={"lr": [1e-3, 3e-3], "weight_decay": [0.01, 1.0]})
    settings = Sections.model_construct(supervised=tuned, energy=ENERGY)
    chosen = tune(digits, index, settings, seed=0)
    shuffled = Images(arrays, "cpu")
    shuffled.labels["test"] = np.random.default_rng(0).permutation(digits.labels["test"])
    blind = tune(shuffled, index, settings, seed=0)
    keep = ("lr", "weight_decay", "update", "validation")
    assert [getattr(blind, name) for name in keep] == [getattr(chosen, name) for name in keep]
    assert blind.test.double().mean() < 0.3 < chosen.test.double().mean()
    shuffled.labels["validation"] = np.random.default_rng(0).permutation(digits.labels["validation"])
    assert tune(shuffled, index, settings, seed=0).validation < 0.3


def test_only_the_labelled_images_are_seen_and_many_labels_get_more_updates(digits: Images) -> None:
    index = subset(digits.labels["train"], 50, seed=0)
    others = np.setdiff1d(np.arange(len(digits.labels["train"])), index)

    def moments_and_weights(index: np.ndarray) -> tuple[list[int], torch.Tensor]:
        torch.manual_seed(0)
        net = Supervised(digits.shape, ENERGY)
        moments = list(train(net, torch.optim.AdamW(net.parameters(), lr=1e-3), digits, index, SETTINGS))
        return moments, torch.cat([parameter.detach().flatten() for parameter in net.parameters()])

    moments, before = moments_and_weights(index)
    digits.images["train"][others] = 0
    digits.labels["train"][others] = 0
    assert torch.equal(moments_and_weights(index)[1], before)
    assert moments == [10, 20, 30, 40]
    assert moments_and_weights(np.arange(960))[0] == [15, 30, 45, 60]  # 2 epochs of 30 batches
