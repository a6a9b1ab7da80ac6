# gpudirect: everything a newcomer needs, by name. `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready
NATIVE := $(wildcard gpudirect/*/*.[ch] gpudirect/*/_native/*.[ch] p2pmod/*.h gpudirect/_native/build.py gpudirect/bench/_native/build.py) setup.py

.PHONY: help demo info doctor test test-unit test-gpu test-native test-vm test-part test-matrix test-static \
	test-debug full lint module docs wheels clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

$(STAMP): pyproject.toml tools/setup $(NATIVE)
	@tools/setup $(PYTHON) $(VENV)
	@touch $@

demo: $(STAMP) ## set everything up and run the main job (without a GPU: emulated)
	$(BIN)/gpudirect demo

info: $(STAMP) ## what this machine has, and which bridges work on it
	$(BIN)/gpudirect info

doctor: $(STAMP) ## what is wrong or slow on this machine, and what mends it
	$(BIN)/gpudirect doctor

test: $(STAMP) ## set everything up and pass every test that needs no GPU
	@$(MAKE) --no-print-directory -j2 test-unit test-vm

test-unit: $(STAMP) ## the Python suite, on the emulated device
	$(BIN)/python -m pytest -q

test-native: ## the copy engine in C: sanitizers, and arm64 under emulation
	tests/native/run

docs: $(STAMP) ## the documentation site, into build/site; warnings are errors
	@$(BIN)/python -c "import furo, myst_parser, sphinx" 2>/dev/null || \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@rm -rf build/site
	$(BIN)/python -m sphinx -q -W --keep-going -c docs . build/site

wheels: $(STAMP) ## sdist and wheel into dist/, audited and tried (fetches an old C library from Debian)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	$(BIN)/python tools/wheels

test-gpu: ## the suite, the demo and the benchmarks on a real GPU (works offline)
	tests/gpu/run

test-vm: $(STAMP) ## the kernel module on a real kernel in a virtual machine
	tests/vm/run quick

test-part: ## what CI runs of the module's machines: a sixth of them, each time the next
	tests/vm/run part

test-matrix: ## the kernel module on kernels 5.10 to 7.3, PREEMPT_RT among them
	tests/vm/run matrix

full: $(STAMP) ## all of the module's machines: hours; its last result is results/p2pmod-full.txt
	tests/vm/run full

test-static: ## sparse, checkpatch and the licence of every symbol of the kernel module
	tests/vm/run static

test-debug: ## the kernel module on a kernel with KASAN, lockdep and fault injection
	tests/vm/run debug

lint: $(STAMP) ## ruff, mypy, pages that are made of code, clang-format of changed lines
	BIN=$(BIN) tools/lint

module: ## build the kernel module for the running kernel
	$(MAKE) -C p2pmod

clean: ## remove what was built here
	rm -rf $(VENV) build dist *.egg-info gpudirect/_native/*.so gpudirect/*/_native/*.so gpudirect/_native/_cffi.c gpudirect/bench/_native/_cffi.c
