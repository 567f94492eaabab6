# Two commands set everything up: make demo, make test. PYTHON and VENV may be set.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: demo test slow lint format clean

demo: $(VENV)/ready
	$(BIN)/jtssm demo --out run/demo --overwrite

test: $(VENV)/ready
	$(BIN)/python -m pytest -n 2

slow: $(VENV)/ready
	$(BIN)/python -m pytest -n 2 -m slow

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

clean:
	rm -rf $(VENV) run .pytest_cache .ruff_cache .mypy_cache
