# Every target sets up what it needs; only Python 3.11 or later, make and git need be there.

VENV := .venv
PYTHON := $(VENV)/bin/python
PORT ?= 5000
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export GOMP_SPINCOUNT ?= 10000

.PHONY: help setup data repro test lint lab ui bench

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):.*## /make \1|/' | column -t -s '|'

setup: $(VENV)/.installed  ## the environment in .venv, from requirements.lock

data: setup  ## the pictures, where data/ is missing: from the DVC remote or cache, else the built-in scenes
	@test -d data || { test -n "$$(dvc remote list)" && dvc pull -q data.dvc; } \
		|| dvc checkout -q data.dvc 2>/dev/null \
		|| $(PYTHON) -m tesserae.data.scenes --params params.yaml --out data

repro: data  ## the whole pipeline; what is done already is not done again
	@$(PYTHON) -m tesserae.mend
	dvc repro

test: setup  ## the tests
	$(PYTHON) -m pytest $(ARGS)

lint: setup  ## style, the direction of imports, notebooks without outputs
	ruff check .
	lint-imports
	$(PYTHON) -m pytest -k notebooks tests/pipeline/test_project_files.py

lab: setup  ## the notebooks in JupyterLab
	jupyter lab --ip 127.0.0.1 --ServerApp.default_url=/lab/tree/notebooks

ui: setup  ## every run, to compare, at http://127.0.0.1:5000
	mlflow ui --workers 1 --backend-store-uri sqlite:///mlflow.db --host 127.0.0.1 --port $(PORT)

bench: setup  ## speed and memory; REFERENCE=path/to/taming-transformers: beside it; ARGS="--cases ..."
	$(PYTHON) -m benchmarks $(if $(REFERENCE),--reference "$(REFERENCE)") $(ARGS)

# Stamps: a second call has nothing to do until the lock or the package's settings change.

$(VENV)/.installed: requirements.lock pyproject.toml | $(PYTHON)
	@echo "Installing the packages of requirements.lock; the first time some gigabytes are fetched."
	$(PYTHON) -m pip install -q "$$(grep '^setuptools==' requirements.lock)"
	$(PYTHON) -m pip install -q --no-deps --no-build-isolation -r requirements.lock
	$(PYTHON) -m pip install -q --no-deps --no-build-isolation -e .
	@touch $@

$(PYTHON):
	@for python in python3.11 python3.12 python3.13 python3; do \
		if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec "$$python" -m venv $(VENV); \
		fi; \
	done; \
	echo "No Python 3.11 or later with its venv module was found: install one, then run make again." >&2; exit 1
