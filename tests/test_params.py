"""A wrong params.yaml is refused with the key's name; slices hold what their stages read, and change only with it."""

import json
from pathlib import Path

import pytest

from pipeline.catalogue import STAGES
from pipeline.params import PROFILES, ParamsError, load, merge, read, read_slice, resolved

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = (ROOT / "params.yaml").read_text()


def load_changed(tmp_path, old="", new=""):
    """The shipped params.yaml with its first `old` replaced by `new`."""
    assert old in SHIPPED
    (tmp_path / "params.yaml").write_text(SHIPPED.replace(old, new, 1))
    return load(tmp_path / "params.yaml")


def test_the_shipped_file_loads_and_holds_the_papers_sizes():
    params = load(ROOT / "params.yaml")
    assert {"ring", "pinwheel", "spiral", "svhn", "cifar10"} < set(params.experiments["full"])  # the paper's
    assert set(params.experiments["quick"]) == {"ring", "digits"}
    full = params.experiments["full"]
    assert [full[name].flow.steps for name in ("ring", "svhn", "cifar10")] == [10, 8, 32]
    assert [full[name].flow.levels for name in ("ring", "svhn", "cifar10")] == [1, 3, 3]
    assert full["svhn"].energy.widths == [64, 128, 256]
    assert list(full["ring"].arms) == [
        "joint", "joint-from-random", "value-only", "no-warm-start", "frozen-flow", "gaussian-noise"]
    assert list(full["moons"].arms) == ["joint", "joint-from-random", "value-only"]
    for name in ("svhn", "cifar10", "digits"):  # the paper's rule has no caps: ours must be high
        paper = full[name].arms["joint"]
        assert paper.rule == "accuracy" and min(paper.ebm_per_round, paper.flow_per_round) >= 50
    assert full["ring"].arms["value-only"].mle_weight == 0 == full["ring"].arms["no-warm-start"].warm_start
    assert full["svhn"].arms["joint"].flow_lr == 1e-5
    assert full["ring"].arms["joint"].batch == 200 and full["svhn"].arms["joint"].batch == 64


def test_later_layers_win_key_by_key(tmp_path):
    params = load_changed(tmp_path)
    full, quick = params.experiments["full"]["ring"], params.experiments["quick"]["ring"]
    assert quick.pretrain.model_dump() == full.pretrain.model_dump() | {"steps": quick.pretrain.steps}
    assert quick.pretrain.steps < full.pretrain.steps
    tilted, joint = (params.experiments["quick"]["digits"].arms[arm] for arm in ("tilted", "joint"))
    assert (tilted.energy, tilted.head_start, tilted.ema) == ("tilted", 50, joint.ema)
    assert tilted.alarms == joint.alarms and joint.energy == "plain"


MISTAKES = {  # name: old text, new text, what the message must say
    "unknown key": ("c_lr: 6.0e-3", "c_rl: 6.0e-3", r"\.ring\.arms\.joint\.c_rl: unknown key.*mean 'c_lr'\?"),
    "unknown profile": ("quick:", "quik:", r"unknown key 'quik'; did you mean 'quick'\?"),
    "unknown arm": ("gaussian-noise:", "gausian-noise:", r"arms: unknown key.*mean 'gaussian-noise'"),
    "unknown experiment": ("- ring\n  - dig", "- rign\n  - dig", r"quick names the experiment 'rign'.*mean 'ring'\?"),
    "unknown override": ("    digits:   ", "    digitz:   ", r"full names .* 'digitz'.*'digits'"),
    "unknown source": ("source: ring", "source: rong", r"\.ring\.data: .*'ring', 'pinwheel', 'spiral'"),
    "unknown choice": ("coupling: affine", "coupling: afine", r"\.flow\.coupling: .*'additive' or 'affine'"),
    "text for a rate": ("flow_lr: 1.0e-5", "flow_lr: '1e-5'", r"flow_lr: .*got '1e-5'.*without quotes"),
    "text for a count": (
        "source: svhn, validation: 0",
        "source: svhn, validation: '9'",
        r"experiments\.svhn\.data\.validation: .*without quotes",
    ),
    "zero": ("batch: 200", "batch: 0", r"\.pretrain\.batch: .*greater than 0"),
    "less than none": (
        "source: cifar10, validation: 0",
        "source: cifar10, validation: -1",
        r"experiments\.cifar10\.data\.validation: ",
    ),
    "no labels to choose by": ("probe: {validation: 5000}", "probe: {validation: 0}", r"\.svhn: .*set the other to 0"),
    "labels to choose by twice": ("probe: {labels: [50, 100, 200", "probe: {validation: 9, labels: [50, 100, 200",
                                  r"\.digits: .*choose by the labels of one"),
    "nothing to select by": ("      select: last\n      trajectory: {moments: 10",
                             "      select: validation\n      trajectory: {moments: 10",
                             r"\.svhn: .*select: validation needs a validation part"),
    "edges without convolutions": ("      edge: false ", "      edge: true ", r"flow: .*fc goes with edge: false"),
    "moments of points": ("trajectory: {moments: 0, images: 2}   #", "trajectory: {moments: 1, images: 2}   #",
                          "moments are of images; set both to 0"),
    "no moments of images": ("{moments: 10, images: 2500}   #", "{moments: 0, images: 2500}   #",
                             "moments must be 1 or more"),
    "a tilted start": ("        energy: tilted\n        warm_start: 0", "        energy: tilted\n        warm_start: 9",
                       "a tilted EBM starts as its flow; set it to 0"),
    "moved points": ("      augment: 0.0                      # of", "      augment: 0.1                      # of",
                     "points are not; set both to 0"),
    "moved by half": ("augment: 0.1  ", "augment: 0.5  ", r"pretrain\.augment: .*less than 0\.5"),
    "negative": ("flow_lr: 1.0e-5", "flow_lr: -1.0", r"joint\.flow_lr: .*greater than 0"),
    "a key twice": ("full:", "full: {}\nfull:", r"params\.yaml, line \d+: key 'full' is given twice"),
    "a missing key": ("      warmup: 50\n", "", r"experiments\.ring\.pretrain\.warmup: the key is missing"),
    "a missing list": ("  experiments:\n  - ring\n  - digits\n", "", r"quick\.experiments: the key is missing"),
    "what does not fit": ("      levels: 1\n", "      levels: 2\n", r"ring\.flow: .*fc goes with levels: 1"),
    "no YAML": ("full:", "\tfull:", r"params\.yaml is not valid YAML"),
    "a number for an arm": ("{noise: frozen-flow, warm_start: 500}", "5", r"experiments\.ring\.arms\.frozen-flow"),
    "a word for data": ("\nexperiments:\n", "\nexperiments:\n  own: {data: ring}\n", r"experiments\.own\.data"),
    "no data": ("\nexperiments:\n", "\nexperiments:\n  own: {}\n", r"experiments\.own\.data: the key is missing"),
    "a path for a name": ("\nexperiments:\n", "\nexperiments:\n  a/b: {}\n", r"experiments\.a/b: .*letters"),
    "a number for a name": ("\nexperiments:\n", "\nexperiments:\n  5: {}\n", r"experiments\.5: .*text, no number"),
    "a long name": ("\nexperiments:\n", f"\nexperiments:\n  {'a' * 65}: {{}}\n", "at most 64 letters"),
    "NaN": (" lr: 1.0e-3\n", " lr: .nan\n", r"pretrain\.lr: .*finite number"),
    "infinity": (" lr: 1.0e-3\n", " lr: .inf\n", r"pretrain\.lr: .*finite number"),
    "a huge width": ("width: 128", "width: 12800000", r"flow\.width: .*less than or equal to 16384"),
    "a huge number": ("width: 128", f"width: {10**40}", r"flow\.width: .*less than or equal to"),
    "a huge rate": (" lr: 1.0e-3\n", " lr: 1.0e+300\n", r"pretrain\.lr: .*less than or equal to"),
    "a seed twice": ("seeds: {toy: [0, 1], ", "seeds: {toy: [1, 1], ", r"quick\.seeds\.toy: 1 is given twice"),
    "a negative seed": ("seeds: {toy: [0, 1], ", "seeds: {toy: [-1], ", r"quick\.seeds\.toy\.0: .*or equal to 0"),
    "an experiment twice": ("- ring\n  - digits", "- ring\n  - ring", r"quick\.experiments: 'ring' is given twice"),
    "an image's measure on points": ("  moons:\n", "  moons:\n    fid: {}\n", r"\.moons\.fid: unknown key 'fid'"),
    "an unknown default": ("    energy: {layers: fc", "    enrgy: {layers: fc", r"defaults\.toy: unknown key 'enrgy'"),
    "convolutions on points": ("      layers: fc\n", "      layers: conv\n", "a 2D density needs fc in both"),
    "too many digits": ("test: 400", "test: 4000", r"experiments\.digits\.data: .*of 1797 digits"),
    "Inception for digits": ("features: classifier  ", "features: inception  ", "this data has 17; use classifier"),
    "a source as a key": ("  source: ring", "  ring: 1\n      source: ring", r"\.ring\.data\.ring: unknown key 'ring'"),
    "an experiment in itself": ("  ring:\n    data", "  ring:\n    ring: {}\n    data", r"\.ring\.ring: unknown key"),
    "a list for a key": ("full:", "? [a]\n: 1\nfull:", r"params\.yaml: unknown key"),
    "no date": ("warmup: 50", "warmup: 2020-13-45", r"not valid YAML: month must be in 1\.\.12"),
    "code": ("warmup: 50", "warmup: !!python/object/apply:os.getpid []", "could not determine a constructor"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_its_place_and_its_mending(tmp_path, name):
    old, new, says = MISTAKES[name]
    with pytest.raises(ParamsError, match=f"(?s){says}"):
        load_changed(tmp_path, old, new)


def test_what_every_profile_overrides_is_checked_too():
    raw = read(Path("params.yaml"))
    own, override = raw["experiments"]["digits"], {"joint": {"ebm_updates": 9}, "flow": {"steps": 1}}
    for profile in PROFILES:
        raw[profile]["overrides"]["digits"] = merge(raw[profile]["overrides"].get("digits", {}), override)
    with pytest.raises(ParamsError, match=r"experiments\.digits\.arms\.joint\.ebm_updates: .*'banana'"):
        resolved(merge(raw, {"experiments": {"digits": {"joint": {"ebm_updates": "banana"}}}}), "params.yaml")
    for each in raw["experiments"].values():
        each["flow"] = each.get("flow", {}) | {"steps": 1}
    assert "steps" in own["flow"]
    with pytest.raises(ParamsError, match=r"defaults\.images\.flow\.steps: .*'banana'"):
        resolved(merge(raw, {"defaults": {"images": {"flow": {"steps": "banana"}}}}), "params.yaml")


def test_a_missing_or_empty_file_is_refused_by_name(tmp_path):
    with pytest.raises(ParamsError, match="does not exist; run from the repository's root"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_text("")
    with pytest.raises(ParamsError, match=r"params\.yaml must be a mapping"):
        load(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(ParamsError, match=r"params\.yaml is not valid YAML: .*utf-8"):
        load(tmp_path / "params.yaml")
    with pytest.raises(ParamsError, match="can't be read: Is a directory"):
        load(tmp_path)


def test_parameters_are_frozen(tmp_path):
    params = load_changed(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        params.experiments["full"]["ring"].flow.steps = 3


def test_an_exponent_without_a_point_is_a_number(tmp_path):
    """YAML 1.2, as DVC reads the same file; to YAML 1.1 it is text."""
    assert load_changed(tmp_path, "flow_lr: 1.0e-5", "flow_lr: 1e-5") == load(ROOT / "params.yaml")


def all_slices(params):
    """{path: content} of every slice."""
    return {path.removeprefix("build/"): json.loads(text) for profile in params.profiles
            for name in params.experiments[profile] for path, text in params.slices(profile, name).items()}


def test_every_stage_and_arm_has_a_slice_with_its_own_sections(tmp_path):
    slices = all_slices(load_changed(tmp_path))
    assert set(slices["quick/digits/params/joint/tilted.json"]) == {"flow", "energy", "joint", "data"}
    assert set(slices["full/svhn/params/pretrain.json"]) == {"flow", "pretrain", "data"}
    assert set(slices["quick/digits/params/supervised.json"]) == {"supervised", "probe", "energy"}
    svhn, cifar = (slices[f"full/{name}/params/dcgan.json"]["dcgan"] for name in ("svhn", "cifar10"))
    assert (svhn["orig"]["updates"], cifar["orig"]["updates"]) == (185_000, 100_000)  # TTUR, Table 1
    assert "full/ring/params/dcgan.json" not in slices
    assert set(slices["full/ring/params/density.json"]) == {"density", "data"}
    assert "full/ring/params/fid.json" not in slices and "full/svhn/params/density.json" not in slices
    assert slices["full/cifar10/params/pretrain.json"]["flow"]["steps"] == 32


def test_a_slice_gives_its_stage_typed_frozen_sections_and_no_others(tmp_path):
    text = load_changed(tmp_path).slices("quick", "digits")["build/quick/digits/params/joint/tilted.json"]
    given = read_slice(text, "joint")
    assert given.joint.alarms.ratio_floor == 5.0 and given.data.source == "digits"
    assert given.model_dump() == json.loads(text) and "joint" in given and "fid" not in given
    with pytest.raises(AttributeError):
        _ = given.fid
    with pytest.raises(ValueError, match="frozen"):
        given.joint = None
    with pytest.raises(ValueError, match="frozen"):
        given.joint.flow_lr = 1.0
    with pytest.raises(ParamsError, match=r"the slice of joint: unknown key 'jiont'; did you mean 'joint'\?"):
        read_slice(text.replace('"joint":', '"jiont":'), "joint")


def test_slices_change_only_with_what_their_stages_read(tmp_path):
    before = all_slices(load_changed(tmp_path))

    def changed(old, new):
        after = all_slices(load_changed(tmp_path, old, new))
        assert after.keys() == before.keys()
        return {path for path in after if after[path] != before[path]}, after

    assert changed("full:", "# a comment\nfull:")[0] == set()
    assert changed("pretrain: {augment: 0.0}", "pretrain: {augment: 0.2}")[0] == {"full/svhn/params/pretrain.json"}
    moved, after = changed("joint: {augment: 0.0}", "joint: {augment: 0.0, ebm_lr: 2.0e-4}")
    arms = {"joint", "frozen-flow", "gaussian-noise", "mle-continued"}  # the tilted one has a rate of its own
    assert moved == {f"full/svhn/params/joint/{arm}.json" for arm in arms}
    assert after["full/svhn/params/joint/joint.json"]["joint"]["ebm_lr"] == 2e-4


def test_every_measure_knows_its_arms():
    params = load(ROOT / "params.yaml")
    measured = params.measured("full", "svhn")
    assert measured["fid"] == ("mle", "joint", "tilted", "mle-continued", "dcgan")  # of own flows
    ebms = ("joint", "tilted", "frozen-flow", "gaussian-noise")  # not the one that only looks on
    assert measured["log_z"] == ebms
    assert measured["bits_per_dim"] == ("mle", "joint", "tilted", "mle-continued")  # a DCGAN has no density
    assert measured["probe"] == ("random-init", *ebms, "dcgan")
    assert measured["supervised"] == ("supervised",)
    assert params.measured("full", "moons") == {
        "density": ("mle", "joint", "joint-from-random", "value-only")}


def test_a_profiles_override_moves_no_other_profile(tmp_path):
    params, changed = load_changed(tmp_path), load_changed(tmp_path, "{steps: 800}", "{steps: 900}")
    assert changed.experiments["quick"]["ring"].pretrain.steps == 900
    assert changed.experiments["full"] == params.experiments["full"]
    assert changed.experiments["quick"]["digits"] == params.experiments["quick"]["digits"]


def test_paths_of_runs_follow_the_catalogue():
    params = load(ROOT / "params.yaml")
    home = "build/full/svhn/"
    assert params.inputs("joint", "full", "svhn", 1, "tilted")["flow"] == home + "seed-1/pretrain.pt"
    assert set(params.inputs("joint", "full", "svhn", 1, "gaussian-noise")) == {"data"}
    assert params.inputs("fid", "full", "svhn", 0, "mle")["features"] == "build/downloads/inception.pth"
    assert params.inputs("fid", "full", "digits", 0, "mle")["features"] == "build/full/digits/classifier.pt"
    models = [params.inputs("probe", "full", "svhn", 0, arm).get("model") for arm in ("random-init", "dcgan", "joint")]
    assert models == [None, home + "seed-0/dcgan/dcgan.pt", home + "seed-0/joint/joint.pt"]
    assert params.inputs("log_z_control", "full", "svhn", 2, "planted")["planted"] == home + "seed-0/pretrain.pt"
    place = "build/full/ring/seed-0/mle/density"
    assert params.outputs("density", "full", "ring", 0, "mle") == [f"{place}.json", f"{place}.npz"]
    assert params.runs("data", "full", "svhn") == [(None, "")]
    assert len(params.runs("joint", "full", "ring")) == 30 and len(params.scores("full", "ring")) == 35
    assert not params.has("fid", "full", "ring") and not params.has("inception", "full", "svhn")
    assert set(STAGES) == {"data", "pretrain", "joint", "dcgan", "density", "classifier", "inception", "sample", "fid",
                           "bits_per_dim", "trajectory", "log_z", "log_z_control", "probe", "supervised"}


def test_a_place_that_belongs_to_no_run_needs_no_seed_0(tmp_path):
    """As the report asks for the road to a number that is missing."""
    params = load_changed(tmp_path, "images: [0]}     #", "images: [100, 101]}     #")
    assert params.seeds("quick", "digits") == [100, 101]
    assert params.inputs("log_z_control", "quick", "digits", None, "planted")["planted"] == params.inputs(
        "log_z_control", "quick", "digits", 100, "planted")["planted"]


@pytest.mark.parametrize(("features", "measured"), [("classifier", set()), ("inception", {"fid", "trajectory"})])
def test_images_without_labels_have_the_stages_that_need_none(features: str, measured: set[str]) -> None:
    raw = read(Path("params.yaml"))
    raw["full"]["experiments"].append("faces")
    raw["experiments"]["faces"] = {
        "data": {"source": "folder", "file": "faces", "side": 64, "channels": 3, "labels": False, "validation": 9,
                 "split_seed": 0},
        "fid": {"features": features}}
    params = resolved(raw, "params.yaml")
    assert set(params.measured("full", "faces")) == {"bits_per_dim", "log_z", "log_z_control"} | measured
    assert not params.has("classifier", "full", "faces")
    assert "build/full/faces/seed-0/joint/samples.npz" in params.scores("full", "faces")
