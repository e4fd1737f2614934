# Thin: each recipe is one line a reader could type. Another interpreter: make PYTHON=python3.12 demo
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off --no-deps
NOTEBOOKS = $(wildcard notebooks/*.ipynb notebooks/recipes/*.ipynb)

.PHONY: setup demo test lint lab bench slides docs schema lock clean

setup: .peers/.installed

# Stamps, each written only after its step went well; each step waits for the one before, with make -j too.
.venv/.python:
	$(PYTHON) -c 'import sys; assert (3, 11) <= sys.version_info[:2] <= (3, 13), f"cellkit needs Python 3.11 to 3.13, this is {sys.version.split()[0]}: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv .venv && touch $@

.venv/.installed: .venv/.python requirements/lock.txt pyproject.toml
	$(PIP) --require-hashes -r requirements/lock.txt
	$(PIP) --no-build-isolation --no-index -e . && touch $@

.venv/.installed-dev: .venv/.installed requirements/dev.txt
	$(PIP) --require-hashes -r requirements/dev.txt && touch $@

# Cellpose 3 beside Cellpose 4: tests and benchmarks run it in a process of its own, with our packages as its dependencies.
.peers/.installed: .venv/.installed-dev requirements/peers.txt
	rm -rf .peers
	$(PIP) --require-hashes --target .peers -r requirements/peers.txt && touch $@

demo: .venv/.installed
	$(BIN)/cellkit run configs/demo.yaml

# The tests start Python a hundred times: what is compiled is kept, also where the environment says not to.
test: .peers/.installed
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

lint: .venv/.installed-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check --exclude '*.ipynb' . && $(BIN)/nbstripout --keep-id --verify $(NOTEBOOKS)

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks

bench: .peers/.installed
	for job in benchmarks/bench_*.py; do $(BIN)/python $$job || exit 1; done

slides: .venv/.installed
	$(BIN)/python presentation/build.py runs/demo -o runs/demo/slides

# The manual, to site/: a page that links nowhere stops it. The notebooks in it are those of runs/demo, where there is one.
.venv/.installed-docs: .venv/.installed requirements/docs.txt
	$(PIP) --require-hashes -r requirements/docs.txt && touch $@

docs: .venv/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# configs/schema.json, by which editors complete and explain the keys of a configuration.
schema: .venv/.installed
	$(BIN)/python scripts/write_schema.py

# Needs uv.
lock:
	sh scripts/lock.sh

# Everything but the run folders.
clean:
	rm -rf .venv .peers build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
