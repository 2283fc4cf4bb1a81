"""The house: who may import whom, one list of each thing, what an install brings, and what a stage's code is."""

import ast
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from tiny import ROOT, make_project

from pipeline import catalogue, command
from pipeline.catalogue import ARMS, COMMANDS, SCORES, STAGES
from pipeline.sources import sources

ROOMS = ("pipeline", "fce", "eval", "reports")
CODE = [path.relative_to(ROOT).as_posix() for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
LIBRARY = [path for path in CODE if path.startswith("fce/") and not path.startswith(("fce/stages", "fce/__main__"))]


def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def walk(node: ast.AST, inside: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node that runs, and whether it stands in a function."""
    yield node, inside
    for child in ast.iter_child_nodes(node):
        if not only_for_types(child):
            yield from walk(child, inside or isinstance(node, ast.FunctionDef | ast.Lambda))


def imports(path: str) -> Iterator[tuple[str, ast.stmt, bool]]:
    """(module, statement, whether it stands in a function) of every import that runs."""
    for node, inside in walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "pipeline.sources does not follow relative imports"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if file_of(whole) else str(node.module), node, inside


def file_of(module: str) -> str | None:
    path = module.replace(".", "/") + ".py"
    return path if path in CODE else None


@pytest.mark.parametrize("path", CODE)
def test_import_laws(path: str) -> None:
    room, names = path.split("/")[0], {name for name, _, _ in imports(path)}
    packages = {name.split(".")[0] for name in names}
    assert not packages & set(ROOMS[ROOMS.index(room) + 1 :])
    assert "mlflow" not in packages or path == "pipeline/mirror.py"
    assert "ruamel" not in packages or path == "pipeline/params.py"
    assert "pipeline" not in packages or path not in LIBRARY, "an installed library has no pipeline"
    assert not any(name.startswith("fce.stages") for name in names) or room == "fce"


def test_no_import_runs_in_a_circle() -> None:
    arrows = {path: {file for name, _, _ in imports(path) if (file := file_of(name))} for path in CODE}
    assert len(list(TopologicalSorter(arrows).static_order())) == len(CODE)


@pytest.mark.parametrize("path", CODE)
def test_an_import_in_a_function_has_its_reason(path: str) -> None:
    lines = (ROOT / path).read_text().splitlines()
    for name, node, inside in imports(path):
        assert not inside or "  # " in lines[node.lineno - 1], f"{path}:{node.lineno}: why is {name} imported late?"


@pytest.mark.parametrize("path", [path for path in CODE if not path.startswith("reports/")])
def test_nothing_prints(path: str) -> None:
    calls = (node.func for node in ast.walk(parse(path)) if isinstance(node, ast.Call))
    assert "print" not in {function.id for function in calls if isinstance(function, ast.Name)}


@pytest.mark.parametrize("path", [*CODE, "Snakefile"])
def test_files_and_functions_stay_readable(path: str) -> None:
    assert len((ROOT / path).read_text().splitlines()) <= 300
    if path.endswith(".py"):
        for node in ast.walk(parse(path)):
            assert not isinstance(node, ast.FunctionDef) or node.end_lineno - node.lineno < 60, node.name


# One list of each


def test_every_stage_is_a_module_that_runs_and_makes_something_of_its_own() -> None:
    for name, stage in STAGES.items():
        tree = parse(stage.file)
        functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        (argument,) = functions["run"].args.args
        assert argument.arg == ("jobs" if stage.together else "job"), name
        assert Path(stage.file).stem == name and len(catalogue.first_line(stage.file)) < 130
    outputs = [stage.out for stage in STAGES.values()]
    assert len(set(outputs)) == len(outputs)
    made = {*outputs, catalogue.MODEL, catalogue.FEATURES, catalogue.NEXT_FLOW}
    assert {place for stage in STAGES.values() for place in stage.needs.values()} <= made
    assert {arm.model for arm in ARMS.values()} <= {*outputs, ""}
    assert all(each in {*ARMS, "arms", "flows", "ebms"} for stage in STAGES.values() for each in stage.of)
    kinds = {kind for stage in STAGES.values() for kinds in stage.takes.values() for kind in kinds}
    assert kinds <= set(STAGES) and all((ROOT / file).exists() for file in COMMANDS.values())


def test_every_score_has_its_words_and_an_unknown_one_is_an_error() -> None:
    for name, score in SCORES.items():
        assert score.heading and score.unit and score.better in ("", "lower", "higher"), name
        assert not score.column or (score.column in SCORES and score.row and score.unit == SCORES[score.column].unit)
    assert catalogue.score("mode_mass_3") is SCORES["mode_mass_*"]
    with pytest.raises(ValueError, match=r"'kll' is in no list; add it to \[scores\] in pipeline/catalogue.toml"):
        catalogue.score("kll")
    looks = [(arm.colour, tuple(arm.dash)) for name, arm in ARMS.items() if name != "planted"]
    assert len(set(looks)) == len(looks)  # told apart in print


def test_the_command_lists_stages_and_what_else_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    said = capsys.readouterr().out
    for name in (*STAGES, *COMMANDS):
        assert re.search(rf"^  {name} +\S.*\S$", said, re.MULTILINE)
    assert command.main(["pretain"]) == 2
    assert capsys.readouterr().err == "error: there is no 'pretain'; did you mean 'pretrain'?; `fce --help` lists all\n"


# What a stage computes with


def test_sources_are_what_a_stage_computes_with() -> None:
    found = sources("fce/stages/pretrain.py")
    assert {"fce/stages/pretrain.py", "fce/flow/glow.py", "fce/flow/layers.py", "fce/data/toy.py"} <= set(found)
    assert found == sorted(found) and all((ROOT / path).exists() for path in found)
    assert [path for path in found if path.startswith("pipeline/")] == ["pipeline/numerics.py"]
    assert not {"fce/game.py", "fce/stages/inputs.py", "fce/stages/joint.py"} & set(found)
    assert "fce/game.py" in sources("fce/stages/joint.py")


@pytest.mark.parametrize("name", [name for name, stage in STAGES.items() if stage.file.startswith("eval/")])
def test_an_edit_of_the_training_loops_measures_nothing_again(name: str) -> None:
    loops = {"fce/game.py", "fce/supply.py", "fce/watch.py"}
    found = set(sources(STAGES[name].file))
    assert not found & loops and not any(path.startswith("fce/stages/") for path in found)


# What an install brings


def test_the_lock_names_no_index_and_is_for_a_mac_too() -> None:
    lock = (ROOT / "envs" / "requirements.lock").read_text()
    assert "://" not in lock and len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE)) > 20
    assert "--hash=sha256:" in lock
    of_cuda = re.findall(r"^(?:nvidia|cuda|triton).*", lock, re.MULTILINE)
    assert of_cuda and all("sys_platform == 'linux'" in row for row in of_cuda)  # a Mac can install the rest


def test_a_release_has_one_version() -> None:
    places = {"pyproject.toml": r'^version = "(\S+)"', "CITATION.cff": r"^version: (\S+)", "CHANGELOG.md": r"^## (\S+)"}
    said = {name: re.findall(pattern, (ROOT / name).read_text("utf-8"), re.MULTILINE)[0]
            for name, pattern in places.items()}
    assert len(set(said.values())) == 1, said


LIBRARY_ALONE = """
import sys, types, torch
from fce import data, flow, game, models, supply, watch
assert not [name for name in sys.modules if name.split(".")[0] in ("pipeline", "eval", "reports", "mlflow", "pydantic")]
from fce.energy import make_energy
from fce.flow.glow import make_glow
sizes = {"levels": 1, "steps": 1, "width": 4, "layers": "conv", "coupling": "affine", "scale_floor": 0.1}
glow = make_glow((1, 8, 8), input="logit", **sizes)
glow.initialize(torch.rand(16, 1, 8, 8) - 0.5)
assert glow.log_prob(glow.sample(3)).shape == make_energy((1, 8, 8), layers="conv", widths=[4, 4], slope=0.2)(
    torch.zeros(3, 1, 8, 8)).shape
"""


def test_a_wheel_is_the_library_alone(tmp_path: Path) -> None:
    """It puts nothing but `fce` at the top of an environment, and the library needs nothing of the suite."""
    project = make_project(tmp_path / "project")
    before = sorted(project.rglob("*"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path), "."]
    subprocess.run(build, cwd=project, check=True, capture_output=True)
    assert not (project / "build").exists(), "that folder is for results"
    made = {path.relative_to(project).parts[0] for path in {*project.rglob("*")} - {*before}}
    assert made <= {".wheel", "fce.egg-info"}  # which git ignores
    (wheel,) = tmp_path.glob("fce-*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        file.extractall(tmp_path / "installed")
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"fce"}
    assert not any(name.startswith("fce/stages") for name in names)
    alone = {"cwd": tmp_path, "env": {"PYTHONPATH": str(tmp_path / "installed")}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-P", "-c", LIBRARY_ALONE], **alone)
    assert done.returncode == 0, done.stderr
    outside = subprocess.run([sys.executable, "-P", "-m", "fce", "--help"], **alone)
    assert outside.returncode == 2 and "run from a checkout" in outside.stderr
    inside = subprocess.run([sys.executable, "-P", "-m", "fce", "--help"], **alone | {"cwd": project / "tests"})
    assert inside.returncode == 0 and "pretrain" in inside.stdout
