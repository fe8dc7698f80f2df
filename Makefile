# The front door. `make` lists what can be done; each target sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help run test check bench fleet faults roll soak shards clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Trunkline needs Python 3.11 or newer: make PYTHON=python3.11 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 has no venv: install it (Debian: apt-get install python3-venv)"; exit 1; }
	@echo "installing into $(VENV) …"
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(VENV)/ready ## a whole Trunkline on this machine, with demo agents: Redis, gateway, events
	@exec $(BIN)/trunkline dev

test: check ## lint, types and every test (real Redis, real sockets)
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(VENV)/ready ## lint and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/ready ## what a delivery and a request cost, as ratios to bare baselines in the same run
	$(BIN)/python -m tests.bench

fleet: $(VENV)/ready ## Redis, two replicas and HAProxy on this machine, from the files in deploy/
	$(BIN)/python deploy/fleet.py

faults: $(VENV)/ready ## break a real fleet and look closely: SEED=7 [N=50] [SECONDS=20]
	$(BIN)/python -m tests.faults --seed $(or $(SEED),1) --runs $(or $(N),1) --seconds $(or $(SECONDS),20)

roll: $(VENV)/ready ## a deploy and a killed node under 2,000 clients: who is away for how long, what is late
	$(BIN)/python -m tests.roll

soak: $(VENV)/ready ## a million events through one node in 20 minutes, clients coming and going: memory, what is late
	$(BIN)/python -m tests.soak

shards: $(VENV)/ready ## a cluster whose master dies under load: what each node receives, what is late
	$(BIN)/python -m tests.shards

clean: ## remove what the other targets made
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
