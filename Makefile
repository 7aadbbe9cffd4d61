# PYTHON makes the virtual environment; everything else runs inside it.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
STAMP := $(VENV)/.installed
RUN := PATH="$(abspath $(VENV))/bin:$$PATH"
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
PIP := $(VENV)/bin/python -m pip -qq --disable-pip-version-check --no-input
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help venv demo test check bench

help:  ## show this list
	@awk -F ":.*## " '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "ARGS is handed on: make test ARGS=\"-k dkpp\", make demo ARGS=\"--generations 4\""

venv: $(STAMP)  ## make .venv and install the package with its tools (once; needs Python 3.11)

demo: $(STAMP)  ## train three generations and their ensemble on digits, about two minutes on a CPU
	@# On a CPU accelerate would run one thread.
	@$(RUN) OMP_NUM_THREADS="$${OMP_NUM_THREADS:-$$($(VENV)/bin/python -c "import os; print(os.cpu_count())")}" \
		accelerate launch recipes/ban_cifar.py $(ARGS)

test: $(STAMP)  ## run the tests, offline
	@$(RUN) $(OFFLINE) pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

check: $(STAMP)  ## lint, formatting and types
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy

# Short ones first; torchdistill, the peer, is left out where it is not installed.
BENCHMARKS := overhead mixed_cross_entropy levers stacked_ensemble stacked_training growth step
bench: $(STAMP)  ## run the benchmarks, most of an hour on two cores (a try: ARGS=--quick)
	@$(PIP) install --editable ".[bench]"
	@set -e; for name in $(BENCHMARKS); do echo "$$name"; \
		$(RUN) $(OFFLINE) python -m benchmarks.$$name $(ARGS); done

# The stamp is written last: an install that was cut short is done again.
$(STAMP): pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "Installing into $(VENV) (PyTorch is large: the first time takes minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --editable ".[dev]"
	@touch $@
