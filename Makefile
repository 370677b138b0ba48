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

# What NVIDIA publishes of TensorRT in the package registry, 240 MB: its Python bindings in the versions that Jetsons have,
# TensorRT for RTX (parser, builder, plugin registry; the builder needs no GPU), and the lean runtimes of 10.16 and 11.4.
# kernel-lens brings NVIDIA's headers of TensorRT 10.14. They are unpacked for tests, never installed. Without them these
# tests are skipped with the reason: make setup TENSORRT_WHEELS=
WHEELS := .venv/tensorrt-wheels
WHEELS_STAMP := $(WHEELS)/fetched
TENSORRT_WHEELS := tensorrt-cu12-bindings==10.3.0 tensorrt-cu12-bindings==10.13.3.9 \
  tensorrt-cu12-bindings==10.16.1.11 tensorrt-cu13-bindings==11.4.0.106 \
  onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0 tensorrt-lean-cu12-libs==10.16.1.11 tensorrt-lean-cu13-libs==11.4.0.106 \
  kernel-lens==2.0.1 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88

.PHONY: setup check test demo docs clean

setup: $(STAMP) $(WHEELS_STAMP)

# The stamp is written last, so that an interrupted installation is done again. At its first import pynwb writes a file
# into its own folder, which a second process that starts in that moment reads half written: so it is imported once here.
$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "edgedistill needs Python 3.10 or later"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	$(BIN)/python -c 'import pynwb'
	@touch $@

$(WHEELS_STAMP): Makefile | $(STAMP)
	@mkdir -p $(WHEELS)
	@for package in $(TENSORRT_WHEELS); do \
	  $(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --only-binary :all: \
	    --python-version 3.11 --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
	    --dest $(WHEELS) $$package || echo "$$package is not there: the tests that need it are skipped"; done
	@touch $@

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@if command -v clang-format >/dev/null; then git ls-files '*.c' '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror; \
	  else echo "no clang-format: C and CUDA were not checked (apt install clang-format)"; fi

# A worker a core, each with one thread of arithmetic: more would wait for each other. tests/conftest.py says which
# tests stay together. Bytecode is kept, so that the processes that tests start do not compile the package again.
test: $(STAMP) $(WHEELS_STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadscope $(TEST_OPTIONS)

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
