# The same few verbs for people and CI. Each sets up a private .venv; a stamp file makes the second call quick.

PYTHON ?= python3
SEEDS ?= 2000
VENV := .venv
BIN := $(VENV)/bin

N := 200
SEED :=

.PHONY: demo test simulate spending fuzz chaos lint bench clean

demo: $(VENV)/.model  ## Supervised agents on a real small model; one crashes and comes back.
	$(BIN)/nitinol demo

test: $(VENV)/.dev  ## All tests; ARGS="-k name" for some.
	$(BIN)/python -m pytest $(ARGS)

simulate: $(VENV)/.dev  ## Whole worlds from seeds, crashed at every named point; ARGS="--seed 7 -v" for one again.
	$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

spending: $(VENV)/.dev  ## One budget, many agents, and a vendor with a bill of its own; ARGS=--naive to compare.
	$(BIN)/python -m tests.simulation.spending --seeds $(SEEDS) $(ARGS)

fuzz: $(VENV)/.dev  ## Damaged answers of every vendor, SECONDS=300 of them for each parser.
	NITINOL_FUZZ=$(or $(SECONDS),300) $(BIN)/python -m tests.fuzz

lint: $(VENV)/.dev  ## Style, types, and the order of rooms.
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/.dev  ## Ratios against bare loops, measured side by side.
	$(BIN)/python benchmarks/run.py $(ARGS)

chaos: $(VENV)/.dev  ## Real agents killed N=200 times with kill -9, and the books; SEED=… repeats a plan.
	$(BIN)/python -m tests.chaos --kills $(N) $(if $(SEED),--seed $(SEED))

clean:  ## Remove what the verbs above have made.
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

$(VENV)/.package: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "nitinol needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	$(BIN)/python -m pip install --quiet --group dev
	@touch $@

$(VENV)/.model: $(VENV)/.package
	$(BIN)/nitinol local install
	@touch $@
