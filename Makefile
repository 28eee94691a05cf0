# Everything a developer does here. `make` alone lists it.
#
# Variables:
#   PYTHON           interpreter for a new .venv (default: the first Python >= 3.11 that is found)
#   FAISS            cpu or gpu (default: gpu where an NVIDIA driver answers)
#   TORCH_INDEX_URL  one more package index to look for torch on, e.g. that of its CPU builds. Without
#                    it pip takes the default build, which on Linux brings the CUDA libraries along
#   TEST_JOBS        test files that `make test` runs at the same time (default: 2; many of them wait)
#   ARGS             arguments for demo, serve, test, bench and checkpoint, e.g. make demo ARGS="--minutes 20"

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

PY := .venv/bin/python
PROTO_PY := .venv-proto/bin/python
PROTO := recollect/v1/memory.proto
GENERATED := client/recollect/v1
LOCKED := pyproject.toml constraints.txt
KERNELS := hatch_build.py $(wildcard service/recollect_server/engine/native/* client/recollect/native/*)

TEST_JOBS ?= 2

ifndef FAISS
FAISS := $(shell if nvidia-smi >/dev/null 2>&1 || [ -e /proc/driver/nvidia/version ]; then echo gpu; else echo cpu; fi)
endif
OTHER_FAISS := $(if $(filter gpu,$(FAISS)),cpu,gpu)

# One stamp for each kind of FAISS: who moves a checkout to a machine with another kind gets the other one.
RUN_STAMP := .venv/.installed-$(FAISS)
DEV_STAMP := .venv/.installed-$(FAISS)-dev
KERNELS_STAMP := .venv/.compiled
PROTO_STAMP := .venv-proto/.installed

# PIP_CONSTRAINT, unlike -c, holds for the build requirements too.
PIP_ENV := PIP_CONSTRAINT=constraints.txt PIP_DISABLE_PIP_VERSION_CHECK=1
PIP_INSTALL = $(PIP_ENV) $(PY) -m pip install --quiet $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

FIND_PYTHON = for p in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; exit 0; }; done; \
	echo "Recollect needs Python 3.11 or newer; none was found. Name one: make PYTHON=/path/to/python3" >&2; exit 1

# protoc's plugins are found on PATH. $(1): the folder that gets recollect/v1/.
GENERATE = PATH="$(CURDIR)/.venv-proto/bin:$$PATH" $(PROTO_PY) -m grpc_tools.protoc -I proto --python_out=$(1) \
	--mypy_out=quiet:$(1) --grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(PROTO)

# $(1): which environment beside .venv.
TEST_WITH = .venv-$(1)/bin/python -m pytest -m "not slow and not gpu" --numprocesses $(TEST_JOBS) --dist loadfile \
	--override-ini filterwarnings=default --ignore tests/house --ignore tests/deploy $(ARGS)

##@ For everybody

.PHONY: help
help:  ## list the targets
	@awk 'BEGIN {FS = ":.*##"} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*##/ {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(DEV_STAMP)  ## make .venv with everything to run and develop (GPU FAISS where an NVIDIA driver answers)
	@echo "setup: .venv is ready, with faiss-$(FAISS)"

.PHONY: demo
demo: $(RUN_STAMP)  ## train with and without a memory server, compare on held-out text (about 6 minutes)
	@.venv/bin/recollect demo $(ARGS)

.PHONY: serve
serve: $(RUN_STAMP)  ## a development server on a unix socket, ./recollect.sock
	@.venv/bin/recollect serve --dev --listen "unix://$(CURDIR)/recollect.sock" $(ARGS)

##@ For developers

.PHONY: test
test: $(DEV_STAMP)  ## run the tests, all but the slow ones
	@$(PY) -m pytest -m "not slow" --numprocesses $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

.PHONY: test-slow
test-slow: $(DEV_STAMP)  ## run the slow tests
	@$(PY) -m pytest -m slow $(ARGS)

.PHONY: test-sanitized
test-sanitized: $(DEV_STAMP)  ## run what uses the kernels with sanitizers, or ARGS=address or ARGS=thread (half an hour)
	@$(PY) -m tests.sanitized $(ARGS)

.PHONY: test-oldest
test-oldest: .venv-oldest/.installed  ## run the tests with the oldest versions that pyproject.toml allows (gigabytes; 10 minutes)
	@$(call TEST_WITH,oldest)

.PHONY: test-newest
test-newest:  ## run the tests with the newest ones, as pip installs them today (gigabytes; 10 minutes)
	@rm -f .venv-newest/.installed && $(MAKE) --no-print-directory .venv-newest/.installed
	@$(call TEST_WITH,newest)

.PHONY: lint
lint: $(DEV_STAMP) proto-check  ## formatting, rules, types, import contracts, drift of the generated code
	@echo "lint: ruff format" && .venv/bin/ruff format --check --quiet .
	@echo "lint: ruff check" && .venv/bin/ruff check --quiet .
	@echo "lint: import-linter" && .venv/bin/lint-imports --no-logo
	@echo "lint: mypy --strict, and pyright at the same time" && { .venv/bin/mypy --strict & mypy=$$!; \
		.venv/bin/pyright --warnings; pyright=$$?; wait $$mypy && exit $$pyright; }

.PHONY: fmt
fmt: $(DEV_STAMP)  ## format, and repair what ruff can repair safely
	@.venv/bin/ruff check --fix --quiet . ; .venv/bin/ruff format .

.PHONY: native
native: $(KERNELS_STAMP)  ## compile the CPU engine's kernels, if they have changed

.PHONY: proto
proto: $(PROTO_STAMP)  ## generate client/recollect/v1 from proto/
	@$(call GENERATE,client)
	@echo "proto: $(GENERATED) generated"

.PHONY: proto-check
proto-check: $(PROTO_STAMP)
	@echo "lint: generated code against proto/"
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(call GENERATE,"$$fresh") && \
	for made in "$$fresh"/recollect/v1/*; do diff -u "$(GENERATED)/$${made##*/}" "$$made" || drift=1; done; \
	if [ -n "$$drift" ]; then echo "$(GENERATED) is not what proto/ says: run 'make proto' and commit" >&2; exit 1; fi

.PHONY: bench
bench: bench-peers  ## every workload beside its limits and its peers, as a report in docs/benchmarks (20 minutes)
	@OMP_WAIT_POLICY=passive OPENBLAS_THREAD_TIMEOUT=4 .venv/bin/recollect bench --out docs/benchmarks $(ARGS)

.PHONY: bench-peers
bench-peers: $(DEV_STAMP)  ## install what the benchmark compares with, each into an environment below .bench/
	@$(PY) -m recollect_bench.peers.install $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL))

.PHONY: bench-bytes
bench-bytes: $(DEV_STAMP)  ## count bytes on the wire: attend against fetching keys and values
	@$(PY) -m tests.benchmarks.wire_bytes $(ARGS)

.PHONY: bench-gpu
bench-gpu: $(DEV_STAMP)  ## attention and search on a GPU, against the card's limits; says so where there is none
	@$(PY) -m tests.benchmarks.gpu $(ARGS)

.PHONY: bench-fairness
bench-fairness: $(DEV_STAMP)  ## a tenant's small calls beside another's flood (5 minutes)
	@$(PY) -m tests.benchmarks.fairness $(ARGS)

.PHONY: bench-growth
bench-growth: $(DEV_STAMP)  ## a tenant's small calls while another's bank outgrows its buffers (half a minute)
	@$(PY) -m tests.benchmarks.growth $(ARGS)

.PHONY: bench-overload
bench-overload: $(DEV_STAMP)  ## ten times what the server can do, for a minute
	@$(PY) -m tests.benchmarks.overload $(ARGS)

.PHONY: bench-admission
bench-admission: $(DEV_STAMP)  ## what keys and the fair queue cost a small call (2 minutes)
	@$(PY) -m tests.benchmarks.admission_cost $(ARGS)

.PHONY: bench-stream
bench-stream: $(DEV_STAMP)  ## fetch keys and values in chunks, in split messages, and as raw bytes (half a minute)
	@$(PY) -m tests.benchmarks.stream $(ARGS)

.PHONY: bench-tenants
bench-tenants: $(DEV_STAMP)  ## a thousand tenants: memory of each, and a restart (needs redis-server)
	@$(PY) -m tests.benchmarks.tenants $(ARGS)

.PHONY: quality
quality: $(DEV_STAMP)  ## the demo with three seeds, as a report in docs/benchmarks (a quarter of an hour)
	@$(PY) -m tests.benchmarks.quality --name demo -- $(ARGS)

.PHONY: checkpoint
checkpoint: $(RUN_STAMP)  ## train again the checkpoint that the demo starts from (an hour)
	@$(PY) -m recollect_torch.demo.checkpoint $(ARGS)

.PHONY: clean
clean:  ## remove caches and build outputs; .venv stays
	rm -rf service/recollect_server/engine/_native*.so client/recollect/_native*.so $(KERNELS_STAMP)
	rm -rf build dist .sanitized .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find client service model tests -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- environments ----

$(PY):
	@python=$$($(FIND_PYTHON)) && echo "setup: .venv with $$("$$python" --version)" && "$$python" -m venv .venv

# Installing compiles, too, but only what is not there as it should be. An order-only prerequisite of what is
# installed, so that new kernels are compiled for every target and nothing is installed again for that.
$(KERNELS_STAMP): $(KERNELS) | $(PY)
	@echo "setup: the CPU engine's kernels (half a minute)"
	@$(PY) hatch_build.py
	@touch $@

$(RUN_STAMP): $(LOCKED) | $(PY) $(KERNELS_STAMP)
	@rm -f .venv/.installed-*
	@$(PY) -m pip uninstall --quiet --yes faiss-$(OTHER_FAISS) 2>/dev/null
	@echo "setup: client, server, torch, faiss-$(FAISS) (a few minutes the first time)"
	@$(PIP_INSTALL) -e ".[server,torch,$(FAISS)]"
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	@echo "setup: tools for developers"
	@$(PIP_INSTALL) -e ".[server,otel,torch,$(FAISS),dev]"
	@touch $@

# grpc_tools wants a protobuf of its own choice, hence an environment of its own.
$(PROTO_STAMP): constraints.txt
	@python=$$($(FIND_PYTHON)) && echo "setup: .venv-proto" && "$$python" -m venv .venv-proto
	@$(PIP_ENV) $(PROTO_PY) -m pip install --quiet grpcio-tools mypy-protobuf setuptools
	@touch $@

# Oldest is what users may have of each thing that is named for them; what these bring along is the newest, as theirs
# would be.
.venv-oldest/.installed .venv-newest/.installed: .venv-%/.installed: pyproject.toml tests/oldest.py | $(PY) $(KERNELS_STAMP)
	@rm -rf .venv-$*
	@python=$$($(FIND_PYTHON)) && echo "setup: .venv-$* (some minutes)" && "$$python" -m venv .venv-$*
	@$(if $(filter oldest,$*),$(PY) -m tests.oldest,:) > .venv-$*/constraints.txt
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-$*/bin/python -m pip install --quiet --constraint .venv-$*/constraints.txt \
		$(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) -e ".[server,otel,torch,cpu,dev]"
	@touch $@
