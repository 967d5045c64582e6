# make run · make test · make test-system · make lint · make lock
PYTHON ?= python3
VENV := .venv
KODA := $(VENV)/bin/koda

# Everything below `$(VENV)` comes from requirements.lock: its versions bind, what is installed is asked for here.
# One set for running and testing, so that the corpus of preset `tiny`, the documentation that is installed, is the same.
$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "koda: needs Python 3.11 or newer; name one with make PYTHON=python3.11 …"; exit 1; }
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || { $(PYTHON) -m venv $(VENV) && $(VENV)/bin/pip install --quiet uv; }
	@PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; test -x $(VENV)/bin/python || uv venv --quiet --python $(PYTHON) $(VENV); \
	uv pip install --quiet --python $(VENV)/bin/python --constraint requirements.lock --editable . \
	  --group verify --group test --group lint
	@touch $@

.PHONY: run test test-system lint lock
run: $(VENV)/.installed
	@$(KODA) run

PYTEST := $(VENV)/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.installed
	@$(PYTEST) -m "not up and not browser and not postgresql and not chaos"

test-system: $(VENV)/.installed  ## what `koda up` brings up, Debian's Chromium and PostgreSQL, and what is killed
	@$(PYTEST) -m "up or browser or postgresql or chaos"

lint: $(VENV)/.installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

lock:  ## versions for every platform and Python, without addresses
	uv pip compile --quiet --universal --all-extras --group verify --group test --group lint \
	  --no-header --no-annotate --upgrade pyproject.toml --output-file requirements.lock
