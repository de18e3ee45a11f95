# Everything runs from here on a machine that has Python 3.10 to 3.13 and a network: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin

export UV_HTTP_TIMEOUT ?= 600
# On a CPU, training takes and frees large blocks all the time. This keeps glibc from giving them back to the system
# each time, which can cost more than the computation (virtual machines above all).
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export MALLOC_TOP_PAD_ ?= 268435456
# nnU-Net gives every process all cores on a CPU. Threads that wait do so without keeping them from others.
export OMP_WAIT_POLICY ?= passive

.PHONY: help install demo docs docs-serve lint style types test test-commands test-networks test-others test-slow bench \
	format clean

help:
	@echo "make demo    phantom data, training, prediction, evaluation and pictures in demo_output/ (minutes, no download)"
	@echo "make test    linters, types and tests           make test-slow  those that take minutes each"
	@echo "make docs    the documentation as a site in docs/site/           make docs-serve  the same on a local port"
	@echo "make bench   what SAM2 costs beside nnU-Net's network, on this machine (an hour on two cores)"
	@echo "make lint    linters and types alone        make format  rewrites formatting and the table of parameters"
	@echo "make clean   removes the environment and what the commands above have written"

install: $(VENV)/installed

$(VENV)/bin/uv:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check uv

# Editable, with a link for nnU-Net's search: what is edited counts at once. Bytecode, because nnU-Net starts many
# processes, each of which would compile torch where Python must not write it itself.
$(VENV)/installed: $(VENV)/bin/uv setup.py pyproject.toml
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --reinstall-package nnunet-autosam2 -e ".[test]"
	$(BIN)/python -m nnunet_autosam2.support.discovery
	$(BIN)/python -m compileall -q nnunet_autosam2 dataset_conversion overlay
	touch $@

demo: install
	PATH="$(BIN):$$PATH" ./demo/run.sh demo_output

docs: install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/site

docs-serve: docs
	$(BIN)/python -m http.server --directory docs/site --bind 127.0.0.1 8000

# For example `make bench BENCH="--device cuda --rounds 10"`.
bench: install
	$(BIN)/python -m experiments.speed $(BENCH)

lint: style types

style: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python -m nnunet_autosam2.parameter_table docs/parameters.md

# Side by side: the commands of nnU-Net mostly start processes and wait for them.
test: style
	$(MAKE) --jobs 3 test-commands test-networks test-others types

# In three parts of about the same length, so that two cores have work to the end.
test-commands:
	$(BIN)/pytest -m "not slow" tests/end_to_end
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" tests/cli

test-networks test-others: export OMP_NUM_THREADS ?= 1
test-networks:
	$(BIN)/pytest -m "not slow" tests/architectures

test-others:
	$(BIN)/pytest -m "not slow" --ignore tests/architectures --ignore tests/cli --ignore tests/end_to_end

test-slow: install
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) build docs/site demo_output *.egg-info .pytest_cache .mypy_cache .ruff_cache
