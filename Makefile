# Everything happens in .venv, which is made from requirements-dev.lock when it is first needed, and again when the lock
# or pyproject.toml has changed. What is needed to begin with: make, and a Python of 3.11 or later with venv.

PORT ?= 8000
DATA_DIR ?= .data
run dev: export PORT := $(PORT)
run dev: export DATA_DIR := $(DATA_DIR)

# The first of these that is recent enough; PYTHON=… to choose another.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python
FITS = import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))
STAMP := .venv/.made-from-$(shell cat requirements-dev.lock pyproject.toml | cksum | cut -d ' ' -f 1)

.PHONY: help run dev test check bench lock

help:
	@echo 'make run     everything on this machine, at http://127.0.0.1:$(PORT), with its data in $(DATA_DIR)'
	@echo 'make dev     the same, started anew whenever the source changes'
	@echo 'make test    the tests'
	@echo 'make check   what CI asks for: format, lint, types, import layers, and the tests with their coverage'
	@echo 'make bench   the figures that the README quotes'
	@echo 'make lock    new versions of all that is depended on, within the bounds of pyproject.toml'
	@echo
	@echo 'PORT and DATA_DIR may be set: make run PORT=9000 DATA_DIR=/srv/secureblogs'

run: $(STAMP)
	@exec .venv/bin/secureblogs up

dev: $(STAMP)
	@exec .venv/bin/secureblogs up --reload

# The tests make databases by the dozen: in memory, where there is plenty of it and programs may be run from there.
TEST_TMP := $(shell grep -qs '^[^ ]* /dev/shm .*noexec' /proc/mounts || \
	df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 { print "/dev/shm" }')
ifneq ($(TEST_TMP),)
test: export TMPDIR := $(TEST_TMP)
endif

# Processes by the dozen, too, that start faster from compiled modules, whatever the user's own settings for those are.
test: export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache
test: export PYTHONDONTWRITEBYTECODE :=

# `make test check` runs the tests once, with their coverage.
test: $(STAMP)
ifeq ($(filter check,$(MAKECMDGOALS)),)
	.venv/bin/pytest
else
	rm -f .coverage .coverage.*
	.venv/bin/coverage run -m pytest
	.venv/bin/coverage combine -q
	.venv/bin/coverage report
endif

check: $(STAMP) test
	.venv/bin/uv pip check -q --python .venv/bin/python
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

bench: $(STAMP)
	@exec .venv/bin/python -m benchmarks

# uv is in the lock too, so pip checks its hash; uv then checks those of all others.
$(STAMP):
	@test -x .venv/bin/uv && .venv/bin/python -c '' || { \
		for python in $(PYTHON); do "$$python" -c '$(FITS)' 2>/dev/null && break; python=; done; \
		test "$$python" || { echo 'A Python of 3.11 or later with its venv module is needed (PYTHON=...).'; exit 1; }; \
		echo "Making .venv with $$python: once, and a minute at most" && \
		"$$python" -m venv --clear .venv && \
		sed -n '/^uv==/,/[^\\]$$/p' requirements-dev.lock > .venv/uv.txt && \
		.venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r .venv/uv.txt; }
	@.venv/bin/uv pip sync -q --python .venv/bin/python --require-hashes requirements-dev.lock
	@.venv/bin/uv pip install -q --python .venv/bin/python --no-deps --no-build-isolation --editable .
	@rm -f .venv/.made-from-*
	@touch $@

COMPILE = .venv/bin/uv pip compile -q --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	--custom-compile-command 'make lock' --upgrade

lock: $(STAMP)
	$(COMPILE) pyproject.toml --output-file requirements.lock
	$(COMPILE) pyproject.toml --all-extras --constraint requirements.lock --output-file requirements-dev.lock
