# Each target does its own set-up: virtual environments inside the repository, filled on first use
# and again when pyproject.toml changes. Needed beforehand: a Rust toolchain, Python 3.11 or later.

PYTHON ?= python3
PYTEST_ARGS ?=
# Processes that share the tests, where all of them run. One that has none left takes some of the other's.
WORKERS ?= -n 2 --dist worksteal
# make bench-floors ARGS="--rows binary --seconds 5"
ARGS ?=
# make test-random MINUTES=30 SEED=7; without a seed it is a new one. make fuzz MINUTES=15: for each target
MINUTES ?= 2
SEED ?=

VENV := .venv
BENCH_VENV := .venv-bench
PEERS_VENV := .venv-peers
TORCH_VENV := .venv-torch
DOCS_VENV := .venv-docs
PIPELINES_VENV := .venv-pipelines
RELEASE_VENV := .venv-release
FUZZ_VENV := .venv-fuzz
MUTANTS_VENV := .venv-mutants
# The folder of an environment's programs.
OS ?=
PROGRAMS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(abspath $(VENV))/$(PROGRAMS)
BENCH_BIN := $(abspath $(BENCH_VENV))/$(PROGRAMS)
PEERS_BIN := $(abspath $(PEERS_VENV))/$(PROGRAMS)
TORCH_BIN := $(abspath $(TORCH_VENV))/$(PROGRAMS)
DOCS_BIN := $(abspath $(DOCS_VENV))/$(PROGRAMS)
PIPELINES_BIN := $(abspath $(PIPELINES_VENV))/$(PROGRAMS)
RELEASE_BIN := $(abspath $(RELEASE_VENV))/$(PROGRAMS)
FUZZ_BIN := $(abspath $(FUZZ_VENV))/$(PROGRAMS)
MUTANTS_BIN := $(abspath $(MUTANTS_VENV))/$(PROGRAMS)

RUST := Cargo.toml Cargo.lock pyproject.toml $(shell find src -name '*.rs')
PACKAGE := $(RUST) README.md LICENSE-MIT LICENSE-APACHE \
  $(shell find python -name '*.py' -o -name '*.pyi' -o -name py.typed)

CARGO_TEST := --locked --no-default-features
MATURIN := VIRTUAL_ENV=$(abspath $(VENV)) PATH="$(BIN):$$PATH" $(BIN)/maturin
# make wheel TARGET=x86_64-unknown-linux-musl
TARGET ?=
# Linked against zig's copy of an old glibc, a wheel installs on any Linux since 2014; musl's is of 2021.
LINUX := $(if $(findstring musl,$(TARGET)),musllinux_1_2,manylinux2014)
PORTABLE := $(if $(filter Linux,$(shell uname)),--zig --compatibility $(LINUX))
BUILD := build --release --locked $(PORTABLE) $(if $(TARGET),--target $(TARGET))
# No path of this machine is in what is built.
UNNAMED := --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=cargo

# One level of this machine, compiled in pieces that are kept: a mistake in a kernel shows within a minute.
QUICK := target/quick
QUICK_LEVEL ?= $(if $(shell grep -m1 -o avx512f /proc/cpuinfo 2>/dev/null),avx512,avx2)
QUICK_TESTS := test_known_values.py test_layouts.py test_recorded_bits.py
LEFT_OUT := $(filter-out $(QUICK_LEVEL),avx512 avx2 portable)

# The same interpreter for every cargo command, so that one does not rebuild what another built.
export PYO3_PYTHON := $(BIN)/python

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo test quick test-random lint format wheel sdist clean
.PHONY: check-targets lint-workflows release-check publish
.PHONY: test-platform try-musl
.PHONY: bench bench-floors bench-peers bench-steps bench-curves bench-memory bench-instructions bench-neon
.PHONY: bench-pictures bench-kernels bench-linear bench-meter bench-keywords size size-record
.PHONY: demo-pipelines gallery test-pipelines demo-torch test-torch lint-torch bench-torch bench-torch-gpu

help:  ## List the targets
	@grep -hE '^[a-z0-9-]+( [a-z0-9-]+)*:.*## ' $(firstword $(MAKEFILE_LIST)) \
	  | sed -E 's/^([a-z0-9-]+).*## /  make \1\t/' | expand -t 27

demo: $(VENV)/.package  ## Train on real digits, compare with scikit-learn and NumPy, draw the loss curve
	$(BIN)/python examples/digits.py $(ARGS)

# Logits in files, boosted trees, a teacher in a file. The environment is that of the tests.
DEMOS := perplexity boosting distillation
demo-pipelines: $(PIPELINES_VENV)/.package  ## Run the first entries of the gallery: docs/gallery
	for name in $(DEMOS); do $(PIPELINES_BIN)/python examples/gallery/$$name.py; echo; done

GALLERY := $(filter-out drawing jax_loss,$(basename $(notdir $(wildcard examples/gallery/*.py))))
gallery: $(PIPELINES_VENV)/.package $(DOCS_VENV)/.package  ## Run the whole gallery, and draw its pictures into docs/gallery
	for name in $(GALLERY); do \
	  $(PIPELINES_BIN)/python examples/gallery/$$name.py --picture docs/gallery/$$name.svg; \
	done
	$(DOCS_BIN)/python examples/gallery/jax_loss.py --picture docs/gallery/jax_loss.svg

test: $(VENV)/.package  ## Run all tests, those of the Rust crate first, those with PyTorch last
	if cargo nextest --version >/dev/null 2>&1; then \
	  cargo nextest run $(CARGO_TEST) && cargo test --doc $(CARGO_TEST); \
	else \
	  cargo test $(CARGO_TEST); \
	fi
	$(BIN)/python -m pytest $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(WORKERS))
	$(if $(PYTEST_ARGS),,$(MAKE) --no-print-directory test-pipelines test-torch)

quick: $(VENV)/.installed  ## The loop of one who edits a kernel: build one level, run some tests, in a minute
	RUSTFLAGS='$(foreach level,$(LEFT_OUT),--cfg xentrs_without="$(level)")' \
	  CARGO_PROFILE_RELEASE_INCREMENTAL=true CARGO_PROFILE_RELEASE_CODEGEN_UNITS=64 \
	  cargo build --release --target-dir $(QUICK)
	rm -rf $(QUICK)/package && mkdir -p $(QUICK)/package && cp -r python/xentrs $(QUICK)/package/
	cp $(QUICK)/release/libxentrs.so $(QUICK)/package/xentrs/_xentrs.abi3.so
	PYTHONPATH=$(QUICK)/package $(BIN)/python -m pytest -q -x \
	  $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(addprefix tests/,$(QUICK_TESTS)))

test-random: $(VENV)/.package  ## Hold random calls against the reference: MINUTES=2, SEED= for the same again
	$(BIN)/python tests/fuzz.py --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# Targets of fuzz/, with libFuzzer and AddressSanitizer at one level of this machine, then the Python interface.
FUZZ_TARGETS := classes elements sums
FUZZ_LEVEL ?= $(QUICK_LEVEL)
CARGO_FUZZ := target/cargo-fuzz/bin/cargo-fuzz
FUZZ := RUSTFLAGS='$(foreach level,$(filter-out $(FUZZ_LEVEL),avx512 avx2 portable),--cfg xentrs_without="$(level)") -A warnings' \
  PATH="$(abspath $(dir $(CARGO_FUZZ))):$$PATH" cargo +nightly fuzz
FUZZ_FOLDERS := --fuzz-dir fuzz --target-dir target/fuzz
FOUND := target/fuzz-corpus
.PHONY: fuzz fuzz-keep numerics numerics-table
$(CARGO_FUZZ):
	cargo install --quiet --locked cargo-fuzz --root target/cargo-fuzz

fuzz: $(CARGO_FUZZ) $(FUZZ_VENV)/.package  ## Fuzz kernels and the Python interface, MINUTES=2 each (needs a nightly toolchain)
	for target in $(FUZZ_TARGETS); do \
	  mkdir -p $(FOUND)/$$target; \
	  $(FUZZ) run $(FUZZ_FOLDERS) $$target $(FOUND)/$$target fuzz/corpus/$$target -- \
	    -max_total_time=$$((60 * $(MINUTES))) -max_len=4096 -timeout=60 -print_final_stats=1; \
	done
	mkdir -p $(FOUND)/interface
	# atheris itself takes some 10 kB more with each call.
	$(FUZZ_BIN)/python fuzz/interface.py $(FOUND)/interface fuzz/corpus/interface \
	  -max_total_time=$$((60 * $(MINUTES))) -max_len=600 -print_final_stats=1 -rss_limit_mb=8192

fuzz-keep: $(CARGO_FUZZ) $(FUZZ_VENV)/.package  ## Add what make fuzz found to fuzz/corpus, as far as it reaches more code
	for target in $(FUZZ_TARGETS); do \
	  $(FUZZ) run $(FUZZ_FOLDERS) $$target -- -merge=1 -max_len=1000 fuzz/corpus/$$target $(FOUND)/$$target; \
	done
	$(FUZZ_BIN)/python fuzz/interface.py -merge=1 -max_len=600 fuzz/corpus/interface $(FOUND)/interface

# make mutants SAMPLE=100 SEED=1, or SHARD=3/20, or FILES='src/softmax/*'. What has a result is not run again.
SAMPLE ?=
SHARD ?=
FILES ?=
CARGO_MUTANTS := target/cargo-mutants/bin/cargo-mutants
MUTANTS = tools/mutants.py $@ $(if $(SAMPLE),--sample $(SAMPLE)) $(if $(SEED),--seed $(SEED)) \
  $(if $(SHARD),--shard $(SHARD)) $(if $(FILES),--files '$(FILES)') $(ARGS)
.PHONY: mutants mutants-python
$(CARGO_MUTANTS):
	cargo install --quiet --locked cargo-mutants --root target/cargo-mutants

mutants: $(CARGO_MUTANTS) $(VENV)/.installed  ## Change the crate in small ways, which tests should notice: SAMPLE=100 SEED=1
	PATH="$(abspath $(dir $(CARGO_MUTANTS))):$$PATH" $(BIN)/python $(MUTANTS)

mutants-python: $(MUTANTS_VENV)/.package  ## The same with the Python package
	$(MUTANTS_BIN)/python $(MUTANTS)

# make numerics RECORD=1 records the maxima that it finds.
RECORD ?=
numerics:  ## Compute every function of one float32 for all 2^32, at every level (40 minutes of a processor)
	$(if $(RECORD),NUMERICS_RECORD=$(abspath tests/numerics.csv)) \
	  cargo test $(CARGO_TEST) --test numerics -- --ignored --nocapture --test-threads 1

numerics-table: $(VENV)/.package  ## Measure the errors of every loss, type and level, and write docs/numerics.md (10 minutes)
	$(BIN)/python tests/numerics_table.py

test-torch: $(TORCH_VENV)/.package  ## Run the tests of xentrs.torch, in an environment that has PyTorch
	$(TORCH_BIN)/python -m pytest $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(WORKERS) tests/pytorch tests/test_readme.py tests/test_guide.py $(addprefix tests/test_benches.py::,test_torch_steps test_torch_suite))

test-pipelines: $(PIPELINES_VENV)/.package  ## Run the tests with the libraries of data pipelines: boosted trees, tables
	$(PIPELINES_BIN)/python -m pytest $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(WORKERS) tests/pipelines tests/test_readme.py tests/test_guide.py)

# References of the other tests need a long double of more than 53 bits, which Windows and macOS on Arm lack, or
# SciPy, of which no version works with the oldest NumPy and the newest Python tools.
PLATFORM_TESTS := $(addprefix tests/,test_known_values.py test_layouts.py test_recorded_bits.py)
LONG_DOUBLE = $(shell $(BIN)/python -c "import numpy as np; print(np.finfo(np.longdouble).nmant)")
# An older NumPy than pip would choose: NUMPY="numpy==1.25.*"
NUMPY ?=
test-platform: $(VENV)/.package  ## Run the tests of the crate and of the core, as on a system that is not Linux
	cargo test $(CARGO_TEST)
	$(if $(NUMPY),$(BIN)/python -m pip install --quiet "$(NUMPY)")
	$(BIN)/python -m pytest $(if $(PYTEST_ARGS),$(PYTEST_ARGS),$(WORKERS) $(if $(NUMPY)$(filter 52,$(LONG_DOUBLE)),$(PLATFORM_TESTS)))

.PHONY: stress sanitize-address sanitize-thread valgrind
stress: $(VENV)/.package  ## Run the tests of crowds, forks, signals, want of memory and huge arrays, the long ones too
	XENTRS_STRESS=1 $(BIN)/python -m pytest -q $(if $(PYTEST_ARGS),$(PYTEST_ARGS),tests/test_stress.py)

# These build in target/sanitize. The sanitizers need a nightly toolchain of rustup.
sanitize-address: $(VENV)/.installed  ## Run the tests of the crate, and some of the package, with AddressSanitizer
	tools/sanitize.sh address $(PYTEST_ARGS)

sanitize-thread: $(VENV)/.installed  ## Run the tests of the crate that use threads with ThreadSanitizer
	tools/sanitize.sh thread

valgrind: $(VENV)/.installed  ## Call every loss and function under valgrind's memcheck, at AVX2
	tools/sanitize.sh memcheck

# In an emulator all takes some twenty times as long: of the tests that say what results are, a share of the cases.
EMULATED_TESTS := $(addprefix tests/,test_recorded_bits.py test_known_values.py test_laws.py)
# No law of threads, which no instruction set changes, no peak of memory, of which the emulator needs most, and no
# process of its own, which takes the emulator a minute to start.
EMULATED_CASES := "not threads and not extra_memory and not no_copy_of_the_whole and not no_dependency"
EMULATED := HYPOTHESIS_EXAMPLES=0.25 PYTEST_ADDOPTS="-q -p no:cacheprovider"

# The unit tests and some of the Python tests at NEON, the level of Arm processors.
ARM := --target aarch64-unknown-linux-gnu
.PHONY: test-aarch64 wheel-aarch64
test-aarch64: dist/aarch64/.built  ## Build for 64-bit Arm on x86-64 Debian, and run tests in an emulator (30 minutes)
	tools/aarch64.sh cargo test $(CARGO_TEST) --lib $(ARM)
	tools/aarch64.sh python tools/try_level.py neon
	$(EMULATED) XENTRS_SIMD=neon tools/aarch64.sh python -m pytest $(if $(PYTEST_ARGS),$(PYTEST_ARGS), \
	  $(WORKERS) --every 53 -k $(EMULATED_CASES) $(EMULATED_TESTS) tests/test_layouts.py tests/test_half.py)

wheel-aarch64: dist/aarch64/.built  ## Build the wheel for 64-bit Arm into dist/aarch64/, on x86-64 Debian

dist/aarch64/.built: $(VENV)/.installed $(RELEASE_VENV)/.installed $(PACKAGE)
	rm -rf dist/aarch64
	VIRTUAL_ENV=$(abspath $(VENV)) PATH="$(BIN):$$PATH" tools/aarch64.sh \
	  maturin build --release --locked --zig --compatibility manylinux2014 $(ARM) --out dist/aarch64
	$(RELEASE_BIN)/auditwheel show dist/aarch64/*.whl | grep '"manylinux_2_17_aarch64"' # also called manylinux2014
	touch $@

# Some tests as on a Nehalem, a Haswell, a Haswell without fused multiply-add, and with all that the emulator has.
.PHONY: test-x86
test-x86: $(VENV)/.package  ## Run tests as if on older x86-64 processors, in an emulator (10 minutes)
	$(EMULATED) tools/x86.sh $(if $(PYTEST_ARGS),$(PYTEST_ARGS), \
	  $(WORKERS) --every 53 --every-group 23 -k $(EMULATED_CASES) $(EMULATED_TESTS))

# The systems that cannot be had here. CHECK="aarch64-apple-darwin" takes some of them.
CHECK ?=
check-targets:  ## Check that the crate compiles for macOS, Windows and musl, without running it
	tools/check_targets.sh $(CHECK)

lint: $(VENV)/.package  ## Check formatting, lints and types; warnings are errors
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	cargo clippy --locked --all-targets --no-default-features -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	MYPYPATH=examples/gallery $(BIN)/mypy $(filter-out examples/t%,$(wildcard examples/*.py)) examples/gallery
	$(BIN)/python -m mypy.stubtest xentrs._xentrs
	$(MAKE) --no-print-directory lint-workflows lint-torch

lint-workflows: $(VENV)/.installed  ## Check the workflows of .github for mistakes that others could exploit
	$(BIN)/zizmor --offline --quiet .github

lint-torch: $(TORCH_VENV)/.package  ## Check the types of xentrs.torch
	$(TORCH_BIN)/mypy python/xentrs/torch

format: $(VENV)/.installed  ## Format the Rust and the Python
	cargo fmt
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

# Warnings are errors: a link to nothing, a docstring with a mistake. The guide's rows of JAX
# and Keras, and the gallery's loss for JAX, run here, since no other environment has them.
.PHONY: docs
docs: $(DOCS_VENV)/.package  ## Build the documentation site into build/docs, and run the guide and the values of other libraries
	$(DOCS_BIN)/python -m pytest -q tests/test_guide.py tests/others
	$(DOCS_BIN)/sphinx-build -E -W --keep-going --nitpicky -q -b html docs build/docs
	@echo "build/docs/index.html"

wheel: dist/.built  ## Build the wheel (abi3, manylinux2014) and the sdist into dist/

sdist: dist/.built  ## The same: the two are made together

release-check: $(RELEASE_VENV)/.installed dist/.built  ## Check wheel and sdist: same bytes twice, tags, metadata, each Python here
	RUSTFLAGS="$(UNNAMED)" $(RELEASE_BIN)/python tools/release_check.py $(if $(ARGS),$(ARGS),--build "$(BUILD)")

try-musl:  ## Try a wheel of dist/ for musl in Alpine Linux (needs docker)
	docker run --rm --volume "$(CURDIR):/xentrs:ro" python:3.13-alpine sh -c \
	  'pip install --quiet --only-binary :all: /xentrs/dist/*musllinux*.whl && cd / && python /xentrs/tools/try_wheel.py'

# Only a workflow can: PyPI trusts the identity that the forge gives to it, and no password exists.
publish: $(RELEASE_VENV)/.installed  ## Sign and upload the files of dist/ to PyPI, from the workflow of a release
	$(RELEASE_BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(RELEASE_BIN)/pypi-attestations sign dist/*.whl dist/*.tar.gz
	$(RELEASE_BIN)/twine upload --non-interactive --attestations dist/*

# BENCH_VENV=.venv-peers runs it in the environment that has PyTorch, JAX and TensorFlow.
bench: $(BENCH_VENV)/.package  ## Time each loss and row with pytest-benchmark, and save: ARGS="--benchmark-compare"
	$(BENCH_BIN)/python -m pytest benches --benchmark-autosave --benchmark-sort=fullname \
	  --benchmark-columns=median,iqr,min,rounds $(ARGS)

bench-floors: $(BENCH_VENV)/.package  ## Time calls in turns with floors, without peers: ARGS="--rows binary"
	$(BENCH_BIN)/python benches/compare.py --peers none $(ARGS)

bench-peers: $(PEERS_VENV)/.package  ## The same with all peers, and steps; at AVX-512 and AVX2 (several GB, 25 minutes)
	$(if $(ARGS),$(PEERS_BIN)/python benches/compare.py $(ARGS),$(ALL_TABLES))

# Each is kept for every level of this machine. Goals come first.
LEVELS = $$($(PEERS_BIN)/python -c "import xentrs; print(*(l for l in xentrs.show_config(mode='dicts')['simd']['available'] if l != 'portable'))")
define ALL_TABLES
for level in $(LEVELS); do \
  $(PEERS_BIN)/python benches/steps.py --level $$level --json benches/results/steps.json; \
  $(PEERS_BIN)/python benches/torch_cpu.py --steps --level $$level --json benches/results/torch.json; \
  $(PEERS_BIN)/python benches/compare.py --level $$level --json benches/results/compare.json; \
done
endef

bench-steps: $(BENCH_VENV)/.package  ## Time calls among other work, as a training loop makes them; tells which goals are met
	$(BENCH_BIN)/python benches/steps.py $(ARGS)

bench-curves: $(BENCH_VENV)/.package  ## Time over classes, samples and threads; draws docs/curve-classes.svg, docs/scaling.svg
	$(BENCH_BIN)/python benches/curves.py $(ARGS)

bench-memory: $(BENCH_VENV)/.package  ## Measure peak memory of each kind of call; fails above the bound
	$(BENCH_BIN)/python benches/memory.py $(ARGS)

bench-instructions: $(BENCH_VENV)/.package  ## Count instructions of each kind of call at AVX2 (needs valgrind)
	$(BENCH_BIN)/python benches/instructions.py $(ARGS)

bench-neon: $(BENCH_VENV)/.package dist/aarch64/.built  ## The same beside NEON, in the emulator
	$(BENCH_BIN)/python benches/instructions.py --neon $(ARGS)

bench-pictures: $(BENCH_VENV)/.package  ## Write README's table, docs/benchmarks.md and docs/bench.svg from benches/results
	$(BENCH_BIN)/python benches/table.py --readme
	$(BENCH_BIN)/python benches/picture.py

bench-kernels:  ## Time the kernels alone, at every instruction set of this machine
	cargo bench --locked --no-default-features --bench kernels -- $(ARGS)

size: $(VENV)/.package  ## Show where the bytes of the compiled module are, and compare its size with benches/size.json
	RUSTFLAGS="-C symbol-mangling-version=v0" CARGO_PROFILE_RELEASE_STRIP=none \
	  cargo build --release --locked --target-dir target/size
	$(BIN)/python benches/size.py --symbols target/size/release/libxentrs.so
	$(BIN)/python benches/size.py

size-record: $(VENV)/.package  ## Record the size of the compiled module in benches/size.json
	$(BIN)/python benches/size.py --record

demo-torch: $(TORCH_VENV)/.package  ## Train on real digits with PyTorch's loss and with ours, compare the curves
	$(TORCH_BIN)/python examples/torch_digits.py $(ARGS)

bench-linear: $(BENCH_VENV)/.package  ## Time linear_cross_entropy over its matrix products
	$(BENCH_BIN)/python benches/linear.py $(ARGS)

bench-meter: $(BENCH_VENV)/.package  ## Time CrossEntropyMeter.update over the loss alone
	$(BENCH_BIN)/python benches/meter.py $(ARGS)

bench-keywords: $(BENCH_VENV)/.package  ## Time each keyword of each loss beside the call without it (4 minutes)
	$(BENCH_BIN)/python benches/keywords.py $(ARGS)

bench-torch: $(TORCH_VENV)/.package  ## Time xentrs.torch against PyTorch on the CPU
	$(TORCH_BIN)/python benches/torch_cpu.py $(ARGS)

bench-torch-gpu: $(TORCH_VENV)/.package  ## The same on a GPU; without one, toy sizes in the interpreter
	$(TORCH_BIN)/python benches/torch_gpu.py $(ARGS)

clean:  ## Remove everything that was built, the environments too
	rm -rf target dist build docs/api $(VENV) $(BENCH_VENV) $(PEERS_VENV) $(TORCH_VENV) $(DOCS_VENV) $(PIPELINES_VENV) $(RELEASE_VENV) $(FUZZ_VENV) $(MUTANTS_VENV)
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

# Each environment holds a dependency group of pyproject.toml.
$(VENV)/.installed: GROUP := dev
$(BENCH_VENV)/.installed: GROUP := bench
$(PEERS_VENV)/.installed: GROUP := bench-peers
$(TORCH_VENV)/.installed: GROUP := torch
$(DOCS_VENV)/.installed: GROUP := docs
$(PIPELINES_VENV)/.installed: GROUP := pipelines
$(RELEASE_VENV)/.installed: GROUP := release
$(FUZZ_VENV)/.installed: GROUP := fuzz
$(MUTANTS_VENV)/.installed: GROUP := mutants
.PRECIOUS: %/.installed
%/.installed: pyproject.toml
	$(PYTHON) -m venv $*
	$*/$(PROGRAMS)/python -m pip install --quiet --upgrade "pip>=25.1"
	$*/$(PROGRAMS)/python -m pip install --quiet --group $(GROUP)
	touch $@

# The same sources give the same bytes: files have the date of the commit.
dist/.built: $(VENV)/.installed $(PACKAGE)
	@command -v cargo >/dev/null || { echo "xentrs is built with Rust: see https://rustup.rs"; exit 1; }
	rm -f dist/xentrs-*
	export SOURCE_DATE_EPOCH="$${SOURCE_DATE_EPOCH:-$$(git log -1 --format=%ct 2>/dev/null || echo 315532800)}"; \
	export RUSTFLAGS="$(UNNAMED)"; \
	$(MATURIN) sdist --out dist; \
	$(MATURIN) $(BUILD) --out dist --target-dir target/wheel
	touch $@

# Tests, demo and benchmarks all run what people will install: the wheel.
%/.package: %/.installed dist/.built
	$*/$(PROGRAMS)/python -m pip install --quiet --force-reinstall --no-deps dist/xentrs-*.whl
	touch $@
