# Every target sets up .venv by itself when it is missing or older than what it is made from.

# The tests run in this many processes, one thread each. Bytecode is kept even where the environment says not to:
# many tests start a Python of their own, and each would compile torch again.
WORKERS ?= 2
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MPLBACKEND=Agg HF_HUB_OFFLINE=1 $(PYTHON) -m pytest

READY := .venv/.ready
PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check test lint format docs bench clean venv

help:
	@echo "make demo     run the main job; results in runs/demo/"
	@echo "make check    floors, style, types and all fast tests: under 3 minutes on two quiet cores"
	@echo "make test     all checks and tests: about half an hour on two cores"
	@echo "make lint     floors, style, types and rules of the house only"
	@echo "make format   put the code into the project's format"
	@echo "make docs     build the documentation into docs/_build/"
	@echo "make bench    run the benchmarks"
	@echo "make venv     make or refresh .venv"
	@echo "make clean    remove what the tools and the documentation left; .venv and runs/ stay"

$(READY): pyproject.toml constraints.txt
	@tools/make_venv
	@touch $@

venv: $(READY)

demo: $(READY)
	.venv/bin/bll demo

# The checks of style, floors, types and documentation are tests too (tests/test_project.py), so that one
# summary, the last thing printed, covers everything.
test: $(READY)
	$(PYTEST) -n $(WORKERS) --dist worksteal

check: $(READY)
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not slow and not nuts and not sbc and not browser and not ray"

lint: $(READY)
	$(PYTEST) -q tests/test_project.py tests/test_house.py -m "not slow"

format: $(READY)
	$(PYTHON) -m ruff check --fix-only --fixable I,RUF100 .
	$(PYTHON) -m ruff format .

docs: $(READY)
	$(PYTHON) -m sphinx -W --keep-going -b html docs docs/_build/html

# The competitors stand beside .venv and not in it, so that no version in it moves (benchmarks/README.md).
.bench-packages/.ready: benchmarks/requirements.txt $(READY)
	$(PYTHON) -m uv pip install --quiet --python $(PYTHON) --target .bench-packages --no-deps -r benchmarks/requirements.txt
	@touch $@

# BENCH="step_time quality --runs 9" picks some of them.
bench: .bench-packages/.ready
	PYTHONPATH=.bench-packages $(PYTHON) -m benchmarks $(BENCH)

clean:
	rm -rf docs/_build docs/reference/generated docs/tutorials/generated .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find bll_pyro tests benchmarks examples docs -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
