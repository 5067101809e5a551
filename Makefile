# `make test` and `make demo` need Python 3.11 or newer with venv, make, and a package registry. Nothing else.
#
# Variables:
#   PYTHON    the Python that the environment is made from    make test PYTHON=python3.12
#   ARGS      arguments for fedshare or for pytest             make demo ARGS="--home x"    make test ARGS="-k merge"
#   EXTRAS    which extras to install (see pyproject.toml)     make ready EXTRAS=demo
#   PIP_ARGS  more arguments for every `pip install`           make test PIP_ARGS="--find-links FOLDER"

PYTHON   ?= python3
EXTRAS   ?= demo,test
ARGS     ?=
PIP_ARGS ?=

BIN     := .venv/bin
PIP     := pip --disable-pip-version-check --quiet
PROTOS  := protos/fedshare/v1/federation.proto
PROTOC  := .venv-protos/bin/python -m grpc_tools.protoc -I .
# The generator is older than the runtime on purpose: generated code runs with its own protobuf or a newer one.
PROTOC_PACKAGES := grpcio-tools==1.71.2 'setuptools<81'

.DEFAULT_GOAL := help
.PHONY: help demo test crash mutations ready lint types format protos protos-check protos-compare lock clean python-check

help:  ## Print this list
	@echo "usage: make TARGET [ARGS=...]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 18

demo: ready  ## Run the demo, with all set-up
	$(BIN)/fedshare demo $(ARGS)

# Two processes, as much of the tests' time is waiting; in the order of the folders, so that the demo does not come last.
test: ready protos-check lint types  ## Check generated code, style and types, then run the tests, with all set-up
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

crash: ready  ## Kill the walk at every durable step, 10,000 times (ARGS="--runs N", "--processes --kills N")
	$(BIN)/python -m tests.crash $(ARGS)

mutations: ready  ## Break the code in one place at a time: are the breaks caught? (ARGS="--only NAME")
	$(BIN)/python -m tests.mutations $(ARGS)

ready: .venv/ready  ## Make the environment in .venv

# Touched last, so that an installation that was cut off is taken up again.
.venv/ready: pyproject.toml constraints.txt | python-check
	@echo "Installing fedshare and the versions in constraints.txt into .venv (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# torch first and by itself: where a registry serves a CPU build of exactly this version, this takes it.
	@$(BIN)/$(PIP) install $(PIP_ARGS) -c constraints.txt torch
	@$(BIN)/$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[$(EXTRAS)]'
	@$(BIN)/pip check
	@touch $@

python-check:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "fedshare needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "'$(PYTHON)' lacks venv: install it (on Debian and Ubuntu the package python3-venv)." >&2; exit 1; }

lint: ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: ready  ## Format the code and repair what ruff can repair
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

types: ready  ## Check types with mypy
	$(BIN)/mypy

# The generator has an environment of its own: its protobuf is older than the one fedshare runs with.
.venv-protos/ready: Makefile | python-check
	@echo "Installing the gRPC code generator into .venv-protos ..."
	@test -x .venv-protos/bin/python || $(PYTHON) -m venv .venv-protos
	@.venv-protos/bin/$(PIP) install $(PIP_ARGS) --only-binary :all: $(PROTOC_PACKAGES) || \
	  { echo "The gRPC code generator has builds for Python 3.11 to 3.13: run 'make clean', then make with PYTHON=..." >&2; exit 1; }
	@touch $@

protos: .venv-protos/ready  ## Generate the gRPC code from protos/
	$(PROTOC) --python_out=. --pyi_out=. --grpc_python_out=. $(PROTOS)

protos-check: python-check  ## Fail if the gRPC code is not what the generator makes of protos/
	@if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 14))'; then \
	  $(MAKE) --no-print-directory protos-compare; \
	else \
	  echo "SKIPPED the check of the gRPC code: its generator has no build for this Python, only for 3.11 to 3.13."; \
	fi

protos-compare: .venv-protos/ready
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && \
	$(PROTOC) --python_out="$$fresh" --pyi_out="$$fresh" --grpc_python_out="$$fresh" $(PROTOS) && \
	for file in $$(cd "$$fresh" && find * -type f); do \
	  cmp -s "$$file" "$$fresh/$$file" || { \
	    echo "$$file is not what the generator makes of $(PROTOS): run 'make protos' and commit the result." >&2; \
	    exit 1; }; \
	done

# Everything fedshare can use goes into one fresh environment, without the old pins, and is written down.
# Flower is not among fedshare's dependencies yet; it is installed here so that it could be.
lock: python-check  ## Renew constraints.txt from pyproject.toml (some minutes)
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/$(PIP) install $(PIP_ARGS) "$$(grep '^torch==' constraints.txt)"
	.venv-lock/bin/$(PIP) install $(PIP_ARGS) -e '.[demo,hub,test]' flwr==1.41.0
	.venv-lock/bin/pip check
	{ sed -n '/^#/p' constraints.txt; \
	  .venv-lock/bin/pip freeze --all --exclude-editable --exclude pip | sed 's/+[a-z0-9]*$$//'; } > .venv-lock/constraints.txt
	mv .venv-lock/constraints.txt constraints.txt
	rm -rf .venv-lock

clean:  ## Remove the environments and everything that tools left behind
	rm -rf .venv .venv-protos .venv-lock build dist *.egg-info
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
