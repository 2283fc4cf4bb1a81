"""The notebook: its cells run in order, and what it says of them holds."""

import json
from typing import Any

import matplotlib
import nbformat
import pytest
from tiny import ROOT

from fce.objective import chance

NOTEBOOK = json.loads((ROOT / "docs/tour.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_it_is_a_short_notebook_without_outputs():
    nbformat.validate(nbformat.from_dict(NOTEBOOK))
    assert len(NOTEBOOK["cells"]) <= 10
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in CODE)


@pytest.fixture(scope="module")
def played() -> dict[str, Any]:
    """The names that the cells leave."""
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for cell in CODE:
        exec("".join(cell["source"]), names)
    return names


def test_the_ebm_ends_nearer_to_the_data_than_its_glow(played):
    assert 0 < played["kl_ebm"] < 0.7 * played["kl_flow"] and played["kl_ebm"] < 0.3
    assert played["kl_mle"] < 0.6
    assert sum(played["values"][-100:]) / 100 > chance()  # the EBM still knows more than a coin


def test_the_learned_constant_is_near_log_z(played):
    assert abs(played["log_z"]) < 0.3
    assert abs(played["look"](played["flow"])[1]) < 0.05  # a flow is normalised; what is left is the quadrature


def test_the_picture_shows_three_densities(played):
    assert [axis.get_title() for axis in played["figure"].axes] == ["data", "Glow", "EBM"]
    assert all(axis.images[0].get_array().max() > 0.1 for axis in played["figure"].axes)
