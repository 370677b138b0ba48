# make setup   an environment in .venv; needs nothing but make and python3. Without a GPU the small torch
#              is enough: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup
# make check   every check: format, lint, types, layers
# make test    the tests, without those that need a device (they say why they were skipped); with
#              TEST_OPTIONS=--variants also further variants of what other tests cover, as CI runs them
# make docs    this project's documentation as a site in site/: a dead link or an undocumented public name fails
# make demo    simulate sessions, build the nano preset for this machine, decode, measure, report

# 3.11 first: the version everything is tested with.
PYTHON := $(shell for p in python3.11 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/installed
DOCS_STAMP := .venv/docs-installed

# TensorRT's Python bindings in the versions that Jetsons have: tests look names up in them. They are unpacked, never
# installed, and hold nothing of TensorRT itself.
WHEELS := .venv/tensorrt-wheels
TENSORRT_BINDINGS := tensorrt-cu12-bindings==10.3.0 tensorrt-cu12-bindings==10.13.3.9 \
  tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106

.PHONY: setup check test demo docs clean

setup: $(STAMP)

# The stamp is written last, so that an interrupted installation is done again.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgedistill needs Python 3.10 or later"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	-@mkdir -p $(WHEELS) && for package in $(TENSORRT_BINDINGS); do \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	    --python-version 3.11 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	    --dest $(WHEELS) $$package || echo "not there: the tests that need it are skipped"; done
	@touch $@

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v clang-format >/dev/null; then git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror; \
	  else echo "no clang-format: C and CUDA were not checked (apt install clang-format)"; fi

# A worker a core, each with one thread of arithmetic: more would wait for each other. tests/conftest.py says which
# tests stay together.
test: $(STAMP)
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope $(TEST_OPTIONS)

demo: $(STAMP)
	$(BIN)/python -m benchmarks.demo

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

docs: $(DOCS_STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

clean:
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist site
