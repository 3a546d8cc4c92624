# make demo    the main job end to end, on an embedded default text       (MODEL=... TEXT=... for your own)
# make test    the tests                                                  (PYTEST="-k name" to choose)
# make conformance   peft's own tests on our configs alone, with their counts
# make check   style, types, and the direction of imports

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  ?= torch==2.13.0
PYTEST ?=

export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test conformance check style bench clean

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@# torch first and by version, so that no other package's range pulls in a build for another machine
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: $(VENV)/.ready
	$(BIN)/python scripts/demo/demo.py $(if $(MODEL),--model "$(MODEL)") $(if $(TEXT),--text "$(TEXT)")

test: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadgroup $(PYTEST)

conformance: $(VENV)/.ready
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m conformance -rP

check: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet pyright
	$(BIN)/ruff check .
	$(BIN)/pyright --project pyproject.toml --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_imports.py

style: $(VENV)/.ready
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info runs
