# Every target installs what it needs into .venv first; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
TRAIN := $(BIN)/python train.py
SCALED := $(if $(SCALE),scale=$(SCALE))

.DEFAULT_GOAL := help
.PHONY: help demo table1a table1b table1c table1d table1 table2 table3 table4 tables report
.PHONY: fig1 fig2 fig3 fig4 fig5 fig6 figures bench bench-gpu test test-slow test-slurm lint format clean

help: ## list the targets
	@sed -nE 's/^([a-z0-9 -]+):.*## /  \1\t/p; s/^## (.*)/\n\1/p' $(MAKEFILE_LIST) | sed 's/table1a .*table4/table1a to table4/' | expand -t 26

# The environment: this project and its tested versions. Remade when either file changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A sweep some of whose runs failed ends with status 1, which `-` ignores: the tables are written from the others.

## Train, then write tables and figures; ARGS="model=cnn13 seed=0" selects runs or options; SCALE=tenth is for a CPU

demo: .venv/installed ## 8 runs on embedded data in two minutes; tables and picture in runs/demo
	$(TRAIN) -m preset=demo averaging=none,phasewise seed=0,1,2,3 runs_dir=runs/demo
	$(BIN)/python scripts/compare.py runs/demo --output runs/demo/errors

table1a table1b table1c table1d table2 table3 table4: .venv/installed ## a table: results/full/tables, or results/tenth/tables
	-$(TRAIN) -m $(SCALED) table=$(@:table%=t%) $(ARGS)
	$(BIN)/python scripts/tables.py $(SCALED) table=$(@:table%=t%) $(ARGS)

table1: table1a table1b table1c table1d ## all parts of Table 1

fig1 fig2 fig3: .venv/installed ## a figure of one run: results/figures
	$(BIN)/python scripts/figures.py $@ --train $(SCALED) $(ARGS)

## Write from records, training nothing

tables: .venv/installed ## all tables and the verdicts on the claims: results/full, or results/tenth
	$(BIN)/python scripts/tables.py --claims $(SCALED) table=all $(ARGS)

fig4 fig5 fig6: .venv/installed ## a figure: results/figures
	$(BIN)/python scripts/figures.py $@ $(SCALED) $(ARGS)

figures: .venv/installed ## every figure that has data: results/figures
	-$(BIN)/python scripts/figures.py $(SCALED) $(ARGS)

report: .venv/installed ## all results as one page: results/index.html; ARGS="--runs runs/demo" adds runs
	$(BIN)/python scripts/report.py $(ARGS)

## Measure

bench: .venv/installed ## time input, training and averaging on a CPU core, beside other libraries; TIMM=checkout of timm
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.training $(if $(TIMM),--timm $(TIMM))
	$(BIN)/python -m benchmarks.averaging

bench-gpu: .venv/installed ## time training and averaging on an NVIDIA GPU; MODELS="cnn13 resnet34" narrows
	$(BIN)/python -m benchmarks.gpu $(if $(MODELS),--models $(MODELS))

## Develop

test: .venv/installed ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm" --ignore tests/integrations

test-slow: .venv/installed ## run the tests of kills, launchers, other libraries' loops, W&B, the browser and the wheel
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# A Slurm of two nodes on this host, started for the test; the packages are Debian's.
test-slurm: .venv/installed ## run the tests of hydra/launcher=slurm on a Slurm of their own; needs root
	command -v slurmctld munged || apt-get install --yes --no-install-recommends slurm-wlm munge
	$(BIN)/python -m pytest -m slurm tests/sweep/test_slurm.py

lint: .venv/installed ## check style, formatting and the types of what others import
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed ## fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs, data and results stay
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
