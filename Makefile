# Every target does its own set-up: a fresh clone needs Python 3.11, pip, make and gcc, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Processes that share the tests: one more than there are cores, for many of them wait, and four at most (each
# holds torch and a tiny model or two).
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); test $$n -lt 4 && echo $$((n + 1)) || echo 4)

.PHONY: demo test check soak setup benchmark clean

$(VENV)/.core: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.core
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $@

setup: $(VENV)/.dev ## everything a developer needs

demo: $(VENV)/.core ## from clone to picture
	$(BIN)/python examples/demo.py

check: $(VENV)/.dev ## style, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check ## the whole of what must be green
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not soak" -n $(WORKERS) --dist loadfile --no-loadscope-reorder

soak: $(VENV)/.dev ## the long counts of the reliability bar
	$(BIN)/python -m pytest -m soak

clean:
	rm -rf $(VENV) build dist out *.egg-info src/*.egg-info
