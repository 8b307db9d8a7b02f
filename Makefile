PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
ORACLES := $(VENV)/.oracles

.PHONY: train test test-slow check bench soak setup clean

train: setup  ## A3C on Pong, until the mean of the last 100 games is 18
	$(BIN)/polyactor train pong-fast

test: $(ORACLES)  ## the fast suite
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not alone"
	$(BIN)/python -m pytest -m "alone and not slow"

test-slow: $(ORACLES)  ## learning curves and other minutes-long tests; the fast suite as other CPUs would round
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow and not alone"
	$(BIN)/python -m pytest -m "slow and alone"
	ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 MKL_CBWR=COMPATIBLE $(MAKE) test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not alone" --other-sums

check: setup  ## what CI runs: format, lint, types, layers, tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) test

bench: setup  ## training speed as a share of what the emulator alone gives
	$(BIN)/polyactor bench pong-a3c --precision fp32 --schemes sync,hogwild,param-server,actor-learner

soak: setup  ## half an hour of faults under every scheme
	$(BIN)/python benchmarks/soak.py --minutes 30 --together

setup: $(READY)

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

$(ORACLES): $(READY) requirements-oracles.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-oracles.lock
	touch $(ORACLES)

clean:
	rm -rf $(VENV)
