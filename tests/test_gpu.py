"""What only a GPU can show; on request, with `pytest -m gpu`."""

import warnings

import pytest
import torch
from test_game import digits, make_game  # noqa: F401 - a fixture

from fce.flow.coupling import net_precision

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
]


def play(game, updates):
    for _ in range(updates):
        game.update_ebm()
        game.update_flow()
    return game.last["value"]


def test_cuda_graphs_compute_what_the_plain_game_does(digits):  # noqa: F811
    values = []
    for compiled in (False, True):
        torch.manual_seed(0)
        values.append(play(make_game(digits, compiled, "cuda"), 12))
    assert values[0] == pytest.approx(values[1], rel=1e-2)


def test_an_update_looks_at_the_device_once(digits):  # noqa: F811
    game = make_game(digits, device="cuda")
    play(game, 2)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            play(game, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len([each for each in seen if "synchroniz" in str(each.message)]) <= 10  # two updates, 5 times


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 0.1), ("bf16", 0.5)])
def test_tensor_cores_cost_the_log_density_little(digits, precision, limit):  # noqa: F811
    game = make_game(digits, device="cuda")
    play(game, 5)
    with torch.no_grad():
        x = game.supply.points(16)
        exact = game.noise.log_prob(x)
        with net_precision(precision):
            off = game.noise.log_prob(x) - exact
    assert 0 < off.std() <= limit
