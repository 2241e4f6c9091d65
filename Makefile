# Every target does its own set-up: a virtual environment in .venv, pinned installs, the build. A second run reuses them.
# Needs Python 3.10+, pip, make and a C++ compiler (without one the PyTorch references serve).

PYTHON ?= python3
# Where pip takes torch from: the address that pytorch.org's install page gives for the CPU build, or for a CUDA version.
# Empty: pip's own configuration decides (on PyPI, Linux: a CUDA build).
TORCH_INDEX ?=
# Extra arguments of the demo and of pytest.
DEMO_EPOCHS ?=
DEMO_ARGS ?=
DEMO_DIR ?= runs/demo
PYTEST_ARGS ?=
# Processes that the tests share, one a core and eight at most; PYTEST_JOBS=0: all tests in one, for a debugger.
PYTEST_JOBS ?= logical
# Which operator `make bench` times, and extra arguments.
BENCH ?= all
BENCH_ARGS ?=
# Which releases of torch `make torches` tries; empty: the oldest allowed, the pinned one, the newest.
TORCHES ?=
# Of gpu-check: names or groups of steps (empty: all), the folder of results, and GPU_STAND_IN=1 to try it without a GPU.
GPU_STEPS ?=
GPU_OUT ?=
GPU_STAND_IN ?=
# What `import torchrec` reads, for the tests of the layers beside it.
TORCHREC := fbgemm-gpu-cpu torchrec tensordict pyre-extensions pyvers cloudpickle typing-inspect
RIVALS := $(TORCHREC) torchmetrics lightning-utilities deepctr-torch lightgbm

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WITH_VENV := PATH="$(CURDIR)/$(BIN):$$PATH"
# Compiled Python is kept, whatever the environment says: the tests start a hundred processes.
unexport PYTHONDONTWRITEBYTECODE
# In the order of tests/conftest.py, which says what stays together.
XDIST := -n $(PYTEST_JOBS) --maxprocesses 8 --dist loadscope --no-loadscope-reorder
CSRC := $(shell find csrc -type f 2>/dev/null)
CXX_SOURCES := $(filter %.cpp %.h %.cu %.cuh,$(CSRC))

.DEFAULT_GOAL := help
.PHONY: help setup build test pytest lint format demo bench gpu-check sanitize torches clean distclean

help:  ## Show this list
	@echo "deeprec: make TARGET [PYTHON=python3.11] [TORCH_INDEX=ADDRESS]"
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{ printf "  %-10s %s\n", $$1, $$2 }'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: deeprec needs Python 3.10 or newer, $(PYTHON) is $$($(PYTHON) --version 2>&1); try: make PYTHON=python3.11"; exit 1; }
	@echo "make: virtual environment in $(VENV), by $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: the index (or wheel folder) that has the right build decides, and nothing else asks for another.
$(VENV)/.torch: $(VENV)/.created constraints.txt
	@echo "make: installing torch"
	@$(PIP) install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@touch $@

# What compiles csrc, so that the compiler need not wait for the tools of the tests.
$(VENV)/.compiler: $(VENV)/.torch constraints.txt
	@$(PIP) install --quiet -c constraints.txt scikit-build-core pybind11 cmake ninja
	@touch $@

# Editable: Python edits are seen at once. The compiled code is built by the rule below, next to the sources.
$(VENV)/.installed: $(VENV)/.compiler constraints.txt pyproject.toml
	@echo "make: installing the package and its tools, versions pinned in constraints.txt"
	@$(WITH_VENV) $(PIP) install --quiet -c constraints.txt --no-build-isolation \
	  -C editable.mode=inplace -C wheel.cmake=false -e '.[test,lint]'
	@touch $@

$(VENV)/.built: $(VENV)/.compiler CMakeLists.txt $(CSRC)
	@echo "make: compiling csrc"
	@$(WITH_VENV) cmake -S . -B build/make -G Ninja -DDEEPREC_INSTALL_DIR=deeprec -DCMAKE_INSTALL_PREFIX="$(CURDIR)" \
	  -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" --log-level=WARNING >/dev/null
	@$(WITH_VENV) cmake --build build/make --target install --parallel >build/make/build.log || \
	  { cat build/make/build.log; exit 1; }
	@touch $@

setup: $(VENV)/.installed

build: $(VENV)/.installed $(VENV)/.built  ## Compile csrc into deeprec/ (incremental)

# Each part keeps all cores busy by itself. pip and mypy do not, so they run beside the compiler. Passive: threads that wait leave
# their core to the tests beside them. One thread a process, where there is a process a core: two that share it wait for
# each other (tests/kernels takes two all the same).
test:  ## Lint, all tests, the sanitizer build and its tests
	@$(MAKE) --no-print-directory -j2 --output-sync lint build
	@export OMP_WAIT_POLICY=PASSIVE; \
	  status=0; $(MAKE) --no-print-directory pytest || status=$$?; \
	  $(MAKE) --no-print-directory sanitize || status=$$?; exit $$status

pytest: build $(VENV)/.torchrec  ## All tests, or some: PYTEST_ARGS="-k embedding -x"
	@$(WITH_VENV) $(if $(filter-out 0,$(PYTEST_JOBS)),OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}) pytest $(XDIST) $(PYTEST_ARGS)

lint: $(VENV)/.installed  ## ruff check and format, mypy strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)

format: $(VENV)/.installed  ## Rewrite the sources the way lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

demo: build  ## Train NeuMF, evaluate it and print recommendations (DEMO_EPOCHS=2 for a short run)
	@$(WITH_VENV) DEMO_EPOCHS="$(DEMO_EPOCHS)" DEMO_ARGS="$(DEMO_ARGS)" DEMO_DIR="$(DEMO_DIR)" tools/demo.sh

sanitize: build  ## Kernel tests on an address- and undefined-behaviour-sanitizer build of csrc
	@$(WITH_VENV) tools/sanitize.sh $(XDIST)

torches: build  ## Build and kernel tests against several releases of torch (TORCHES="2.11.0 2.14.1 newest")
	@$(WITH_VENV) python tools/torches.py $(TORCHES) $(if $(TORCH_INDEX),--index $(TORCH_INDEX)) -- $(XDIST) $(PYTEST_ARGS)

# TorchRec asks for a CUDA build of FBGEMM; without dependencies it works beside ours. It is no requirement of the package.
$(VENV)/.torchrec: $(VENV)/.installed constraints.txt
	@echo "make: installing TorchRec for the tests"
	@$(PIP) install --quiet --no-deps -c constraints.txt $(TORCHREC) || \
	  echo "make: TorchRec does not install here; the tests beside it are skipped"
	@touch $@

# The rivals ask for a CUDA build of FBGEMM and for a torch of their own; without dependencies they work beside ours.
# One that does not install here is left out of the tables, with the reason.
$(VENV)/.rivals: $(VENV)/.installed constraints.txt
	@echo "make: installing the rivals of the benches"
	@$(PIP) install --quiet --no-deps -c constraints.txt $(RIVALS) || echo "make: some rivals are missing"
	@touch $@

bench: build $(VENV)/.rivals  ## Speed of each kernel beside its rivals (one: BENCH=embedding; a trial: BENCH_ARGS=--quick)
	@$(WITH_VENV) python -m bench $(BENCH) $(BENCH_ARGS)

# No virtual environment: PYTHON is the interpreter that has torch with CUDA there. The stand-in takes the one of the tests.
gpu-check: $(if $(GPU_STAND_IN),build)  ## On a machine with a GPU: build, parity, sanitizers, ratios to rivals; a page
	@$(if $(GPU_STAND_IN),$(BIN)/python,$(PYTHON)) -m bench.gpu_check $(if $(GPU_STAND_IN),--stand-in) \
	  $(if $(GPU_STEPS),--steps "$(GPU_STEPS)") $(if $(GPU_OUT),--out "$(GPU_OUT)")

clean:  ## Remove build outputs and caches
	rm -rf build dist deeprec/lib deeprec/_host*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f $(VENV)/.built
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## Also remove the virtual environment
	rm -rf $(VENV)
