# Every target sets up what it needs; only Python 3.11 or later, make and git need be there.

VENV := .venv
PYTHON := $(VENV)/bin/python
PORT ?= 5000
ifneq ($(findstring %,$(CURDIR))$(findstring ?,$(CURDIR)),)
$(error MLflow does not work below a folder with % or ? in its name: rename the folder $(CURDIR), then run make again)
endif
ifneq ($(findstring :,$(CURDIR)),)
$(error No environment can be made below a folder with : in its name: rename the folder $(CURDIR), then run make again)
endif
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GOMP_SPINCOUNT ?= 10000

.PHONY: help setup data own preset repro smoke test sources lint lab exp-show ui bench example

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /make \1|/' | column -t -s '|'

setup: $(VENV)/.installed  ## the environment in .venv, from requirements.lock

data: setup  ## the pictures, where data/ is asked for and missing: DVC's, else the built-in scenes
	@$(PYTHON) -m tesserae.data.obtain

own: export FROM := $(FROM)
own: export PRESET := $(PRESET)
own: export PAIR := $(PAIR)
own: setup  ## your own pictures: FROM=path/to/pictures [PRESET=own-64] [PAIR=segmentation=masks]; then make repro
	@$(PYTHON) -m tesserae.pipeline.own

preset: export NAME := $(NAME)
preset: export SIZE := $(SIZE)
preset: setup  ## params.yaml from a preset: NAME=own-64 [SIZE=xs|s|m|l]; without NAME it lists them
	@$(PYTHON) -m tesserae.pipeline.preset

repro: data  ## the whole pipeline; what is done already is not done again
	@$(PYTHON) -m tesserae.pipeline.repair
	dvc repro

smoke: setup  ## the whole pipeline at four steps, in .smoke/: what you changed still runs
	@$(PYTHON) -m tesserae.pipeline.smoke

test: setup  ## the tests
	$(PYTHON) -m pytest $(ARGS)

sources: setup  ## the sources in dvc.yaml become what the notebooks import (after a change of imports)
	@$(PYTHON) -m tesserae.pipeline.sources

lint: setup  ## style, the direction of imports, notebooks without outputs
	ruff check .
	lint-imports
	$(PYTHON) -m tesserae.source_code.notebooks notebooks/*.ipynb

lab: setup  ## the notebooks in JupyterLab
	jupyter lab --ip 127.0.0.1 --allow-root --ServerApp.default_url=/lab/tree/notebooks

exp-show: setup  ## the experiments beside each other: the numbers that people compare, and what differs
	@$(PYTHON) -m tesserae.pipeline.table

ui: setup  ## every run, to compare, at http://127.0.0.1:5000 or the next free port
	@$(PYTHON) -m tesserae.tracking ui --port $(PORT)

bench: setup  ## speed and memory; REFERENCE=path/to/taming-transformers: beside it; ARGS="--cases ..."
	$(PYTHON) -m benchmarks $(if $(REFERENCE),--reference "$(REFERENCE)") $(ARGS)

example: setup  ## docs/example, which the README shows, becomes a copy of reports/ (for maintainers)
	@test -f reports/prepare/metrics.json || { echo "reports/ holds no run: make repro makes one." >&2; exit 1; }
	find docs/example -mindepth 2 -delete
	tar -C reports --exclude='timings.*' --exclude=./notebooks --exclude=./experiments -cf - . | tar -C docs/example -xf -

# Stamps: a second call has nothing to do until the lock or the package's settings change, or the clone is moved.
# What a kill left half-done is done again: pip writes a package's RECORD last, and takes one without it for whole.

ifneq ($(shell test -L $(VENV) || head -n 2 $(VENV)/bin/pip 2>&- | tr -d '\\' | grep -F bin/python | grep -vF "$$(pwd -P)/$(VENV)/"),)
MOVED := moved
endif

$(VENV)/.installed: requirements.lock pyproject.toml | $(PYTHON) $(MOVED)
	@find $(VENV)/lib/python3*/site-packages -maxdepth 1 \( -name '*.dist-info' ! -exec test -e '{}/RECORD' ';' \
		-o -name '~*' \) -exec rm -rf '{}' +
	@ls $(VENV)/lib/python3*/site-packages/pip-*.dist-info/RECORD >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV)
	@echo "Installing the packages of requirements.lock; the first time some gigabytes are fetched."
	$(PYTHON) -m pip install -q "$$(grep '^setuptools==' requirements.lock)"
	$(PYTHON) -m pip install -q --no-deps --no-build-isolation -r requirements.lock
	$(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .
	@$(PYTHON) -m tesserae.pipeline.repair
	@touch $@

.PHONY: moved
moved: | $(PYTHON)
	@echo "The clone was moved or copied: the commands of its environment are pointed to this place."
	@$(PYTHON) -m venv --without-pip $(VENV)
	@PYTHONPATH=src $(PYTHON) -m tesserae.pipeline.relocate $(VENV)
	@$(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .

$(PYTHON):
	@for python in python3.11 python3.12 python3.13 python3; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec "$$python" -m venv --clear $(VENV); \
		fi; \
	done; \
	echo "No Python 3.11 or later with its venv module was found: install one, then run make again." >&2; exit 1
