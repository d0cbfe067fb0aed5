# `make` alone lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
NATIVE := $(wildcard src/sinkscope/measure/_native*.c src/sinkscope/measure/_native*.h)

.DEFAULT_GOAL := help
.PHONY: help demo test lint types docs bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing sinkscope with its extras, torch among them: a few minutes, once"
	$(BIN)/pip install --quiet --editable '.[all,dev,docs]'
	@touch $@

demo: $(READY) ## diagnose a vision and a language model, both with real weights; prints the reports' paths
	$(BIN)/sinkscope diagnose zoo:dinov2-small-saliency --images examples/pictures --out demo/dinov2-small-saliency
	$(BIN)/sinkscope diagnose zoo:smollm2-135m --text examples/text/alice.txt --limit 64 --out demo/smollm2-135m
	@echo; echo "open these in a browser:"; ls -1 $(CURDIR)/demo/*/report.html

# pytest runs last, so that its closing line is the last one.
test: lint types docs ## all checks: style, types, docs, tests
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2

lint: $(READY) ## style of the code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## types of src and tests
	$(BIN)/mypy

docs: $(READY) ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(READY) ## the benchmarks, minutes each
	@for script in benchmarks/[!_]*.py; do echo "$$script"; $(BIN)/python "$$script" || exit 1; done

clean: ## remove what make has made, the environment included
	rm -rf $(VENV) build dist site demo src/*.egg-info src/sinkscope/measure/_native*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
