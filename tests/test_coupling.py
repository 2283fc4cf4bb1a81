"""The coupling nets in their fast form: what it computes, in which precision, and what it keeps."""

import pytest
import torch
from test_flow import FLOWS, Glow, make_flow, perturb, unfolded
from torch.nn import functional as F

from benchmarks.precision import imitated_tf32
from fce.flow import coupling
from fce.flow.coupling import CouplingNet, net_precision


@pytest.mark.parametrize("block", [1, 10**9])
def test_in_blocks_or_whole_a_net_has_the_values_and_gradients_of_its_convolutions(block, monkeypatch):
    monkeypatch.setattr(coupling, "BLOCK", block)  # 64 pixels at least: here 3 blocks, the last one smaller
    net = perturb(CouplingNet(3, 4, 16, "conv").double())
    x = torch.randn(3, 7, 8, 3, dtype=torch.float64, requires_grad=True)
    fast, plain = net(x), unfolded(net, x)[0]
    assert torch.allclose(fast, plain, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(net(x), plain, atol=1e-12)
    along, wanted = torch.randn_like(plain), [x, *net.parameters()]
    found = zip(torch.autograd.grad(fast, wanted, along), torch.autograd.grad(plain, wanted, along), strict=True)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in found)


def test_a_frozen_net_lets_gradients_through_to_x():
    net, x = perturb(CouplingNet(2, 2, 8, "conv").double()).requires_grad_(False), torch.randn(2, 4, 4, 2).double()
    assert torch.autograd.gradcheck(net, x.requires_grad_())


@pytest.mark.parametrize("name", FLOWS)
def test_what_a_frozen_flow_keeps_is_made_anew_once_a_parameter_changes(name):
    flow, x = make_flow(name)
    flow.requires_grad_(False)
    with torch.no_grad():
        before, kept = flow.log_prob(x), flow.levels[0].kept["nets"][1]
        assert torch.equal(flow.log_prob(x), before) and flow.levels[0].kept["nets"][1] is kept
        x_gen = flow.decode(torch.ones(1, flow.dims, dtype=x.dtype))[0]
        for parameter in flow.parameters():
            parameter.mul_(1.1)
        fresh = Glow(FLOWS[name][0], *FLOWS[name][1:]).double()
        fresh.load_state_dict(flow.state_dict())
        assert torch.equal(flow.log_prob(x), fresh.log_prob(x)) and not torch.equal(flow.log_prob(x), before)
        assert not torch.equal(flow.decode(torch.ones(1, flow.dims, dtype=x.dtype))[0], x_gen)
        flow.float()
        assert torch.equal(flow.log_prob(x.float()), fresh.float().log_prob(x.float()))


@pytest.mark.parametrize("direction", ["encode", "decode"])
@pytest.mark.parametrize("name", [name for name in FLOWS if name.startswith("conv")])
def test_a_flow_compiles_whole_and_computes_the_same(name, direction):
    """Without a C compiler or a GPU: torch's tracing, which must not break off, and its gradients."""
    flow, x = make_flow(name)
    given = x if direction == "encode" else torch.randn(4, flow.dims, dtype=torch.float64)
    flow.require_initialized()
    plain, compiled = getattr(flow, direction), torch.compile(getattr(flow, direction), backend="aot_eager",
                                                              fullgraph=True, dynamic=False)
    for a, b in zip(plain(given), compiled(given), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    gradients = [torch.autograd.grad(sum(out.sin().sum() for out in each(given)), list(flow.parameters()))
                 for each in (plain, compiled)]
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(*gradients, strict=True))


def trained(steps=150):
    """A small image flow after some steps on smooth images: at its start nothing passes through its last layers."""
    torch.manual_seed(0)
    flow = Glow((3, 16, 16), 3, 4, 64, "conv", "additive", 0.0, "centered")

    def smooth(n):
        waves = F.interpolate(torch.randn(n, 3, 4, 4), size=16, mode="bilinear")
        return (0.15 * waves + 0.01 * torch.randn(n, 3, 16, 16)).clamp(-0.5, 0.5)

    flow.initialize(smooth(256))
    optimizer = torch.optim.Adam(flow.parameters(), 1e-3)
    for _ in range(steps):
        loss = -flow.log_prob(smooth(32)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return flow, smooth(256)


def test_reduced_precision_inside_the_nets_costs_the_log_density_little():
    """Std of the error of log q, at 768 dimensions; the targets, 0.1 and 0.5 nats, are for 3,072: twice as large."""
    flow, x = trained()
    with torch.no_grad():
        exact = flow.log_prob(x)
        with net_precision("bf16"):
            bf16 = flow.log_prob(x) - exact
        assert torch.equal(flow.log_prob(x), exact)  # outside the block all is float32
        with imitated_tf32():
            tf32 = flow.log_prob(x) - exact
    print(f"std of the error of log q in nats: tf32 {tf32.std():.3f}, bf16 {bf16.std():.3f}")
    assert 0 < tf32.std() <= 0.05 and 0 < bf16.std() <= 0.25


def test_bf16_gradients_point_where_float32s_do():
    flow, x = trained(20)
    gradients = []
    for precision in ("fp32", "bf16"):
        with net_precision(precision):
            parts = torch.autograd.grad(-flow.log_prob(x).mean(), list(flow.parameters()))
        assert all(part.dtype == torch.float32 for part in parts)
        gradients.append(torch.cat([part.flatten() for part in parts]))
    assert F.cosine_similarity(*gradients, dim=0) > 0.99


def test_tf32_is_allowed_inside_the_block_only():
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    with net_precision("tf32"):
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (True, before[1])
    assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == before


