"""One iteration of the game: six passes of the flow where twelve would do, and the same gradients."""

import json
import math

import pytest
import torch
from tiny import flags, run_stage, write_slices

from fce import stack
from fce.flow.coupling import net_precision
from fce.minibatch import Minibatch, flow_value
from fce.stages import inputs, joint
from fce.supply import AHEAD
from pipeline.job import Job
from pipeline.params import read_slice


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    home = write_slices(tmp_path_factory.mktemp("game"), {}) / "digits"
    assert run_stage("data", *flags("data", home)) == 0
    return home


def make_game(home, compiled=False, device="cpu", **changes):
    """A game from a random flow, after its start and one update of the flow."""
    content = json.loads((home / "params/joint/joint.json").read_text())
    content["joint"] |= {"start": "random", "warm_start": 2, "batch": 16, **changes}
    params = read_slice(json.dumps(content), "joint")
    job = Job("joint", params, home / "joint.pt", {"data": home / "data.npz"}, device=device, compiled=compiled)
    inputs.check(job)
    game = joint.make_game([job])
    game.start()
    game.update_flow()
    return game


def passes(game, monkeypatch):
    """The names of the flow's methods, as they are called."""
    called = []
    for method in ("decode", "encode"):
        function = getattr(game.noise.first, method)
        monkeypatch.setattr(game.noise.first, method,
                            lambda *x, name=method, function=function: called.append(name) or function(*x))
    return called


def test_an_iteration_passes_the_flow_once_in_each_direction_and_its_gradients_are_the_naive_ones(digits, monkeypatch):
    game = make_game(digits)
    called = passes(game, monkeypatch)
    game.update_ebm()
    batch = game.supply.kept
    monkeypatch.setattr(game, "factor", lambda *_: 0.0)  # the flow stands still, and both are gradients of one flow
    game.update_flow()
    assert sorted(called) == ["decode", "encode"] and game.supply.kept is None
    kept = [parameter.grad.clone() for parameter in game.noise.learned.values()]
    fresh = Minibatch.of(game.noise, batch.x, batch.eps)  # drawn again and encoded again, as the naive form does
    x_gen = fresh.x_gen
    naive = fresh._replace(log_q_gen=game.noise.log_prob(x_gen))
    game.noise.backward(flow_value(game.energy, naive)[0])
    for a, parameter in zip(kept, game.noise.learned.values(), strict=True):
        assert torch.allclose(a, parameter.grad, rtol=1e-3, atol=1e-3 * a.abs().max().item())


def test_by_the_ratio_rule_only_the_last_minibatch_of_a_round_is_drawn_alone(digits, monkeypatch):
    game = make_game(digits, rule="ratio", ebm_per_round=4, flow_per_round=1)
    called = passes(game, monkeypatch)
    for kept in (False, False, False, True):
        game.update_ebm()
        assert (game.supply.kept is not None) == kept
    assert called == ["decode", "encode"] * 2  # three minibatches at once, and one
    game.update_flow()
    assert len(called) == 4


def test_while_the_flow_stands_still_many_minibatches_are_drawn_at_once(digits, monkeypatch):
    game = make_game(digits)
    game.supply.moved, game.supply.ahead = False, AHEAD
    called = passes(game, monkeypatch)
    for _ in range(AHEAD):
        game.update_ebm()
    assert called == ["decode", "encode"] and game.supply.kept is None


def test_a_compiled_game_is_the_plain_one(digits, monkeypatch):
    """With torch's tracing alone, which needs no C compiler: what a GPU's compiler gets has the same gradients."""
    traced = []

    def trace(call, **how):
        traced.append(call)
        return real(call, backend="aot_eager", dynamic=how["dynamic"])

    real = torch.compile
    monkeypatch.setattr(stack.torch, "compile", trace)
    values = []
    for compiled in (False, True):
        torch.manual_seed(0)
        game = make_game(digits, compiled)
        with net_precision("bf16"):
            game.update_ebm()
            game.update_flow()
        values.append([game.last, game.energy.state_dict(), game.noise.state_dict()])
    assert len(traced) == 2  # the flow's two directions
    assert values[0][0]["value"] == pytest.approx(values[1][0]["value"], rel=1e-3)
    for one, other in zip(values[0][1:], values[1][1:], strict=True):
        assert all(torch.allclose(one[name].float(), other[name].float(), atol=1e-3) for name in one)


def test_a_curve_has_the_means_over_all_updates_of_the_ebm_and_how_often_it_was_below_chance(digits):
    game, seen = make_game(digits), []
    for _ in range(4):
        game.update_ebm()
        seen.append({name: values[0] for name, values in game.last.items()})
        game.update_flow()
    (row,) = game.rows()
    for name in ("value", "accuracy_data", "accuracy_gen", "saturated"):
        assert row[f"mean_{name}"] == pytest.approx(sum(each[name] for each in seen) / 4, rel=1e-12)
    assert row["mean_below_chance"] == sum(each["value"] < -2 * math.log(2) for each in seen) / 4
