# Two commands from a fresh clone: `make run` and `make test`. `make help` lists the others.

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
CORES ?= all
CONFIG ?=
CUDA ?=
EXTRAS ?=
PYTEST_ARGS ?=

# The newest Python from 3.13 down to 3.11 that runs here and can make virtual environments; PYTHON=... overrides it.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	if $$p -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; \
	then echo $$p; break; fi; done)

.PHONY: help run test faults lint format lock aarch64 clean

help:  ## list the commands
	@grep -hE '^[a-z0-9]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# uv installs ten times faster than pip; where it cannot reach the index (its own settings, a mirror), pip does the same job.
define install
	@test -n "$(PYTHON)" || { echo "No Python from 3.11 to 3.13 with venv was found on the PATH: install one, or give PYTHON=/path/to/python."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r envs/uv.txt
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes $(1) \
		|| $(BIN)/python -m pip install --disable-pip-version-check --require-hashes $(addprefix -r ,$(1))
	@rm -f $(VENV)/.run* $(VENV)/.dev
	@touch $@
endef

empty :=
# Locks that were resolved together may be installed together; without any, the core's own.
LOCKED := $(if $(CUDA),cuda$(CUDA)) $(sort $(EXTRAS))
LOCKS := $(or $(patsubst %,envs/requirements-%.txt,$(LOCKED)),envs/requirements.txt)

# One environment, which the last locks made: each set of them has a stamp of its own.
RUN := $(VENV)/.run$(subst $(empty) ,,$(addprefix -,$(LOCKED)))
$(RUN): $(LOCKS) envs/uv.txt
	$(call install,$(LOCKS))

# The tests' lock holds everything that these hold.
$(VENV)/.dev: envs/requirements-dev.txt envs/uv.txt
	$(call install,$<)
	@touch $(VENV)/.run $(addprefix $(VENV)/.run-,petab onnx onnx-petab)

run: $(RUN)  ## the default study, up to its report (CONFIG=path for another one, CORES=n, CUDA=12 or 13, EXTRAS="petab onnx torch")
	PATH="$(CURDIR)/$(BIN):$$PATH" snakemake --cores $(CORES) --workflow-profile workflow/profiles/default $(if $(CONFIG),--configfile $(CONFIG))

test: $(VENV)/.dev  ## the test suite
	PATH="$(CURDIR)/$(BIN):$$PATH" python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not exhaustive' $(PYTEST_ARGS)

exhaustive: $(VENV)/.dev  ## what the test suite leaves out: more of the same kinds, for a release (half an hour)
	PATH="$(CURDIR)/$(BIN):$$PATH" RETROGRAD_FUZZ=20 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'exhaustive' $(PYTEST_ARGS)

faults: $(VENV)/.dev  ## runs that are killed and files that are damaged, on purpose: a table of what came of it (15 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" python scripts/make_faults.py --out results/faults.md

lint: $(VENV)/.dev  ## format, lint and type checks
	PATH="$(CURDIR)/$(BIN):$$PATH" bash -ec '\
		ruff format --check . && ruff check . && pyright --pythonpath $(BIN)/python && \
		snakefmt --check Snakefile workflow && snakemake --lint'

format: $(VENV)/.dev  ## put all sources into the project's format
	PATH="$(CURDIR)/$(BIN):$$PATH" bash -ec 'ruff format . && ruff check --fix . && snakefmt Snakefile workflow'

lock: $(VENV)/.dev  ## resolve the locks anew from pyproject.toml
	PATH="$(CURDIR)/$(BIN):$$PATH" bash envs/lock.sh

aarch64: $(VENV)/.dev  ## the study of config/studies/aarch64.yaml on an emulated aarch64 too, and the comparison (half an hour)
	PATH="$(CURDIR)/$(BIN):$$PATH" bash envs/aarch64.sh

clean:  ## remove the environments and all results
	rm -rf $(VENV) .snakemake .aarch64 results/*/
