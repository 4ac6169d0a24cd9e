# make setup   an environment in .venv that runs MGGTalk
# make demo    a talking-head video in outputs/demo
# make test    lint, types and tests
#
# WORKERS=4 tests in four processes, WORKERS=0 in one (default 2).
# PYTHON=python3.12 picks the interpreter. TORCH and TORCH_INDEX pick the PyTorch build, the first thing that pip installs:
# TORCH_INDEX=https://download.pytorch.org/whl/cpu   the small build without CUDA
# TORCH_INDEX=https://download.pytorch.org/whl/cu130 the build for an NVIDIA GPU

PYTHON ?=
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
VENV ?= .venv
WORKERS ?= 2
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check

.PHONY: setup demo dev lint test clean

setup: $(VENV)/.demo
dev: $(VENV)/.dev

demo: $(VENV)/.demo
	$(RUN) -m mggtalk.demo --output outputs/demo

lint: $(VENV)/.dev
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

test: lint
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile

clean:
	rm -rf $(VENV) build *.egg-info

# Each stamp file stands for an installation that went through.
$(VENV)/.demo: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt -e ".[demo]"
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install -c constraints.txt -e ".[dev]"
	@touch $@

# PyTorch on its own line and first: whatever needs it then takes the build that is there.
$(VENV)/.torch: $(VENV)/.python constraints.txt
	$(PIP) install -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

# An interpreter counts only if it runs: launchers of version managers may lie in the PATH without a version behind them.
CANDIDATES := $(or $(PYTHON),python3.13 python3.12 python3.11 python3.10 python3 python)
FITS := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 14))

$(VENV)/.python:
	@found=; for candidate in $(CANDIDATES); do \
		if "$$candidate" -c '$(FITS)' >/dev/null 2>&1; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo 'error: no usable Python 3.10 to 3.13 found (tried: $(CANDIDATES)).' >&2; \
		echo 'Install one with its venv module (Debian, Ubuntu: python3-venv), or name it: make PYTHON=/path/to/python3.12' >&2; \
		exit 1; \
	fi; \
	echo "using $$found ($$("$$found" -V))"; \
	"$$found" -m venv --clear $(VENV)
	@touch $@
