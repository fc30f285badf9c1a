# make build | test | demo | lint | asan | tsan | bench | fuzz | clean        (CONTRIBUTING.md)
#
# A bare Debian or Ubuntu machine needs make, a C compiler and Python 3.11 or later; the rest is installed (as root) or asked for.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS := $(shell nproc 2>/dev/null || echo 2)
C_TESTS := $(MAKE) --no-print-directory -j$(JOBS) -C tests/c run

# Folders are in the list for the sake of files that go away.
NATIVE := setup.py pyproject.toml src/timezero/_linux/_build.py \
          $(wildcard src/timezero/_native/*.pyx src/timezero/_native/*.pxd csrc/*/*.c csrc/*/*.h csrc/include/tz/*.h csrc/*)

build: $(VENV)/.built

# Stamps are in .venv, so that they go with it. bootstrap.sh looks every time: it takes a tenth of a second.
$(VENV)/.created: | system
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.tools: pyproject.toml $(VENV)/.created
	@$(PY) scripts/requirements.py > $(VENV)/requirements.txt
	$(PY) -m pip install -q -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.built: $(NATIVE) $(VENV)/.tools | system
	$(PY) -m pip install -q --no-build-isolation --no-deps -e .
	@touch $@

system:
	@PYTHON=$(PYTHON) scripts/bootstrap.sh

system-all:
	@PYTHON=$(PYTHON) scripts/bootstrap.sh all

test: system-all build
	$(C_TESTS) SAN=none
	$(PY) -m pytest

demo: system-all build
	$(PY) demo/run.py

lint: build
	@$(PY) scripts/requirements.py lint > $(VENV)/requirements-lint.txt
	$(PY) -m pip install -q -r $(VENV)/requirements-lint.txt
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*/*.[ch] csrc/include/tz/*.h tests/c/*.[ch])
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The Python tests run against a package of their own, built with sanitizers. Python itself is full of intended leaks.
ASAN := build/asan-venv
asan: system-all build
	$(C_TESTS) SAN=asan
	test -x $(ASAN)/bin/python || $(PYTHON) -m venv $(ASAN)
	$(ASAN)/bin/python -m pip install -q -r $(VENV)/requirements.txt
	rm -rf build/lib.* build/bdist.*
	TIMEZERO_SANITIZE=address $(ASAN)/bin/python -m pip install -q --no-build-isolation --no-deps --force-reinstall .
	LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONMALLOC=malloc \
	    $(ASAN)/bin/python -m pytest --ignore=tests/unit/test_package.py

tsan: system build
	$(C_TESTS) SAN=tsan

bench: system-all build
	$(PY) -m pytest bench
	$(PY) -m bench.copy

fuzz: build
	@PYTHON=$(PYTHON) scripts/bootstrap.sh fuzz
	$(MAKE) -C tests/fuzz run

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: build system system-all test demo lint asan tsan bench fuzz clean
