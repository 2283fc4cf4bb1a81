# The verbs; `make` alone lists them. Each works in a fresh clone: the first one used installs the locked environment.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
CORES ?= $(shell nproc 2> /dev/null || getconf _NPROCESSORS_ONLN)
HOST ?= 127.0.0.1
PORT ?= 5000
ALLOWED_HOSTS ?=
COMMA := ,
VENV := .venv
IS_OURS = import sys; sys.exit(sys.version_info[:2] != (3, 11))
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)

help:  ## list the verbs
	@awk -F ':.*## *' '/^[a-z-]+:.*##/ {printf "%-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/installed: envs/requirements.lock envs/bootstrap.lock
	@"$(PYTHON)" -c '$(IS_OURS)' || { echo "$(PYTHON) is $$("$(PYTHON)" -V 2>&1), and the locked environment is of" \
	  "Python 3.11: make $@ PYTHON=/where/it/is/python3.11"; exit 2; }
	$(VENV)/bin/python -c '$(IS_OURS)' 2> /dev/null || "$(PYTHON)" -m venv --clear $(VENV)
	$(VENV)/bin/pip install -q --require-hashes -r envs/bootstrap.lock
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(VENV)/bin/uv pip sync -q --compile-bytecode --require-hashes envs/requirements.lock
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" $(VENV)/bin/uv pip install -q --no-deps --no-build-isolation -e .
	@touch $@

install: $(VENV)/installed  ## the locked environment, in .venv

quick: install  ## ring and digits, minutes on a laptop; ends with the report's place
	snakemake --cores $(CORES) quick

small: install  ## CIFAR-10 with a Glow that two cores can train, 3 seeds (hours)
	snakemake --cores $(CORES) small

full: install  ## the full reproduction (hours; images want a GPU)
	snakemake --cores $(CORES)

test: install  ## the tests
	python -m pytest

test-fast: install  ## those of them that take less than a minute: theorems, parameters, the report
	python -m pytest -m "fast and not long and not gpu" --dist load

lint: install  ## ruff and mypy
	ruff check . && mypy pipeline fce eval reports benchmarks

bench: install  ## our Glow against normflows and nflows, and other speeds (an hour): benchmarks/results
	VIRTUAL_ENV="$(CURDIR)/$(VENV)" uv pip install -q --compile-bytecode --require-hashes -r envs/bench.lock
	python -m benchmarks.joint --out benchmarks/results/joint.json
	python -m benchmarks.precision --out benchmarks/results/precision.json
	python -m benchmarks.stack --out benchmarks/results/stack.json
	python -m benchmarks.glow --out benchmarks/results/glow.json
	python -m benchmarks.plot benchmarks/results/glow.json
	python -m benchmarks.pipeline --cores $(CORES) --out benchmarks/results/pipeline.json

api: install  ## the library's reference: build/api/index.html
	python -m reports.api build/api

readme: install  ## README's tables, from the published scores
	python -m reports.readme

MINUTES ?= 10
gpu: install  ## what a GPU makes of it, in MINUTES (10); the same command goes on with its training: build/gpu/results
	python -m benchmarks.gpu --minutes $(MINUTES) --out build/gpu/results

ui: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION = false
ui: install  ## send what MLflow does not have yet, and start its UI: on loopback, unless HOST, PORT, ALLOWED_HOSTS=... say otherwise
	-python -m fce send --links http://$(or $(filter-out *,$(firstword $(subst $(COMMA), ,$(ALLOWED_HOSTS)))),$(HOST):$(PORT))
	mlflow server --host $(HOST) --port $(PORT) $(if $(ALLOWED_HOSTS),--allowed-hosts "$(ALLOWED_HOSTS)") --workers 1 \
	  --backend-store-uri "sqlite:///$(CURDIR)/mlflow.db"

pull: install  ## outputs from the DVC remote, marked as up to date for Snakemake too
	@dvc remote list | grep -q . || { echo "no DVC remote is set; name the place that somebody pushed outputs to:" \
	  "dvc remote add --default NAME PLACE (a folder, ssh://..., s3://...), then make pull"; exit 2; }
	@test -f dvc.lock || { echo "there is no dvc.lock, which says what to fetch; it is committed with what is published"; exit 2; }
	dvc pull --allow-missing
	@ls build/*/*/scores.txt > /dev/null 2>&1 || { echo "the remote holds nothing of what dvc.lock names"; exit 2; }
	@for made in build/*/*/scores.txt build/report/*/index.html; do test -e $$made || continue; \
	  stage=$$(echo $$made | sed -E 's#build/report/(.*)/index.html#\1#; s#build/(.*)/(.*)/scores.txt#\1-run@\2#'); \
	  if dvc status -q $$stage; then snakemake --cores 1 --touch --forceall $$made || exit; \
	  else echo "$$made is not of this params.yaml and this code: it will be made again"; \
	    find $$(dirname $$made) -type f -exec touch -t 197001020000 {} +; fi; done

COMPILE = $(VENV)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-emit-find-links \
  --no-header --no-annotate -q
EXTRA = import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"])
lock: install pyproject.toml  ## refresh the lock files (envs/README.md)
	$(COMPILE) pyproject.toml --extra suite --extra dev --extra slurm -o envs/requirements.lock
	grep -A999 '^uv==' envs/requirements.lock | awk 'NR==1 || /^ /{print; next} {exit}' > envs/bootstrap.lock
	python -c '$(EXTRA)' | tr ' ' '\n' | $(COMPILE) - -c envs/requirements.lock -o envs/bench.lock

clean:  ## remove what the project made, but the environment and what is published
	rm -rf build .snakemake .wheel mlflow.db mlartifacts dvc_plots

.PHONY: help install quick small full test test-fast lint bench api gpu readme ui pull lock clean
.DEFAULT_GOAL := help
