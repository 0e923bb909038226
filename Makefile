# Everything a person or CI does here. `make` alone lists it.
# Each target brings the machine up first (.ci/bootstrap): the first run installs, the next find it done.

PY     := .venv/bin/python
DIR    ?= dist/bin
C_CODE := $(wildcard bpf/*.c bpf/*.h)
# The package carries them: no machine that runs the plugin has a compiler.
OBJECTS := $(patsubst bpf/%.c,cni_plugin/bpf/%.o,$(wildcard bpf/*.c))
# CI's kernel lacks nothing that a test needs; on any other a test may skip, naming what it misses.
LACKING := $(if $(CI),--lacking=)

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench fuzz objects plugin clean bootstrap

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: bootstrap objects ## two pods, a real Envoy, every backend: who called whom, seen by which listener
	@$(PY) -m tests.demo.demo

test: lint objects ## lint, the house laws, every test; as root, in namespaces it makes
	@$(PY) -m pytest $(LACKING)

lint: bootstrap ## ruff, mypy --strict, clang-format
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy
	@clang-format --dry-run --Werror $(C_CODE)

bench: bootstrap objects ## the budgets: whole processes, as ratios to a bare Python, in one interleaved run
	@$(PY) -m tests.bench.bench

fuzz: bootstrap objects ## random redirections and probes against the oracle, for longer
	@HYPOTHESIS_PROFILE=fuzz $(PY) -m pytest -m fuzz --timeout=0

objects: cni_plugin/bpf/digest ## the eBPF programs, compiled

# By it a node knows whether the programs it runs are these.
cni_plugin/bpf/digest: $(OBJECTS)
	@cat $^ | sha256sum | cut -c1-16 >$@

# -idirafter: where this machine's headers have their asm/, behind all that clang has for its bpf target.
cni_plugin/bpf/%.o: bpf/%.c $(wildcard bpf/*.h)
	@mkdir -p $(@D)
	@clang -O2 -g -target bpf -Wall -Wextra -Werror -idirafter /usr/include/$(shell uname -m)-linux-gnu \
		-ffile-prefix-map=$(CURDIR)=. -c $< -o $@

plugin: bootstrap objects ## a launcher a runtime can start, in DIR (default dist/bin)
	@$(PY) -m install.launcher "$(DIR)"

clean: ## remove all that make has made here
	@rm -rf .venv .tools dist build cni_plugin/bpf cni_plugin/mesh/dialects/*.json
	@rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@.ci/bootstrap
