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

# One object for each source and architecture, named after them alone: bpf/io/observe.bpf.c becomes
# build/bpf-x86_64/observe.bpf.o.
BPF_SOURCES := $(wildcard bpf/*/*.bpf.c)
vpath %.bpf.c $(sort $(dir $(BPF_SOURCES)))
# Kernels before 5.15 get objects of their own, and those before 6.3 two: see bpf/core/compat.h.
BPF_NAMES := $(patsubst %.c,%.o,$(notdir $(BPF_SOURCES)))
BPF_NAMES += $(patsubst %,%-fexit.bpf.o,restore unix)
BPF_NAMES_x86_64 := $(BPF_NAMES) $(patsubst %,%-legacy.bpf.o,observe headers packets tls)
BPF_NAMES_aarch64 := $(BPF_NAMES)
# By the kernel's name of the architecture. build/bpf leads to those of this machine.
ARCHITECTURES := x86_64 aarch64
BPF_OBJECTS := $(foreach arch,$(ARCHITECTURES),$(addprefix build/bpf-$(arch)/,$(BPF_NAMES_$(arch))))
ABI_GENERATOR := bpf/generate_abi.py
ABI_OBJECT := build/bpf-x86_64/observe.bpf.o

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
BUNDLES := $(patsubst %,dist/throughline-$(VERSION)-linux-%.tar.gz,$(ARCHITECTURES))
# Everything that ends in the bundle, so that a second `make bundle` has nothing to do.
BUNDLE_INPUTS := pyproject.toml LICENSE bpf/LICENSE \
	$(shell find agent -name '*.egg-info' -prune -o -name __pycache__ -prune -o -type f -print)

# The prefix maps keep the checkout's path out of the line information, so that two checkouts give the
# same bytes.
BPF_CFLAGS := -O2 -g -target bpf -mcpu=v3 -std=gnu11 \
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
bpf: setup-build $(BPF_OBJECTS) build/abi.stamp build/bpf ## Compile bpf/*/*.bpf.c for each architecture
	@$(if $(BPF_SOURCES),,echo 'make bpf: there is no bpf/*/*.bpf.c' >&2; exit 1)
	@echo "bpf: $(words $(BPF_OBJECTS)) objects in $(patsubst %,build/bpf-%,$(ARCHITECTURES))"

# A checkout that was built before there were several architectures has a directory there.
build/bpf: Makefile
	@mkdir -p build
	@[ -L $@ ] || rm -rf $@
	@ln -sfnT bpf-$$(uname -m) $@

build/vmlinux.h:
	@echo "bpf: Writing $@ from the running kernel's BTF"
	@mkdir -p $(@D)
	@$(BPFTOOL) btf dump file /sys/kernel/btf/vmlinux format c > $@

# $(1): the architecture, $(2): its name in bpf_tracing.h, which has its registers.
define BPF_RULES
build/bpf-$(1)/%.bpf.o: %.bpf.c build/vmlinux.h Makefile
	@echo "bpf: Compiling $$< for $(1)"
	@mkdir -p $$(@D)
	@$$(CLANG) $$(BPF_CFLAGS) -D__TARGET_ARCH_$(2) -MMD -MP -MF $$(@:.o=.deps) -MT $$@ -c $$< -o $$@
	@$$(LLVM_STRIP) -g $$@
	@sed -i 's#: $$< #: #' $$(@:.o=.deps)

build/bpf-$(1)/%-legacy.bpf.o: %.bpf.c build/vmlinux.h Makefile
	@echo "bpf: Compiling $$< for $(1), kernels before 5.15"
	@mkdir -p $$(@D)
	@$$(CLANG) $$(BPF_CFLAGS) -D__TARGET_ARCH_$(2) -DTL_LEGACY -MMD -MP -MF $$(@:.o=.deps) -MT $$@ \
		-c $$< -o $$@
	@$$(LLVM_STRIP) -g $$@
	@sed -i 's#: $$< #: #' $$(@:.o=.deps)

build/bpf-$(1)/%-fexit.bpf.o: %.bpf.c build/vmlinux.h Makefile
	@echo "bpf: Compiling $$< for $(1), kernels before 6.3"
	@mkdir -p $$(@D)
	@$$(CLANG) $$(BPF_CFLAGS) -D__TARGET_ARCH_$(2) -DTL_FEXIT -MMD -MP -MF $$(@:.o=.deps) -MT $$@ \
		-c $$< -o $$@
	@$$(LLVM_STRIP) -g $$@
	@sed -i 's#: $$< #: #' $$(@:.o=.deps)
endef
$(eval $(call BPF_RULES,x86_64,x86))
$(eval $(call BPF_RULES,aarch64,arm64))

# Without the source itself, which the rules above name: a source that moves would stop the next build.
-include $(BPF_OBJECTS:.o=.deps)

# agent/throughline/bpf/abi.py is the object's BTF, read back as Python.
build/abi.stamp: $(ABI_OBJECT) $(ABI_GENERATOR)
	@mkdir -p $(@D)
	@echo "bpf: Generating the Python view of $(ABI_OBJECT)"
	@$(or $(wildcard $(PYTHON)),python3) $(ABI_GENERATOR) $(ABI_OBJECT) agent/throughline/bpf/abi.py
	@touch $@

.PHONY: bundle
bundle: setup-build build/bpf $(BUNDLES) ## Build dist/throughline-<version>-linux-<architecture>.tar.gz
	@for bundle in $(BUNDLES); do \
		echo "bundle: $$bundle $$(stat -c %s $$bundle) bytes, sha256 $$(sha256sum < $$bundle | cut -c1-64)"; \
	done

# Changes when an input comes or goes; its content changes through the inputs' own times.
build/bundle.inputs: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' $(BUNDLE_INPUTS) $(BPF_OBJECTS) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

.PHONY: FORCE
FORCE:

define BUNDLE_RULE
dist/throughline-$(VERSION)-linux-$(1).tar.gz: $(BUNDLE_INPUTS) build/abi.stamp build/bundle.inputs \
		$(addprefix build/bpf-$(1)/,$(BPF_NAMES_$(1)))
	@PYTHONPATH=agent $$(or $$(wildcard $$(PYTHON)),python3) -m bundle.build --version $(VERSION) \
		--arch $(1) --output $$@
endef
$(foreach arch,$(ARCHITECTURES),$(eval $(call BUNDLE_RULE,$(arch))))

# Everything that a release has, for all ARCHITECTURES. SIGNING_KEY=KEY signs it, by that key of gpg's.
SIGNING_KEY ?=
.PHONY: release
release: setup build/bpf $(BUNDLES) ## Build a release: collection, bundle, .deb, .rpm, SHA256SUMS; SIGNING_KEY= signs it
	@PYTHONPATH=agent $(PYTHON) -m packages.build --output dist/release --key '$(SIGNING_KEY)' \
		$(BUNDLES)

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
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=5
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
	@[ ! -d build ] || find build -mindepth 1 -maxdepth 1 ! -name 'wheels*' ! -name debian -exec rm -rf {} +
	@rm -rf dist agent/*.egg-info .mypy_cache .ruff_cache .pytest_cache
	@find agent tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
