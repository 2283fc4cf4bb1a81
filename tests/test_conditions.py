"""The conditions of Tables 1 and 2: openai/glow's edge channel, its shifts of the images, training on all images; and
our Glow against normflows'.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from test_coupling import CouplingNet, coupling
from test_flow import Gaussianize, Glow, box, perturb
from tiny import flags, run_stage, write_slices
from torch.nn import functional as F

from benchmarks.peers import NormFlows
from fce.data import batches, pixels
from fce.stages import inputs
from pipeline.files import read_arrays
from reports import build


def padded(x):
    """x [B, H, W, C] as tfops.py pads it: zeros around, and one more channel, 1 there and 0 inside; [B, C + 1, ...]."""
    inside = torch.cat([x, torch.zeros_like(x[..., :1])], -1).permute(0, 3, 1, 2)
    whole = F.pad(inside, (1, 1, 1, 1))
    whole[:, -1, [0, -1]] = 1.0
    whole[:, -1, :, [0, -1]] = 1.0
    return whole


def written_out(net, x):
    """openai/glow's coupling net, as it is written there; [B, H, W, outputs]."""
    first = F.conv2d(padded(x), net.weights[0]).permute(0, 2, 3, 1)
    second = F.linear(net.norms[0](first).relu(), net.weights[1][:, :, 0, 0])
    last = F.conv2d(padded(net.norms[1](second).relu()), net.last.weight, net.last.bias).permute(0, 2, 3, 1)
    return last * (3 * net.last.logs).exp()


@pytest.mark.parametrize("size", [1, 10**9])
def test_edges_of_a_coupling_net_are_openai_glows(size, monkeypatch):
    """Values and gradients, of x and of every weight; in blocks and whole."""
    monkeypatch.setattr(coupling, "BLOCK", size)
    net = perturb(CouplingNet(3, 4, 16, "conv", True).double())
    x = torch.randn(3, 7, 8, 3, dtype=torch.float64, requires_grad=True)
    fast, plain = net(x), written_out(net, x)
    assert torch.allclose(fast, plain, atol=1e-12)
    along, wanted = torch.randn_like(plain), [x, *net.parameters()]
    found = zip(torch.autograd.grad(fast, wanted, along), torch.autograd.grad(plain, wanted, along), strict=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in found)


def test_edges_of_the_priors_are_openai_glows():
    split, top = (perturb(Gaussianize(3, inputs, "conv", True).double()) for inputs in (2, 0))
    z, context = torch.randn(2, 4, 5, 3, dtype=torch.float64), torch.randn(2, 4, 5, 2, dtype=torch.float64)
    h = F.conv2d(padded(context), split.net.weight, split.net.bias).permute(0, 2, 3, 1) * (3 * split.net.logs).exp()
    assert torch.allclose(split.encode(z, context)[0], (z - h[..., 0::2]) / h[..., 1::2].exp(), atol=1e-12)
    edge = F.conv2d(padded(torch.zeros_like(z))[:, -1:], top.taps).permute(0, 2, 3, 1)  # mean, then logs; of zeros
    mean, logs = top.mean + edge[..., :3], 3 * (top.logs + edge[..., 3:])
    assert torch.allclose(top.encode(z, None)[0], (z - mean) / logs.exp(), atol=1e-12)
    assert edge[:, 1, 1].abs().max() == 0 and edge.std(2).max() > 0.01  # the prior depends on the place


@pytest.mark.parametrize("name", ["additive", "affine"])
def test_edges_without_weight_change_nothing(name):
    plain, edged = (Glow((1, 8, 8), 2, 2, 8, "conv", name, 0.0, "centered", edge).double() for edge in (False, True))
    perturb(plain)
    plain.initialized.fill_(True)
    state = {key: value.clone().zero_() for key, value in edged.state_dict().items()}
    for key, value in plain.state_dict().items():
        state[key][:, : value.shape[1]].copy_(value) if value.dim() == 4 else state[key].copy_(value)
    edged.load_state_dict(state)
    x = box(4, (1, 8, 8))
    assert torch.allclose(plain.encode(x)[0], edged.encode(x)[0], atol=1e-12)
    assert torch.allclose(plain.log_prob(x), edged.log_prob(x), atol=1e-10)


@pytest.mark.parametrize(
    ("name", "edge", "count"),
    [
        ("additive", False, 37_940_016),
        ("additive", True, 38_395_668),
        ("affine", False, 44_135_856),
        ("affine", True, 44_603_604),
    ],
)
def test_parameter_counts_with_and_without_edges_are_openai_glows(name, edge, count):
    """Of CIFAR-10; 83,040 of them are the top prior's weights of zeros and its logs, as test_flow.py says."""
    with torch.device("meta"):
        flow = Glow((3, 32, 32), 3, 32, 512, "conv", name, 0.0, "centered", edge)
    assert sum(parameter.numel() for parameter in flow.parameters()) == count - 83_040


@torch.no_grad()
def carry(ours, theirs):
    """Give normflows' Glow the weights of ours. Its inverse is our encode: s = -3 logs, t = -b, and it subtracts."""
    for level, blocks, prior, base in zip(ours.levels, reversed(theirs.flow.flows), ours.priors,
                                          reversed(theirs.flow.q0), strict=True):
        for step, block in zip(level, reversed(blocks[:-1]), strict=True):  # the last is the squeeze
            couple, mix, norm = block.flows
            norm.s.copy_(-3 * step.norm.logs.view_as(norm.s))
            norm.t.copy_(-step.norm.bias.view_as(norm.t))
            norm.data_dep_init_done = torch.tensor(1.0)
            packed = step.linear.packed
            for own, value in ((mix.P, step.linear.permutation), (mix.sign_S, step.linear.sign), (mix.L, packed),
                               (mix.U, packed), (mix.log_S, packed.diagonal())):
                own.copy_(value)
            net = step.coupling.net
            layers = zip((*net.weights, net.last.weight), (*net.norms, net.last), couple.flows[1].param_map.net[::2],
                         strict=True)
            for weight, after, conv in layers:  # its net has no actnorms
                scale = (3 * after.logs).exp()
                conv.weight.copy_(weight * scale.view(-1, 1, 1, 1))
                conv.bias.copy_(after.bias * scale)
            shifts = slice(None, None, 2 if step.coupling.affine else 1)
            conv.weight[shifts] *= -1
            conv.bias[shifts] *= -1
        if prior.net is None:
            base.loc.copy_(prior.mean.view_as(base.loc))
            base.log_scale.copy_(3 * prior.logs.view_as(base.loc))
        else:  # it has no conditional priors: ours is made constant
            prior.net.weight.zero_()
            h = prior.net.bias * (3 * prior.net.logs).exp()
            base.loc.copy_(h[0::2].view_as(base.loc))
            base.log_scale.copy_(h[1::2].view_as(base.loc))


@pytest.mark.parametrize("name", ["additive", "affine"])
def test_our_glow_is_normflows_glow(name):
    """Whole, of two levels; every parameter perturbed."""
    ours = perturb(Glow((3, 8, 8), 2, 3, 8, "conv", name, 0.0, "centered").double())
    x = box(4, (3, 8, 8))
    ours.initialize(box(64, (3, 8, 8)))
    theirs = NormFlows(8, 2, 3, 8, name).double()
    carry(perturb(ours, 0.02), theirs)
    error = (ours.log_prob(x) - theirs.log_prob(x)).abs().max()
    assert error < 1e-10
    assert (theirs.reconstruct(x) - x).abs().max() < 1e-10


PICTURES = np.random.default_rng(0).integers(0, 256, (20, 3, 16, 16)).astype(np.uint8)


def test_shifts_are_those_of_keras():
    """Keras 2.2.0 calls scipy's affine_transform, order 1, nearest; openai/glow rounds down."""
    found = pixels.shifted(torch.from_numpy(PICTURES), 0.1, torch.Generator().manual_seed(1)).numpy()
    random = torch.Generator().manual_seed(1)
    down, across = (0.1 * 16 * (2 * torch.rand(20, generator=random).double() - 1) for _ in range(2))
    for image, moved, dy, dx in zip(PICTURES, found, down.tolist(), across.tolist(), strict=True):
        assert max(abs(dy), abs(dx)) <= 1.6
        for channel, ours in zip(image, moved, strict=True):
            theirs = ndimage.affine_transform(channel.astype(np.float32), np.eye(2), (dy, dx), order=1, mode="nearest")
            # float32 can fall on the other side of a level where the value is one to six digits
            assert np.abs(ours - theirs).max() < 1 + 1e-4 and (ours == np.floor(theirs)).mean() > 0.99
    assert down.std() > 0.5 and len({round(shift, 3) for shift in down.tolist()}) > 15


def test_shifts_leave_what_is_even_and_give_whole_levels_of_each_image():
    for level in (0, 1, 16, 255):
        even = torch.full((4, 1, 8, 8), level, dtype=torch.uint8)
        assert torch.equal(pixels.shifted(even, 0.3, torch.Generator().manual_seed(0)), even)
    found = pixels.shifted(torch.from_numpy(PICTURES), 0.1, torch.Generator().manual_seed(0))
    assert found.dtype == torch.uint8 and found.shape == PICTURES.shape
    assert all(len(set(found[i].flatten().tolist())) > 100 for i in range(20))


def images(augment):
    arrays = {f"{part}_images": PICTURES.transpose(0, 2, 3, 1) for part in ("train", "validation", "test")}
    return batches.Images(arrays | {"levels": np.array(256)}, "cpu", augment)


def drawn(data, generator, n=7):
    torch.manual_seed(0)
    return pixels.quantize(torch.cat([data.batch(5, generator) for _ in range(n)]), 256)


def test_only_minibatches_are_moved_and_a_resumed_run_moves_them_alike():
    moved, plain = images(0.1), images(0.0)
    whole = drawn(moved, torch.Generator().manual_seed(0))
    assert not torch.equal(whole, drawn(plain, torch.Generator().manual_seed(0)))
    assert torch.equal(moved.images["train"], torch.from_numpy(PICTURES))
    one, other = (data.part("validation", torch.Generator().manual_seed(0)) for data in (moved, plain))
    assert torch.equal(one, other)
    again, generator = images(0.1), torch.Generator().manual_seed(0)
    first = drawn(again, generator, 3)
    state, chance = again.state_dict(), generator.get_state()
    resumed, generator = images(0.1), torch.Generator()
    resumed.load_state_dict(state)
    generator.set_state(chance)
    assert torch.equal(torch.cat([first, drawn(resumed, generator, 4)]), whole)


def test_without_shifts_the_draws_are_what_they_were():
    """Of each pass, a permutation; nothing else is taken from the generator."""
    data, generator, random = images(0.0), torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    whole = drawn(data, generator, 8)
    orders = torch.cat([torch.randperm(20, generator=random) for _ in range(2)])
    assert torch.equal(whole, torch.from_numpy(PICTURES)[orders])
    assert torch.equal(generator.get_state(), random.get_state())


ALL = {  # the tiny digits at the conditions of Tables 1 and 2
    "data": {"validation": 0},
    "flow": {"edge": True},
    "pretrain": {"augment": 0.1},
    "joint": {"augment": 0.1},
    "probe": {"validation": 140},
}
MEASURES = {"fid": "joint", "bits_per_dim": "joint", "log_z": "joint", "probe": "joint", "supervised": "supervised"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A build folder of the tiny digits, trained on all images and measured; by stage, how far each moved them."""
    root, moved = tmp_path_factory.mktemp("all"), {}
    home = write_slices(root, {"digits": ALL}) / "digits"

    class Images(batches.Images):
        def __init__(self, arrays, device, augment=0.0):
            super().__init__(arrays, device, augment)
            moved[name] = augment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inputs.batches, "Images", Images)
        for name in ("data", "pretrain", "joint", "dcgan", "classifier", "sample", *MEASURES):
            arm = MEASURES.get(name, "joint")
            assert run_stage(name, *flags(name, home, arms=[arm])) == 0
    return root, home, moved


def test_models_train_on_all_images_and_probes_choose_by_labels_of_some(trained):
    _, home, _ = trained
    data = read_arrays(home / "data.npz", ("train_images", "validation_images", "test_images"))
    assert [len(array) for array in data.values()] == [1397, 0, 400]
    for name in ("probe", "supervised"):
        path = home / "seed-0" / MEASURES[name] / f"{name}.json"
        assert "chosen on 140 validation labels" in path.read_text() and '"labels": 1257' in path.read_text()
    assert "bits_per_dim_validation" not in (home / "seed-0/joint/bits_per_dim.json").read_text()


def test_both_trainings_move_images_and_nothing_else_does(trained):
    moved = trained[2]
    assert {name for name, augment in moved.items() if augment} == {"pretrain", "joint"}
    assert {"dcgan", *MEASURES} < moved.keys()


def test_a_report_without_a_validation_part_shows_the_training_loss(trained, monkeypatch):
    root, home, _ = trained
    curve = pd.read_csv(home / "seed-0/pretrain.csv")
    assert curve["validation"].isna().all() and curve["train"].notna().all()
    monkeypatch.chdir(root)
    assert build.main(["--profile", "quick", "--build", "build", "--out", "report/index.html"]) == 0
    assert "<!-- train, bits/dim -->" in (root / "report/training-digits.svg").read_text()
    assert "Training curves, digits" in (root / "report/index.html").read_text()


@pytest.mark.parametrize(("labels", "says"), [(0, "give one, to choose by its labels"), (1396, "leave 2 or more")])
@pytest.mark.parametrize("name", ["probe", "supervised"])
def test_labels_to_choose_by_are_asked_for_before_anything_runs(trained, tmp_path, capsys, name, labels, says):
    _, home, _ = trained
    path = home / f"params/{name}.json"
    path = path if path.exists() else next(home.glob(f"params/**/{name}*.json"))
    wrong = tmp_path / "slice.json"
    wrong.write_text(path.read_text().replace('"validation": 140', f'"validation": {labels}'))
    out = tmp_path / f"seed-0/{MEASURES[name]}/{name}.json"
    argv = flags(name, home, arms=[MEASURES[name]], params=None, out=None)
    assert run_stage(name, *argv, "--params", wrong, "--out", out) == 2
    assert says in capsys.readouterr().err and not out.exists()
