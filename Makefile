# Every target installs what it needs into .venv first; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin
TRAIN := $(BIN)/python train.py

.DEFAULT_GOAL := help
.PHONY: help demo mini mini-cifar100 table1a table1b table1c table1d table1 table2 table3 table4 tables report
.PHONY: fig1 fig2 fig3 fig4 fig5 fig6 figures bench bench-gpu test test-slow test-slurm lint format docs clean

help: ## list the targets
	@sed -nE 's/^([a-z0-9 -]+):.*## /  \1\t/p; s/^## (.*)/\n\1/p' $(MAKEFILE_LIST) | sed 's/table1a .*table4/table1a to table4/' | expand -t 26

# The environment: this project and its tested versions. Remade when either file changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

# A sweep some of whose runs failed ends with status 1, which `-` ignores: the tables are written from the others.

## Train, and write what comes of it; ARGS="model=cnn13 seed=0" narrows the runs or says how they run

demo: .venv/installed ## 8 runs on embedded data in two minutes; tables and picture in runs/demo
	$(TRAIN) -m preset=demo averaging=none,phasewise seed=0,1,2,3 runs_dir=runs/demo
	$(BIN)/python scripts/compare.py runs/demo --output runs/demo/errors

table1a table1b table1c table1d table2 table3 table4: .venv/installed ## a table: results/full/tables
	-$(TRAIN) -m table=$(@:table%=t%) $(ARGS)
	$(BIN)/python scripts/tables.py --all-cells table=$(@:table%=t%) $(ARGS)

table1: table1a table1b table1c table1d ## all parts of Table 1

mini: .venv/installed ## Tables 1, 3 and 4 on embedded data, in minutes: results/mini
	-$(TRAIN) -m preset=mini table=t1a,t1b,t1c,t1d,t3,t4 hydra/launcher=local $(ARGS)
	$(BIN)/python scripts/tables.py preset=mini table=all --output results/mini/tables --claims results/mini/claims.md

# Of Table 3 the columns that have no epoch of their own.
mini-cifar100: .venv/installed ## Table 1 and ablations on 5,000 images of CIFAR-100: results/cifar100-mini
	-$(TRAIN) -m preset=mini-cifar100 model=cnn13 table=t1a,t1b,t1c,t1d,ablations hydra/launcher=local $(ARGS)
	-$(TRAIN) -m preset=mini-cifar100 model=cnn13 table=t3 column=sgd-orig,sgd-ours hydra/launcher=local $(ARGS)
	$(BIN)/python scripts/records.py runs/mini-cifar100 --records results/cifar100-mini/records
	$(BIN)/python scripts/tables.py preset=mini-cifar100 table=all,ablations,gamma0 model=cnn13 \
		--output results/cifar100-mini/tables --claims results/cifar100-mini/claims.md

fig1 fig2 fig3: .venv/installed ## a figure of one run: results/figures
	$(BIN)/python scripts/figures.py $@ --train $(ARGS)

## Write from records, training nothing

tables: .venv/installed ## all tables and the verdicts on the claims: results/full
	$(BIN)/python scripts/tables.py table=all --claims results/full/claims.md $(ARGS)

fig4 fig5 fig6: .venv/installed ## a figure: results/figures
	$(BIN)/python scripts/figures.py $@ $(ARGS)

figures: .venv/installed ## all figures that there are numbers of: results/figures
	-$(BIN)/python scripts/figures.py $(ARGS)
	-$(BIN)/python scripts/figures.py fig5 gamma0 phases claims preset=mini-cifar100 model=cnn13

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

docs: .venv/installed ## the documentation as a site: site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

format: .venv/installed ## fix what lint can fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs, data and results stay
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
