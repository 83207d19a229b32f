# Two commands for newcomers: `make demo` and `make test`. Each sets up what it needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := .venv-demo
SOURCES := $(shell find fanout workers -name '*.py' -o -name '*.css' -o -name '*.j2')
# All but one begin with tests that wait for other processes, and one with quick ones: see tests/order.py.
# `RECORD_SECONDS=1 make test` renews tests/seconds.json, by which they are shared out.
# Whichever is idle takes over what another has left. Four of them leave a quarter of two cores idle.
TEST_PROCESSES := 5
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO_PIP := $(DEMO)/bin/python -m pip --disable-pip-version-check --quiet

# What `make dev` has installed stays as it is: an edit is in effect at once.
READY = $(if $(wildcard $(VENV)/.editable),$(VENV)/.editable,$(VENV)/.installed)

.PHONY: demo test dev test-one lint format coverage clean help

help:
	@echo "make demo                     have a small local model read the amendments to the US constitution"
	@echo "make test                     run the whole test suite on the package as it is built"
	@echo "make dev                      install for work: an edit is in effect without another install"
	@echo "make test-one T=tests/...     run one test file, folder or test"
	@echo "make lint                     style, types and import rules"
	@echo "make format                   have ruff format all of it and repair what it can"
	@echo "make coverage [T=tests/...]   measure which lines and branches the tests reach"
	@echo "make clean                    remove the environments"

# What is installed is the built package, as a user gets it, and what is locked, to the hash.
$(VENV)/.locked: requirements.lock ops/setup-venv
	PYTHON="$(PYTHON)" sh ops/setup-venv $(VENV)
	$(PIP) install --require-hashes --requirement requirements.lock
	@touch $@

$(VENV)/.installed: $(VENV)/.locked pyproject.toml README.md $(SOURCES)
	$(PIP) install --no-deps --no-build-isolation --force-reinstall .
	@rm -f $(VENV)/.editable
	@touch $@

$(VENV)/.editable: $(VENV)/.locked pyproject.toml
	$(PIP) install --no-deps --no-build-isolation --force-reinstall --editable .
	@rm -f $(VENV)/.installed
	@touch $@

# What it takes to use fanout, without what it takes to change it: the tools that build the wheel go again.
$(DEMO)/.installed: requirements-demo.lock ops/docker/requirements-build.lock ops/setup-venv pyproject.toml README.md $(SOURCES)
	PYTHON="$(PYTHON)" sh ops/setup-venv $(DEMO)
	$(DEMO_PIP) install --require-hashes --requirement requirements-demo.lock
	$(DEMO_PIP) install --target $(DEMO)/.build --require-hashes --requirement ops/docker/requirements-build.lock
	PYTHONPATH=$(DEMO)/.build $(DEMO_PIP) install --no-deps --no-build-isolation .
	rm -rf $(DEMO)/.build
	@touch $@

demo: $(DEMO)/.installed
	@$(DEMO)/bin/fanout run examples/amendments.yaml
	@cat examples/next.txt

test: $(VENV)/.installed
	$(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(PYTEST_ARGS)

dev: $(VENV)/.editable

test-one: $(READY)
	$(BIN)/pytest $(T) $(PYTEST_ARGS)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.locked
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

coverage: $(READY)
	$(BIN)/coverage erase
	$(BIN)/coverage run $(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist worksteal $(T) $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

clean:
	rm -rf $(VENV) $(DEMO) build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
