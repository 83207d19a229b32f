# Two commands for newcomers: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find fanout workers -name '*.py' -o -name '*.css')
# Most tests wait for other processes; whichever of these four is idle takes over what another has left.
TEST_PROCESSES := 4
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: demo test lint clean help

help:
	@echo "make demo   have a small local model read the amendments to the US constitution"
	@echo "make test   run the whole test suite"
	@echo "make lint   style, types and import rules"
	@echo "make clean  remove the environment"

# What is installed is the built package, as a user gets it, and what is locked, to the hash.
$(VENV)/.locked: requirements.lock ops/setup-venv
	PYTHON="$(PYTHON)" sh ops/setup-venv $(VENV)
	$(PIP) install --require-hashes --requirement requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml README.md $(SOURCES)
	$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@touch $@

demo: $(VENV)/.installed
	@$(BIN)/fanout run examples/amendments.yaml

test: $(VENV)/.installed
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
