# demo · test · check · evaluate. Each sets up what it needs in .venv by itself.
.DEFAULT_GOAL := help
.PHONY: help demo test check evaluate clean

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUT ?=
ARGS ?=
DATA ?= ../shared/data

help: ## What there is.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: install it or set PYTHON=…" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What edge and cloud run with; no torch among it.
$(VENV)/run.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Overread into $(VENV) (once)"
	$(PIP) --editable .
	@touch $@

# The same with training, tests and checks.
$(VENV)/dev.stamp: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing Overread with its training and test tools into $(VENV) (once)"
	$(PIP) --editable '.[train,dev]'
	@touch $@ $(VENV)/run.stamp

demo: $(VENV)/run.stamp ## Read a chest CT end to end: a phantom, or INPUT=path (DICOM folder, NIfTI, NRRD, MHD).
	@$(BIN)/python -m evaluation.demo $(if $(INPUT),--input "$(INPUT)") $(ARGS)

test: $(VENV)/dev.stamp ## Run the tests; ARGS are pytest's.
	$(BIN)/pytest $(ARGS)

check: $(VENV)/dev.stamp ## Format, lint, types, import contracts, stub drift.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m protos.generate --check

evaluate: $(VENV)/dev.stamp ## Every claim of docs/models.md, measured again on DATA.
	$(BIN)/python -m evaluation.claims --data "$(DATA)"

clean: ## Remove the environment and what the demo left.
	rm -rf $(VENV) demo
