# Every target installs what it needs into .venv first; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo bench test lint format clean

help: ## list the targets
	@grep -hE '^[a-z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# The environment: this project and its tested versions. Remade when either file changes.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: .venv/installed ## two methods, four seeds, on embedded data: table and figure in results/demo
	$(BIN)/python train.py -m preset=demo averaging=none,phasewise seed=0,1,2,3 runs_dir=runs/demo
	@mkdir -p results/demo
	$(BIN)/python scripts/demo.py runs/demo results/demo

bench: .venv/installed ## cost of averaging, and optimizer steps beside the peers'
	@mkdir -p results/benchmarks
	$(BIN)/python -m benchmarks.averaging --output results/benchmarks/averaging.md
	$(BIN)/python -m benchmarks.optimizers --threads 1 --output results/benchmarks/optimizers.md

test: .venv/installed ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: .venv/installed ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed ## mend what lint can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment and caches; runs, data and results stay
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
