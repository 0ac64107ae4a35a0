# make train and make test are all that a new user needs: each makes .venv and installs into it first.
# DEVICE=cuda installs the CUDA fbgemm-gpu; PYTHON names the interpreter. STACK=2.11 takes the second stack of torch,
# fbgemm and torchrec in pyproject.toml, in an environment of its own, .venv-2.11 of 5 GB.
SHELL := /bin/bash
PYTHON ?= python3.11
DEVICE ?= cpu
STACK ?=
SUFFIX := $(STACK:%=-%)
VENV := .venv$(SUFFIX)
RUN := . $(VENV)/bin/activate &&
INSTALLED := $(VENV)/.installed-$(DEVICE)

.PHONY: install train bench quick test test-stack test-long fuzz lint types layers clean

install: $(INSTALLED)

# torchrec goes in with --no-deps, as it asks for the CUDA fbgemm-gpu; pyproject.toml lists its other needs. An editable
# installation has a copy of launch/components.py, where TorchX finds it from any folder.
$(INSTALLED): pyproject.toml launch/components.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet --upgrade "pip>=25.1"
	$(RUN) pip uninstall --quiet --yes fbgemm-gpu fbgemm-gpu-cpu
	$(RUN) pip install --quiet --editable ".[$(DEVICE)$(SUFFIX)]" --group dev
	$(RUN) pip install --quiet --no-deps --group torchrec$(SUFFIX)
	$(RUN) python -c "import stem_torchrec"
	rm -f $(VENV)/.installed-*
	touch $@

train: $(INSTALLED)
	$(RUN) torchx run dist.ddp -j 1x2 stem_torchrec/train.py

# About five minutes on 2 cores. The same OUT resumes an interrupted sweep; another OUT starts a new one.
OUT ?= runs/bench
bench: $(INSTALLED)
	$(RUN) torchx run dist.ddp -j 1x2 benchmarks/sharding.py --tables benchmarks/tables/small.yaml \
		--sparse.name adagrad --tasks 2 --cases '*' {table_wise,row_wise,column_wise}'/*/*/T8' --out $(OUT)

# Three tiers. quick, 90 seconds on 2 cores: whether any package is broken.
quick: $(INSTALLED)
	$(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m quick

# Every fact once, 9 minutes on 2 cores. A file's tests share what they have trained, so they stay on one worker.
test: $(INSTALLED)
	$(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long"

# What another version of torch, fbgemm or torchrec breaks first; STACK=2.11 runs it with the second stack.
test-stack: $(INSTALLED)
	$(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "stack and not long"

# All tests, by estimate 50 minutes: full matrices, soaks, long commands of the pages.
test-long: $(INSTALLED)
	$(RUN) pytest -q -n 2 --dist loadfile --no-loadscope-reorder

# Mistaken inputs to the commands: 10,000 take half an hour on 2 cores. FUZZ="--minutes 5 --seed 1 --out DIR" for others.
FUZZ ?= --examples 10000 --out runs/fuzz
fuzz: $(INSTALLED)
	$(RUN) PYTHONPATH=.:tests:benchmarks python -m fuzz.campaign $(FUZZ)

lint: $(INSTALLED)
	$(RUN) ruff check . && ruff format --check . && hadolint Dockerfile

types: $(INSTALLED)
	$(RUN) mypy

# The packages of benchmarks/ are not installed, so their layers are checked with benchmarks/ on the path.
layers: $(INSTALLED)
	$(RUN) lint-imports && PYTHONPATH=benchmarks lint-imports --config benchmarks/layers.toml

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
