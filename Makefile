# Every task of the project by name. `make` alone lists them. CI calls the same targets.

VENV ?= .venv
PORT ?= 8000
PAGE_PORT ?= 8501
IMAGE ?= deltabert
JOBS ?= 2

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable
# Hashes of every file of a pinned version: the lock serves all processors and supported Pythons.
LOCK := UV_CUSTOM_COMPILE_COMMAND="make lock" $(PY) -m uv pip compile --quiet -c constraints.txt --generate-hashes \
	--no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28 --output-file
# docs/performance.md shows numbers of a CPU; those of a GPU do not replace them.
SERVING_JSON := $(if $(findstring cuda,$(ARGS)),runs/serving-cuda.json,docs/performance/serving.json)

# A file's tests stay together, since they share what its fixtures start; the header has the seed of
# their order, and ARGS="--randomly-seed=N" repeats it.
IN_PARALLEL := --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# Recipes are quiet: a user reads what a program says, not how it was called.
.SILENT:
.DEFAULT_GOAL := help
.PHONY: help setup run test test-slow lint types format audit lock docs zoo study report bench-serving bench-shares bench-precision bench-scale bench-http bench-bulk bench-promises bench-cluster bench-training bench-quality soak fuzz clean image

help: ## list these targets
	sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-20s %s\n", $$1, $$2 }'

setup: $(STAMP) ## make .venv and install into it (PYTHON=..., VENV=..., INSTALLER=uv)

$(STAMP): pyproject.toml constraints.txt .make/setup.sh
	PYTHON="$(PYTHON)" INSTALLER="$(INSTALLER)" sh .make/setup.sh "$(VENV)"

run: $(STAMP) ## serve the shipped deltas and the page (PORT=8000, PAGE_PORT=8501); Ctrl-C stops both
	exec $(PY) .make/run.py --port "$(PORT)" --page-port "$(PAGE_PORT)"

test: $(STAMP) ## run the fast tests, two at a time, in random order (8 minutes; ARGS="-k name", JOBS=4)
	$(PY) -m pytest $(IN_PARALLEL) $(ARGS)

test-slow: $(STAMP) ## run servers, browsers, builds, clean environments and laws with many examples (22 minutes)
	$(PY) -m pytest $(IN_PARALLEL) --durations=20 --hypothesis-profile thorough \
		-m "(slow or browser or law) and not gpu" $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(STAMP) ## check types (mypy, strict)
	$(PY) -m mypy

format: $(STAMP) ## fix style and formatting in place
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

audit: $(STAMP) ## look the pinned packages up among known vulnerabilities (needs api.osv.dev)
	$(INSTALL) '.[supply]'
	$(PY) .make/vulnerabilities.py

lock: $(STAMP) ## write the hashes of what the image installs, from pyproject.toml and constraints.txt
	$(INSTALL) '.[supply]'
	$(LOCK) requirements.lock --no-emit-package torch pyproject.toml
	echo hatchling | $(LOCK) requirements-build.lock -

docs: $(STAMP) ## write the generated parts of the pages below docs/
	$(PY) .make/docs.py

zoo: $(STAMP) ## ship the best deltas of the study, verify every one, write the model cards (ARGS="--work ...")
	$(PY) -m training.zoo $(ARGS)
	$(PY) -m deltas verify deltas/zoo
	$(PY) -m deltas cards deltas/zoo
	$(PY) -m training.zoo --predictions

study: $(STAMP) ## make the study's missing runs (GLUE_DIR=..., hours; stop at any time; ARGS="--only main")
	$(PY) -m training.sweep --workers 2 $(ARGS)

report: $(STAMP) ## make docs/results from the study's results
	$(PY) -m training.report $(ARGS)

bench-serving: $(STAMP) ## measure mixed traffic beside the peers (GLUE_DIR=..., 10 minutes; ARGS="--rounds 3", "--device cuda")
	$(INSTALL) '.[bench]'
	$(PY) -m tests.bench.serving --json $(SERVING_JSON) $(ARGS)

bench-shares: $(STAMP) ## measure what a forward pass spends its time on (GLUE_DIR=..., 2 minutes)
	$(PY) -m tests.bench.shares $(ARGS)

bench-precision: $(STAMP) ## measure what fp32, bf16 and int8 cost and bring (GLUE_DIR=..., 10 minutes)
	$(PY) -m tests.bench.precision --json docs/performance/precision.json $(ARGS)

bench-scale: $(STAMP) ## measure 1,000 and 10,000 tasks beside nine (GLUE_DIR=..., 15 minutes)
	$(PY) -m tests.bench.scale --json docs/performance/scale.json $(ARGS)

bench-http: $(STAMP) ## measure the server under load and overload, its start and memory (GLUE_DIR=..., 30 minutes)
	$(PY) -m tests.bench.over_http --json docs/performance/http.json $(ARGS)
	$(PY) -m tests.bench.footprint --json docs/performance/http.json

bench-bulk: $(STAMP) ## measure files beside the bare engine, and requests beside a stream (5 minutes; ARGS="--rows 1000000")
	$(PY) -m tests.bench.bulk $(ARGS)

bench-promises: $(STAMP) ## measure many heads on one text, heads beside the bare encoder, and few slots (3 minutes)
	$(PY) -m tests.bench.promises --json docs/performance/promises.json $(ARGS)

bench-cluster: $(STAMP) ## measure replicas on Ray: killed ones, changes, rows/s (25 minutes; ARGS="--only kills --kills 5")
	$(INSTALL) '.[ray]'
	$(PY) -m tests.bench.cluster --json docs/performance/cluster.json $(ARGS)

bench-training: $(STAMP) ## measure training beside transformers and PEFT (GLUE_DIR=..., over 13 minutes)
	$(INSTALL) '.[bench]'
	$(PY) -m tests.bench.training --json docs/performance/training.json $(ARGS)

bench-quality: $(STAMP) ## measure answers beside scikit-learn, cosine and stock full runs (GLUE_DIR=..., days; stop at any time; ARGS="--own DIR")
	$(PY) -m tests.bench.quality $(ARGS)

soak: $(STAMP) ## run 32 clients of every kind while deltas change, and compare every answer (30 minutes; ARGS="--minutes 60")
	$(PY) -m tests.bench.soak --json docs/performance/soak.json $(ARGS)

fuzz: $(STAMP) ## feed the readers of files hostile inputs (10 minutes; ARGS="--minutes 30 --only delta")
	$(INSTALL) '.[fuzz]'
	$(PY) -m tests.fuzz $(ARGS)

clean: ## remove .venv, caches and builds; trained deltas in runs/ stay
	if [ -e "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find app audit deltabert deltas frontend tests training -name __pycache__ -prune -exec rm -rf {} +

image: ## build the container image (IMAGE=deltabert, TORCH=cpu, BASE=python:3.11-slim@sha256:...)
	docker build --tag "$(IMAGE)" --build-arg TORCH="$(or $(TORCH),cpu)" $(if $(BASE),--build-arg BASE="$(BASE)") .
