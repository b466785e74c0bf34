# `make test` on a fresh machine with Python 3.10 or later: makes .venv here, installs into it, runs the tests.
PYTHON ?= python3
JOBS ?= logical
# More for pytest: make test ARGS=--bfloat16=absent
ARGS ?=
# Without an NVIDIA GPU: make demo TORCH=cpu downloads the CPU build of torch, which is much smaller.
TORCH ?= default
TORCH_CPU := https://download.pytorch.org/whl/cpu
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
TOOLS := $(VENV)/.tools-ready

# One thread per process, because the tests run one process per core. A process gets tests that are neighbours, which
# share their fixtures. A process without work takes half of the remaining tests of another one. Byte code is written
# even where the environment forbids it: without it each process, also those that tests start, compiles Mars again.
TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal $(ARGS)

.PHONY: help setup demo test test-slow mutations parity chaos faults attacks check lint format clean

help:
	@echo "make demo       draw a data set, train on it, evaluate, paint (about ten minutes on two idle cores)"
	@echo "make test       the fast tests            make lint    formatting, rules, types"
	@echo "make parity     a table: network, loss, training, AP against Ultralytics and pycocotools (three minutes)"
	@echo "make test-slow  all tests                 make check   lint, then the fast tests"
	@echo "make mutations  put a few mistakes in: checks that tests fail (a minute; MUTATIONS=all tries all)"
	@echo "make chaos      thirty kills, damaged files, full disks: checks that nothing is lost (about ten minutes)"
	@echo "make faults     twenty-five bad values put in from outside: checks that each is caught and its operation named (three minutes)"
	@echo "make attacks    hostile files, options and consoles: one clear message, little memory and time? (fifteen minutes)"
	@echo "make setup      .venv with all that is needed, also for tests and ONNX (with TORCH=cpu: without CUDA)"
	@echo "make format     rewrite the formatting    make clean   remove .venv and caches"

setup: $(TOOLS)

# The demo draws its data set, trains, evaluates and paints; results go to ../mars-running/demo.nano.full.
demo: $(READY)
	$(RUN) mars.py

test: $(TOOLS)
	$(TESTS)

test-slow: $(TOOLS)
	$(TESTS) --slow

# A few mistakes, which follow from MUTATIONS: by default the commit, else the day of the year. MUTATIONS=all: all.
MUTATIONS ?= $(shell git rev-parse --short HEAD 2>/dev/null || date +%j)
mutations: $(TOOLS)
	$(TESTS) tests/test_mutations.py --mutations=$(MUTATIONS) -v

# What equals the reference, and how nearly: the largest difference of each part.
parity: $(TOOLS)
	$(TESTS) tests/parity --slow --parity-table -q

chaos: $(TOOLS)
	$(RUN) -m benchmarks.chaos

faults: $(TOOLS)
	$(RUN) -m benchmarks.bad_values

attacks: $(TOOLS)
	$(RUN) -m benchmarks.attacks

check: lint test

lint: $(TOOLS)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: $(TOOLS)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# What Mars needs to run. Made again when the requirements or the Python change. The stamp comes last: an interrupted
# setup is repeated. pip shows each file with its size.
$(READY): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Mars needs Python 3.10 or later, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@echo "Installing torch, torchvision and the other packages of requirements.txt into $(VENV)."
	@if [ "$(TORCH)" != cpu ] && [ "$$(uname -s)" = Linux ]; then \
	  echo "torch comes with CUDA: about 3 GB to download, 6 GB on the disk."; \
	  command -v nvidia-smi >/dev/null || \
	    echo "No NVIDIA GPU was found. The CPU build of torch is much smaller: stop with Ctrl-C, then make $(MAKECMDGOALS) TORCH=cpu"; fi
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(if $(filter cpu,$(TORCH)),$(RUN) -m pip install torch torchvision --index-url $(TORCH_CPU))
	$(RUN) -m pip install -r requirements.txt
	@$(CHECK_OPENCV)
	@touch $(READY)

# Also what it takes to test Mars and to write ONNX files.
$(TOOLS): $(READY) requirements-dev.txt
	@echo "Installing the packages of requirements-dev.txt (tests, lint, ONNX; about 0.1 GB to download) into $(VENV)."
	$(RUN) -m pip install -r requirements-dev.txt
	@$(CHECK_OPENCV)
	@touch $(TOOLS)

# The ordinary wheel wants a screen's libraries; a server without them gets the one that does not.
define CHECK_OPENCV
$(RUN) -c 'import cv2' 2>/dev/null || { \
  echo "import cv2 fails here with opencv-python: taking opencv-python-headless"; \
  $(RUN) -m pip uninstall --quiet --yes opencv-python && \
  $(RUN) -m pip install --quiet --force-reinstall --no-deps opencv-python-headless && \
  $(RUN) -c 'import cv2'; }
endef

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
