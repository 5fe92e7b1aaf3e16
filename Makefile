# The interpreter that makes the virtual environment, and where that is. To use another one:
#     make test PYTHON=python3.12 VENV=.venv-3.12
PYTHON ?= python3
VENV ?= .venv$(DJANGO:%=-django-%)

VERSIONS := 3.10 3.11 3.12 3.13

# The Djangos that support a Python, without the newest of them, which pip installs unasked.
DJANGOS-3.10 := 4.2
DJANGOS-3.11 := 4.2
DJANGOS-3.12 := 4.2 5.2 6.0
DJANGOS-3.13 := 5.2 6.0

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip --disable-pip-version-check install --quiet

# Kept inside the environment, so that runs in two environments do not mix their data.
COVERAGE := COVERAGE_FILE="$(abspath $(VENV))/coverage" $(BIN)/python -m coverage
RESULTS := $(VENV)/test-results.xml

# Half of the tests' time is waiting for servers. Each process has servers of its own, and takes whole
# files, so that what a file has for all its tests is made once; in the order of tests/conftest.py.
TEST_PROCESSES ?= 2
IN_PROCESSES = --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder

NONE_SKIPPED = ! grep -q '<skipped' $(RESULTS) || { echo "Some tests were skipped." >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(VENV)/created:
	@$(PYTHON) -m venv --clear $(VENV) || { \
	    rm -rf $(VENV); \
	    echo "'$(PYTHON) -m venv' failed. On Debian: apt-get install python3-venv" >&2; \
	    exit 1; }
	@touch $@

# The package itself, without any extra.
$(VENV)/installed: pyproject.toml $(VENV)/created
	$(PIP_INSTALL) --editable .
	@touch $@

# The package with one extra: $(VENV)/installed-test holds .[test].
$(VENV)/installed-%: pyproject.toml $(VENV)/created
	$(PIP_INSTALL) --editable '.[$*]'
	@touch $@

# Where the demo keeps its settings.
BACKEND ?= sqlite
BACKENDS := sqlite redis django zookeeper

DEMO-django := examples/djangodemo.py
DEMO-zookeeper := examples/zookeeperdemo.py

.PHONY: demo
demo: $(if $(filter $(BACKENDS),$(BACKEND)),demo-$(BACKEND),demo-unknown) ## run a demo; BACKEND=sqlite, redis, django or zookeeper
	$(BIN)/python $(or $(DEMO-$(BACKEND)),examples/demo.py --backend $(BACKEND))

.PHONY: demo-sqlite
demo-sqlite: $(VENV)/installed

.PHONY: demo-redis
demo-redis: $(VENV)/installed-redis
	tests/install_requirements.sh $(BIN)/python redis-server

.PHONY: demo-django
demo-django: $(VENV)/installed-django $(VENV)/installed-memcached
	tests/install_requirements.sh $(BIN)/python memcached

.PHONY: demo-zookeeper
demo-zookeeper: $(VENV)/installed-zookeeper
	tests/install_requirements.sh $(BIN)/python libzookeeper-java default-jre-headless

.PHONY: demo-unknown
demo-unknown:
	@echo "BACKEND=$(BACKEND): write one of $(BACKENDS)" >&2; exit 1

.PHONY: test-requirements
test-requirements: $(VENV)/installed-test
	tests/install_requirements.sh $(BIN)/python

.PHONY: test
test: test-requirements ## run the tests; none may be skipped, and the coverage has a floor
	$(COVERAGE) erase
	$(COVERAGE) run -m pytest $(IN_PROCESSES) --junit-xml=$(RESULTS)
	@$(NONE_SKIPPED)
	$(COVERAGE) combine --quiet
	$(COVERAGE) report

.PHONY: test-long
test-long: test-requirements ## run the tests that are marked as long
	$(BIN)/python -m pytest -m long

# A run on each backend, for so many seconds; or on one. The proof of the proof: PROOF_OPTIONS=--bugs
SECONDS ?= 120
SEED ?= 1
PROVED = $(if $(filter command environment,$(word 1,$(origin BACKEND))),$(BACKEND),all)

.PHONY: prove
prove: test-requirements ## prove freshness and durability under faults; SECONDS=, SEED=, BACKEND=
	$(BIN)/python -m tests.proof --seconds $(SECONDS) --seed $(SEED) --backend $(PROVED) --bugs

.PHONY: test-django
test-django: test-requirements ## run only the tests of Django models; with another Django: DJANGO=4.2
	$(if $(DJANGO),$(PIP_INSTALL) 'Django~=$(DJANGO).0')
	$(BIN)/python -m pytest --junit-xml=$(RESULTS) \
	    $(wildcard tests/test_model*.py tests/test_*django*.py tests/test_stamps*.py)
	@$(NONE_SKIPPED)

# A pyenv shim is on the PATH also where its version is not selected, so an interpreter is found
# when it runs and is of that version.
find-python = $(firstword $(shell \
    for python in python$(1) "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$(1).*/bin/python; do \
        "$$python" -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(1)")' \
            2>/dev/null && echo "$$python"; \
    done))

.PHONY: test-all
test-all: ## run the tests on every supported Python that is installed, with every Django
	@failed=; \
	$(foreach version,$(VERSIONS), \
	    python="$(call find-python,$(version))"; \
	    if [ -z "$$python" ]; then \
	        echo "== Python $(version): not found, left out"; \
	    else \
	        echo "== Python $(version): $$python"; \
	        $(MAKE) --no-print-directory test PYTHON="$$python" VENV=.venv-$(version) \
	            || failed="$$failed $(version)"; \
	        $(foreach django,$(DJANGOS-$(version)), \
	            echo "== Python $(version), Django $(django)"; \
	            $(MAKE) --no-print-directory test-django PYTHON="$$python" DJANGO=$(django) \
	                VENV=.venv-$(version)-django-$(django) \
	                || failed="$$failed $(version)-Django-$(django)";) \
	    fi;) \
	[ -z "$$failed" ] || { echo "Failed on Python$$failed" >&2; exit 1; }

.PHONY: check
check: $(VENV)/installed-check ## lint, formatting and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

.PHONY: bench
bench: $(VENV)/installed-bench ## run the benchmarks
	tests/install_requirements.sh $(BIN)/python redis-server memcached postgresql \
	    libzookeeper-java default-jre-headless
	$(BIN)/python -m benchmarks

# Of the operations in one process, and of the readers of each store.
SECONDS ?= 600
READERS ?= 200

.PHONY: load
load: $(VENV)/installed-test ## have many readers, and a million operations; fail if anything grows
	tests/install_requirements.sh $(BIN)/python redis-server
	$(BIN)/python -m benchmarks.load --seconds $(SECONDS) --readers $(READERS)

# The examples may create files: they run in a folder that is thrown away.
IN_SCRATCH := scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && cd "$$scratch" &&
PYTHON_HERE := "$(abspath $(BIN))/python"
SPHINX := $(PYTHON_HERE) -m sphinx -W --keep-going --quiet

.PHONY: docs
docs: $(VENV)/installed-docs ## build docs/_build/html and run the examples of the docs and the README
	$(SPHINX) -b html docs docs/_build/html
	$(IN_SCRATCH) $(SPHINX) -b doctest "$(CURDIR)/docs" "$(CURDIR)/docs/_build/doctest"
	$(IN_SCRATCH) $(PYTHON_HERE) -m doctest "$(CURDIR)/README.rst"

.PHONY: clean
clean: ## remove everything that the other targets made
	rm -rf $(VENV) $(VERSIONS:%=.venv-%) $(VERSIONS:%=.venv-%-django-*) .venv-django-*
	rm -rf build dist *.egg-info docs/_build
	rm -rf .coverage* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
