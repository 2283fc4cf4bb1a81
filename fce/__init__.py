"""Flow contrastive estimation of energy-based models (arXiv 1912.00589): the models, the game, bounds on log Z.

>>> import torch, fce
>>> x = 0.5 * torch.randn(1000, 2)
>>> flow = fce.Glow((2,), levels=1, steps=4, width=32, layers="fc", input="identity")
>>> energy = fce.EnergyModel((2,), layers="fc", widths=(64, 64))
>>> log_q = fce.fit_glow(flow, x, steps=50)
>>> curve = fce.play(flow, energy, x, fce.Settings(ebm_updates=20, warm_start=20))
>>> energy.log_prob(x).shape, len(curve)
(torch.Size([1000]), 20)
>>> bounds = fce.bound_log_z(energy, flow, samples=1000, chains=10, temperatures=5)
>>> sorted(bounds)
['ais', 'certificate', 'effective_chains', 'effective_samples', 'importance', 'learned']
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fce.annealing import bound_log_z
    from fce.energy import EnergyModel, Residual, Tilted
    from fce.flow.glow import Glow
    from fce.game import Diverged
    from fce.objective import accuracy, calibrate, value
    from fce.train import Settings, fit_glow, play

PLACES = {"Glow": "flow.glow", "EnergyModel": "energy", "Residual": "energy", "Tilted": "energy", "value": "objective",
          "accuracy": "objective", "calibrate": "objective", "Settings": "train", "fit_glow": "train", "play": "train",
          "Diverged": "game", "bound_log_z": "annealing"}
__all__ = ["Diverged", "EnergyModel", "Glow", "Residual", "Settings", "Tilted", "accuracy", "bound_log_z", "calibrate",
           "fit_glow", "play", "value"]


def __getattr__(name: str) -> Any:
    """A public name, from its module: torch takes seconds to import, and the command line does without."""
    if name not in PLACES:
        raise AttributeError(f"module 'fce' has no attribute '{name}'; it has {', '.join(__all__)}")
    globals()[name] = found = getattr(import_module(f"fce.{PLACES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return __all__
