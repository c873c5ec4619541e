# make run     train, package, serve and ask, from nothing    (ARGS="--data-dir DIR ..." goes to training)
# make demo    a page on which one draws a digit, and sees how the packaged model answers it
# make test    what CI checks, from nothing
# make help    the rest

PYTHON ?= python3
VENV := .venv
ACTIVATE := . $(VENV)/bin/activate
STAMP := $(VENV)/.installed
LAB_STAMP := $(VENV)/.jupyterlab
# Two test files at a time, as tests/conftest.py groups and orders them.
PYTEST := pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help setup run demo notebook test test-fast test-all recipes bench gpu-check docs lint dist clean

help:
	@echo "make setup      make .venv and install the project; quick when nothing changed"
	@echo "make run        train, package, serve, ask for one prediction, stop; ARGS=... goes to training"
	@echo "make demo       draw a digit in the browser: the packaged model answers; ARGS=--port N"
	@echo "make notebook   open examples/mnist_mlp.ipynb in JupyterLab, which it installs; ARGS=... goes to it"
	@echo "make test       lint, types and the tests, in about 8 minutes"
	@echo "make test-fast  the tests that need no server and no second process"
	@echo "make test-all   make test and the long tests: fuzzing, kills, all variants, releases, clusters"
	@echo "make recipes    train every recipe on MNIST with five seeds, beside its published number"
	@echo "make bench      time training and serving beside other frameworks, which it installs"
	@echo "make gpu-check  where there is a GPU: its tests, and training timed, into benchmarks/results"
	@echo "make docs       the documentation as pages, in site/"
	@echo "make lint       ruff and mypy"
	@echo "make dist       a wheel and a source distribution, in dist"
	@echo "make clean      remove .venv and caches; runs, models and data stay"

setup: $(STAMP)

$(STAMP): pyproject.toml setup.cfg constraints.txt Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $$($(PYTHON) --version) is too old; name a Python of 3.11 or newer: make setup PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	printf '\n. "$$VIRTUAL_ENV/../launch/environment.sh"\n' >> $(VENV)/bin/activate
	touch $@

run: setup
	@$(ACTIVATE) && accelerate launch launch/train.py $(ARGS) && python -m serve.package && python launch/demo.py

demo: setup
	@$(ACTIVATE) && python -m serve.draw $(ARGS)

notebook: $(LAB_STAMP)
	@$(ACTIVATE) && jupyter lab --notebook-dir=. $(ARGS) examples/mnist_mlp.ipynb

# Its page would ask for news and newer versions.
$(LAB_STAMP): $(STAMP)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[notebook]'
	$(VENV)/bin/jupyter labextension disable --log-level=ERROR @jupyterlab/apputils-extension:announcements
	touch $@

test: lint
	@$(ACTIVATE) && $(PYTEST) -m "not nightly"

test-fast: setup
	@$(ACTIVATE) && $(PYTEST) -m "not slow and not nightly"

test-all: lint
	@$(ACTIVATE) && $(PYTEST)

recipes: setup
	@$(ACTIVATE) && python -m benchmarks.recipes --seeds 5 $(ARGS)

bench: setup
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	@$(ACTIVATE) && python -m benchmarks.training $(ARGS) && python -m benchmarks.serving

gpu-check: setup
	@$(ACTIVATE) && python -m benchmarks.gpu_check $(ARGS)

docs: setup
	@$(ACTIVATE) && NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet && echo site/index.html

lint: setup
	@$(ACTIVATE) && ruff check . && ruff format --check . && mypy

dist: setup
	@$(ACTIVATE) && env --unset=PYTHONDONTWRITEBYTECODE python -m build --no-isolation

clean:
	rm -rf dist site $(VENV) .mypy_cache .pytest_cache .ruff_cache *.egg-info
