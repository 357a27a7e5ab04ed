# Every recipe sets up what it needs: a virtual environment in .venv, once, from pyproject.toml and constraints.txt.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup test lint demo docs bench peers faults clean

# The first Python that is new enough; override with `make test PYTHON=/path/to/python3.12`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
READY := .venv/.ready

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install the package, torch and the tools into it

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "holdfast needs Python 3.11 or newer; none found. Say which: make test PYTHON=/path/to/python3.12" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "setup: making .venv with $(PYTHON) ..."; $(PYTHON) -m venv .venv; }
	@echo "setup: installing holdfast, torch and the test tools into .venv (a few minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[torch,dev]" -c constraints.txt
	@touch $(READY)

test: $(READY) ## run the tests (minutes); ARGS="-k name" passes on to pytest
	$(BIN)/python -m pytest -n auto --maxprocesses 4 $(ARGS)

lint: $(READY) ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(READY) ## train, kill, resume, prove that nothing differs, and write a page about it
	$(BIN)/python examples/demo.py $(ARGS)

docs: $(READY) ## run every code block of the pages and build them as a site in docs/_build/html
	$(BIN)/python -m pytest tests/docs $(ARGS)
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(READY) ## run all of benchmarks/ (under ten minutes) and write their tables; ARGS="--quick" only tries them
	$(BIN)/python benchmarks/report.py $(ARGS)

peers: $(READY) ## install the packages that benchmarks compare with, where they are not skipped
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[torch,dev,bench]" -c constraints.txt

faults: $(READY) ## kills, power cuts and full disks at every call, of several processes too
	$(BIN)/python -m pytest tests/faults tests/distributed -n auto --maxprocesses 4 -m "" $(ARGS)

clean: ## remove .venv and every cache
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist docs/_build
