# `make test` on a fresh machine with Python 3.10 or later: makes .venv here, installs into it, runs the tests.
PYTHON ?= python3
JOBS ?= logical
# More for pytest: make test ARGS=--bfloat16=absent
ARGS ?=
VENV := .venv
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready

# One thread per process, because the tests run one process per core. A process gets tests that are neighbours, which
# share their fixtures. A process without work takes half of the remaining tests of another one. Byte code is written
# even where the environment forbids it: without it each process, also those that tests start, compiles Mars again.
TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n $(JOBS) --maxprocesses 8 --dist worksteal $(ARGS)

.PHONY: help setup demo test test-slow mutations parity chaos faults attacks check lint format clean

help:
	@echo "make demo       draw a data set, train on it, evaluate, paint (two cores: six minutes with bfloat16, twice as long without)"
	@echo "make test       the fast tests            make lint    formatting, rules, types"
	@echo "make parity     a table: network, loss, training, AP against Ultralytics and pycocotools (three minutes)"
	@echo "make test-slow  all tests                 make check   lint, then the fast tests"
	@echo "make mutations  put a few mistakes in: checks that tests fail (a minute; MUTATIONS=all tries all)"
	@echo "make chaos      thirty kills, damaged files, full disks: checks that nothing is lost (about ten minutes)"
	@echo "make faults     twenty-five bad values put in from outside: checks that each is caught and its operation named (three minutes)"
	@echo "make attacks    hostile files, options and consoles: one clear message, little memory and time? (fifteen minutes)"
	@echo "make setup      .venv with all that is needed"
	@echo "make format     rewrite the formatting    make clean   remove .venv and caches"

setup: $(READY)

# The demo draws its data set, trains, evaluates and paints; results go to ../mars-running/demo.nano.full.
demo: $(READY)
	$(RUN) mars.py

test: $(READY)
	$(TESTS)

test-slow: $(READY)
	$(TESTS) --slow

# A few mistakes, which follow from MUTATIONS: by default the commit, else the day of the year. MUTATIONS=all: all.
MUTATIONS ?= $(shell git rev-parse --short HEAD 2>/dev/null || date +%j)
mutations: $(READY)
	$(TESTS) tests/test_mutations.py --mutations=$(MUTATIONS) -v

# What equals the reference, and how nearly: the largest difference of each part.
parity: $(READY)
	$(TESTS) tests/parity --slow --parity-table -q

chaos: $(READY)
	$(RUN) -m benchmarks.chaos

faults: $(READY)
	$(RUN) -m benchmarks.bad_values

attacks: $(READY)
	$(RUN) -m benchmarks.attacks

check: lint test

lint: $(READY)
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m pyright --pythonpath $(RUN)

format: $(READY)
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

# Made again when the requirements or the Python change. The stamp comes last: an interrupted setup is repeated.
$(READY): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Mars needs Python 3.10 or later, and $(PYTHON) is not: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -r requirements-dev.txt
	@# The ordinary wheel wants a screen's libraries; a server without them gets the one that does not.
	@$(RUN) -c 'import cv2' 2>/dev/null || { \
	  echo "import cv2 fails here with opencv-python: taking opencv-python-headless"; \
	  $(RUN) -m pip uninstall --quiet --yes opencv-python && \
	  $(RUN) -m pip install --quiet --force-reinstall --no-deps opencv-python-headless && \
	  $(RUN) -c 'import cv2'; }
	@touch $(READY)

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
