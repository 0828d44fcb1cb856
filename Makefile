# The first python3 on the path that is new enough; `make PYTHON=...` overrides it.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c "$(NEW_ENOUGH)" 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-slow lint format venv clean

help:
	@echo "make demo       compress the sample photos and show what comes back"
	@echo "make test       run the tests            make test-slow   and the long ones"
	@echo "make lint       check style              make format      mend it"
	@echo "make venv       build $(VENV) with everything for development"
	@echo "make clean      remove $(VENV) and what make demo wrote"

demo: $(VENV)/.runtime
	$(BIN)/python launch/demo.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(VENV)/.dev

$(VENV)/.runtime: setup.py
	@test -n "$(PYTHON)" || { echo "onedc: Python 3.11 or newer is needed: make PYTHON=/path/to/python3"; exit 1; }
	@echo "making $(VENV) with $(PYTHON) (once)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) demo
