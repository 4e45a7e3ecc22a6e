# Everything that one does with this repository. `make help` lists it.
.DEFAULT_GOAL := help
.PHONY: help run test lab data study figures report lint clean

PYTHON  ?= python3
PROFILE ?= demo
DATA    ?= $(BLOODCELL_DATA)
BIN     := .venv/bin
FOLDER  := $(if $(DATA),--data "$(DATA)")

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10
	@echo
	@echo "Variables: DATA=<folder of images>, PROFILE=demo|cpu|full, PYTHON=<interpreter for .venv>"

run: .venv/installed ## all five notebooks, the figures and the report; DATA=<folder> for real images
	@$(BIN)/bloodcell run --profile $(PROFILE) $(FOLDER)

test: .venv/developer lint ## lint, unit tests and the notebooks end to end
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lab: .venv/installed ## the notebooks in JupyterLab
	$(if $(DATA),BLOODCELL_DATA="$(abspath $(DATA))") $(BIN)/jupyter lab notebooks

data: .venv/installed ## audit the images in DATA
	$(BIN)/bloodcell data check $(if $(DATA),"$(DATA)")

study: .venv/installed ## the 16 experiments with every seed; goes on where it was cut off
	$(BIN)/bloodcell study --profile $(PROFILE) $(FOLDER)

figures: .venv/installed ## the published figures, from the published records
	$(BIN)/bloodcell figures

report: figures ## report.pdf and the numbers in the documents, from the published records
	$(BIN)/bloodcell report

lint: .venv/developer ## ruff over library, tests and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean: ## removes what runs and caches left; .venv and data/raw stay
	rm -rf runs data/cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# One stamp file each: a second `make run` installs nothing.
.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else f"Python {v[0]}.{v[1]} is not 3.10 to 3.13: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "No venv: on Debian, apt-get install python3-venv"; rm -rf .venv; exit 1; }
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	@touch $@

.venv/developer: .venv/installed
	$(BIN)/pip install --quiet --editable '.[dev]'
	@touch $@
