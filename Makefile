# Every target installs what it needs into .venv first; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo demo-results mini mini-cifar100 table1a table1b table1c table1d table1 table2 table3 table4 tables report records
.PHONY: fig1 fig2 fig3 fig4 fig5 fig6 figures bench bench-gpu test test-slow test-slurm lint format clean

help: ## list the targets
	@grep -hE '^[a-z0-9_ -]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/; s/^(table1a).*(table4)/\1 … \2/' | expand -t 20

# The environment: this project and its tested versions. Remade when either file changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/installed ## two methods, four seeds, on embedded data: table and picture in runs/demo
	$(BIN)/python train.py -m preset=demo averaging=none,phasewise seed=0,1,2,3 runs_dir=runs/demo
	$(BIN)/python scripts/demo.py runs/demo

demo-results: demo ## the same, and what is committed of it anew: results/demo
	rm -rf results/demo/records
	$(BIN)/python scripts/records.py runs/demo --records results/demo/records
	$(BIN)/python scripts/demo.py results/demo/records results/demo

mini: .venv/installed ## Tables 1, 3 and 4 and the claims in miniature, from nothing: results/mini
	@mkdir -p results/mini
	$(BIN)/python train.py -m preset=mini table=$(MINI) plan=true > results/mini/plan.md
	@cat results/mini/plan.md
	$(BIN)/python train.py -m preset=mini table=$(MINI) hydra/launcher=local || [ $$? = 1 ]
	$(BIN)/python scripts/tables.py preset=mini table=all \
		--output results/mini/tables --claims results/mini/claims.md

MINI := t1a,t1b,t1c,t1d,t3,t4

# Of Table 3 what has no epoch of its own. Tables are written also if some runs failed; ARGS="seed=0"
# narrows the runs.
mini-cifar100: .venv/installed ## Table 1 and the open ablations in miniature on CIFAR-100 in DATA=folder: results/cifar100-mini
	@mkdir -p runs/mini-cifar100
	@$(call miniature,table=t1a$(comma)t1b$(comma)t1c$(comma)t1d$(comma)ablations); \
	$(call miniature,table=t3 column=sgd-orig$(comma)sgd-ours); \
	$(BIN)/python scripts/records.py runs/mini-cifar100 --records results/cifar100-mini/records && \
	$(BIN)/python scripts/tables.py preset=mini-cifar100 table=all,ablations,gamma0 model=cnn13 \
		--output results/cifar100-mini/tables --claims results/cifar100-mini/claims.md && \
	$(BIN)/python scripts/phase_ends.py results/cifar100-mini/records $(told_apart_by) \
		--output results/cifar100-mini/phase_ends.md && \
	$(BIN)/python scripts/headline.py preset=mini-cifar100 model=cnn13 --readme README.md && \
	exit $${failed:-0}

told_apart_by = model averaging averaging.weights.gamma0 averaging.weights.rho averaging.window \
	schedule.epochs schedule.divisor schedule.shape._target_ optimizer optimizer_state

miniature = $(BIN)/python train.py -m preset=mini-cifar100 model=cnn13 $(1) hydra/launcher=local \
	$(if $(DATA),data_dir=$(DATA)) $(ARGS) || failed=$$?; test $${failed:-0} -le 1 || exit $$failed

# Trains what is missing, or nothing with RUN=0; then writes tables from all records there are, also
# if some runs failed. ARGS narrows the runs or sets how they are run: ARGS="model=cnn13 seed=0".
RUN ?= 1
study = $(if $(filter 0,$(RUN)),status=0,$(BIN)/python train.py -m table=$(1) $(ARGS); status=$$?); \
	test $$status -le 1 || exit $$status; \
	$(BIN)/python scripts/tables.py --whole table=$(1) $(ARGS) $(2) && exit $$status

table1a table1b table1c table1d table2 table3 table4: .venv/installed ## run what is missing of a table, and write it to results/full/tables; RUN=0 only writes
	@$(call study,$(@:table%=t%))

table1: .venv/installed ## the same of 1a to 1d
	@$(call study,t1a$(comma)t1b$(comma)t1c$(comma)t1d)

tables: .venv/installed ## the same of all tables, and results/full/claims.md
	@$(call study,all,--claims results/full/claims.md)

# Figures 1 to 3 are of a run, which is trained if it is missing.
fig1 fig2 fig3: .venv/installed ## draw it in results/figures, training its run if that is missing; RUN=0 only draws, ARGS= another run
	$(BIN)/python scripts/figures.py $@ $(ARGS) $(if $(filter 0,$(RUN)),,--train)

fig4 fig5 fig6: .venv/installed ## draw it in results/figures
	$(BIN)/python scripts/figures.py $@ $(ARGS)

# From what there is: records, and of runs what was measured before. Without ARGS of all that is kept;
# what cannot be drawn does not stop the rest.
figures: .venv/installed ## draw all figures from what there is, training nothing: results/figures
	@$(call drawn,$(ARGS))$(if $(ARGS),,; $(call drawn,fig1 fig2 fig3 $(MINIATURE)); \
	$(call drawn,$(OF_RECORDS) preset=mini-cifar100 model=cnn13)); \
	exit $${failed:-0}

drawn = { $(BIN)/python scripts/figures.py $(1) || failed=$$?; test $${failed:-0} -ne 130 || exit 130; }

OF_RECORDS := fig5 gamma0 phases claims sharing

# The run of Figures 1 to 3 in miniature on CIFAR-100: `make fig2 ARGS="data_dir=… $(MINIATURE)"`.
MINIATURE := preset=mini-cifar100 model.width=0.125 schedule=80-40-40 schedule.divisor=1 save_trajectory=steps evaluation.batchnorm_every=20

comma := ,

report: .venv/installed ## all results as a page that opens from disk: results/index.html; ARGS="--runs runs/demo" adds runs
	$(BIN)/python scripts/report.py $(ARGS)

records: .venv/installed ## copy the records of the ended runs FROM=folder to results/full/records; derive runs.csv
	$(BIN)/python scripts/records.py $(FROM)

bench: .venv/installed ## time input, training and averaging on a CPU core, beside other libraries; TIMM=checkout of timm
	$(BIN)/python -m benchmarks.input
	$(BIN)/python -m benchmarks.training $(if $(TIMM),--timm $(TIMM))
	$(BIN)/python -m benchmarks.averaging

bench-gpu: .venv/installed ## time training and averaging on an NVIDIA GPU; MODELS="cnn13 resnet34" narrows
	$(BIN)/python -m benchmarks.gpu $(if $(MODELS),--models $(MODELS))

test: .venv/installed ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not slurm"

test-slow: .venv/installed ## run the tests that kill a run at many more moments
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

# A Slurm of two nodes on this host, started for the test; the packages are Debian's.
test-slurm: .venv/installed ## run the tests of hydra/launcher=slurm on a Slurm of their own; needs root
	command -v slurmctld munged || apt-get install --yes --no-install-recommends slurm-wlm munge
	$(BIN)/python -m pytest -m slurm tests/sweep/test_slurm.py

lint: .venv/installed ## check style, formatting and the types of what others import
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs, data and results stay
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
