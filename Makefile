# poolrt: every target sets up what it needs. `make demo` and `make test` are all a fresh machine takes.
#
#   make demo        BERT-large that does not fit one card trains on two
#   make test        the whole test suite
#   make lint        ruff, mypy, clang-format
#   make bench       the benchmarks, quick settings, into build/bench
#   make gpu-check   tests and benchmarks on one CUDA GPU, into build/gpu-check.json
#   make clean       removes what the targets above made
#
# PYTHON=python3.12 picks the interpreter .venv is made with. VENV=none uses PYTHON as it is and installs nothing: for
# machines where torch is already there. Nothing is written outside this folder.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH ?= 2.13.0
VENV ?= .venv
WORKERS ?= 2

export POOLRT_CACHE_DIR ?= $(CURDIR)/build/cache
export HF_HOME ?= $(CURDIR)/build/huggingface
export MPLCONFIGDIR ?= $(CURDIR)/build/matplotlib
export PYTHONUNBUFFERED := 1

# vcard*.cpp and kernels.cu are compiled at first use, against the installed torch; the rest is poolrt._C.
CORE_SOURCES := $(filter-out csrc/vcard% csrc/%.cu,$(wildcard csrc/*.cpp csrc/*.hpp))

ifeq ($(VENV),none)
  READY := build/in-place.ready
  RUN := PYTHONPATH=$(CURDIR) $(PYTHON)
else
  READY := $(VENV)/poolrt.ready
  RUN := $(VENV)/bin/python
endif

.PHONY: help demo test lint bench gpu-check clean setup

help:
	@sed -n 's/^#   make/  make/p' Makefile

setup: $(READY)

$(VENV)/poolrt.ready: pyproject.toml setup.py $(CORE_SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit("poolrt needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@test -x $(VENV)/bin/python || { echo "[1/3] making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "[2/3] installing torch $(TORCH)"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check "torch==$(TORCH)"
	@echo "[3/3] building poolrt and installing what its tests and examples use"
	@$(VENV)/bin/python -m pip install -qq --disable-pip-version-check "torch==$(TORCH)" -e ".[test]"
	@touch $@

build/in-place.ready: setup.py $(CORE_SOURCES)
	@echo "building poolrt._C for $$($(PYTHON) --version)"
	@mkdir -p build
	@$(PYTHON) setup.py --quiet build_ext --inplace
	@touch $@

demo: $(READY)
	$(RUN) examples/bert_large.py --single-card

test: export HF_HUB_OFFLINE := 1
test: export OMP_NUM_THREADS := 1
test: $(READY)
	@$(RUN) -c 'import poolrt; poolrt.virtual(cards=1, memory="1MiB")'  # built once, before the workers start
	$(RUN) -m pytest -n $(WORKERS) --dist worksteal -q

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	find csrc tests benchmarks -name '*.[ch]pp' -print0 -o -name '*.cu' -print0 -o -name '*.cuh' -print0 | xargs -0 -r $(dir $(RUN))clang-format --dry-run -Werror

bench: $(READY)
	@mkdir -p build/bench
	$(RUN) benchmarks/pooled_batch.py --quick --json build/bench/pooled_batch.json --png build/bench/pooled_batch.png
	$(RUN) benchmarks/overlap.py --quick --json build/bench/overlap.json
	$(RUN) benchmarks/one_card.py --quick --json build/bench/one_card.json
	$(RUN) benchmarks/allocator.py --quick --json build/bench/allocator.json
	$(RUN) benchmarks/kernels.py --quick --json build/bench/kernels.json
	$(RUN) benchmarks/copies.py --quick --json build/bench/copies.json
	$(RUN) benchmarks/tensor_parallel.py --quick --json build/bench/tensor_parallel.json

gpu-check: $(READY)
	@mkdir -p build
	$(RUN) benchmarks/gpu_check.py --json build/gpu-check.json

clean:
	rm -rf build dist *.egg-info .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis poolrt/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
