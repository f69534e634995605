# Everything here sets itself up; nothing but Python 3.10+ and make has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DATA ?=
OUT ?= runs/quickstart

.PHONY: quickstart test lint readme clean

# Pretrain, transfer, fine-tune and compare, on drawn pets or on your own images: make quickstart DATA=folder
quickstart: $(VENV)/.installed
	@$(BIN)/segae quickstart --out "$(OUT)" $(if $(DATA),--data "$(DATA)")

test: $(VENV)/.installed-dev
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# Write the README's results table from results/*.csv
readme: $(VENV)/.installed
	@$(BIN)/python -m segae.bench.readme

$(VENV)/.installed: pyproject.toml
	$(call install,.[imagenet])
	@touch $@

$(VENV)/.installed-dev: pyproject.toml
	$(call install,.[imagenet$(comma)dev])
	@touch $(VENV)/.installed $@

comma := ,
OLD := "segae needs Python 3.10 or newer; name one that you have: make PYTHON=python3.12"
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || (echo $(OLD); exit 1)
@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
@echo "installing into $(VENV): about 3 minutes and 7 GB the first time"
@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable "$(1)"
endef

clean:
	@rm -rf $(VENV) build *.egg-info
