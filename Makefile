# Every target sets up what it needs. Needs: Python 3.10+ with venv, a C++20 compiler, make.
#   make demo | test | bench | lint | format | build | gpu | clean
# Variables: PYTHON (makes .venv), MAX_JOBS, WORKERS (tests side by side), TORCH (the version that development uses), GPU_PYTHON (has a CUDA torch).

PYTHON     ?= python3
GPU_PYTHON ?= python3
TORCH      ?= 2.13.0
WORKERS    ?= 2
VENV       := .venv
PY         := $(VENV)/bin/python
READY      := $(VENV)/.pykernels-ready
INSTALLED  := $(VENV)/.pykernels-installed
PEERS      := $(VENV)/.pykernels-peers

PYTHON_CODE := pykernels build_backend bench examples tests setup.py
CPP_FOLDERS := $(wildcard csrc cuda tests/cuda_on_cpu)
CPP_CODE     = $(shell find $(CPP_FOLDERS) -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help build test bench demo lint format check gpu clean

help:
	@sed -n '1,4s/^# \{0,1\}//p' Makefile

# The environment: torch first and pinned, then the tools. pip leaves alone what is already there.
$(READY): requirements-dev.txt
	@test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) -m pip install --quiet torch==$(TORCH)
	@$(PY) -m pip install --quiet torch==$(TORCH) --requirement requirements-dev.txt
	@touch $@

# Editable, so that scripts anywhere find the package.
$(INSTALLED): $(READY) pyproject.toml setup.py
	@$(PY) -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

build: $(INSTALLED)
	@$(PY) setup.py --quiet build_ext --inplace

test: build
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

$(PEERS): $(READY) requirements-bench.txt
	@$(PY) -m pip install --quiet torch==$(TORCH) --requirement requirements-bench.txt
	@touch $@

bench: build $(PEERS)
	$(PY) -m bench

demo: build
	$(PY) -m examples.digits_and_text

check: build
	$(PY) -m pykernels

lint: $(READY)
	$(PY) -m ruff check $(wildcard $(PYTHON_CODE))
	$(PY) -m ruff format --check $(wildcard $(PYTHON_CODE))
	$(PY) -m mypy
	$(PY) -m bench.readme --check
	$(VENV)/bin/clang-format --dry-run -Werror $(CPP_CODE)

format: $(READY)
	$(PY) -m ruff check --fix $(wildcard $(PYTHON_CODE))
	$(PY) -m ruff format $(wildcard $(PYTHON_CODE))
	$(VENV)/bin/clang-format -i $(CPP_CODE)

# On a machine with a GPU whose Python already has a CUDA torch: nothing is installed, so no network is needed.
gpu:
	FORCE_CUDA=1 $(GPU_PYTHON) setup.py --quiet build_ext --inplace
	$(GPU_PYTHON) -m pykernels
	PYKERNELS_TEST_DEVICE=cuda $(GPU_PYTHON) -m pytest tests
	@if command -v compute-sanitizer >/dev/null; then \
	    PYKERNELS_TEST_DEVICE=cuda PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
	    compute-sanitizer --tool memcheck --error-exitcode 1 $(GPU_PYTHON) -m pytest -q -m isa tests/functional tests/nn; \
	else echo "compute-sanitizer is not here: memcheck skipped"; fi
	$(GPU_PYTHON) -m bench.gpu --out bench/results/gpu.json

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -f pykernels/*.so
	find pykernels build_backend tests bench examples -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
