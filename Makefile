# `make demo` and `make test` do all their own set-up in .venv on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# torch==X.Y.* and torchvision==X.Y.*, of the lower bounds in pyproject.toml.
PAIR = $(shell sed -nE "s/^ *\"(torch|torchvision)>=([0-9.]+)\",$$/'\1==\2.*'/p" pyproject.toml)

.PHONY: demo test test-oldest check check-slow reference fuzz install clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@

install: $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/selfdet demo --out runs/demo --resume

# Two processes of one thread each; a file's tests stay together, as they share what was trained for them.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

$(OLDEST)/.installed: pyproject.toml
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet -e '.[dev]' $(PAIR)
	touch $@

# The rooms that rest on what torch and torchvision do inside, on the oldest pair that we support.
test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest tests/models tests/detectors tests/methods tests/interchange

# What takes longer than the suite may: every recipe, all exports, several processes, thousands of random files.
check-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m slow

check: $(VENV)/.installed
	$(BIN)/ruff check src tests benchmarks docs/make_reference.py docs/make_matrix.py
	$(BIN)/ruff format --check src tests benchmarks docs/make_reference.py docs/make_matrix.py
	$(BIN)/mypy

# docs/reference/ from signatures and docstrings, the tables of docs/how-to-settings.md from the code; tests hold them to it.
reference: $(VENV)/.installed
	$(BIN)/python docs/make_reference.py
	$(BIN)/python docs/make_settings.py
	$(BIN)/python docs/make_plan.py
	$(BIN)/python docs/make_matrix.py

# Coverage-guided fuzzing of every reader, a minute each, or of some: make fuzz READERS="coco voc" EACH=600
READERS ?= coco coco_checked voc yolo yolo_rows image tar shard_index text_list given proposals unfinished weights torch_weights \
	checkpoint lease config mask
EACH ?= 60
fuzz: $(VENV)/.installed
	$(BIN)/pip install --quiet -e '.[fuzz]'
	for reader in $(READERS); do \
		$(BIN)/python fuzz/fuzz_reader.py $$reader -max_total_time=$(EACH) -artifact_prefix=fuzz/ || exit 1; done

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
