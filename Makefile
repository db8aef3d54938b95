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

# What the dashboard's pages take from others, as package-lock.json has it: these files are all of it that is served.
PARTS := htmx.org/dist/htmx.min.js uplot/dist/uPlot.iife.min.js uplot/dist/uPlot.min.css
PARTS_DIR := server/dashboard/static/parts
PARTS_STAMP := node_modules/.made-from-$(shell cat package.json package-lock.json | cksum | cut -d ' ' -f 1)

.PHONY: help run dev test check coverage faults bench hunt fuzz lock parts parts-if-possible

help:
	@echo 'make run       everything on this machine, at http://127.0.0.1:$(PORT), with its data in $(DATA_DIR)'
	@echo 'make dev       the same, started anew whenever the source changes'
	@echo 'make test      the tests, but for those that take long'
	@echo 'make check     what CI asks for: format, lint, types, import layers, and all tests'
	@echo 'make coverage  the tests once more, and which lines and branches they do not come to'
	@echo 'make faults    kills, fills, stalls and repeats things, for a quarter of an hour, and shows that nothing is lost'
	@echo 'make bench     the figures that the README quotes'
	@echo 'make hunt      plant secrets, and search for them wherever the server may leave bytes'
	@echo 'make fuzz      hold the answers against the OpenAPI document, for a quarter of an hour'
	@echo 'make parts     the scripts that the dashboard takes from npm; run, dev and test see to it, too'
	@echo 'make lock      new versions of all that is depended on, within the bounds of pyproject.toml'
	@echo
	@echo 'PORT and DATA_DIR may be set: make run PORT=9000 DATA_DIR=/srv/secureblogs'

run: $(STAMP) parts-if-possible
	@exec .venv/bin/secureblogs up

dev: $(STAMP) parts-if-possible
	@exec .venv/bin/secureblogs up --reload

# The tests make databases by the dozen: in memory, where there is plenty of it and programs may be run from there.
TEST_TMP := $(shell grep -qs '^[^ ]* /dev/shm .*noexec' /proc/mounts || \
	df -Pk /dev/shm 2>/dev/null | awk 'NR == 2 && $$4 > 4000000 { print "/dev/shm" }')
ifneq ($(TEST_TMP),)
test coverage hunt faults: export TMPDIR := $(TEST_TMP)
endif

# Processes by the dozen, too, that start faster from compiled modules, whatever the user's own settings for those are.
test coverage: export PYTHONPYCACHEPREFIX := $(CURDIR)/.venv/pycache
test coverage: export PYTHONDONTWRITEBYTECODE :=

# `make test check` runs each test once.
test: $(STAMP) parts
	.venv/bin/pytest $(if $(filter check,$(MAKECMDGOALS)),,-m 'not thorough')

# Apart from CI, because it takes the tests half as long again.
coverage: $(STAMP) parts
	rm -f .coverage .coverage.*
	.venv/bin/coverage run -m pytest -m 'not thorough'
	.venv/bin/coverage combine -q
	.venv/bin/coverage report

check: $(STAMP) test
	.venv/bin/uv pip check -q --python .venv/bin/python
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

# FAULTS='NAME ... --rounds N --seed N': some of them, so often, with the timing of an earlier run.
faults: $(STAMP)
	@exec .venv/bin/python -m tests.faults $(FAULTS)

bench: $(STAMP)
	@exec .venv/bin/python -m benchmarks

# Where the tests make their databases, too.
hunt: $(STAMP)
	@exec .venv/bin/python -m tests.hunt

fuzz: $(STAMP)
	@exec .venv/bin/python -m tests.fuzzing

parts: $(PARTS_STAMP)

# Without them the server runs, and the dashboard's pages say what is missing.
parts-if-possible: $(STAMP)
	@$(MAKE) -s --no-print-directory parts || echo 'Going on without the scripts from npm: the dashboard has no charts.'

# Where there is no npm, one comes out of a wheel, into the same .venv.
$(PARTS_STAMP): | $(STAMP)
	@command -v npm >/dev/null || test -x .venv/bin/npm || \
		.venv/bin/uv pip install -q --python .venv/bin/python --require-hashes -r requirements-node.lock
	@PATH="$$PATH:$(CURDIR)/.venv/bin" npm ci --silent --ignore-scripts --no-fund --no-audit
	@mkdir -p $(PARTS_DIR)
	@cp $(addprefix node_modules/,$(PARTS)) $(PARTS_DIR)
	@touch $@

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
	$(COMPILE) --group node --output-file requirements-node.lock
