# Two commands set everything up: make demo, make test. PYTHON, NEWEST and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
VENV_TPU ?= .venv-tpu
NEWEST ?= python3.13
BIN = $(VENV)/bin

.PHONY: demo test test-newest slow test-tpu release-check docs notebooks serve-docs lint format clean

demo: $(VENV)/ready
	$(BIN)/jtssm demo --out run/demo --overwrite

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile # a file compiles its programs once

# the same under the newest Python, which has the newest jax
test-newest:
	$(MAKE) test VENV=.venv-newest PYTHON=$(NEWEST)

# built, and installed in fresh environments under both Pythons: docs/releases.md
release-check:
	$(PYTHON) .ci/release_check.py $(PYTHON) $(NEWEST)

slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 -m slow

# compiles for TPUs without having one: libtpu (over 1 GB) in an environment of its own
test-tpu: $(VENV_TPU)/ready
	JTSSM_TPU=1 JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 \
		$(VENV_TPU)/bin/python -m pytest tests/tpu

# the site, in site/; notebooks are executed in their small mode; a broken link or reference fails
docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# stores what the notebooks print and draw in their small mode
notebooks: $(VENV)/ready
	$(BIN)/python docs/hooks/notebooks.py

serve-docs: $(VENV)/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

NEW_ENOUGH = $(shell $(PYTHON) -c 'import sys; print("yes" if sys.version_info >= (3, 12) else "")')

$(VENV_TPU)/ready: pyproject.toml
	$(if $(NEW_ENOUGH),,$(error libtpu needs Python 3.12 or later: PYTHON=python3.13 make test-tpu))
	$(PYTHON) -m venv $(VENV_TPU)
	$(VENV_TPU)/bin/python -m pip install --quiet --upgrade pip
	$(VENV_TPU)/bin/python -m pip install --quiet --editable '.[test-tpu]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV_TPU) .venv-newest run site build .pytest_cache .ruff_cache .mypy_cache
