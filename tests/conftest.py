"""Every test starts from the same seed, leaves no trace in the global generator and uses one core."""

import pytest
import torch


@pytest.fixture(autouse=True)
def same_seed():
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
