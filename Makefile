# make setup   an environment in .venv; needs nothing but make and python3. Without a GPU the small torch
#              is enough: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
# make check   every check: format, lint, types, layers
# make test    the tests, without those that need a device (they say why they were skipped)
# make demo    simulate sessions, build the nano preset for this machine, decode, draw

# 3.11 first: the version everything is tested with.
PYTHON := $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: setup check test demo clean

setup: $(STAMP)

# The stamp is written last, so that an interrupted installation is done again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgedistill needs Python 3.10 or later"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: $(STAMP)
	$(BIN)/python -m pytest

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
