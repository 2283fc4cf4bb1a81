"""The benchmarks measure what they say: the work is counted as PyTorch counts it, ratios and exponents are right."""

import json
import math
import subprocess
import sys

import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import glow, joint, models, pipeline, plot, precision, timing

TINY = models.Sizes(side=8, levels=1, steps=4, width=8)


def test_flops_of_the_papers_glow():
    assert models.flops(models.Sizes()) == pytest.approx(1.808e9, rel=1e-3)
    assert models.flops(models.Sizes(coupling="affine")) == pytest.approx(2.006e9, rel=1e-3)


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("name", ["ours", "normflows", "nflows"])
def test_flops_are_those_that_torch_counts(name, coupling):
    """Whether a convolution is done as one or as a matrix product. The peers have no priors, and nflows two products
    for each 1x1 matrix."""
    if name != "ours":
        pytest.importorskip(name)
    sizes = models.Sizes(side=16, levels=2, steps=2, width=64, coupling=coupling)
    x = models.images(32, sizes.side, "cpu")
    model = models.make_model(name, sizes, x)
    with FlopCounterMode(display=False) as forward:
        loss = -model.log_prob(x).mean()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    expected = len(x) * models.flops(sizes)
    assert forward.get_total_flops() == pytest.approx(expected, rel=0.02)
    assert backward.get_total_flops() == pytest.approx(2 * expected, rel=0.02)


@pytest.mark.parametrize("coupling", ["additive", "affine"])
@pytest.mark.parametrize("name", ["normflows", "nflows"])
def test_peers_are_glows(name, coupling):
    """They invert themselves, and give a log q for each image."""
    pytest.importorskip(name)
    sizes = models.Sizes(side=4, levels=1, steps=2, width=4, coupling=coupling)
    x = models.images(4, sizes.side, "cpu")
    model = models.make_model(name, sizes, x)
    assert models.reconstruction_error(name, model, x) < 1e-5
    assert model.sample(3).shape == (3, 3, 4, 4)
    assert model.log_prob(x).shape == (4,)


def test_ratio_and_interval():
    low, middle, high = timing.ratio([2.0, 4.0, 8.0], [1.0, 1.0, 1.0])
    assert middle == pytest.approx(4)
    assert [high / middle, middle / low] == pytest.approx([math.exp(4.3027 * math.log(2) / math.sqrt(3))] * 2, rel=1e-4)
    assert timing.ratio([3.0, 6.0], [1.0, 2.0]) == pytest.approx((3, 3, 3))
    assert glow.exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


def test_rounds_are_interleaved(monkeypatch):
    """Each step is measured once a round, with each other one before and behind it."""
    monkeypatch.setattr(timing, "LEAST", 0.0)
    calls = []
    times = timing.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, 6)
    assert [len(values) for values in times.values()] == [6, 6, 6]
    measured = calls[7::2]  # behind the two first calls of each, an untimed call goes before each timed one
    assert measured == calls[6::2] and len({"".join(measured[start : start + 3]) for start in range(0, 18, 3)}) == 6
    assert {"".join(timing.order(["a", "b"], number)) for number in (0, 1)} == {"ab", "ba"}


def test_the_whole_benchmark(tmp_path, monkeypatch):
    """Of ours alone: a checkout without the peers can run it, too."""
    monkeypatch.setattr(glow, "installed", lambda: [])
    monkeypatch.setattr(timing, "LEAST", 0.0)
    monkeypatch.setitem(glow.GEMM, "cpu", 64)
    out = tmp_path / "results" / "glow.json"
    sizes = [f"--{name}={getattr(TINY, name)}" for name in ("side", "levels", "steps", "width")]
    glow.main([*sizes, "--batch=4", "--rounds=2", f"--out={out}", "--device=cpu"])
    content = json.loads(out.read_text())
    assert {line["use"] for line in content["results"]} == set(plot.USES)
    assert all(line["images_per_second"] > 0 and line["utilisation"] > 0 for line in content["results"])
    assert content["models"]["ours"]["reconstruction_error"] < 1e-4
    assert content["scaling"].keys() == plot.SWEEPS.keys()
    plot.draw(content, out.with_suffix(""))
    assert out.with_suffix(".png").stat().st_size > 10_000


def test_the_joint_benchmark(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LEAST", 0.0)
    out = tmp_path / "joint.json"
    joint.main(["--steps=2", "--deep=2", "--width=8", "--side=8", "--batch=4", "--large=4",
                "--rounds=2", f"--out={out}", "--device=cpu"])
    content = json.loads(out.read_text())
    assert content["iteration"]["speedup"] > 0 and content["memory"]["peak_mib"] > 0


def test_the_precision_benchmark(tmp_path):
    out = tmp_path / "precision.json"
    precision.main(["--steps=2", "--width=8", "--side=8", "--batch=4", "--training=9", f"--out={out}", "--device=cpu"])
    content = json.loads(out.read_text())
    assert content["bf16"]["max"] > content["tf32"]["max"] > 0


def test_runs_side_by_side_in_one_process_compute_once():
    def record(pid, start, end):
        return [{"pid": pid, "time": start, "name": "a"}, {"time": end}]

    found = pipeline.computing([record(1, 1000, 5000), record(1, 2000, 6000), record(2, 3000, 4000)])
    assert sorted(found.values()) == [1.0, 5.0]


def test_a_command_that_costs_a_quarter_more_than_published_is_an_error():
    """In units of the reference computation: a machine that is slower for both has grown in nothing."""
    published = json.loads(pipeline.PUBLISHED.read_text())["commands"]
    assert set(published) == set(pipeline.COMMANDS) and not pipeline.grown(published, published)
    slower = {name: cost | {"cpu_minutes": 9 * cost["cpu_minutes"]} for name, cost in published.items()}
    assert not pipeline.grown(slower, published)
    worse = published | {"quick": {"references": 1.26 * published["quick"]["references"]}}
    (line,) = pipeline.grown(worse, published)
    assert line.startswith("quick: ") and "1.26 times what it was" in line
    assert not pipeline.grown(worse, {})  # nothing to set it beside


def test_the_cost_of_a_command_is_that_of_all_it_starts(tmp_path):
    """Also of what its children started; a command that fails is an error."""
    burn = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}], check=True)"
    assert 0.3 <= pipeline.cpu_seconds([sys.executable, "-c", nested], tmp_path) < 1.5
    with pytest.raises(subprocess.CalledProcessError):
        pipeline.cpu_seconds([sys.executable, "-c", "raise SystemExit(1)"], tmp_path)
