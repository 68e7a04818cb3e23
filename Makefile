# demo · test · test-all · check · evaluate. Each sets up what it needs in .venv by itself.
.DEFAULT_GOAL := help
.PHONY: help demo test test-all check evaluate clean

# The first of these that is there, is of a supported version and can make an environment.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUT ?=
ARGS ?=
DATA ?= ../shared/data
# Two processes, each with whole files of tests: a file shares its agents and clouds. One that
# crashes ends the run, which would wait for ever otherwise.
PARALLEL ?= --numprocesses 2 --dist loadfile --max-worker-restart 0

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with venv was found." \
		"Install one (Debian: apt-get install python3 python3-venv) or set PYTHON=/path/to/python." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)

# The run-time dependencies of edge and cloud, without torch.
$(VENV)/run.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Overread into $(VENV): about 0.9 GB on disk, one to three minutes, once."
	@$(PIP) --editable .
	@touch $@

# The same with the tools for training, tests and checks.
$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing Overread with its training and test tools into $(VENV), once: about 2 GB on disk and"
	@echo "two to five minutes with a CPU build of torch; up to 8 GB where pip chooses a CUDA build."
	@$(PIP) --editable '.[evaluation,trace,dev]'
	@touch $@ $(VENV)/run.stamp

demo: $(VENV)/run.stamp ## Read a chest CT with edge and cloud: a phantom, or INPUT=path (DICOM folder, NIfTI, NRRD, MHD).
	@$(BIN)/python -m tools.demo $(if $(INPUT),--input "$(INPUT)") $(ARGS)

test: $(VENV)/dev.stamp ## Run the tests but the long ones, in minutes; ARGS=... goes to pytest.
	$(BIN)/pytest $(PARALLEL) -m "not long" $(ARGS)

test-all: $(VENV)/dev.stamp ## Run all tests, as CI does; ARGS=... goes to pytest.
	$(BIN)/pytest $(PARALLEL) $(ARGS)

check: $(VENV)/dev.stamp ## Check format, lint, types, import contracts and generated stubs.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	@! grep -rn --include='*.py' '__import__(' process protos imaging models edge cloud overread evaluation tools
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

evaluate: $(VENV)/dev.stamp ## Measure every claim of the documentation again on DATA, and draw its pictures.
	$(BIN)/python -m evaluation.claims --data "$(DATA)"
	$(BIN)/python -m tools.pictures

clean: ## Remove the environment and the output of the demo.
	rm -rf $(VENV) demo
