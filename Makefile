# Two commands: `make demo` and `make test`. Everything they need goes into .venv.
# `make test-all` adds what takes long: large exports, memory plans, long fuzzing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BITS ?=
PROMPT ?= What is the capital of France, and what is it known for?
MODEL := smollm2-135m-instruct
BUNDLE := $(if $(BITS),$(MODEL)-$(if $(filter 4 8,$(BITS)),int$(BITS),fp$(BITS)),$(MODEL))

# Two tests at once: more of them would only take memory from one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: demo test test-all test-fast lint format docs models clean

demo: $(VENV)/.export-ready
	@$(BIN)/edgesdk pull $(MODEL)
	@$(BIN)/edgesdk export $(MODEL) $(if $(BITS),--bits $(BITS)) --skip-existing
	@$(BIN)/edgesdk run $(BUNDLE) "$(PROMPT)"

test: lint models
	$(PYTEST) -m "not nightly"

test-all: lint models
	EDGESDK_FUZZ_ROUNDS=10 $(PYTEST)

test-fast: $(VENV)/.dev-ready
	$(PYTEST) tests/unit

models: $(VENV)/.dev-ready
	$(BIN)/edgesdk pull smollm2-135m-instruct
	$(BIN)/edgesdk pull qwen2.5-coder-1.5b-instruct
	$(BIN)/edgesdk pull all-minilm-l6-v2

lint: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.dev-ready
	$(BIN)/mkdocs build --strict

format: $(VENV)/.dev-ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "edgesdk needs Python 3.10 or newer; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.export-ready: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[export]'
	@touch $@

# Torch first and by itself: only its pinned CPU build may be taken.
$(VENV)/.dev-ready: pyproject.toml | $(BIN)/python
	@command -v c++ >/dev/null || { echo "The tests build llama-cpp-python from source: install a C++ compiler." >&2; exit 1; }
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.export-ready

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
