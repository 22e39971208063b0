# make demo      a tour in the terminal: needs only Python 3.11 or newer
# make test      the fast tests, and each promise of README.md shown with real processes: five minutes on two cores
# make test-slow the other tests: a quarter of an hour. All start a PostgreSQL of their own unless DATABASE_URL is set
# make check     lint, types and `make test`
# make fastest   a comparison of what jobs cost with the commit in .ci/fastest: four minutes on a quiet machine
# make servers   `make test` on PostgreSQL 14 to 18, in turn: SERVERS="14 16" for some alone
# make docs      the documentation, as HTML in build/docs
#
# PYTHON=... chooses the interpreter, VENV=... and CONSTRAINTS=... another environment.

.SUFFIXES:
.PHONY: help demo test test-slow servers fastest newest oldest lint format types check docs venv clean
SHELL := /bin/sh
VENV ?= .venv
CONSTRAINTS ?=
PYTEST_ARGS ?= -n 4 --dist worksteal
# Most slow tests wait for processes, leases and servers.
SLOW_ARGS ?= -n 5 --dist worksteal
CODE := $(wildcard sqla_jobs tests examples benchmarks docs)
RUN := $(VENV)/bin/python -m
FEWER_TYPES := --allow-untyped-calls --allow-untyped-decorators --no-warn-unused-ignores
EXTRAS := asyncio,dashboard,demo,encryption,flask,opentelemetry,prometheus,reload
OLDEST := VENV=.venv-oldest CONSTRAINTS=.ci/oldest.txt
# the tests of what calls the dependencies
CORE := database execution flask migrations models opentelemetry prometheus queries sharding worker test_cron.py
# the tests of what depends on the version of Python: annotations, threads, coroutines
AWARE := coroutines execution worker tasks/test_tasks.py

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

help:
	@sed -n 's/^# //p' Makefile | head -n 7

demo: $(VENV)/demo.stamp
	@$(RUN) examples.demo

test: $(VENV)/programs.stamp
	$(RUN) pytest -m "not slow or promise" $(PYTEST_ARGS)

test-slow: $(VENV)/programs.stamp
	$(RUN) pytest -m "slow and not promise" $(SLOW_ARGS)

servers: $(VENV)/programs.stamp
	$(RUN) tests.servers $(SERVERS)

# Of CPU time alone: it is nearly the same on a busy machine. The first commit of .ci/fastest is the one whose plain jobs
# cost the server least, the second is for the kinds of jobs that the first lacks. An enqueue costs the server 1.2 to 1.35
# times what it cost there, and other kinds up to 1.2 times.
fastest: $(VENV)/dev.stamp
	$(RUN) benchmarks $$(sed 's/^/--against /' .ci/fastest) --at-most 1.10 --server-at-most 1.5 --turns 5 --jobs 15000

# With the oldest supported dependencies, in an environment of their own. They lack some types.
oldest:
	$(MAKE) venv $(OLDEST)
	.venv-oldest/bin/python -m mypy --strict $(FEWER_TYPES) --cache-dir .venv-oldest/mypy sqla_jobs
	$(MAKE) test $(OLDEST) PYTEST_ARGS="$(PYTEST_ARGS) -m 'not slow' $(CORE:%=tests/%)"

# On another Python, which is to be the newest: PYTHON=python3.14
newest:
	$(MAKE) test VENV=.venv-newest PYTEST_ARGS="$(PYTEST_ARGS) -m 'not slow' $(AWARE:%=tests/%)"

lint: $(VENV)/dev.stamp
	$(RUN) ruff check .
	$(RUN) ruff format --check .

format: $(VENV)/dev.stamp
	$(RUN) ruff check --fix .
	$(RUN) ruff format .

types: $(VENV)/dev.stamp
	$(RUN) mypy --strict $(CODE)
	$(RUN) pyright

check: lint types test

docs: $(VENV)/dev.stamp
	$(RUN) sphinx --fail-on-warning --keep-going -q docs build/docs

venv: $(VENV)/dev.stamp

clean:
	rm -rf $(VENV)

# A stamp is newer than what was installed from: a changed pyproject.toml installs again.
$(VENV)/demo.stamp: pyproject.toml $(CONSTRAINTS) $(VENV)/python.stamp
	@echo "Installing sqla-jobs[demo] into $(VENV) ..."
	@$(RUN) pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[demo]"
	@touch $@

$(VENV)/dev.stamp: pyproject.toml $(CONSTRAINTS) $(VENV)/python.stamp
	@echo "Installing sqla-jobs and what its tests need into $(VENV) ..."
	@$(RUN) pip install --quiet --upgrade "pip>=25.1"
	@$(RUN) pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable ".[$(EXTRAS)]" --group dev
	@touch $(VENV)/demo.stamp $@

# A browser and a pooler for the tests that drive them; where they cannot be had those are skipped. Tried once.
$(VENV)/programs.stamp: $(VENV)/dev.stamp
	@$(RUN) tests.programs
	@touch $@

# The first interpreter that is new enough and complete. It is run, not only looked up: a name on
# PATH may be a shim of a version manager that then refuses, or a Python without ensurepip.
$(VENV)/python.stamp:
	@incomplete=; \
	for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python); do \
	    "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	    if "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	        rm -rf "$(VENV)"; \
	        "$$python" -m venv "$(VENV)" || { rm -rf "$(VENV)"; exit 1; }; \
	        touch $@; \
	        exit 0; \
	    fi; \
	    incomplete="$$incomplete $$python"; \
	done; \
	if [ -n "$$incomplete" ]; then \
	    echo "No virtual environment can be made with:$$incomplete (the venv or ensurepip module is missing)." >&2; \
	    echo "Install it (Debian, Ubuntu: apt-get install python3-venv), or name another Python: make PYTHON=/path/to/python3" >&2; \
	else \
	    echo "Python 3.11 or newer is needed, and none of these is one: $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11 python)." >&2; \
	    echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	fi; \
	exit 1
