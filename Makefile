# Two commands: `make demo` compares tuning methods on a real model, `make test` runs the tests.
# Each makes its own environment on first use. PYTHON picks the interpreter (3.10 to 3.13).

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check bench docs clean

demo: .venv/ready
	$(BIN)/monochord compare --out runs/demo

test: .venv/ready-dev
	$(BIN)/python -m pytest -n 2

check: .venv/ready-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docs.py --check

bench: .venv-bench/ready
	cd benchmarks && for script in start capture steering tuning zeroth_order adapt engine; do \
		OMP_NUM_THREADS=1 ../.venv-bench/bin/python $$script.py || exit 1; done
	cd benchmarks && OMP_NUM_THREADS=1 ../.venv-bench/bin/python task_arithmetic.py --gib 1.78
	.venv-bench/bin/python benchmarks/table.py

docs: .venv/ready-docs
	$(BIN)/python tools/docs.py
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv .venv-bench

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/ready-dev: .venv/ready
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/ready-docs: .venv/ready-dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv-bench/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@
