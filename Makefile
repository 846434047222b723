# Everything below happens in one virtual environment, .venv; the package is used as the wheel that
# `pip wheel` builds, never from the source tree.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
SOURCES := $(shell find cpp python -type f -not -name '*.so' -not -path '*/__pycache__/*')
CPP_FILES := $(shell find cpp tests/cpp -name '*.[ch]pp' -not -path 'cpp/third_party/*')

.PHONY: help setup demo test test-cpp test-python lint format clean

help:
	@echo 'make demo    set up, and run the main job on six small tasks'
	@echo 'make test    set up, and run every test: C++ and Python, against the wheel'
	@echo 'make lint    ruff, mypy, stubtest, clang-format'
	@echo 'make format  mend what the formatters can mend'
	@echo 'make clean   remove what was built, but not $(VENV)'

setup: $(VENV)/.installed

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade pip
	@touch $@

dist/.built: $(VENV)/.made CMakeLists.txt pyproject.toml README.md $(SOURCES)
	@rm -rf dist
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .
	@touch $@

# CC and CXX are set to a command that fails: the wheel must not need a compiler.
$(VENV)/.installed: dist/.built
	$(PY) -m pip install --quiet "$$(ls dist/*.whl)[test,lint]"
	CC=false CXX=false $(PY) -m pip install --quiet --force-reinstall --no-deps dist/*.whl
	@touch $@

demo: setup
	$(VENV)/bin/trautoml demo

test: test-cpp test-python

test-cpp: setup
	@$(VENV)/bin/cmake -S . -B build/tests -G Ninja --log-level=WARNING \
		-DCMAKE_MAKE_PROGRAM="$(CURDIR)/$(VENV)/bin/ninja" \
		-DCMAKE_PREFIX_PATH="$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		-DTRAUTOML_PYTHON=OFF -DTRAUTOML_TESTS=ON
	@$(VENV)/bin/cmake --build build/tests
	$(VENV)/bin/ctest --test-dir build/tests --output-on-failure

test-python: setup
	$(PY) -m pytest

lint: setup
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(PY) -m mypy.stubtest trautoml._core
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP_FILES)

format: setup
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(CPP_FILES)

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
