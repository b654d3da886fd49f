# Two commands on a fresh machine:
#   make demo   environment, install, then a video with sound from the embedded miniature
#   make test   lint, types, tests
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/ltx demo --output-path outputs/demo.mp4

test: $(VENV)/.installed lint
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

lint: $(VENV)/.installed
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

# torch first, on its own: so that the build chosen here (CPU or CUDA) is the one everything else sees.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) outputs .pytest_cache .mypy_cache .ruff_cache
