"""A stack of models computes and learns what its models do alone."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny import run_stage

from fce.energy import make_energy
from fce.flow.glow import make_glow
from fce.flow.sampler import Gaussian
from fce.game import Diverged, Game
from fce.minibatch import take
from fce.optim import make_optimizer
from fce.stack import LARGE, Stack
from fce.stages.inputs import check
from fce.stages.joint import make_game
from fce.supply import Supply
from pipeline.checkpoint import load as load_state
from pipeline.job import Job
from pipeline.params import load, read_slice
from pipeline.schema.experiment import Sections

FLOW = {"levels": 1, "steps": 3, "width": 16, "layers": "fc", "coupling": "affine", "scale_floor": 0.0,
        "input": "identity"}
ENERGY = {"layers": "fc", "widths": [16, 16], "slope": 0.2}


def models(kind, count):
    if kind == "energy":
        return [make_energy((2,), **ENERGY) for _ in range(count)]
    made = [make_glow((2,), **FLOW) if kind == "flow" else Gaussian((2,)) for _ in range(count)]
    for model in made:
        model.initialize(torch.randn(100, 2))
    return made


@pytest.mark.parametrize("points", [7, LARGE])
@pytest.mark.parametrize("kind", ["flow", "gaussian", "energy"])
def test_methods_give_each_models_results(kind, points):
    alone, x = models(kind, 3), torch.randn(3, points, 2)
    stack = Stack(alone)
    with torch.no_grad():
        assert torch.allclose(stack.log_prob(x), torch.stack([m.log_prob(p) for m, p in zip(alone, x, strict=True)]),
                              atol=1e-5)
        if kind != "energy":
            decoded, log_q = stack("decode", x)
            assert torch.allclose(decoded[1], alone[1].decode(x[1])[0], atol=1e-5)
            assert torch.allclose(log_q[1], alone[1].decode(x[1])[1], atol=1e-5)


@pytest.mark.parametrize("kind", ["flow", "energy"])
def test_a_stack_learns_what_its_models_learn_alone(kind):
    """Some steps of the fused optimiser, with clipping: it walks through memory, whatever a gradient's strides."""
    together, alone = models(kind, 3), []
    for model in together:
        alone.append(models(kind, 1)[0])
        alone[-1].load_state_dict(model.state_dict())

    def train(stack, x):
        optimizer = make_optimizer("adam", stack.learned.values(), 1e-2)
        for batch in x:
            stack.backward(-stack.log_prob(batch).mean(1))
            stack.clip(0.5)
            optimizer.step()
        return stack.split(stack.state_dict())

    x = torch.randn(10, 3, 20, 2)
    for i, state in enumerate(train(Stack(together), x)):
        (lone,) = train(Stack([alone[i]]), x[:, i : i + 1])
        assert state.keys() == lone.keys()
        for name, value in state.items():
            assert torch.allclose(value.float(), lone[name].float(), atol=1e-4), name


def test_clip_scales_only_the_models_beyond_the_limit_and_spares_what_is_left_out():
    stack = Stack(models("energy", 2))
    for parameter in stack.learned.values():
        parameter.grad = torch.ones_like(parameter)
        parameter.grad[1] *= 1e-3
    before = stack.clip(1.0, but=["c"])
    assert before[0] > 1 > before[1]
    assert stack.clip(1e9, but=["c"]).tolist() == pytest.approx([1.0, before[1].item()])
    assert stack.learned["c"].grad.tolist() == pytest.approx([1.0, 1e-3])


@pytest.fixture(scope="module")
def ring(tmp_path_factory):
    """build/quick/ring, with short parameters and its data."""
    root = tmp_path_factory.mktemp("stack") / "build/quick/ring"
    experiment = load().experiments["quick"]["ring"].model_dump()
    flow = {**experiment["flow"], "steps": 2, "width": 16}
    short = {**experiment["pretrain"], "steps": 30, "validate_every": 30, "batch": 50}
    slices = {"data": {"data": experiment["data"]},
              "pretrain": {"data": experiment["data"], "flow": flow, "pretrain": short}}
    for arm, settings in experiment["arms"].items():
        settings = {**settings, "ebm_updates": 12, "warm_start": 3, "log_every": 6, "batch": 50}
        slices[f"joint/{arm}"] = {"data": experiment["data"], "flow": flow, "energy": ENERGY, "joint": settings}
    for name, content in slices.items():
        path = root / "params" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    assert run_stage("data", "--params", root / "params/data.json", "--out", root / "data.npz") == 0
    return root


def call(stage, *arguments):
    return run_stage(stage, *arguments, "--device", "cpu", "--threads", "1")


def game_of(ring, *seeds, **changes):
    """A game from random flows, before its start."""
    content = vars(read_slice((ring / "params/joint/joint-from-random.json").read_text(), "joint"))
    params = Sections.model_construct(**content | {"joint": content["joint"].model_copy(update=changes)})
    jobs = [Job("joint", params, ring / f"{seed}.pt", {"data": ring / "data.npz"}, seed) for seed in seeds]
    for job in jobs:
        check(job)
    return make_game(jobs)


def test_stacked_runs_are_the_single_ones(ring):
    """Each seed and arm has its own random numbers: beside others or alone, it ends at the same weights."""
    def both(seeds, arms, out):
        assert call("pretrain", "--params", ring / "params/pretrain.json", "--data", ring / "data.npz",
                    "--seed", *seeds, "--out", ring / out / "seed-{seed}/pretrain.pt") == 0
        assert call("joint", "--params", ring / "params/joint/{arm}.json", "--data", ring / "data.npz",
                    "--flow", ring / out / "seed-{seed}/pretrain.pt", "--seed", *seeds, "--arm", *arms,
                    "--out", ring / out / "seed-{seed}/{arm}/joint.pt") == 0

    arms = ["joint", "joint-from-random", "gaussian-noise", "frozen-flow"]
    both([0, 1], arms, "stacked")
    for seed in (0, 1):
        both([seed], arms, "single")
    for seed in (0, 1):
        for arm in arms:
            stacked, single = (load_state(ring / out / f"seed-{seed}/{arm}/joint.pt") for out in ("stacked", "single"))
            for player in ("energy", "flow", "energy_raw", "flow_raw"):
                for name, value in stacked[player].items():
                    assert torch.allclose(value.float(), single[player][name].float(), atol=2e-3), (arm, player, name)


def test_finite_samples_stand_in_for_the_others_of_their_run_and_these_are_counted():
    x, log_q = torch.arange(12.0).view(2, 3, 2), torch.zeros(2, 3)
    x[0, 0, 1], log_q[0, 1] = torch.nan, torch.inf
    supply = SimpleNamespace(dropped=torch.zeros(2, dtype=torch.long))
    which = Supply.choose_finite(supply, x, log_q)
    assert which.tolist() == [[2, 2, 2], [0, 1, 2]]
    assert torch.equal(take(x, which)[0], x[0, [2, 2, 2]]) and torch.equal(take(x, which)[1], x[1])
    assert supply.dropped.tolist() == [2, 0] and supply.lost.tolist() == pytest.approx([2 / 3, 0])
    game = SimpleNamespace(last={"not_finite": supply.lost.tolist(), "value": [0.0, 0.0]})
    with pytest.raises(Diverged, match="not finite"):
        Game.require_finite(game)


def test_the_flow_descends_v_and_by_its_weight_the_negative_log_likelihood(ring):
    game = game_of(ring, 0, 1)
    x, eps = game.supply.points(), game.supply.eps()
    game.supply.points, game.supply.eps = lambda: x, lambda: eps
    gradients = {}
    for weights in ((1.0, 0.0), (1.0, 2.0), (0.0, 2.0)):
        chosen = dict(zip(("value_weight", "mle_weight"), weights, strict=True))
        game.settings = game.settings.model_copy(update=chosen | {"flow_lr": 0.0, "flow_clip": 1e9})
        game.update_flow()
        gradients[weights] = [parameter.grad.clone() for parameter in game.noise.learned.values()]
    likelihood = torch.autograd.grad(-2.0 * game.noise.log_prob(x).mean(1).sum(), list(game.noise.learned.values()))
    for value, both, only, expected in zip(*gradients.values(), likelihood, strict=True):
        assert torch.allclose(both - value, expected, atol=1e-4) and torch.allclose(only, expected, atol=1e-4)
    assert max(gradient.abs().max() for gradient in likelihood) > 0.1


def test_the_game_draws_noise_ratio_samples_for_each_point_and_classes_tie_there(ring):
    game = game_of(ring, 0, noise_ratio=3)
    game.start()
    game.supply.stock.clear()
    x, log_q, x_gen, log_q_gen = game.supply.draw()
    assert (x.shape, log_q.shape, x_gen.shape, log_q_gen.shape) == ((1, 50, 2), (1, 50), (1, 150, 2), (1, 150))
    assert not torch.equal(x_gen[:, :50], x_gen[:, 50:100])
    game.update_ebm()
    game.update_flow()
    even = torch.zeros(1, 50)  # p = q: each point is more likely a sample
    assert game.note(torch.zeros(1), even, even) == 0.5
    assert (game.last["accuracy_data"], game.last["accuracy_gen"]) == ([0.0], [1.0])


def test_outputs_that_several_runs_would_write_are_refused(ring, capsys):
    code = call("pretrain", "--params", ring / "params/pretrain.json", "--data", ring / "data.npz",
                "--seed", 0, 1, "--out", ring / "pretrain.pt")
    assert code == 2
    assert "{seed}" in capsys.readouterr().err
