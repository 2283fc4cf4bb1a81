# The DAG, and the only stage commands. `snakemake --cores 8` is the full profile, `snakemake --cores 2 quick` the
# quick one. A job depends on files only: its input data, its slice of params.yaml and the code it computes with;
# so `dvc repro`, which calls this file, and `snakemake` never disagree on what is stale.
import os
import shutil
import sys
from pathlib import Path

from fce.params import ParamsError, load
from fce.sources import sources

try:
    PARAMS = load("params.yaml")
except ParamsError as error:
    raise WorkflowError(f"params.yaml: {error}")
PARAMS.write_slices(Path("build"))

RUN = "build/{profile}/{experiment}/seed-{seed}/"
SLICE = "build/{profile}/{experiment}/params/"
GPU = int(shutil.which("nvidia-smi") is not None)  # a GPU is a resource only where there is one
SHARED = int(os.environ.get("FCE_GPUS", "1"))  # how many GPUs one training of images takes
FIRST = 10  # what most others wait for; measures fill the gaps
TRAIN = "python -m" if SHARED == 1 else f"torchrun --standalone --nproc-per-node {SHARED} -m"


wildcard_constraints:
    profile="full|quick",
    experiment="[A-Za-z0-9_-]+",
    seed=r"\d+",
    arm="[a-z-]+",


def of_kind(profile, kind):
    return getattr(PARAMS.profiles[profile], kind)


def scores(profile, kind):
    """Every score file of a profile's 2D densities, or of its images."""
    seeds = getattr(PARAMS.profiles[profile].seeds, kind)
    return [path for experiment in of_kind(profile, kind)
            for measure, arms in PARAMS.measured(profile, experiment).items()
            for path in expand(RUN + "{arm}/{measure}.json", profile=profile, experiment=experiment, measure=measure,
                               seed=seeds, arm=arms)]


def by_arms(profile):
    """The 2D experiments of a profile that run the same arms: [(the arms, a pattern of the experiments)]."""
    groups = {}
    for experiment in of_kind(profile, "toy"):
        groups.setdefault(PARAMS.arms(profile, experiment), []).append(experiment)
    return [(arms, "|".join(experiments)) for arms, experiments in groups.items()]


def names(kind):
    """A pattern of the experiments of one kind, in any profile."""
    return "|".join(dict.fromkeys(name for profile in PARAMS.profiles for name in of_kind(profile, kind))) or "none"


def model(wildcards):
    """The checkpoint an arm's measures read; there is none for `random-init`."""
    special = {"mle": RUN + "pretrain.pt", "dcgan": RUN + "dcgan/dcgan.pt", "random-init": []}
    return special.get(wildcards.arm, RUN + "{arm}/joint.pt")


def setting(wildcards, *keys):
    """A parameter of the wildcards' experiment."""
    value = PARAMS.experiments[wildcards.profile][wildcards.experiment]
    for key in keys:
        value = value[key] if isinstance(value, dict) else getattr(value, key)
    return value


def each(path):
    """A path in which {seed} and {arm} stay as they are: the stage puts in each of its own."""
    return lambda wildcards: path.replace("{experiment}", wildcards.experiment)


def needs_flow(wildcards):
    joint = setting(wildcards, "arms", wildcards.arm)
    return [] if joint.start == "random" or joint.noise == "gaussian" else RUN + "pretrain.pt"


def features(wildcards):
    """What a Fréchet distance looks through."""
    if setting(wildcards, "fid", "features") == "inception":
        return "build/downloads/weights.pth"
    return "build/{profile}/{experiment}/classifier.pt"


def is_images(wildcards):
    return wildcards.experiment in of_kind(wildcards.profile, "images")


def gpu(wildcards):
    return GPU * is_images(wildcards)


def threads(wildcards):
    """On a CPU, one core for small jobs, four for images of the paper's size."""
    return 4 if is_images(wildcards) and setting(wildcards, "data", "source") != "digits" and not GPU else 1


rule full:
    input:
        "build/report/full/index.html",


rule quick:
    input:
        "build/report/quick/index.html",


# Figures 1 and 2 alone, which need no GPU; the report names what is missing.
rule densities:
    input:
        scores("full", "toy"),
    shell:
        "python -m reports.build --profile full --build build --out build/report/full/index.html"


rule data:
    input:
        code=sources("fce/data/data.py"),
        params=SLICE + "data.json",
    output:
        "build/{profile}/{experiment}/data.npz",
    log:
        "build/{profile}/{experiment}/data.log",
    shell:
        "python -m fce.data.data --params {input.params} --out {output} > {log} 2>&1"


rule pretrain:
    input:
        code=sources("fce/pretrain.py"),
        params=SLICE + "pretrain.json",
        data="build/{profile}/{experiment}/data.npz",
    output:
        model=RUN + "pretrain.pt",
        curve=RUN + "pretrain.csv",
    log:
        RUN + "pretrain.log",
    benchmark:
        RUN + "pretrain.benchmark.tsv"
    wildcard_constraints:
        experiment=names("images"),
    priority: FIRST
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "{TRAIN} fce.pretrain --params {input.params} --data {input.data} --seed {wildcards.seed}"
        " --threads {threads} --out {output.model} > {log} 2>&1"


rule joint:
    input:
        code=sources("fce/joint.py"),
        params=SLICE + "joint/{arm}.json",
        data="build/{profile}/{experiment}/data.npz",
        flow=needs_flow,
    output:
        model=RUN + "{arm}/joint.pt",
        curve=RUN + "{arm}/joint.csv",
    log:
        RUN + "{arm}/joint.log",
    benchmark:
        RUN + "{arm}/joint.benchmark.tsv"
    wildcard_constraints:
        experiment=names("images"),
    priority: FIRST
    threads: threads
    resources:
        gpu=gpu,
    params:
        flow=lambda wildcards, input: f"--flow {input.flow}" if input.flow else "",
    shell:
        "{TRAIN} fce.joint --params {input.params} --data {input.data} {params.flow} --seed {wildcards.seed}"
        " --threads {threads} --out {output.model} > {log} 2>&1"


# A 2D density trains its seeds and arms side by side, in one process. Outputs can't depend on wildcards in number, and
# the profiles' seeds and the densities' arms differ: so each profile has rules of its own for each set of arms.
for profile, settings in PARAMS.profiles.items():
    TOY = f"build/{profile}/{{experiment}}/"
    SEED = TOY + "seed-{seed}/"

    rule:
        name: f"{profile}_pretrain_2d"
        input:
            code=sources("fce/pretrain.py"),
            params=TOY + "params/pretrain.json",
            data=TOY + "data.npz",
        output:
            models=expand(SEED + "pretrain.pt", seed=settings.seeds.toy, allow_missing=True),
            curves=expand(SEED + "pretrain.csv", seed=settings.seeds.toy, allow_missing=True),
        log:
            TOY + "pretrain.log",
        benchmark:
            TOY + "pretrain.benchmark.tsv"
        priority: FIRST
        wildcard_constraints:
            experiment=names("toy"),
        params:
            seeds=settings.seeds.toy,
            out=each(SEED + "pretrain.pt"),
        shell:
            "python -m fce.pretrain --params {input.params} --data {input.data} --seed {params.seeds}"
            " --device cpu --threads 1 --out '{params.out}' > {log} 2>&1"

    for group, (arms, experiments) in enumerate(by_arms(profile), start=1):

        rule:
            name: f"{profile}_joint_2d_{group}"
            input:
                code=sources("fce/joint.py"),
                params=expand(TOY + "params/joint/{arm}.json", arm=arms, allow_missing=True),
                data=TOY + "data.npz",
                flows=expand(SEED + "pretrain.pt", seed=settings.seeds.toy, allow_missing=True),
            output:
                models=expand(SEED + "{arm}/joint.pt", seed=settings.seeds.toy, arm=arms, allow_missing=True),
                curves=expand(SEED + "{arm}/joint.csv", seed=settings.seeds.toy, arm=arms, allow_missing=True),
            log:
                TOY + "joint.log",
            benchmark:
                TOY + "joint.benchmark.tsv"
            priority: FIRST
            wildcard_constraints:
                experiment=experiments,
            params:
                seeds=settings.seeds.toy,
                arms=arms,
                slices=each(TOY + "params/joint/{arm}.json"),
                flows=each(SEED + "pretrain.pt"),
                out=each(SEED + "{arm}/joint.pt"),
            shell:
                "python -m fce.joint --params '{params.slices}' --data {input.data} --flow '{params.flows}'"
                " --seed {params.seeds} --arm {params.arms} --device cpu --threads 1 --out '{params.out}' > {log} 2>&1"

    measured = [(SEED + "{arm}/joint.pt", arms, experiments) for arms, experiments in by_arms(profile)]
    for group, (models, arms, experiments) in enumerate([(SEED + "pretrain.pt", ["mle"], names("toy")), *measured]):

        rule:
            name: f"{profile}_density_2d_{group}"
            input:
                code=sources("eval/density.py"),
                params=TOY + "params/density.json",
                data=TOY + "data.npz",
                models=expand(models, seed=settings.seeds.toy, arm=arms, allow_missing=True),
            output:
                scores=expand(SEED + "{arm}/density.json", seed=settings.seeds.toy, arm=arms, allow_missing=True),
                grids=expand(SEED + "{arm}/density.npz", seed=settings.seeds.toy, arm=arms, allow_missing=True),
            log:
                TOY + ("density_mle.log" if arms == ["mle"] else "density_joint.log"),
            wildcard_constraints:
                experiment=experiments,
            params:
                seeds=settings.seeds.toy,
                arms=arms,
                models=each(models),
                out=each(SEED + "{arm}/density.json"),
            shell:
                "python -m eval.density --params {input.params} --data {input.data} --model '{params.models}'"
                " --seed {params.seeds} --arm {params.arms} --device cpu --threads 1 --out '{params.out}' > {log} 2>&1"


rule dcgan:
    input:
        code=sources("fce/dcgan.py"),
        params=SLICE + "dcgan.json",
        data="build/{profile}/{experiment}/data.npz",
    output:
        RUN + "dcgan/dcgan.pt",
    log:
        RUN + "dcgan/dcgan.log",
    benchmark:
        RUN + "dcgan/dcgan.benchmark.tsv"
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m fce.dcgan --params {input.params} --data {input.data} --seed {wildcards.seed}"
        " --threads {threads} --out {output} > {log} 2>&1"


rule classifier:
    input:
        code=sources("eval/classifier.py"),
        params=SLICE + "classifier.json",
        data="build/{profile}/{experiment}/data.npz",
    output:
        "build/{profile}/{experiment}/classifier.pt",
    log:
        "build/{profile}/{experiment}/classifier.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.classifier --params {input.params} --data {input.data} --threads {threads}"
        " --out {output} > {log} 2>&1"


rule weights:
    input:
        code=sources("eval/weights.py"),
    output:
        "build/downloads/weights.pth",
    log:
        "build/downloads/weights.log",
    shell:
        "python -m eval.weights --out {output} > {log} 2>&1"


rule sample:
    input:
        code=sources("eval/sample.py"),
        params=SLICE + "sample.json",
        data="build/{profile}/{experiment}/data.npz",
        model=model,
    output:
        RUN + "{arm}/samples.npz",
    log:
        RUN + "{arm}/sample.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.sample --params {input.params} --data {input.data} --model {input.model}"
        " --seed {wildcards.seed} --threads {threads} --out {output} > {log} 2>&1"


rule fid:
    input:
        code=sources("eval/fid.py"),
        params=SLICE + "fid.json",
        data="build/{profile}/{experiment}/data.npz",
        samples=RUN + "{arm}/samples.npz",
        features=features,
    output:
        RUN + "{arm}/fid.json",
    log:
        RUN + "{arm}/fid.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.fid --params {input.params} --data {input.data} --samples {input.samples}"
        " --features {input.features} --seed {wildcards.seed} --threads {threads} --out {output} > {log} 2>&1"


rule bits_per_dim:
    input:
        code=sources("eval/bits_per_dim.py"),
        params=SLICE + "bits_per_dim.json",
        data="build/{profile}/{experiment}/data.npz",
        model=model,
    output:
        RUN + "{arm}/bits_per_dim.json",
    log:
        RUN + "{arm}/bits_per_dim.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.bits_per_dim --params {input.params} --data {input.data} --model {input.model}"
        " --seed {wildcards.seed} --threads {threads} --out {output} > {log} 2>&1"


rule log_z:
    input:
        code=sources("eval/log_z.py"),
        params=SLICE + "log_z.json",
        data="build/{profile}/{experiment}/data.npz",
        model=RUN + "{arm}/joint.pt",
    output:
        RUN + "{arm}/log_z.json",
    log:
        RUN + "{arm}/log_z.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.log_z --params {input.params} --data {input.data} --model {input.model}"
        " --seed {wildcards.seed} --threads {threads} --out {output} > {log} 2>&1"


def next_flow(wildcards):
    """The flow of the profile's next seed, after the last the first's."""
    seeds = PARAMS.profiles[wildcards.profile].seeds.images
    return RUN.replace("{seed}", str(seeds[(seeds.index(int(wildcards.seed)) + 1) % len(seeds)])) + "pretrain.pt"


rule log_z_control:
    input:
        code=sources("eval/log_z_control.py"),
        params=SLICE + "log_z_control.json",
        flow=RUN + "pretrain.pt",
        planted=next_flow,
    output:
        RUN + "planted/log_z_control.json",
    log:
        RUN + "planted/log_z_control.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.log_z_control --params {input.params} --flow {input.flow} --planted {input.planted}"
        " --seed {wildcards.seed} --threads {threads} --out {output} > {log} 2>&1"


rule probe:
    input:
        code=sources("eval/probe.py"),
        params=SLICE + "probe.json",
        data="build/{profile}/{experiment}/data.npz",
        model=model,
    output:
        RUN + "{arm}/probe.json",
    log:
        RUN + "{arm}/probe.log",
    threads: threads
    resources:
        gpu=gpu,
    params:
        model=lambda wildcards, input: f"--model {input.model}" if input.model else "",
    shell:
        "python -m eval.probe --params {input.params} --data {input.data} {params.model}"
        " --seed {wildcards.seed} --threads {threads} --out {output} > {log} 2>&1"


rule supervised:
    input:
        code=sources("eval/supervised.py"),
        params=SLICE + "supervised.json",
        data="build/{profile}/{experiment}/data.npz",
    output:
        RUN + "supervised/supervised.json",
    log:
        RUN + "supervised/supervised.log",
    threads: threads
    resources:
        gpu=gpu,
    shell:
        "python -m eval.supervised --params {input.params} --data {input.data} --seed {wildcards.seed}"
        " --threads {threads} --out {output} > {log} 2>&1"


rule report:
    input:
        code=[*sources("reports/build.py"), "reports/paper.yaml", "reports/template.html.j2"],
        scores=lambda wildcards: scores(wildcards.profile, "toy") + scores(wildcards.profile, "images"),
    output:
        "build/report/{profile}/index.html",
    log:
        "build/report/{profile}.log",
    shell:
        "(python -m fce.track || true; python -m reports.build --profile {wildcards.profile} --build build"
        " --out {output}) > {log} 2>&1"


# What could not run stops nothing else (profiles/default keeps going): the report says what is missing, and why.
MIRROR = "python -m fce.track || true"


onsuccess:
    shell(MIRROR)


onerror:
    profile = "quick" if any("quick" in argument for argument in sys.argv[1:]) else "full"
    shell(f"python -m reports.build --profile {profile} --build build --out build/report/{profile}/index.html")
    shell(MIRROR)
