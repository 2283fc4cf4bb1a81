"""A Glow started on data, kept in a checkpoint and opened again."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fce.data.batches import Images, Points, at_once
from fce.flow.glow import Glow, make_glow

INIT_BATCH = 1024  # points or images for the data-dependent initialisation (openai/glow: 256)


def start_flow(data: Points | Images, flow: Mapping[str, Any], generator: torch.Generator, device: str) -> Glow:
    """A Glow of a `flow:` section with its weights drawn and its actnorms initialised on data."""
    model = make_glow(data.shape, **flow).to(device)
    model.initialize(initial_batch(data, generator, at_once(data.shape, INIT_BATCH)))
    return model


def initial_batch(data: Points | Images, generator: torch.Generator, images: int) -> Tensor:
    """The data that a noise model's statistics are initialised on: points, or at most so many images."""
    return data.batch(INIT_BATCH if isinstance(data, Points) else min(images, data.count), generator)


def open_flow(checkpoint: Mapping[str, Any], device: str = "cpu") -> Glow:
    """The Glow of a `pretrain` checkpoint, as it goes on learning."""
    flow = make_glow(tuple(checkpoint["shape"]), **checkpoint["flow_params"])
    flow.load_state_dict(checkpoint["flow"])
    return flow.to(device)
