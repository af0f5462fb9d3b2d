# Each command sets up what it takes in .venv: `make demo` the package with its command, the others the tools as well.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
TOOLS := $(VENV)/tools
REFERENCE := build/reference/DeepCache
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A process for each core; the tests of a file stay in one, since they share what is made once.
IN_PARALLEL := --numprocesses logical --dist loadscope
PROMPT := a red circle left of a blue square

export PIP_NO_INPUT := 1

.DELETE_ON_ERROR:
.PHONY: demo test test-thorough test-core test-all lint format docs clean

demo: $(INSTALLED)
	$(BIN)/deepcache generate "$(PROMPT)" --compare --output deepcache-output

test: $(TOOLS) $(REFERENCE)
	$(BIN)/python -m pytest --quiet $(IN_PARALLEL) -m "not slow and not thorough"

# The others that must pass before a change is merged, by tests/thorough.txt.
test-thorough: $(TOOLS) $(REFERENCE)
	$(BIN)/python -m pytest --quiet $(IN_PARALLEL) -m "thorough and not slow"

# The engine, the helper, settings and plans: for the daily loop.
test-core: $(TOOLS) $(REFERENCE)
	$(BIN)/python -m pytest --quiet $(IN_PARALLEL) -m "not slow and not thorough" @tests/core.txt

test-all: $(TOOLS) $(REFERENCE)
	$(BIN)/python -m pytest --quiet $(IN_PARALLEL)

lint: $(TOOLS)
	$(BIN)/ruff check --quiet
	$(BIN)/ruff format --check --quiet
	$(BIN)/python .ci/vocabulary.py
	$(BIN)/mypy --no-error-summary

format: $(TOOLS)
	$(BIN)/ruff check --quiet --fix
	$(BIN)/ruff format --quiet

docs: $(TOOLS)
	@rm -rf build/docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --nitpicky --fresh-env --quiet --doctree-dir build/doctrees docs build/docs
	@echo "The site is in build/docs: open build/docs/index.html"

clean:
	rm -rf $(VENV) build deepcache-output

$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "DeepCache needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Setting up $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt --upgrade pip
	@$(PIP) install --constraint constraints.txt --build-constraint constraints.txt --editable '.[cli]'
	@touch $@

$(TOOLS): $(INSTALLED)
	@echo "Adding the tools for tests, lint and docs"
	@$(PIP) install --constraint constraints.txt --group dev
	@touch $@

# The reference implementation, for the parity tests: unpacked, loaded by path, never installed.
$(REFERENCE): tests/parity/reference.txt | $(TOOLS)
	@rm -rf $(@D)
	@$(PIP) download --no-deps --only-binary :all: --require-hashes --requirement $< --dest $(@D)
	@$(BIN)/python -m zipfile -e $(@D)/*.whl $(@D)
	@touch $@
