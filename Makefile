# The verbs of the project; CI calls the same ones. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(abspath $(VENV))/bin
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup lint types test e2e bench quickstart quickstart-shop quickstart-grocery

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## make the environment in VENV (.venv), unless it is up to date

$(VENV)/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Headrace needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make setup PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv "$(VENV)"
	"$(BIN)/python" -m pip install --disable-pip-version-check -qq --constraint constraints.txt --editable ".[dev]"
	@touch "$@"

lint: setup ## ruff, its formatter, and the import contracts
	"$(BIN)/ruff" check .
	"$(BIN)/ruff" format --check .
	"$(BIN)/lint-imports" --no-cache

types: setup ## mypy, strict
	"$(BIN)/mypy"
	"$(BIN)/mypy" $(wildcard jobs/*.py serve/*.py)

test: setup ## all tests but those that need a GPU or are marked long
	"$(BIN)/python" -m pytest -m "not long and not gpu" $(PYTEST_ARGS)

e2e: setup ## the whole road under fire, minutes of it
	"$(BIN)/python" -m pytest tests/e2e $(PYTEST_ARGS)

bench: setup ## the benchmarks, in their shortest form; JSON in runs/bench/
	"$(BIN)/headrace" bench freshness --seconds 120 --out runs/bench/freshness.json
	"$(BIN)/headrace" bench train --data "$(BENCH_DATA)/diginetica" --out runs/bench/train.json
	"$(BIN)/headrace" bench continual --data "$(BENCH_DATA)/diginetica" --cycles 1 --out runs/bench/continual

# DATA is a word for quickstart (grocery), and for bench the folder that holds the public logs.
BENCH_DATA = $(or $(filter-out grocery,$(DATA)),$(HEADRACE_TEST_DATA),../shared/data)

# A new folder for each run; runs/quickstart points at the newest one.
NEW_RUN = run="$(1)-$$(date +%Y%m%d-%H%M%S)"; mkdir -p runs; ln -sfn "$$run" runs/quickstart
NO_WORD = $(and $(filter command,$(origin DATA)),$(DATA))

quickstart: $(if $(filter grocery,$(DATA)),quickstart-grocery,quickstart-shop) ## two minutes in a small made-up shop, or minutes of a real year (DATA=grocery); QUICK=1: shorter

quickstart-shop: setup
	@$(if $(NO_WORD),echo "DATA=$(DATA): quickstart knows DATA=grocery. A log of your own: $(BIN)/headrace try DIR"; exit 1)
	@$(call NEW_RUN,quickstart); \
	    "$(BIN)/headrace" run jobs/recipes/quickstart.toml $(if $(QUICK),feed.synthetic.num_shards=31) "run.dir=runs/$$run"

quickstart-grocery: $(VENV)/.stamp-grocery
	@$(call NEW_RUN,grocery); "$(BIN)/python" -m headrace.onboard.grocery "runs/$$run/log" $(if $(QUICK),12); \
	    "$(BIN)/headrace" run jobs/recipes/grocery.toml \
	    "run.dir=runs/$$run" "feed.path=runs/$$run/log/baskets" "feed.items_path=runs/$$run/log/products"

$(VENV)/.stamp-grocery: $(VENV)/.stamp
	"$(BIN)/python" -m pip install --disable-pip-version-check -qq --constraint constraints.txt --editable ".[grocery]"
	@touch "$@"
