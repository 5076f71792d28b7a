# Two commands for a fresh machine: `make demo` and `make test`. Needs Python 3.11 and make; no root.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
DATA   ?= ../shared/data/cxr
KEY    ?= build/keys/signing-key.pem
VARIANT ?= cpu

.PHONY: help setup demo test check lint types contracts pack bundle bench test-fleet proto lock clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(VENV)/.appliance: pyproject.toml requirements.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[cpu,demo]'
	@touch $@

$(VENV)/.everything: $(VENV)/.appliance
	$(PIP) --editable '.[cpu,demo,export,teachers,dev]'
	@touch $@

setup: $(VENV)/.everything ## make .venv with everything that the other targets need

demo: $(VENV)/.appliance ## send real DICOM through the whole chain and show what comes back, in demo-out/
	$(BIN)/insite demo --out demo-out

test: check ## run every check and every test but the fleet's

check: lint types contracts ## ruff, mypy, import contracts, tests with branch coverage
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=85

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

contracts: setup
	$(BIN)/lint-imports

pack: setup ## train, distil, quantise, verify, sign: rebuild engines/chest-xray from the data
	$(BIN)/insite-export run engines/chest-xray/recipe.toml --data $(DATA) --out build/

bundle: setup $(KEY) ## one signed archive for machines without network: KEY=your-key.pem VARIANT=cpu|gpu
	$(BIN)/python ansible/build_bundle.py --key $(KEY) --variant $(VARIANT) --out build

bench: setup build/mlserver/bin/python ## compare the inference daemon with ONNX Runtime alone and with MLServer
	$(BIN)/insite bench inference

build/mlserver/bin/python:
	$(PYTHON) -m venv build/mlserver
	build/mlserver/bin/pip install --quiet --disable-pip-version-check mlserver==1.7.1 'uvloop<0.22' onnxruntime==1.32.0

build/keys/signing-key.pem:
	$(BIN)/insite-export keygen --out build/keys

test-fleet: setup ## follow docs/fleet.md in a real guest of systemd-nspawn; needs root
	$(BIN)/python -m pytest tests/fleet -m fleet -s

proto: setup ## generate the Open Inference Protocol's Python from its .proto
	$(BIN)/python -m appliance.inference.proto.generate

lock: ## resolve every dependency anew into requirements.lock
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet --editable '.[cpu,demo,export,teachers,dev]'
	( echo '# Every install is constrained by this file. Made by `make lock`.'; \
	  build/lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' ) > requirements.lock

clean: ## remove what was made
	rm -rf build demo-out .coverage* .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
