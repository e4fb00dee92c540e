# make demo   the main job at CPU size: shipped model, training from scratch, report   (sets everything up first)
# make test   style, types, layers, shapes and tests                                    (sets everything up first)
# make data-demo  raw pairs with planted defects, cleaned in every way that must agree
# make docs   the guides and the API reference as a static site in build/site
# make compat which versions of transformers (and TRL) our classes run under, printed into docs/COMPATIBILITY.md
# make vllm   our models inside vLLM, in environments of its own (2.5 GB each), printed into docs/VLLM.md
# make clients  the clients of OpenAI's API against `qwenvl serve tiny`, printed into docs/SERVING.md
# make soak   half an hour of clients that do everything wrong (ten seconds of it are in make test)
# make coverage  which lines and branches of qwenvl/ the tests run, in the processes that they start too (an hour)
# make lint   the part of `make test` that takes seconds        make format   write the style instead of checking it
# make clean  remove what these made
SHELL   := /bin/bash
VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check install --quiet
TORCH   := torch>=2.9,<2.14
WORKERS ?= 2
.DEFAULT_GOAL := help
.PHONY: help docs coverage demo data-demo compat clients vllm soak test lint format clean check-style check-types check-layers check-tests same-python

help:
	@sed -n 's/^# make/make/p' Makefile

demo: $(VENV)/.core
	@$(BIN)/qwenvl demo

data-demo: $(VENV)/.test
	@$(BIN)/python benchmarks/data_demo.py --expect-ray

docs: $(VENV)/.test
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet && echo "open build/site/index.html"

test: same-python $(VENV)/.test
	@$(MAKE) --no-print-directory --keep-going check-style check-types check-layers check-tests

compat: $(VENV)/.test
	@$(BIN)/python benchmarks/compat.py --write

vllm: $(VENV)/.core
	@$(BIN)/python benchmarks/inside_vllm.py --write $(if $(GOLDEN),--golden "$(GOLDEN)")

soak: $(VENV)/.test
	@$(BIN)/python benchmarks/soak.py

clients: $(VENV)/.test
	@$(BIN)/python benchmarks/clients.py --write

# Without the hook that checks shapes, and with what torch.compile traces left out: both rewrite what is measured.
coverage: export OMP_NUM_THREADS ?= 1
coverage: $(VENV)/.test
	@rm -rf build/coverage && mkdir -p build/coverage
	@$(BIN)/python -m coverage run -m pytest -q -n $(WORKERS) --dist loadfile --timeout 3000 -m "not compile"
	@$(BIN)/python -m coverage combine --quiet && $(BIN)/python -m coverage report

lint: $(VENV)/.test
	@$(MAKE) --no-print-directory --keep-going check-style check-layers

check-style:
	@echo "== style: ruff"
	@$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check . && echo "ok"

check-types:
	@echo "== types: mypy"
	@$(BIN)/mypy

check-layers:
	@echo "== layers: import-linter"
	@$(BIN)/lint-imports --no-logo

# Two processes of one thread each: tiny matrices gain nothing from more. torch.compile does not survive the hook that
# checks every shape, so the files that test it run first, without it (status 5: none of their tests was meant).
check-tests: export OMP_NUM_THREADS ?= 1
check-tests:
	@compiled=$$(grep -rl --include='test_*.py' 'mark\.compile' tests); \
	if [ -n "$$compiled" ]; then \
	    echo "== tests: torch.compile"; \
	    $(BIN)/python -m pytest -q -m compile $$compiled || [ $$? -eq 5 ]; \
	fi
	@echo "== tests: every shape checked"
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not compile" \
	    --jaxtyping-packages=qwenvl,typecheck.check --durations 10
	@echo "== what this machine lacks is named among the skipped tests above, with what to install"

# An environment keeps the Python it was made with: `make test PYTHON=python3.13` must not test another.
same-python:
	@version='import sys; print("%d.%d" % sys.version_info[:2])'; \
	if [ -n "$(PYTHON)" ] && [ -x $(BIN)/python ] && \
	   [ "$$("$(PYTHON)" -c "$$version")" != "$$($(BIN)/python -c "$$version")" ]; then \
	    echo "$(VENV) was made with another Python than $(PYTHON); remove it first: make clean" >&2; exit 1; \
	fi

format: $(VENV)/.test
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-vllm build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- set-up: a virtual environment, once; again only when pyproject.toml changes ----

# A name on PATH may be an empty promise (pyenv shims, Debian without venv): only one that runs counts.
$(BIN)/python:
	@for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3.14 python3 python); do \
	    if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        echo "== set-up: $$("$$python" --version) -> $(VENV)"; \
	        exec "$$python" -m venv $(VENV); \
	    fi; \
	done; \
	echo "No Python 3.11 or newer with the venv module was found on PATH; install one" \
	     "(Debian: apt-get install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; \
	exit 1

# pip writes where the checkout lies; in the C locale Python before 3.13 does not start where that is not ASCII. So it is
# said from where it is read: .venv/lib/python3.11/site-packages.
PATH_OF_CHECKOUT = for file in $(VENV)/lib/python*/site-packages/_qwenvl.pth; do echo ../../../.. > "$$file"; done

# torch first and alone, with the bound that also admits a local CPU wheel: whatever comes after finds it there.
$(VENV)/.core: pyproject.toml | $(BIN)/python
	@echo "== set-up: torch (the large one; a minute on a good line)"
	@$(PIP) "$(TORCH)"
	@echo "== set-up: qwenvl and what it needs"
	@$(PIP) --editable . && $(PATH_OF_CHECKOUT)
	@touch $@

$(VENV)/.test: $(VENV)/.core
	@echo "== set-up: what the tests need"
	@$(PIP) --editable ".[test]" && $(PATH_OF_CHECKOUT)
	@$(PIP) --no-deps dashscope
	@touch $@
