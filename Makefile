# The study from end to end. `make help` lists the targets; each does the set-up it needs.
DATASET  = phantom
PROFILE  = quick
SEED     = 0
SPLIT    = official
DATA_DIR =
TEACHER  = densenet121
STUDENT  = plain
SCHEDULER =
CACHE    =
TRAIN_TEACHER =
IMAGE    =
RUNS     = runs
PYTHON   = python3
ONLY     =
RUN      =

# What a user gives is text: make itself must not expand a $ in it.
VARIABLES := DATASET PROFILE SEED SPLIT DATA_DIR TEACHER STUDENT SCHEDULER CACHE TRAIN_TEACHER IMAGE RUNS ONLY RUN
$(foreach name,$(VARIABLES),$(eval override $(name) := $$(value $(name))))
export $(VARIABLES)
export KDNB_CACHE := $(CACHE)
export KDNB_SCHEDULER := $(SCHEDULER)
# A user's own kernels, figures and switches of Python that would change what runs, or leave out its checks.
unexport JUPYTER_PATH MATPLOTLIBRC PYTHONSAFEPATH PYTHONOPTIMIZE

# A Python asked for that did not make .venv gets an environment of its own beside it.
VENV := .venv
ifneq ($(origin PYTHON),file)
ASKED := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
MADE := $(shell sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2>/dev/null)
ifneq ($(MADE),)
ifneq ($(ASKED),$(MADE))
VENV := .venv-$(ASKED)
endif
endif
endif
PY := $(VENV)/bin/python
# PY=python3 runs the study with a Python that has what it needs already (a GPU image's own torch, say), and .venv is not made.
ifeq ($(PY),$(VENV)/bin/python)
READY := $(VENV)/ready-$(shell cat requirements.lock pyproject.toml | cksum | cut -d' ' -f1)
else
READY :=
PYTHON := $(PY)
endif
SETTINGS = --dataset "$$DATASET" --profile "$$PROFILE" --seed "$$SEED" --split "$$SPLIT" --data-dir "$$DATA_DIR" --runs "$$RUNS" \
  --teacher "$$TEACHER" --student "$$STUDENT"

.PHONY: help setup python-version reproduce run test test-slow explain bench gpu-check book slides lab data lock outputs record clean
.DELETE_ON_ERROR:
.SUFFIXES:

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: DATASET=phantom PROFILE=smoke|quick|cpu|paper SEED=0 SPLIT=official|leak_free DATA_DIR=data/raw RUNS=runs"
	@echo "           TEACHER=densenet121 STUDENT=plain|translucent|transparent|layered|spread (or a name of torchvision.models, file.py:build, file.py:build:state.safetensors)"
	@echo "           SCHEDULER=tcp://host:8786 (a Dask cluster) CACHE=data/cache TRAIN_TEACHER=1 (the default run's teacher anew, not as recorded)"
	@echo "Cost: on two AVX-512 cores in float32 smoke 3 minutes, quick some 17 (with AVX2 alone, on an EPYC of 2017, three times as long), cpu an hour or so a data set; paper wants a GPU (not measured on one yet)"
	@echo "PY=python3 uses that Python and its torch in place of .venv; KDNB_PRECISION=float32 in the environment trains without bfloat16"
	@echo "Data sets: phantom, phantom:certain, phantom:shortcut, phantom:fundus, phantom:volume, brain_tumor, eye_disease, alzheimer, figshare_brain, alzheimer:3, alzheimer:2, medmnist:<flag>, folder:<path>, table:<path>"
	@echo "           behind a path: folder:images:person=off,test=fold_1; table:labels.csv:image=,label=,split=,test=,person=,mask=,images= (a column's name, or off)"

python-version:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || \
	  { is=$$($(PYTHON) -V 2>&1) && is="is $$is" || is="cannot be run here"; \
	    echo "kdnb: $(PYTHON) $$is, but the study needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ..." >&2; exit 2; }

setup: $(READY) ## make .venv with the exact versions of requirements.lock (once)

# Not interruptible half-way unnoticed: a .venv whose installation was cut off is made anew.
ifneq ($(READY),)
$(READY): | python-version
	@$(PYTHON) -m kdnb.pipeline lock runs/.setup.lock "another make setup" -- $(MAKE) -s --no-print-directory install
endif

.PHONY: install
install:
	@if [ -e $(READY) ]; then exit 0; fi; \
	if [ -e $(VENV)/installing ]; then rm -rf $(VENV); fi; \
	echo "Setting up $(VENV) from requirements.lock (some minutes, once) ..." >&2; \
	$(PYTHON) -m venv $(VENV) && touch $(VENV)/installing && \
	$(PY) -m pip install -qq --disable-pip-version-check --no-input --no-deps -r requirements.lock && \
	$(PY) -m pip install -qq --disable-pip-version-check --no-input --no-deps --no-build-isolation -e . && \
	MPLCONFIGDIR=$(VENV)/var/matplotlib $(PY) -c 'import matplotlib.font_manager' && \
	rm -f $(VENV)/installing $(VENV)/ready-* && touch $(READY)

reproduce: python-version ## run the study and write runs/<dataset>-<profile>-seed<seed>/
	@$(PYTHON) -m kdnb.settings $(SETTINGS) > /dev/null
	@$(MAKE) -s --no-print-directory setup
	+@$(PYTHON) -m kdnb.pipeline reproduce $(SETTINGS) -- $(MAKE) -s --no-print-directory run

# ---- what depends on what: one folder per run -------------------------------------------------------------------------------------------
ifdef FOLDER
NOTEBOOKS := $(basename $(notdir $(sort $(wildcard notebooks/*.ipynb))))
OUT := $(FOLDER)/notebooks
done = $(patsubst %,$(OUT)/%.ipynb,$(filter $(1)_%,$(NOTEBOOKS)))
code = $(wildcard $(patsubst %,kdnb/%.py,$(1)))
ALL  := $(NOTEBOOKS:%=$(OUT)/%.ipynb)

run: $(FOLDER)/report.html

$(call done,00): $(call code,cost device losses models networks datasets/* explain/* figures/__init__ figures/live figures/training)
$(call done,01): $(call code,datasets/* figures/__init__ figures/data) data/sources.toml $(wildcard data/*.csv)
$(call done,02): $(call done,01) $(call code,device models models3d networks cluster tensors training stack views evaluation losses cost experiments specs store sweep teacher_training teachers explain/* figures/training) \
  $(wildcard data/measured/phantom_teacher.safetensors)
$(call done,03): $(call done,02) $(call code,comparison few_labels figures/statistics)
$(call done,04): $(call done,03) $(call code,figures/live)
$(call done,05): $(call done,03) $(call code,students explain/* fidelity/* figures/explain figures/live)
# 06 measures times: it waits for 04 so that nothing else runs beside it under -j.
$(call done,06): $(call done,05) $(call code,claims) data/published/met.csv | $(call done,04)
# 07 measures times, too.
$(call done,07): $(call done,03) $(call code,claims students transparency explain/* fidelity/* figures/evidence figures/live) | $(call done,06)
$(call done,08): $(call done,03) $(call code,claims students teaching transparency explain/* fidelity/* figures/evidence figures/teaching) | $(call done,07)
$(call done,09): $(call done,03) $(call code,claims third_dimension explain/* fidelity/* figures/volumes figures/evidence figures/live) | $(call done,08)
# The appendix simulates what it needs; behind the chapters that measure times.
$(call done,A): $(call code,device models networks evaluation figures/__init__ figures/statistics) | $(call done,09)
$(call done,10): $(filter-out $(call done,10),$(ALL)) $(call code,claims measured students report) $(wildcard data/published/* data/measured/*)

$(ALL): $(OUT)/%.ipynb: $(FOLDER)/.stamps/% $(FOLDER)/.stamps/settings.json
	@$(PY) -m kdnb.pipeline notebook $* $(FOLDER)

$(FOLDER)/report.html: $(ALL) $(call code,report) $(wildcard kdnb/pages/*)
	@$(PY) -m kdnb.report $(FOLDER)
endif

# A test file on each of two cores.
SIDE_BY_SIDE = -n 2 --dist loadfile

test: setup ## unit tests, every notebook in the smoke profile, and those notebooks again under nbval
	@$(PY) -m pytest -q -m "not slow" $(SIDE_BY_SIDE)
	@rm -rf runs/test
	@$(MAKE) -s --no-print-directory reproduce DATASET=phantom PROFILE=smoke SEED=0 SPLIT=official DATA_DIR= RUNS=runs/test
	@$(PY) -m kdnb.pipeline verify runs/test/phantom-smoke-seed0

test-slow: setup ## the tests that kill, fill disks and soak
	@$(PY) -m pytest -q -m slow $(SIDE_BY_SIDE)

explain: setup ## explain one image, at once with a recorded run (IMAGE=path RUN=its name or runs/...): a page with maps, probabilities and a manifest
	@$(PY) -m kdnb.one_image -- "$$IMAGE" "$$RUN" "$$DATA_DIR" "$$RUNS"

bench: setup ## measure the speed budget, both sides of each row in one run (ONLY=name: one row)
	@$(PY) -m kdnb.bench --only "$$ONLY"

gpu-check: setup ## on a GPU, 8 minutes: the smoke run, training at 224 px, goals met or missed in runs/gpu_check/gpu_check.csv
	@$(PY) -m kdnb.bench.gpu

book: setup ## build the HTML site from the committed outputs (RUN=runs/...: from a run)
	@$(PY) -m kdnb.book --run "$$RUN"

slides: setup ## a talk of 45 minutes from the chapters, one page to open in a browser (RUN=runs/...: from a run)
	@$(PY) -m kdnb.slides --run "$$RUN"

lab: setup ## open JupyterLab on the notebooks, on localhost with a token
	@JUPYTER_PREFER_ENV_PATH=1 $(PY) -m jupyterlab --ip=127.0.0.1 --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb \
	  $$([ "$$(id -u)" = 0 ] && echo --allow-root)

outputs: setup ## copy the outputs of the default run into notebooks/, and its picture into FINDINGS
	@$(PY) -m kdnb.pipeline outputs runs/phantom-quick-seed0

data: setup ## download DATASET into DATA_DIR
	@$(PY) -m kdnb.datasets.fetch --dataset "$$DATASET" --data-dir "$$DATA_DIR"

record: setup ## keep the tables of a finished run in data/measured, README and FINDINGS (RUN=runs/...)
	@$(PY) -m kdnb.findings "$$RUN"

lock: ## write requirements.lock anew from pyproject.toml (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --all-extras --no-header --no-annotate --no-emit-index-url pyproject.toml -o requirements.lock

clean: ## delete the runs, the caches and what tools left (not .venv, not data/raw)
	rm -rf runs data/cache .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
