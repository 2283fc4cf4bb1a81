# The DAG, and the only stage commands. `snakemake --cores 8` is the full profile, `snakemake --cores 2 small` CIFAR-10 at a
# size for two cores, `snakemake --cores 2 quick` minutes. A job depends on files only: its input data, its slice of
# params.yaml and the code it computes with; so `dvc repro`, which calls this file, and `snakemake` never disagree on what
# is stale. The rules come from pipeline/catalogue.toml.
import math
import os
import re
import sys
from pathlib import Path

from pipeline.catalogue import HOME, MODEL, SEED, STAGES
from pipeline.devices import gpus, gpus_of_a_training, memory, processors
from pipeline.errors import UserError
from pipeline.explain import changed_in_vain
from pipeline.fetch import fingerprint, seen_input
from pipeline.params import PROFILES, ParamsError, load
from pipeline.sources import sources
from snakemake.settings.enums import Quietness

try:
    PARAMS = load("params.yaml")
    SHARED = gpus_of_a_training()
except UserError as error:
    raise WorkflowError("params.yaml: " * isinstance(error, ParamsError) + str(error))
# Here a job gets what there is; on a cluster, which a dry run may be about, it asks: who submits it need have none
GPUS = gpus() if workflow.local_exec and not ("FCE_GPUS" in os.environ and workflow.output_settings.dryrun) else SHARED
MEMORY = memory()
SLICES = {path: text for profile, names in PARAMS.experiments.items() for name in names
          for path, text in PARAMS.slices(profile, name).items()}

WORDS = {word for argument in sys.argv[1:] for word in re.split("[/_]", argument)}
ASKED = next((name for name in PROFILES if name in WORDS), "full")  # the profile
PAGE = Path(f"build/report/{ASKED}/index.html")
SAID, SCREEN = workflow.output_settings, None
if workflow.is_main_process and not (SAID.dryrun or SAID.verbose or SAID.printshellcmds or SAID.log_handler_settings
                                     or {Quietness.ALL, Quietness.PROGRESS} & set(SAID.quiet or ())):
    from pipeline.screen import Screen  # a look at what there is to do is quicker without

    SCREEN = Screen({*PROFILES, "densities", "params", "scores", "total"}, PAGE)
    SCREEN.replace(logger)

for LINE in changed_in_vain(Path("params.yaml")) if workflow.is_main_process else ():
    logger.warning(LINE)

if workflow.local_exec:  # jobs that run side by side fit into this machine, or into the container that it is
    workflow.global_resources.setdefault("mem_mb", MEMORY)
    workflow.global_resources.setdefault("gpu", max(1, GPUS))
    if (workflow._cores or 0) > processors():  # none are asked for where nothing is run
        workflow.global_resources["_cores"] = max(1, math.ceil(processors()))


wildcard_constraints:
    profile="|".join(PROFILES),
    experiment="|".join(sorted({name for names in PARAMS.experiments.values() for name in names})) or "none",
    seed=r"\d+",
    arm="[a-z-]+",


localrules:
    params,


def either(names):
    """A pattern of these names."""
    return "|".join(names) or "none"


def run_of(wildcards):
    """Profile, experiment and, where they have them, seed and arm."""
    return dict(wildcards) | ({"seed": int(wildcards.seed)} if "seed" in wildcards.keys() else {})


def is_images(profile, experiment):
    return experiment in PARAMS.names(profile, "images")


def gpu(name):
    """GPUs of a job on images: of a training that is shared, as many as share it."""
    count = min(SHARED if STAGES[name].shared else 1, GPUS)
    return lambda wildcards: count * is_images(wildcards.profile, wildcards.experiment)


def runtime(name, images):
    """Minutes that a job may take before a cluster ends it; what trains goes on from its state, in the next."""
    return 60 * (24 if STAGES[name].resumes and images else 4)


def threads(wildcards):
    """On a CPU, one core for small jobs, four for images where Glow is as wide as the paper's, or nearly."""
    wide = PARAMS.experiments[wildcards.profile][wildcards.experiment].flow.width > 128
    return 4 if wide and is_images(wildcards.profile, wildcards.experiment) and not GPUS else 1


def mem_mb(name):
    """What a job takes, by the size of its inputs; at most what there is, or it would never start."""
    def of_inputs(wildcards, input):
        size = sum(os.path.getsize(path) for path in input if os.path.exists(path)) / 2**20  # input.size_mb is slow
        wanted = 1000 + STAGES[name].memory * size
        return round(min(wanted, MEMORY) if workflow.local_exec else wanted)

    return of_inputs


rule full:
    input:
        "build/report/full/index.html",


rule small:
    input:
        "build/report/small/index.html",


rule quick:
    input:
        "build/report/quick/index.html",


# Figures 1 and 2 alone, which need no GPU; the report names what is missing.
rule densities:
    input:
        expand("build/full/{experiment}/scores.txt", experiment=PARAMS.names("full", "toy")),
    shell:
        "python -m fce report --profile full --build build --out build/report/full/index.html"


def slice_path(wildcards):
    return (HOME + "params/{slice}.json").format(**wildcards)


def source_of(wildcards):
    """params.yaml, whose date says nothing while a slice is what it says."""
    path = Path(slice_path(wildcards))
    same = path.exists() and path.read_text() == SLICES[str(path)]
    return ancient("params.yaml") if same else "params.yaml"


# A stage's parameters, as a file: written where they are not what params.yaml says, and else left alone.
rule params:
    input:
        source_of,
    output:
        HOME + "params/{slice}.json",
    wildcard_constraints:
        slice="[a-z_]+|joint/[a-z-]+",
    params:
        text=lambda wildcards: SLICES[slice_path(wildcards)],
    shell:
        "printf %s {params.text:q} > {output}"


# A rule for each stage: of images, a job is one run. Functions are made here for each stage: what stands in a rule itself
# is looked up later, when the loop is over.
def inputs_of(name):
    return lambda wildcards: PARAMS.inputs(name, **run_of(wildcards))


def flags_of(name):
    return lambda wildcards: PARAMS.flags(name, **run_of(wildcards))


def own_of(name, wildcards):
    """The file or folder of the user's that a job reads, if any."""
    data = PARAMS.experiments[wildcards.profile][wildcards.experiment].data if "experiment" in wildcards.keys() else None
    return seen_input(name, data, logger.warning)


def start_of(name):
    """What starts a stage; of resources, so that Snakemake does not record it: how many GPUs share a training is no result."""
    shared = STAGES[name].shared and SHARED > 1
    start = f"torchrun --standalone --nproc-per-node {SHARED} -m fce" if shared else "python -m fce"
    return lambda wildcards, resources: start


def own_files(name):
    return lambda wildcards: [str(path) for path in [own_of(name, wildcards)] if path and path.is_file()]


def own_hash(name):
    return lambda wildcards: fingerprint(own_of(name, wildcards))


OF_IMAGES = either(dict.fromkeys(name for profile in PARAMS.profiles for name in PARAMS.names(profile, "images")))
APART = either([name for name, profile in PARAMS.profiles.items() if not profile.together])

for NAME, STAGE in STAGES.items():

    rule:
        name: NAME
        input:
            unpack(inputs_of(NAME)),
            own=own_files(NAME),
            code=sources(STAGE.file),
            params=STAGE.slice if STAGE.sections else [],
        output:
            made=STAGE.out,
            beside=STAGE.outputs[1:],
        log:
            str(Path(STAGE.out).with_name(f"{NAME}.log")),
        benchmark:
            str(Path(STAGE.out).with_name(f"{NAME}.benchmark.tsv"))
        wildcard_constraints:
            **({} if NAME in ("data", "inception") else {"experiment": OF_IMAGES}),
            **({"profile": APART} if STAGE.seeded else {}),
        priority: 10 * STAGE.first  # what others wait for; measures fill the gaps
        threads: threads if STAGE.sections else 1
        resources:
            gpu=gpu(NAME) if STAGE.needs else 0,
            mem_mb=mem_mb(NAME),
            runtime=runtime(NAME, images=True),
        params:
            flags=flags_of(NAME),
            own=own_hash(NAME),
            start=start_of(NAME),
        shell:
            "{params.start} {params.flags} --threads {threads} --out {output.made} > {log} 2>&1"


# What one process makes: of a 2D density all seeds and arms side by side; of images, where the profile says `together`, a
# seed's arms one after another. A rule for each.
PROCESSES = [(name, profile, experiment, runs) for profile in PARAMS.profiles for experiment in PARAMS.experiments[profile]
             for name in STAGES for runs in PARAMS.processes(name, profile, experiment)]

for NAME, PROFILE, EXPERIMENT, RUNS in PROCESSES:
    STAGE, IMAGES = STAGES[NAME], is_images(PROFILE, EXPERIMENT)
    PLACE = (SEED if IMAGES else HOME).format(profile=PROFILE, experiment=EXPERIMENT, seed=RUNS[0][0]) + NAME
    FILES = [path for run in RUNS for path in PARAMS.inputs(NAME, PROFILE, EXPERIMENT, *run).values()]

    rule:
        name: PLACE.removeprefix("build/").replace("/", "_").replace("-", "_")
        input:
            list(dict.fromkeys(FILES)),
            code=sources(STAGE.file),
            params=list(dict.fromkeys(PARAMS.place(STAGE.slice, PROFILE, EXPERIMENT, *run) for run in RUNS)),
        output:
            [path for run in RUNS for path in PARAMS.outputs(NAME, PROFILE, EXPERIMENT, *run)],
        log:
            f"{PLACE}.log",
        benchmark:
            f"{PLACE}.benchmark.tsv"
        priority: 10 * STAGE.first
        resources:
            gpu=min(1, GPUS) * IMAGES,
            mem_mb=mem_mb(NAME),
            runtime=runtime(NAME, IMAGES),
        params:
            flags=lambda wildcards, words=PARAMS.flags_of_all(NAME, PROFILE, EXPERIMENT, RUNS): words,
            device="auto" if IMAGES else "cpu",
        shell:
            "python -m fce {params.flags} --device {params.device} --threads 1 > {log} 2>&1"


# All of an experiment: the list of its score files, which is what DVC asks for.
rule scores:
    input:
        lambda wildcards: PARAMS.scores(**wildcards),
    output:
        HOME + "scores.txt",
    shell:
        "printf '%s\\n' {input} > {output}"


rule report:
    input:
        code=[*sources("reports/build.py"), "pipeline/catalogue.toml", "reports/paper.yaml", "reports/template.html.j2"],
        scores=lambda wildcards: [path for experiment in PARAMS.profiles[wildcards.profile].experiments
                                  for path in PARAMS.scores(wildcards.profile, experiment)],
    output:
        page=report("build/report/{profile}/index.html", caption="reports/caption.rst", category="Reproduction",
                    labels={"profile": "{profile}"}),
        metrics="build/report/{profile}/metrics.json",
    log:
        "build/report/{profile}.log",
    shell:
        "(python -m fce send || true; python -m fce report --profile {wildcards.profile} --build build --out {output.page})"
        " > {log} 2>&1"


def end(failed):
    """Send to MLflow what is not there yet, and say what ran and where the report is."""
    if SCREEN and SCREEN.stopped:
        return SCREEN.close_run()
    if failed:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        shell(f"python -m fce report --profile {ASKED} --build build --out {PAGE} >> {PAGE.parent}.log 2>&1 || true")
    for path in (PAGE, PAGE.with_name("metrics.json")):
        if path.exists() and (failed or "densities" in WORDS):
            os.utime(path, (0, 0))  # of what is there now, and no job's: it is made again as soon as it can be whole
    shell("python -m fce send || true")
    if SCREEN:
        SCREEN.close_run()


# What could not run stops nothing else (profiles/default keeps going): the report says what is missing, and why.
onsuccess:
    end(failed=False)


onerror:
    end(failed=True)
