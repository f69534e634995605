# Everything here sets itself up; only Python 3.11+ and make have to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= runs/quickstart

.PHONY: quickstart test lint figures clean

# Pretrain, fine-tune and compare on the drawn pets, or on your own images: make quickstart DATA=folder
quickstart: $(VENV)/.installed
	@$(BIN)/segae quickstart $(DATA) --out "$(OUT)"

test: $(VENV)/.installed-dev lint
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/lint-imports --no-cache > .lint-imports.log || (cat .lint-imports.log; exit 1)
	@$(BIN)/mypy --no-error-summary

# Draw the README's figure and the tables of docs/results.md from results/*.csv
figures: $(VENV)/.installed
	@$(BIN)/python tools/results_page.py

$(VENV)/.installed: pyproject.toml
	$(call install,.[imagenet])
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[imagenet$(comma)dev])
	@touch $(VENV)/.installed $@

comma := ,
OLD := "segae needs Python 3.11 or newer; name one that you have: make PYTHON=python3.12"
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo $(OLD); exit 1)
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
@echo "installing into $(VENV): about 3 minutes and 7 GB the first time"
@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable "$(1)"
endef

clean:
	@rm -rf $(VENV) build *.egg-info .lint-imports.log
