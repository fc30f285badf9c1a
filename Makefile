# make build | test | demo | lint | asan | tsan | crash | bench | bench-full | fuzz | clean        (CONTRIBUTING.md)
#
# PYTEST="-k gate" and the like are handed to pytest.
#
# A bare Debian or Ubuntu machine needs make, a C compiler and Python 3.11 or later; the rest is installed (as root) or asked for.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
JOBS := $(shell nproc 2>/dev/null || echo 2)
KEPT := $(MAKE) --no-print-directory -C tests/fuzz replay
C_TESTS := $(MAKE) --no-print-directory -j$(JOBS) -C tests/c run

# Folders are in the list for the sake of files that go away.
NATIVE := setup.py pyproject.toml src/timezero/_linux/_build.py \
          $(wildcard src/timezero/_native/*.pyx src/timezero/_native/*.px[di] csrc/*/*.c csrc/*/*.h csrc/include/tz/*.h csrc/*)

# What a user's environment does not have either: with the one, a lost write at exit would not show; with the other, every
# command would compile its own sources anew, which an installed package never does.
unexport PYTHONUNBUFFERED PYTHONDONTWRITEBYTECODE

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
	$(KEPT) SAN=none
	$(PY) -m pytest $(PYTEST)

demo: system-all build
	$(PY) demo/run.py

lint: build
	@$(PY) scripts/requirements.py lint > $(VENV)/requirements-lint.txt
	$(PY) -m pip install -q -r $(VENV)/requirements-lint.txt
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*/*.[ch] csrc/include/tz/*.h tests/c/*.[ch] tests/fuzz/*.[ch] bench/*/*.c)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The Python tests run against a package of their own, built with sanitizers. Python itself is full of intended leaks, and
# asks for impossible sizes on purpose. Reports go to files: pytest swallows what a dying process says, and tests may take
# the death of a child for what they expected.
ASAN := build/asan-venv
REPORTS := $(CURDIR)/build/asan-reports
ASAN_ENV := PYTHONMALLOC=malloc \
            ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1:log_exe_name=1:log_path=$(REPORTS)/asan \
            UBSAN_OPTIONS=print_stacktrace=1:log_exe_name=1:log_path=$(REPORTS)/ubsan
asan: system-all build
	$(C_TESTS) SAN=asan
	$(KEPT) SAN=asan
	rm -rf $(REPORTS) build/lib.* build/bdist.* && mkdir -p $(REPORTS)
	$(ASAN_ENV) scripts/sanitized-venv.sh $(PYTHON) $(ASAN)
	$(ASAN_ENV) $(ASAN)/bin/python -m pip install -q -r $(VENV)/requirements.txt
	$(ASAN_ENV) TIMEZERO_SANITIZE=address $(ASAN)/bin/python -m pip install -q --no-build-isolation --no-deps \
	    --force-reinstall .
	$(ASAN_ENV) $(ASAN)/bin/python -m pytest --ignore=tests/unit/test_package.py $(PYTEST)
	@cat $(REPORTS)/* 2>/dev/null && exit 1 || echo "no sanitizer report"

tsan: system build
	$(C_TESTS) SAN=tsan

# Who may die, at every step of a session: all of the table. The tests run a part of it.
crash: system-all build
	$(PY) -m proof.crash

# What finishes in ten minutes; bench-full takes the sizes that figures are quoted from, and every row.
bench: system-all build
	$(PY) -m pytest bench
	$(PY) -m bench.start
	$(PY) -m bench.copy --quick
	$(PY) -m bench.serve
	$(PY) -m bench.intercept --quick --rounds 1
	$(PY) -m bench.harm --size 1G --rounds 1 --idle 4 --load quarter
	$(PY) -m bench.suspend --count 10 --size 1G --size 1T
	$(PY) -m bench.freeze --count 2

bench-full: system-all build
	$(PY) -m pytest bench
	$(PY) -m bench.start
	$(PY) -m bench.start --cold
	$(PY) -m bench.copy
	$(PY) -m bench.serve --full
	$(PY) -m bench.intercept
	$(PY) -m bench.harm
	$(PY) -m bench.harm.group --volumes 1 --volumes 8 --size 4G
	$(PY) -m bench.suspend
	$(PY) -m bench.freeze
	$(PY) -m bench.files
	$(PY) -m proof.postgres

# Every target for SECONDS (30). Readers that are Python: under atheris where pip finds a build of it, else our own engine.
fuzz: build
	@PYTHON=$(PYTHON) scripts/bootstrap.sh fuzz
	@$(PY) -c "import atheris" 2>/dev/null || $(PY) -m pip install -q --only-binary :all: atheris || \
	    echo "timezero: no atheris for this Python: fuzzing without it"
	$(MAKE) -C tests/fuzz run

clean:
	rm -rf $(VENV) build dist timezero-bench-* src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src -name '*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +

.PHONY: build system system-all test demo lint asan tsan crash bench bench-full fuzz clean
