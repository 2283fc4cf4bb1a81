"""The one place where any model's checkpoint is opened.

A checkpoint says its `kind`, which is the stage that makes it: `pretrain` (a Glow), `joint` (an EBM and its noise
model) or `dcgan`. It holds weights and how to build the networks; nothing is guessed from its name.
"""

from collections.abc import Mapping
from typing import Any, Literal

from fce.dcgan import Discriminator, Generator, make_dcgan
from fce.energy import EnergyModel, Tilted, make_energy
from fce.flow.glow import Glow, make_glow
from fce.flow.sampler import Gaussian, Sampler
from fce.flow.start import open_flow

Checkpoint = Mapping[str, Any]


def frozen(model: Any, device: str) -> Any:
    return model.eval().requires_grad_(False).to(device)


def open_players(checkpoint: Checkpoint, device: str = "cpu", raw: bool = False) -> tuple[EnergyModel, Glow | Gaussian]:
    """The EBM and the noise model of a `joint` checkpoint, frozen, with averaged weights or the last, `raw` ones."""
    shape, joint, suffix = tuple(checkpoint["shape"]), checkpoint["joint_params"], "_raw" if raw else ""
    base = make_glow(shape, **checkpoint["flow_params"]) if joint["energy"] == "residual" else None
    energy = make_energy(shape, joint["energy"], base, **checkpoint["energy_params"])
    energy.load_state_dict(checkpoint[f"energy{suffix}"])
    noise = Gaussian(shape) if joint["noise"] == "gaussian" else make_glow(shape, **checkpoint["flow_params"])
    noise.load_state_dict(checkpoint[f"flow{suffix}"])
    if isinstance(energy, Tilted):
        energy.base = noise
    return frozen(energy, device), frozen(noise, device)


def open_dcgan(checkpoint: Checkpoint, device: str = "cpu") -> tuple[Generator, Discriminator]:
    """Both players of a `dcgan` checkpoint, frozen."""
    settings = checkpoint["dcgan_params"]
    players = make_dcgan(tuple(checkpoint["shape"]), settings["latent"], settings["widths"])
    for player, name in zip(players, ("generator", "discriminator"), strict=True):
        player.load_state_dict(checkpoint[name])
    return frozen(players[0], device), frozen(players[1], device)


def open_densities(checkpoint: Checkpoint, device: str = "cpu") -> dict[Literal["flow", "ebm"], Any]:
    """{flow, ebm} of a checkpoint, frozen: what has a log_prob."""
    if checkpoint["kind"] == "pretrain":
        return {"flow": frozen(open_flow(checkpoint), device)}
    energy, noise = open_players(checkpoint, device)
    return {"flow": noise, "ebm": energy}


def open_sampler(checkpoint: Checkpoint, device: str = "cpu") -> Sampler | Generator:
    """What samples, of any checkpoint."""
    if checkpoint["kind"] == "dcgan":
        return open_dcgan(checkpoint, device)[0]
    sampler = open_densities(checkpoint, device)["flow"]
    assert isinstance(sampler, Sampler)
    return sampler


def open_features(checkpoint: Checkpoint, device: str = "cpu") -> EnergyModel | Discriminator:
    """The network whose hidden layers are classified: the EBM, or DCGAN's discriminator."""
    return open_dcgan(checkpoint, device)[1] if checkpoint["kind"] == "dcgan" else open_players(checkpoint, device)[0]
