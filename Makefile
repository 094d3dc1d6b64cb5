PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# tests: one process a core, of one thread each
SIDE_BY_SIDE := --numprocesses auto --dist loadscope
test test-all: export OMP_NUM_THREADS ?= 1

.PHONY: help run test test-all test-cuda lint bench
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -r requirements.txt
	@touch $@

run: $(STAMP)  ## set everything up and run the default experiments
	$(BIN)/python spectrum_bounds.py
	$(BIN)/python hyperparam_selection.py

test: $(STAMP)  ## set everything up and run the tests (under 10 minutes on 2 cores)
	$(BIN)/python -m pytest -m "not slow" $(SIDE_BY_SIDE)

test-all: $(STAMP)  ## the slow checks as well
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)

test-cuda: $(STAMP)  ## what needs a GPU: both command lines on it, against the CPU
	$(BIN)/python -m pytest -m cuda

lint: $(STAMP)  ## style, the direction of imports between rooms, and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy common bench spectrum_bounds.py hyperparam_selection.py faithfulness_utility.py \
		factorized_influence.py audit_projections.py project_gradients.py projection_cost.py
	$(BIN)/mypy -c "$$(cat bench.py)"  # as text, because the package bench has the same name

bench: $(STAMP)  ## time it beside the obvious routes, as ratios in one run
	$(BIN)/python bench.py
