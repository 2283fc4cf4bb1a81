"""Where a value of params.yaml comes from, what a change changes, and that DVC keeps the file's style."""

import copy
from pathlib import Path

import pytest

from pipeline.explain import changed_in_vain, explain, hidden
from pipeline.mistakes import ParamsError
from pipeline.params import load, read

ROOT = Path(__file__).resolve().parent.parent
RAW = read(ROOT / "params.yaml")


def test_params_yaml_is_in_the_style_of_dvcs_writer(tmp_path):
    """So that `dvc exp run -S` changes the lines it sets, and no other."""
    from dvc.utils.hydra import apply_overrides  # takes a second to import

    path = tmp_path / "params.yaml"
    path.write_text((ROOT / "params.yaml").read_text())
    apply_overrides(path, [f"quick.together={str(RAW['quick']['together']).lower()}"])
    assert path.read_text() == (ROOT / "params.yaml").read_text()


def test_a_value_is_explained_by_every_place_that_sets_it():
    said = explain(RAW, "experiments.digits.joint.ebm_updates").splitlines()
    full = said[: said.index("quick, digits.joint.ebm_updates:")]
    layers = ("defaults.images", "experiments.digits", "full.overrides.digits")
    assert [line.split()[0] for line in full[1:4]] == [f"{layer}.joint.ebm_updates" for layer in layers]
    assert "(in force)" in full[3]
    said = explain(RAW, "experiments.digits.joint.flow_lr").splitlines()
    assert "(in force, but for tilted, mle-continued, residual)" in said[1] and "0.0001   (of mle-continued)" in said[3]
    assert load(ROOT / "params.yaml").experiments["full"]["digits"].arms["mle-continued"].flow_lr == 1e-4
    whole = explain(RAW, "experiments.digits.joint").splitlines()  # each of its values
    assert all(line in whole for line in said) and "full, digits.joint.batch:" in whole
    said = explain(RAW, "experiments.cifar10.arms.joint.flow_lr")
    assert said.startswith("full, cifar10.arms.joint.flow_lr:\n  defaults.images.joint.flow_lr") and "in force" in said
    for key in ("digit.joint.lr", "digits.joint.no_such_key", "nonsense", "defaults.images"):
        with pytest.raises(ParamsError):
            explain(RAW, key)


def test_of_a_commit_with_a_broken_file_nothing_is_said(monkeypatch):
    for text in ("a: [1", "a: 1\na: 2", "- 1"):
        monkeypatch.setattr("pipeline.explain.git", lambda *_, text=text: text)
        assert changed_in_vain(ROOT / "params.yaml") == []


@pytest.mark.parametrize(("place", "over"), [
    (("experiments", "digits", "joint", "ebm_updates"), "full.overrides.digits.joint.ebm_updates, quick.overrides."),
    (("defaults", "toy", "joint", "warm_start"), ""),  # other arms have none of their own
    (("quick", "overrides", "digits", "joint", "ebm_updates"), ""),
    (("quick", "overrides", "digits", "joint", "head_start"), ""),  # new, and in force for `joint`
])
def test_a_change_that_changes_nothing_is_told(place, over):
    changed = copy.deepcopy(RAW)
    at = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = 7
    said = hidden(changed, RAW)
    assert [over in line and ".".join(place) in line for line in said] == [True] * bool(over)
