"""The library as others use it: from any folder, by its public names, with the examples that its texts give."""

import doctest
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tiny import ROOT, read_yaml

import fce


@pytest.mark.parametrize("module", ["fce", "fce.energy", "fce.flow.glow"])
def test_the_examples_in_docstrings_run(module: str) -> None:
    result = doctest.testmod(import_module(module), extraglobs={"torch": torch})
    assert result.attempted >= 2 and result.failed == 0


def test_readmes_example_runs_in_another_folder(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block and len(block[1].splitlines()) <= 20
    (tmp_path / "fce").symlink_to(ROOT / "fce")  # and nothing else of the checkout
    said = subprocess.run([sys.executable, "-c", block[1]], cwd=tmp_path, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    v = float(said.stdout.split()[1].rstrip(","))
    bounds = dict(re.findall(r"'(\w+)': (-?[\d.]+)", said.stdout))
    assert abs(v + 1.39) < 0.2 and float(bounds["certificate"]) < float(bounds["learned"]) + 0.5


def test_every_public_name_is_there_and_no_other() -> None:
    assert sorted(fce.__all__) == sorted(dir(fce)) and all(getattr(fce, name).__doc__ for name in fce.__all__)
    with pytest.raises(AttributeError, match="it has Diverged, EnergyModel, Glow"):
        fce.Glwo  # noqa: B018


@pytest.mark.parametrize(("make", "said"), [
    (lambda: fce.EnergyModel((3, 32, 32), layers="convv"), "layers: 'convv', but it is one of conv, fc"),
    (lambda: fce.Glow((3, 32, 32), coupling="afine"), "coupling: 'afine', but it is one of additive, affine"),
    (lambda: fce.Glow((3, 32, 32), input="logits"), "input: 'logits'"),
    (lambda: fce.Glow((3, 32, 32), levels=6), "flow.levels: 6 levels halve the side 32 to an odd number"),
    (lambda: fce.Settings(rule="ratoi"), "rule: 'ratoi'"),
    (lambda: fce.Settings(batch=0), "batch: 0, but it is 1 at least"),
    (lambda: fce.Settings(precision="fp16"), "precision: 'fp16'"),
    (lambda: fce.EnergyModel((1, 9, 9)), "shape: images of side 9"),
    (lambda: bounds(temperatures=0), "temperatures: 0, but it is 1 at least"),
    (lambda: bounds(leapfrog=0), "leapfrog: 0"),
    (lambda: bounds(level=1.0), "level: 1.0"),
    (lambda: bounds(chains=0), "chains: 0"),
])
def test_a_slip_is_refused_in_words(make, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        make()


def bounds(**settings: float) -> dict[str, float]:
    flow = fce.Glow((2,), levels=1, steps=1, width=4, layers="fc", input="identity")
    return fce.bound_log_z(fce.EnergyModel((2,), layers="fc", widths=(4,)), flow, **settings)


def test_a_tilted_ebm_plays_and_is_a_density_then() -> None:
    x = 0.1 * torch.randn(400, 3, 8, 8)
    flow, energy = fce.Glow((3, 8, 8), levels=2, steps=1, width=8), fce.Tilted((3, 8, 8), widths=(8, 8))
    fce.fit_glow(flow, x, steps=10, batch=50)
    rows = fce.play(flow, energy, x, fce.Settings(ebm_updates=10, batch=20, ebm_per_round=2, flow_lr=1e-4))
    assert len(rows) == 10 and rows[-1]["flow_updates"] >= 4
    assert energy.log_prob(x[:5]).isfinite().all()
    again = fce.play(flow, energy, x, fce.Settings(ebm_updates=4, batch=20, flow_lr=1e-4))
    assert len(again) == 4 and energy.base and torch.equal(energy.base.log_prob(x[:5]), flow.log_prob(x[:5]))
    with pytest.raises(ValueError, match="warm_start"):
        fce.play(flow, fce.Tilted((3, 8, 8), widths=(8, 8)), x, fce.Settings(warm_start=5))


def test_a_residual_ebm_keeps_the_flow_as_it_was_and_that_flow_plays_on() -> None:
    x = torch.randn(300, 2)
    flow = fce.Glow((2,), levels=1, steps=2, width=16, layers="fc", input="identity")
    fce.fit_glow(flow, x, steps=5)
    before, energy = flow.log_prob(x).detach(), fce.Residual(flow, (2,), layers="fc", widths=(16,))
    fce.play(flow, energy, x, fce.Settings(ebm_updates=10))
    assert not torch.equal(flow.log_prob(x), before) and energy.base and torch.equal(energy.base.log_prob(x), before)


def test_the_games_settings_are_those_of_2d_densities() -> None:
    joint = read_yaml(ROOT / "params.yaml")["defaults"]["toy"]["joint"]
    own = vars(fce.Settings())
    assert own.pop("ebm_updates") < joint["ebm_updates"] and own == {name: joint[name] for name in own}


def test_without_a_learning_flow_it_is_noise_contrastive_estimation() -> None:
    x = torch.randn(500, 2)
    flow = fce.Glow((2,), levels=1, steps=2, width=16, layers="fc", input="identity")
    fce.fit_glow(flow, x, steps=20)
    before = flow.log_prob(x).detach()
    fce.play(flow, fce.EnergyModel((2,), layers="fc", widths=(16,)), x, fce.Settings(ebm_updates=15, flow_lr=0.0))
    assert torch.equal(flow.log_prob(x), before)


def test_the_reference_is_made_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error::UserWarning", "-m", "reports.api", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stderr
    page = (tmp_path / "fce.html").read_text()
    assert all(f'id="{name}"' in page for name in fce.__all__)
