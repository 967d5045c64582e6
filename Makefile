# make run · test · test-system · test-bench · cuda · test-cuda · test-other-python · lint · lock
PYTHON ?= python3
VENV := .venv
KODA := $(VENV)/bin/koda

# Everything below `$(VENV)` comes from requirements.lock: its versions bind, what is installed is chosen here. What tests
# need is added for them, and only what a run needs for a run.
INSTALL = uv pip install --quiet --python $(VENV)/bin/python --constraint requirements.lock --editable .
$(VENV)/.installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "koda: needs Python 3.11 or newer; name one with make PYTHON=python3.11 …"; exit 1; }
	@command -v uv >/dev/null || test -x $(VENV)/bin/uv || { $(PYTHON) -m venv $(VENV) && $(VENV)/bin/pip install --quiet uv; }
	@PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; test -x $(VENV)/bin/python || uv venv --quiet --python $(PYTHON) $(VENV); \
	$(INSTALL) --group verify
	@touch $@

$(VENV)/.for-tests: $(VENV)/.installed
	@PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; $(INSTALL) --group verify --group test --group lint
	@touch $@

.PHONY: run test test-system test-bench cuda test-cuda test-other-python lint lock
run: $(VENV)/.installed
	@$(KODA) run

PYTEST := $(VENV)/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.for-tests
	@$(PYTEST) -m "not up and not browser and not postgresql and not chaos and not bench and not cuda"

test-system: $(VENV)/.for-tests  ## what `koda up` brings up, Debian's Chromium and PostgreSQL, and what is killed
	@$(PYTEST) -m "(up or browser or postgresql or chaos) and not bench"

test-bench: $(VENV)/.for-tests  ## every bench in its smallest form
	@$(PYTEST) -m bench

# XLA's CUDA compiler, in an environment of its own: 4 GB, which nothing else needs on a machine without a GPU.
.venv-cuda/.installed: $(VENV)/.installed
	@PATH="$$PATH:$(CURDIR)/$(VENV)/bin"; test -x .venv-cuda/bin/python || uv venv --quiet --python $(PYTHON) .venv-cuda; \
	uv pip install --quiet --python .venv-cuda/bin/python --constraint requirements.lock --editable '.[cuda]' pytest pytest-timeout
	@touch $@

cuda: .venv-cuda/.installed  ## for `.venv-cuda/bin/koda plan`

test-cuda: .venv-cuda/.installed  ## the presets' steps, compiled for the GPUs that they are for
	@.venv-cuda/bin/python -m pytest -m cuda tests/model/training tests/flows/cli/test_plan.py

# The newest Python of this machine that is newer than the usual one, also where only pyenv knows of it.
test-other-python:  ## what computes, on it: the lock resolves other versions of JAX there
	@for minor in 15 14 13 12; do for python in $$(command -v python3.$$minor) $$HOME/.pyenv/versions/3.$$minor.*/bin/python; do \
	  "$$python" -c "import sys; sys.exit(sys.version_info[1] != $$minor)" 2>/dev/null || continue; \
	  $(PYTHON) -c "import sys; sys.exit(sys.version_info[1] >= $$minor)" || continue; \
	  echo "tests/model on $$python"; \
	  PATH="$$PATH:$(CURDIR)/$(VENV)/bin" $(MAKE) --no-print-directory VENV=.venv-other PYTHON="$$python" .venv-other/.for-tests || exit 1; \
	  exec .venv-other/bin/pytest --numprocesses 2 --dist loadfile tests/model; \
	done; done; echo "this machine has no newer Python than $$($(PYTHON) -V): tests/model ran on that one alone"

lint: $(VENV)/.for-tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-cache

lock:  ## versions for every platform and Python, without addresses
	uv pip compile --quiet --universal --all-extras --group verify --group test --group lint \
	  --no-header --no-annotate --upgrade pyproject.toml --output-file requirements.lock
