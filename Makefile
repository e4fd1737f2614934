# Thin: each recipe is one line a reader could type.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint lab bench slides lock clean

setup: .venv/.installed-dev

.venv/.python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"cellkit needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv && touch $@

.venv/.installed: .venv/.python requirements/lock.txt pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps --require-hashes -r requirements/lock.txt
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --no-index -e . && touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.txt
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps --require-hashes -r requirements/dev.txt && touch $@

demo: .venv/.installed
	$(BIN)/cellkit run configs/demo.yaml

test: .venv/.installed-dev
	$(BIN)/python -m pytest -q

