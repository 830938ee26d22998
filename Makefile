# throughline: every build and test step. `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory --no-builtin-rules
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

CLANG ?= clang
LLVM_STRIP ?= llvm-strip
BPFTOOL ?= bpftool

VENV := $(CURDIR)/.venv
PYTHON := $(VENV)/bin/python
export PATH := $(VENV)/bin:/usr/local/sbin:/usr/sbin:/sbin:$(PATH)
export PYTHONDONTWRITEBYTECODE := 1

# One object for each source, named after it alone: bpf/io/observe.bpf.c becomes build/bpf/observe.bpf.o.
BPF_SOURCES := $(wildcard bpf/*/*.bpf.c)
vpath %.bpf.c $(sort $(dir $(BPF_SOURCES)))
# Kernels before 5.15 get objects of their own, see bpf/core/compat.h.
BPF_LEGACY := $(patsubst %,build/bpf/%-legacy.bpf.o,observe headers packets tls)
BPF_OBJECTS := $(patsubst %.c,build/bpf/%.o,$(notdir $(BPF_SOURCES))) $(BPF_LEGACY)
ABI_GENERATOR := bpf/generate_abi.py
ABI_OBJECT := build/bpf/observe.bpf.o

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# What `make release` has bundles and packages for.
ARCHITECTURES := x86_64
BUNDLE := dist/throughline-$(VERSION)-linux-x86_64.tar.gz
BUNDLES := $(ARCHITECTURES:%=dist/throughline-$(VERSION)-linux-%.tar.gz)
# Everything that ends in the bundle, so that a second `make bundle` has nothing to do.
BUNDLE_INPUTS := pyproject.toml LICENSE bpf/LICENSE \
	$(shell find agent -name '*.egg-info' -prune -o -name __pycache__ -prune -o -type f -print)

# __TARGET_ARCH_x86 selects the register names in bpf_tracing.h. The prefix maps keep the checkout's
# path out of the line information, so that two checkouts give the same bytes.
BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -D__TARGET_ARCH_x86 -std=gnu11 \
	-Wall -Werror \
	-fdebug-prefix-map='$(CURDIR)=.' -ffile-prefix-map='$(CURDIR)=.' -fdebug-compilation-dir=. \
	-isystem build -Ibpf

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | \
		awk -F':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## Install what is missing: Debian packages and the Python environment .venv (root)
	@.ci/setup

.PHONY: setup-build
setup-build:
	@.ci/setup build

.PHONY: bpf
bpf: setup-build $(BPF_OBJECTS) build/abi.stamp ## Compile bpf/*/*.bpf.c to build/bpf/*.bpf.o
	@$(if $(BPF_OBJECTS),,echo 'make bpf: there is no bpf/*/*.bpf.c' >&2; exit 1)
	@echo "bpf: $(words $(BPF_OBJECTS)) object(s) in build/bpf"

build/vmlinux.h:
	@echo "bpf: Writing $@ from the running kernel's BTF"
	@mkdir -p $(@D)
	@$(BPFTOOL) btf dump file /sys/kernel/btf/vmlinux format c > $@

build/bpf/%.bpf.o: %.bpf.c build/vmlinux.h Makefile
	@echo "bpf: Compiling $<"
	@mkdir -p $(@D)
	@$(CLANG) $(BPF_CFLAGS) -MMD -MP -MF $(@:.o=.deps) -MT $@ -c $< -o $@
	@$(LLVM_STRIP) -g $@
	@sed -i 's#: $< #: #' $(@:.o=.deps)

build/bpf/%-legacy.bpf.o: %.bpf.c build/vmlinux.h Makefile
	@echo "bpf: Compiling $< for kernels before 5.15"
	@mkdir -p $(@D)
	@$(CLANG) $(BPF_CFLAGS) -DTL_LEGACY -MMD -MP -MF $(@:.o=.deps) -MT $@ -c $< -o $@
	@$(LLVM_STRIP) -g $@
	@sed -i 's#: $< #: #' $(@:.o=.deps)

# Without the source itself, which the rules above name: a source that moves would stop the next build.
-include $(BPF_OBJECTS:.o=.deps)

# agent/throughline/bpf/abi.py is the object's BTF, read back as Python.
build/abi.stamp: $(BPF_OBJECTS) $(ABI_GENERATOR)
	@mkdir -p $(@D)
	@$(if $(filter $(ABI_OBJECT),$(BPF_OBJECTS)),\
		echo "bpf: Generating the Python view of $(ABI_OBJECT)"; \
		$(or $(wildcard $(PYTHON)),python3) $(ABI_GENERATOR) $(ABI_OBJECT) agent/throughline/bpf/abi.py)
	@touch $@

.PHONY: bundle
bundle: setup-build $(BUNDLE) ## Build dist/throughline-<version>-linux-x86_64.tar.gz
	@echo "bundle: $(BUNDLE) $$(stat -c %s $(BUNDLE)) bytes, sha256 $$(sha256sum < $(BUNDLE) | cut -c1-64)"

# Changes when an input comes or goes; its content changes through the inputs' own times.
build/bundle.inputs: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' $(BUNDLE_INPUTS) $(BPF_OBJECTS) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

.PHONY: FORCE
FORCE:

$(BUNDLE): $(BUNDLE_INPUTS) $(BPF_OBJECTS) build/abi.stamp build/bundle.inputs
	@PYTHONPATH=agent $(or $(wildcard $(PYTHON)),python3) -m bundle.build --version $(VERSION) --output $@

# Everything that a release has, for ARCHITECTURES. SIGNING_KEY=KEY signs it, by that key of gpg's.
SIGNING_KEY ?=
.PHONY: release
release: setup bundle ## Build a release: collection, bundle, .deb, .rpm, SHA256SUMS; SIGNING_KEY= signs it
	@PYTHONPATH=agent $(PYTHON) -m packages.build --output dist/release --key '$(SIGNING_KEY)' $(BUNDLES)

.PHONY: sanity
sanity: setup ## Check the collection with ansible-test sanity
	@.ci/sanity

.PHONY: demo
demo: setup bundle ## Boot a fleet of systemd hosts, roll out, send requests, show the joined trace (root)
	@$(PYTHON) -m tests.fleet.demo

# Tests wait for the kernel and for each other's processes more than they compute, so that two run at
# a time: whole files, each with hosts, agents and ports of its own. The longest files come first
# (LONGEST_FIRST in tests/conftest.py).
NO_GO := --ignore=tests/kernel/go
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
.PHONY: test
test: setup bundle ## Run the unit, kernel and fleet tests (root)
	@failed=0; \
	$(PYTHON) -m pytest -m 'not alone and not long' $(PARALLEL) $(NO_GO) tests/fleet tests/kernel tests/unit || failed=1; \
	$(PYTHON) -m pytest -m 'alone and not long' $(NO_GO) tests/fleet tests/kernel tests/unit || failed=1; \
	exit $$failed

.PHONY: test-molecule
test-molecule: setup bundle ## Run the Molecule scenario: the roles on two systemd hosts (root)
	@molecule test --scenario-name default

.PHONY: test-go
test-go: setup bundle ## Run the tests with Go services that need few releases of Go (root)
	@$(PYTHON) -m pytest -m 'not long' tests/kernel/go

.PHONY: test-all
test-all: setup bundle ## Run every test: what is long, all releases of Go, the kernel matrix; hours (root)
	@failed=0; \
	$(PYTHON) -m pytest -m 'not alone' $(PARALLEL) $(NO_GO) tests/fleet tests/kernel tests/unit || failed=1; \
	$(PYTHON) -m pytest -m alone $(NO_GO) tests/fleet tests/kernel tests/unit || failed=1; \
	$(PYTHON) -m pytest tests/kernel/go || failed=1; \
	$(MAKE) test-molecule || failed=1; \
	$(MAKE) test-kernels || failed=1; \
	exit $$failed

.PHONY: boxes
boxes: setup ## Build the Vagrant boxes with their kernels, where they are missing (root)
	@$(PYTHON) -m tests.vms.stock

.PHONY: test-kernels
test-kernels: setup bundle ## Run the kernel matrix on VMs, or ONLY=NAME,… of it; FORCE=1 repeats (root)
	@$(PYTHON) -m tests.vms.matrix

.PHONY: clean-vms
clean-vms: ## Remove all VMs of the kernel matrix, also after a killed run (root)
	@$(PYTHON) -m tests.vms.machine clean

.PHONY: lint
lint: setup build/vmlinux.h ## Check style, types, roles, scripts and BPF sources
	@.ci/lint

.PHONY: bench
bench: setup bpf ## Measure speed and memory with the agent off and on (root)
	@$(PYTHON) -m tests.bench.run

.PHONY: bench-parents
bench-parents: setup bundle ## How often parents are right: all applications, or ONLY=NAME,…; KERNEL=6.12: in a VM (root)
	@$(if $(KERNEL),$(PYTHON) -m tests.parents.guest --kernel $(KERNEL),$(PYTHON) -m tests.parents.run) \
		$(if $(ONLY),--only $(ONLY))

.PHONY: clean
clean: ## Remove what was built, but neither .venv nor what was downloaded
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name wheels ! -name debian -exec rm -rf {} +
	@rm -rf dist agent/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find agent tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
