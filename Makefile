# make book    environment, every chapter executed (preset quick, bundled model), the site in _build/html
# make test    environment, all tests
# make print   all of it in one PDF, _build/book.pdf (Chromium prints it)
# make lint | make serve | make hero | make clean | make distclean
#
# make book CHAPTER=01              draft: only this chapter is executed again
# make book RECORDS=none               every measurement is made anew, none is taken from data/records (two hours)
# make records                        the same, and what was measured is packed into data/records
# make records CHAPTER=02 MISSING=1   only what data/records does not hold of this chapter is measured
# make book MODEL=org/name BENCHMARK=prompts.csv PRESET=full DEVICE=cuda     the book for another model
# make book AT_ONCE=1               one chapter after the other; else as many as there are cores, at most four
# make book TORCH_INDEX=URL         take torch from this index (CPU wheels on Linux: see README, "Set up")

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# The first interpreter that really is 3.11: a name on PATH may be a shim without a version behind it.
PYTHON ?= $(shell for p in python3.11 python3 python; do \
    $$p -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH_INDEX ?=

CHAPTER ?=
MODEL ?=
BENCHMARK ?=
PRESET ?= quick
DEVICE ?=
DTYPE ?=
RECORDS ?= shipped
AT_ONCE ?=
MISSING ?=
BOOK_ARGS := --preset $(PRESET) -p records $(RECORDS) $(if $(CHAPTER),--chapter $(CHAPTER)) $(if $(MODEL),-p model $(MODEL)) \
    $(if $(BENCHMARK),-p benchmark $(BENCHMARK)) $(if $(DEVICE),-p device $(DEVICE)) \
    $(if $(DTYPE),-p dtype $(DTYPE)) $(if $(AT_ONCE),--at-once $(AT_ONCE))

.PHONY: help book print records test lint env serve hero clean distclean

help:
	@sed -n '1,13s/^# \{0,1\}//p' Makefile

book: env node_modules/.stamp
	$(BIN)/python scripts/build.py $(BOOK_ARGS)

records: env
	$(BIN)/python scripts/records.py $(if $(CHAPTER),--chapter $(CHAPTER)) $(if $(MISSING),--missing)

test: env
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder --durations 25

lint: env
	$(BIN)/ruff check .
	git ls-files -z | xargs -0 $(BIN)/codespell

print: book
	$(BIN)/python scripts/print.py

serve: book
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory _build/html 8000

env: $(VENV)/.stamp

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 is needed and none was found; name one with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: a later step could otherwise pick another build of it.
$(VENV)/.torch: constraints.txt | $(VENV)/.python
	$(PIP) install "$$(grep '^torch==' constraints.txt)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@touch $@

$(VENV)/.stamp: pyproject.toml requirements.txt constraints.txt $(VENV)/.torch
	$(PIP) install -r requirements.txt
	$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (dori)" > /dev/null
	@touch $@

# The two files the pages carry themselves. Without npm the build says so and uses their public addresses.
node_modules/.stamp: package.json package-lock.json
	@if command -v npm > /dev/null; then npm ci --ignore-scripts --no-audit --no-fund --loglevel=error > /dev/null; \
	else mkdir -p node_modules; fi
	@touch $@

# The README's picture is the landing page's: take it over when the testbed changed.
hero: book
	cp _build/src/generated/landing.png book/assets/hero.png

clean:
	rm -rf _build .pytest_cache .ruff_cache

distclean: clean
	rm -rf $(VENV) node_modules *.egg-info
