# Two commands: `make demo` runs the main job on embedded data, `make test` runs the tests.
# TORCH chooses the build of torch, e.g. make demo TORCH="torch==2.13.0 --index-url URL-OF-A-CUDA-INDEX".
PYTHON ?= python3.11
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint methods faults bench clean

demo: $(VENV)/.installed
	$(BIN)/fieldmill demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Every method on held-out data beside its control, three seeds; writes the table.
methods: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.methods --write $(ARGS)

# The crash, race and fault tests, over and over.
RUNS ?= 10
faults: $(VENV)/.installed-test
	for i in $$(seq $(RUNS)); do \
	  $(BIN)/python -m pytest -q tests/store tests/ingest/test_faults.py tests/jobs/test_distributed.py $(ARGS) || exit 1; \
	done

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.engine --write
	$(BIN)/python -m benchmarks.store_write
	$(BIN)/python -m benchmarks.ingest_shapes
	$(BIN)/python -m benchmarks.listing_memory
	$(BIN)/python -m benchmarks.meshing
	$(BIN)/python -m benchmarks.reading

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by itself: a plain dependency on it would pull the newest CUDA build.
$(VENV)/.torch: | $(VENV)/bin/python
	$(PIP) install -q $(TORCH)
	touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml constraints.txt
	$(PIP) install -q -e . -c constraints.txt
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -q -e '.[test,lint]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) demo-output build *.egg-info
