# Two commands do all set-up: `make demo` runs the quickstart, `make test` the checks. Everything lives in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY_TESTS := tests/cluster tests/contract/test_executors.py tests/e2e

.PHONY: demo test test-here test-plain test-ray test-slow lint style types bench clean

demo: $(STAMP)
	$(BIN)/orchestrator run examples/quickstart.yaml

# Tests with a Ray cluster wait more than they compute, so they run beside the others.
test: $(STAMP) style
	@$(MAKE) --no-print-directory -j2 test-here test-ray

test-here: $(STAMP)
	@$(MAKE) --no-print-directory types
	@$(MAKE) --no-print-directory test-plain

# A file's tests stay in one process, so that what its tests share is made once; the long files come first.
test-plain: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
		-m "not slow and not ray and not multinode" tests

# Ray gives its workers the niceness 15, and the tests beside them would leave them next to nothing.
test-ray: $(STAMP)
	RAY_worker_niceness=0 $(BIN)/python -m pytest -m "not slow and (ray or multinode)" $(RAY_TESTS)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow tests

lint: style types

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python -m benchmarks.federated_speed --sides ours plain plain-tuned

# torch first and pinned: the constraint names a build that pip finds for CPU machines, and keeps every later
# install from exchanging it.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
