# fastresnet: `make train` and `make test` are all a fresh clone needs. The first call sets everything up in .venv.

# What to pass on, only ever from the command line: make train DATA="my photos" ARGS="--arch resnet24 --epochs 2"
ARGS =
DATA =
SEED =
export DATA

STAMP := .venv/.stamp

.DEFAULT_GOAL := help
.PHONY: help setup venv train test bench-gpu bench-save bench-check fuzz torture lint lock audit licences clean FORCE

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo '  DATA=...         data for train: a folder, a tar(.xz/.gz), an .npz or `shapes`; without it, CIFAR-10'
	@echo '  ARGS="..."       passed on to `fastresnet train`, to pytest or to a benchmark'
	@echo '  PYTHON=...       the Python that .venv is made with (3.11 or newer), or that bench-gpu measures with'
	@echo '  TORCH_INDEX=...  the package index that torch and torchvision are taken from'

setup: $(STAMP) ## make .venv: torch for this machine, fastresnet, and what its tests need
	@:
venv: setup

$(STAMP): pyproject.toml constraints.txt requirements.lock .ci/setup
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' bash .ci/setup

# Another index is asked for by name, so the set-up runs again even where it is done.
ifneq ($(TORCH_INDEX),)
$(STAMP): FORCE
endif

train: $(STAMP) ## train (DATA and ARGS are passed on)
	@.venv/bin/fastresnet train $${DATA:+--data "$$DATA"} $(ARGS)

# A process a core, so one thread in each.
test: $(STAMP) ## run the tests (ARGS is passed on, as in ARGS="-k order")
	@OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

fuzz: $(STAMP) ## run the fuzzers with many examples (some minutes)
	@FASTRESNET_FUZZ=2000 .venv/bin/python -m pytest $(wildcard tests/test_fuzz_*.py) $(ARGS)

torture: $(STAMP) ## kill, starve and corrupt real runs (SEED=... draws the same again, ARGS="--short" fewer)
	@PYTHONPATH=tests .venv/bin/python -m torture $(if $(SEED),--seed $(SEED)) $(ARGS)

bench-gpu: ## measure on a GPU, with PYTHON= as it is: stops after 9 minutes, goes on where it stopped (ARGS=--all: the rest)
	@$(or $(PYTHON),.venv/bin/python) -m fastresnet.bench.gpu_suite $${DATA:+--data "$$DATA"} $(ARGS)

bench-save: $(STAMP) ## time the product's parts and keep that as this machine's baseline
	@.venv/bin/python -m fastresnet.bench.regression save $(ARGS)

bench-check: $(STAMP) ## time them again; fails where one has become slower, and names it
	@.venv/bin/python -m fastresnet.bench.regression check $(ARGS)

lint: $(STAMP) ## check style, imports, formatting and types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy -p fastresnet

lock: ## make the locks again, after a change of pyproject.toml or constraints.txt
	@PYTHON='$(PYTHON)' bash .ci/lock

audit: $(STAMP) ## look the locked packages up in the index's list of known vulnerabilities
	@.venv/bin/python .ci/audit

licences: $(STAMP) ## write docs/licences.md from what is installed
	@.venv/bin/python .ci/licences

clean: ## remove what builds and tests leave; .venv and runs/ stay
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
