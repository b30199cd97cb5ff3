# The whole workflow in five words: quickstart, test, check, format, clean.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# No model hub and no telemetry in tests; one thread per process, since two processes share the cores.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 GRADIO_ANALYTICS_ENABLED=False TOKENIZERS_PARALLELISM=false

.PHONY: help quickstart test check format clean

help:
	@echo "make quickstart  install into $(VENV) and train, evaluate and report a small model on generated sounds (seven to ten minutes)"
	@echo "make test        install what the tests need and run them (offline)"
	@echo "make check       ruff, ruff format, mypy, codespell"
	@echo "make format      let ruff rewrite what it can"
	@echo "make clean       remove $(VENV) and the tools' caches (runs/ stays)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

# glibc gives big buffers back after every step and pays for them again in the next: a tenth of the time on a CPU.
quickstart: export MALLOC_MMAP_THRESHOLD_ = 8589934592
quickstart: export MALLOC_TRIM_THRESHOLD_ = 8589934592
# --resume: the second call continues an interrupted run, or shows a finished one.
quickstart: $(VENV)/.installed
	@$(BIN)/almosaic train recipes/quickstart.yaml --resume

test: $(VENV)/.installed-dev
	$(TEST_ENV) $(BIN)/python -m pytest -q -n 2

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
