# Every target makes the environment it needs in .venv, from pyproject.toml with the versions of constraints.txt.
#
#   PYTHON       the interpreter that makes the environment (3.11 or newer)   make test PYTHON=python3.12
#   TORCH_INDEX  where else to look for torch; PyPI's torch for Linux brings CUDA, its CPU build is smaller:
#                make quickstart TORCH_INDEX=<the CPU index that pytorch.org names>
#   JOBS         test processes                                               make test JOBS=4
#   ARGS         passed on to the command                                     make test ARGS="tests/cli -k version"

PYTHON ?= python3
TORCH_INDEX ?=
JOBS ?= $(shell n=$$(getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); echo $$((n > 4 ? 4 : n)))
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
LOCK := pyproject.toml constraints.txt
.DEFAULT_GOAL := help

# The environment is made again when its interpreter is gone or the folder has moved.
STALE := $(shell [ "$$(cat $(VENV)/made 2>/dev/null)" = "$(CURDIR)" ] && $(BIN)/python -c "" 2>/dev/null || echo stale)

# A stamp is written last, so that an interrupted installation is taken up again.
$(VENV)/made: $(STALE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "The locked versions need Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	@echo "$(CURDIR)" > $@

$(VENV)/quickstart: $(VENV)/made $(LOCK)
	@echo "Installing into $(VENV) (torch and transformers; a minute or more)"
	@$(INSTALL) --editable '.[quickstart]'
	@touch $@

$(VENV)/dev: $(VENV)/made $(LOCK)
	@echo "Installing into $(VENV) (with everything the tests use; some minutes)"
	@$(INSTALL) --editable '.[dev]'
	@touch $(VENV)/quickstart $@

.PHONY: stale help quickstart test test-all lint types docs docs-serve format generate check lock bench evidence clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## *' '{printf "make %-12s %s\n", $$1, $$2}'

quickstart: $(VENV)/quickstart  ## adapt a real model to real data, offline; ends with a report
	$(BIN)/adaptome quickstart $(ARGS)

test: $(VENV)/dev  ## the test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 15 $(ARGS)

test-all: $(VENV)/dev  ## the test suite with its slow tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal --durations 15 -m "slow or not slow" $(ARGS)

lint: $(VENV)/dev  ## style, imports and likely mistakes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev  ## static types
	$(BIN)/mypy

docs: $(VENV)/dev  ## the documentation, into site/, warnings being errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/dev  ## the documentation on a local port, rebuilt as it is edited
	$(BIN)/mkdocs serve

format: $(VENV)/dev  ## rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/dev  ## rewrite the generated parts of the README
	$(BIN)/python docs/generate.py

check: lint types docs test  ## all that a change must pass

lock: $(VENV)/dev  ## write the installed versions to constraints.txt
	$(BIN)/python -m pip list --format freeze --exclude-editable | sed -E '/^pip==/d; s/\+[a-z0-9.]+$$//' > $(VENV)/lock
	@{ sed '/^[^#]/d' constraints.txt; cat $(VENV)/lock; } > $(VENV)/constraints && mv $(VENV)/constraints constraints.txt
	@touch $(VENV)/quickstart $(VENV)/dev

bench:  ## list the benchmarks
	@for file in $(wildcard benchmarks/*.py benchmarks/*/*.py); do printf '%-44s %s\n' "$$file" "$$(sed -n '1s/^"""//p' "$$file" | sed 's/"""$$//')"; done

evidence: $(VENV)/dev  ## run the benchmarks and keep their rows for the documentation: hours; ARGS=--small to see them run
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/all.py $(ARGS)

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache src/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
