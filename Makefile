# make verify   the main job: exact truth, the reference loss, proofs (makes .venv first)
# make test     lint, types and the test suite; what CI runs
# make test-all the same with the long sweeps
# make bench    benchmarks, long form, written to build/bench/
# make bench-results  the committed results and the figures of benchmarks/README.md, measured again (quiet machine)
# make proofs   theorems (sympy), the shipped losses, the ledger of claims, and Coq where coqc is installed
# make golden   certifies every golden vector again and compares with the frozen files (minutes)
# make readme   regenerates the README's tables and figures, and the derivations
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := meanflow_ref proofs benchmarks tests

.PHONY: help verify test test-all lint bench bench-results readme golden proofs wheel-test clean

help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python {v[0]}.{v[1]} was found; 3.11 or newer is wanted: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

# The runtime alone: enough for `make verify`.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/.runtime

verify: $(VENV)/.runtime
	$(BIN)/meanflow-ref verify

test: lint
	$(BIN)/python -m pytest tests -m "not slow"

test-all: lint
	$(BIN)/python -m pytest tests

lint: $(VENV)/.dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy $(SOURCES)

bench: $(VENV)/.dev
	mkdir -p build/bench
	$(BIN)/python -m pytest benchmarks --benchmark-only --bench-long --bench-results build/bench --benchmark-json build/bench/pytest-benchmark.json

bench-results: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks/bench_jvp.py --benchmark-only --bench-long --bench-results benchmarks/results/cpu-2core
	$(BIN)/python benchmarks/write_readme.py

proofs: $(VENV)/.runtime
	$(BIN)/python -m proofs
	$(BIN)/python -m proofs --claims
	$(BIN)/python proofs/coq/check.py || test $$? -eq 2

readme: $(VENV)/.dev
	$(BIN)/python -m proofs --write
	$(BIN)/meanflow-ref verify --no-report --figures docs/figures --readme README.md
	$(BIN)/python -m meanflow_ref.verify.vectors_readme README.md

golden: $(VENV)/.dev
	$(BIN)/python -m meanflow_ref.truth.golden

# A wheel in an empty environment must run the main job whole.
wheel-test: $(VENV)/.dev
	rm -rf build/wheel-test && mkdir -p build/wheel-test
	$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel-test .
	$(PYTHON) -m venv build/wheel-test/env
	build/wheel-test/env/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt build/wheel-test/*.whl
	cd build/wheel-test && env/bin/meanflow-ref verify

clean:
	rm -rf build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
