"""`make gpu` at tiny size, on a CPU: every part of it, its time limits, and that the same command goes on."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import run_stage

from benchmarks import gpu, gpu_crew, gpu_page, gpu_steps, gpu_training
from benchmarks.gpu_steps import Case
from pipeline.errors import UserError

CASES = [Case("matrix"), *(Case(what, 1, 4, "eager", 8, 8) for what in ("train", "joint"))]
TINY = ["flow.levels=1", "flow.steps=1", "flow.width=8", "energy.widths=[4, 8, 8]", "probe.validation=100",
        "pretrain.batch=4", "pretrain.steps=20", "joint.batch=4", "joint.ebm_updates=6", "joint.warm_start=4",
        "pretrain.trajectory.images=40", "joint.trajectory.images=40", "joint.trajectory.moments=2",
        "classifier.epochs=1", "classifier.width=4", "classifier.features=8", "sample.count=200",
        "fid.infinity.smallest=0.2", "bits_per_dim.draws=2", "log_z.samples=300", "log_z.chains=4",
        "log_z.temperatures=4", "log_z.leapfrog=2"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own, where FCE_DATA has a little of what stands for CIFAR-10."""
    random, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 400), ("test", 100)):
        arrays[f"{part}_labels"] = np.arange(count) % 10
        noise = random.integers(0, 100, (count, 8, 8, 3)) + 15 * arrays[f"{part}_labels"][:, None, None, None]
        arrays[f"{part}_images"] = noise.astype(np.uint8)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FCE_DATA", str(tmp_path))
    monkeypatch.setitem(gpu_steps.GEMM, "cpu", 64)
    return tmp_path


def row(what, batch=4, mode="eager", seconds=0.01, warm=1.0):
    case = Case(what, 1, batch, mode, 8, 8)
    return {"name": case.name, "case": vars(case), "warm_up_seconds": warm, "seconds": seconds, "ebm_seconds": seconds}


def test_step_times_have_a_row_for_each_case_and_a_fault_costs_its_own_alone(place):
    broken = Case("train", 1, -4, "eager", 8, 8)  # a batch of less than nothing
    (rows,) = gpu_crew.measure([[*CASES, broken]], time.monotonic() + 300, "cpu")
    by_name = {each["name"]: each for each in rows}
    assert by_name["matrix"]["fp32"] > 0
    for what in ("train", "joint"):
        found = by_name[f"{what}, K=1, batch 4, eager"]
        assert 0 < found["lowest"] <= found["seconds"] <= found["highest"] and found["flops_per_second"] > 0
    assert by_name["joint, K=1, batch 4, eager"]["ebm_seconds"] > 0
    assert "seconds" not in by_name[broken.name] and by_name[broken.name]["error"]


def test_what_is_not_warm_in_time_says_so(place):
    started = time.monotonic()
    ((late,),) = gpu_crew.measure([CASES[1:2]], started, "cpu")
    assert "no time was left" in late["error"] and time.monotonic() - started < 30


class Inside:
    """A stage in this process, which has torch already; it stands for a Popen."""

    def __init__(self, words):
        self.returncode = run_stage(words[3], *words[4:])

    def wait(self, timeout=None):
        return self.returncode


def test_the_whole_run_and_the_same_command_goes_on(place, monkeypatch):
    """The first has no time for joint training, and measures the flow; the second does what is left."""
    started = []

    def start(stages, stage, arm, compiled):
        started.append((stage, arm))
        return Inside(gpu_training.command(stages.params, stage, arm, compiled))

    monkeypatch.setattr(gpu_training.Stages, "start", start)
    monkeypatch.setattr(gpu_steps, "waves", list)
    out = place / "out"
    out.mkdir()
    (out / "results.json").write_text(json.dumps({"steps": [row("train"), row("joint")], "tests": {"tests": []}}))
    with monkeypatch.context() as hurried:
        hurried.setattr(gpu_training, "SPARE", 1e6)
        assert gpu.main(["--minutes=10", f"--out={out}", "--set", *TINY]) == 0
    assert ("joint", "tilted") not in started and ("bits_per_dim", "mle") in started
    assert gpu.main(["--minutes=10", f"--out={out}", "--set", *TINY]) == 0
    assert len(started) == len(set(started)) == 19
    training = json.loads((out / "results.json").read_text())["training"]
    assert [each["ended"] for each in training].count("well") == 19
    files = {path.name: path.stat().st_size for path in out.iterdir()}
    assert {"results.json", "plan.json", "index.html", "steps.csv", "scores.csv", "pretrain.csv", "joint.csv",
            "tilted.csv", "curves.png", "samples.png", "log.txt"} == files.keys() and max(files.values()) < 2**24
    scores = (out / "scores.csv").read_text()
    assert all(name in scores for name in ("bits_per_dim", "frechet_distance", "log_z_certificate"))
    assert "Training on CIFAR-10, 0.8% of the images" in (out / "index.html").read_text()


def test_a_stage_whose_time_is_over_keeps_its_state(place):
    changes = gpu_training.merge(gpu_training.OVERRIDES, *map(gpu.setting, TINY),
                                 {"pretrain": {"steps": 10**6, "validate_every": 1}})
    params = gpu_training.make_params(changes)
    for path, text in params.slices("gpu", "cifar10").items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
    stages = gpu_training.Stages(params, time.monotonic())
    words = gpu_training.command(params, "data")
    assert Inside(words).returncode == 0
    process, record = stages.start("pretrain", "", "no"), gpu_training.HOME / "seed-0/pretrain.run.jsonl"
    while process.poll() is None and not (record.exists() and "metrics" in record.read_text()):
        time.sleep(0.1)
    assert gpu_training.finish(process, 0.0) == 143
    assert "its state is kept" in gpu_training.last_line(gpu_training.HOME / "seed-0/pretrain.log")
    assert list(gpu_training.HOME.glob("seed-0/.resume/*/*/*.pt"))
    frame = gpu_page.curve(record)
    assert list(frame["step"]) == list(range(1, len(frame) + 1))


def test_a_plan_is_made_of_the_time(place):
    asked = []

    def measured(what, steps, batch, share):
        asked.append((what, steps, batch))
        return {"fit": int(share / 0.01), "compile": "no"}

    plan = gpu_training.make_plan(450.0, {"flow": {"steps": 8}}, measured)
    pretrain, joint = plan["changes"]["pretrain"], plan["changes"]["joint"]
    assert asked == [("train", 8, 64), ("joint", 8, 64)]
    assert pretrain["steps"] == 19_000 and pretrain["warmup"] == 950 and plan["data"].startswith("CIFAR-10, 0.8%")
    assert joint["warm_start"] + joint["ebm_updates"] == 4750
    assert gpu_training.make_plan(1e9, {}, measured)["changes"]["pretrain"]["steps"] == 100_000


def test_hours_and_the_quickest_mode(place):
    results = gpu.Results(place)
    times = gpu.Times(results, time.monotonic(), "cpu")
    for steps in (8, 32):
        for what, seconds in (("train", 0.01), ("joint", 0.02)):
            case = Case(what, steps, 64, "eager")
            times.rows[case.name] = {"name": case.name, "case": vars(case), "warm_up_seconds": 1.0, "seconds": seconds,
                                     "ebm_seconds": seconds / 2}
    case = Case("train", 8, 64, "graphs")
    times.rows[case.name] = {"name": case.name, "case": vars(case), "warm_up_seconds": 50.0, "seconds": 0.001}
    assert times.best("train", 8, 64, 40.0)["compile"] == "no" and times.best("train", 8, 64, 400.0)["fit"] == 350_000
    hours = times.hours()
    assert hours["svhn"]["pretrain"] == pytest.approx(100_000 * 0.001 / 3600)
    assert hours["cifar10"]["joint"] == pytest.approx((50_000 * 0.02 + 2000 * 0.01) / 3600)
    assert hours["cifar10"]["frozen-flow"] == pytest.approx(52_000 * 0.01 / 3600)
    assert hours["cifar10"]["mle-continued"] == pytest.approx((52_000 * 0.01 + 5 * 50_000 * 0.01) / 3600)


def test_settings_are_read_and_a_plan_of_others_is_refused(place):
    assert gpu.setting("a.b=[1]") == {"a": {"b": [1]}} and gpu.setting("a.b=c") == {"a": {"b": "c"}}
    (place / "plan.json").write_text(json.dumps({"given": {"flow": {"steps": 2}}}))
    with pytest.raises(UserError, match="was made with"):
        gpu_training.train(place, time.monotonic(), {}, lambda *_: {})
