"""The flow blocks of one level: actnorm, invertible 1x1 convolution, coupling.

What their parameters alone decide is computed for all blocks of the level at once: actnorm and 1x1 convolution merged
into one matrix and its inverse, and the coupling nets' layers. Of a frozen flow it is kept.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fce.flow.coupling import Coupling, layers_of
from fce.flow.layers import LOG_SCALE, ActNorm, InvertibleLinear, lu_inverses, lu_weights, pixels, sum_features


class Step(nn.Module):
    """The parameters of one flow block."""

    def __init__(self, channels: int, width: int, layers: str, coupling: str, scale_floor: float, edge: bool = False):
        super().__init__()
        self.norm = ActNorm(channels)
        self.linear = InvertibleLinear(channels)
        self.coupling = Coupling(channels, width, layers, coupling, scale_floor, edge)


class Steps(nn.ModuleList):
    """Flow blocks of equal size, as a layer of z [B, H, W, C] or [B, C]."""

    def __init__(self, count: int, *arguments: Any):
        super().__init__(Step(*arguments) for _ in range(count))
        self.own = list(self.parameters())
        self.kept: dict[str, tuple[Any, Any]] = {}

    def encode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        (matrices, shifts, log_det), nets = self.keep("matrices", self.matrices), self.keep("nets", self.nets)
        scales = []
        for step, matrix, shift, net in zip(self, matrices, shifts, nets, strict=True):
            z, scale = step.coupling.encode(mix(z, matrix, shift), net)
            scales.append(scale)
        return z, log_det * pixels(z) + log_scale(scales)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        (matrices, shifts, log_det), nets = self.keep("inverses", self.inverses), self.keep("nets", self.nets)
        scales = []
        for step, matrix, shift, net in reversed(list(zip(self, matrices, shifts, nets, strict=True))):
            z, scale = step.coupling.decode(z, net)
            z = mix(z, matrix, shift)
            scales.append(scale)
        return z, -log_det * pixels(z) - log_scale(scales)

    @torch.no_grad()
    def initialize(self, z: Tensor) -> Tensor:
        """Set the actnorms, one after the other, from the activations that z gives; returns the level's output."""
        for i, step in enumerate(self):
            step.norm.initialize(z)
            matrices, shifts, _ = self.matrices()
            z = mix(z, matrices[i], shifts[i])
            step.coupling.net.initialize(z[..., : step.coupling.kept])
            z = step.coupling.encode(z)[0]
        return z

    def matrices(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """M and v of every block's W (x + b) e^s = M x + v, and log |det| of all of them for one pixel."""
        biases, logs, log_det = self.norms()
        merged = lu_weights([step.linear for step in self]) * logs.exp().unsqueeze(-2)
        shifts = (merged @ biases.unsqueeze(-1)).squeeze(-1)
        return merged.to(log_det.dtype).unbind(), shifts.to(log_det.dtype).unbind(), log_det

    def inverses(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor]:
        """M and v of every block's W^-1 y e^-s - b = M y + v, and log |det| of all as in `matrices`."""
        biases, logs, log_det = self.norms()
        merged = lu_inverses([step.linear for step in self]) * (-logs).exp().unsqueeze(-1)
        return merged.to(log_det.dtype).unbind(), (-biases).to(log_det.dtype).unbind(), log_det

    def norms(self) -> tuple[Tensor, Tensor, Tensor]:
        """Biases and log-scales [K, C] of the actnorms, float64; log |det| of actnorms and 1x1 convolutions."""
        biases, logs = (torch.stack([getattr(step.norm, name) for step in self]) for name in ("bias", "logs"))
        traces = torch.stack([step.linear.packed.diagonal() for step in self])
        return biases.double(), LOG_SCALE * logs.double(), (LOG_SCALE * logs + traces).sum()

    def nets(self) -> list[Any]:
        return layers_of([step.coupling.net for step in self])

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives; kept where all parameters are frozen, until one changes all the same.

        Not while they learn: a stack changes its models' parameters behind their backs.
        """
        learns = any(parameter.requires_grad for parameter in self.own)
        elsewhere = self[0].norm.bias is not self.own[0]  # functional_call has put others in their place
        if learns or elsewhere or torch.compiler.is_compiling():
            return make()
        key = [(parameter.data_ptr(), parameter._version) for parameter in self.own]
        if name not in self.kept or self.kept[name][0] != key:
            self.kept[name] = key, make()
        return self.kept[name][1]


def mix(z: Tensor, matrix: Tensor, shift: Tensor) -> Tensor:
    """Channels mixed by a matrix, and shifted; on a GPU as a convolution, which net_precision leaves in float32."""
    if z.is_cuda and z.dim() == 4:
        return F.conv2d(z.permute(0, 3, 1, 2), matrix[:, :, None, None], shift).permute(0, 2, 3, 1)
    return F.linear(z, matrix, shift)


def log_scale(scales: list[Tensor | None]) -> Tensor | float:
    """The sum [B] of the couplings' log-scales; 0 where nothing is scaled."""
    given = [scale for scale in scales if scale is not None]
    return sum_features(torch.stack(given, 1)) if given else 0.0
