# Two commands for everybody: `make demo` and `make test`. Both need python3 (3.11 or later), make and, the first time, a package index.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup
# A test that hangs is named, with what it waits for, and ends the run; the longest takes a minute on a slow machine.
HANGS  := --max-worker-restart=0 -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true

# The tests start hundreds of processes. Where this is set, each of them compiles all modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test quick lint types layers format lock clean mutants crashes search swarm namespaces rolling soak

demo: $(STAMP)  ## five real nodes move money, lose one and agree again; under two minutes
	$(BIN)/hopchain demo

test: lint types layers $(STAMP)  ## everything that must hold before a change is merged
	$(PYTEST) $(HANGS)

quick: $(STAMP)  ## the tests that take under a minute together
	$(PYTEST) $(HANGS) -m "not slow and not cluster"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy
	$(BIN)/mypy examples/*.py

layers: $(STAMP)
	$(BIN)/lint-imports

namespaces: $(STAMP)  ## seven machines in network namespaces do what the README says; cuts, a dead machine, one that leaves
	$(BIN)/python -m tests.namespaces.lab

SEEDS ?= 1000
swarm: $(STAMP)  ## more random runs than `make test` has: make swarm SEEDS=5000
	$(BIN)/hopchain sim swarm --seeds $(SEEDS) --jobs 2
	HOPCHAIN_SEEDS=$(SEEDS) $(PYTEST) tests/node/test_core_chaos.py -k swarm

mutants: $(STAMP)  ## find the seeds that catch each mutant again, after a change of the code, and write their page
	$(BIN)/python -m netsim.mutants 2

crashes: $(STAMP)  ## every cut of the write-ahead log in the core scenario, not one of sixteen; every await, not one of three
	HOPCHAIN_CUT_STRIDE=1 $(PYTEST) tests/netsim/test_crashes.py tests/netsim/test_joins.py \
		tests/netsim/test_whole.py::test_a_crash_at_any_await_loses_nothing

search: $(STAMP)  ## every schedule of one slot while views change, the largest plans too
	HOPCHAIN_SEARCH=all $(PYTEST) tests/node/test_epoch_search.py

rolling: $(STAMP)  ## real nodes: 20 rounds of restarts under load, no gap of two seconds; growth 1, 2, 3, 5, 9, 3
	HOPCHAIN_ROLLING_ROUNDS=20 HOPCHAIN_ROLLING_GAP_S=2 HOPCHAIN_GROWTH=long $(PYTEST) tests/cluster/test_rolling.py tests/cluster/test_growth.py

soak: $(STAMP)  ## real nodes are killed, stopped and restarted at random while clients pay: make soak SEED=7
	HOPCHAIN_SOAK_S=600 HOPCHAIN_SOAK_SEED=$(or $(SEED),1) $(PYTEST) tests/cluster/test_soak.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The lock file pins every package with its hashes; it names no registry, so pip uses the one set up here.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock: $(STAMP)  ## after a change of dependencies in pyproject.toml
	$(BIN)/pip-compile --quiet --strip-extras --extra dev --generate-hashes --allow-unsafe \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
