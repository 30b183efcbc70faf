# Two commands: `make book` runs the whole line and builds the book, `make test` proves it.
# A machine with Python >= 3.11, make and a package index is enough.
PYTHON ?= python3
PARAMS ?= params/glyph20.yaml
# A checkout of the released tables (README); without one their chapters show committed outputs.
RELEASED ?=
# The versions the committed outputs were made with; `make test CONSTRAINTS=` tries the newest.
CONSTRAINTS ?= constraints.txt
# Parts of test-portable: `make test-portable PORTABLE="--only zen-1 --select tests"`.
PORTABLE ?=

VENV := $(if $(CONSTRAINTS),.venv,_build/newest)
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BUILD := _build
NAME := $(basename $(notdir $(PARAMS)))
EVERYTHING := .[clip,glyphs,sources,dask,book,test]
PYTEST := $(BIN)/python -m pytest
CHAPTERS := --nbval --nbval-current-env --nbval-sanitize-with tests/nbval.cfg

# The same on every machine: figures land in the chapters, and kernels keep their notes to themselves.
unexport MPLBACKEND
export PYDEVD_DISABLE_FILE_VALIDATION := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: book test test-fast test-portable check setup clean

book: $(INSTALLED)
	$(BIN)/mergelib run --params $(PARAMS) --store $(BUILD)/store --tables $(BUILD)/tables/$(NAME)
	$(BIN)/mergelib book --tables $(BUILD)/tables/$(NAME) --out $(BUILD)/html $(if $(RELEASED),--released $(RELEASED))

test: check
	$(PYTEST) $(CHAPTERS) tests book

# For work in progress: no chapters, none of the tests that take long.
test-fast: check
	$(PYTEST) -q -m "not slow" --numprocesses auto --dist loadfile tests

# The numeric tests and the chapters under the kernels of other processors; about an hour.
test-portable: $(INSTALLED)
	$(BIN)/python tests/portable.py $(PORTABLE)

# What needs no run: style, layers, types.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

setup: $(INSTALLED)

# One call, so that pip picks builds of torch, torchvision and open_clip_torch that fit together.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mergelib needs Python 3.11 or newer: make PYTHON=python3.11")'
	@echo "Setting up $(VENV); the first time this takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS),--upgrade --upgrade-strategy eager) --editable "$(EVERYTHING)"
	touch $@

clean:
	rm -rf $(BUILD) $(VENV) *.egg-info .pytest_cache .ruff_cache
