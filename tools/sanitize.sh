#!/usr/bin/env bash
# Runs tests under a tool that finds mistakes of memory or of threads.
#
#   tools/sanitize.sh address [PYTEST_ARGS]   AddressSanitizer: the tests of the crate, then some of Python's
#   tools/sanitize.sh thread [FILTER]         ThreadSanitizer: the tests of the crate that use several threads
#   tools/sanitize.sh memcheck                valgrind's memcheck: calls of every loss and function, at AVX2
#
# Each first shows that it finds a planted fault (tools/planted). The sanitizers need a nightly toolchain of rustup,
# memcheck needs valgrind. PYO3_PYTHON is a Python with what the tests need. Everything is built in target/sanitize.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tool=$1 && shift
python=${PYO3_PYTHON:-$PWD/.venv/bin/python}
export PYO3_PYTHON=$python
host=$(rustc -vV | sed -n 's/^host: //p')
target=$PWD/target/sanitize/$tool
log=$target/planted.log
mkdir -p "$target"

# Fails unless the command fails and says this.
must_find() {
  local text=$1 && shift
  if "$@" >"$log" 2>&1 || ! grep -q "$text" "$log"; then
    cat "$log" >&2
    echo "$tool did not find the planted fault" >&2
    exit 1
  fi
  echo "$tool finds the planted fault"
}
# Calls the planted fault from Python.
over_read='
import ctypes, sys, numpy as np
numbers = np.zeros(1000, np.float32)
function = ctypes.CDLL(sys.argv[1]).over_read
function.restype, function.argtypes = ctypes.c_float, [ctypes.c_void_p, ctypes.c_size_t]
print(function(numbers.ctypes.data, len(numbers)))'
# Copies the package, with a compiled module.
package() {
  rm -rf "$target/package" && mkdir -p "$target/package"
  cp -r python/xentrs "$target/package/"
  cp "$1" "$target/package/xentrs/_xentrs.abi3.so"
}

case $tool in
address)
  # Optimised a little: it is compiled in half of the time, and the sanitizer sees more of what the source says.
  export RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR=$target
  export CARGO_PROFILE_TEST_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_OPT_LEVEL=1
  options=(--target "$host")
  cargo +nightly test --locked --no-default-features --lib "${options[@]}"

  # Python is not linked with the runtime, so the runtime comes as a library that is loaded first. One part of it is for
  # programs alone. The runtime refuses to work beside a library with the name that such ones have.
  runtime=$target/libruntime.so
  cp "$(rustc +nightly --print target-libdir)"/librustc-nightly_rt.asan.a "$target/runtime.a"
  ar d "$target/runtime.a" asan_preinit.cpp.o
  cc -shared -o "$runtime" -Wl,--whole-archive "$target/runtime.a" -Wl,--no-whole-archive -lpthread -ldl -lm -lrt
  # Python ends without freeing all of its memory. Its allocator would hide where an array ends.
  run=(env LD_PRELOAD="$runtime" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1
    PYTHONMALLOC=malloc PYTHONPATH="$target/package" "$python")
  cargo +nightly build --release "${options[@]}" --manifest-path tools/planted/Cargo.toml --lib
  must_find heap-buffer-overflow "${run[@]}" -c "$over_read" "$target/$host/release/libplanted.so"
  cargo +nightly build --release --locked "${options[@]}"
  package "$target/$host/release/libxentrs.so"
  smoke=(tests/test_known_values.py tests/test_layouts.py tests/test_errors.py tests/test_half.py
    tests/test_edge_cases.py)
  if (($#)); then smoke=("$@"); fi
  # The sanitizer's own memory is not what tests of memory measure.
  "${run[@]}" -m pytest -q -p no:cacheprovider -k "not memory and not copy" "${smoke[@]}"
  ;;
thread)
  rustup component list --toolchain nightly --installed | grep -q rust-src ||
    rustup component add rust-src --toolchain nightly
  # One level: threads do not depend on it. The standard library is compiled with the sanitizer too.
  export RUSTFLAGS='-Zsanitizer=thread --cfg xentrs_without="avx512" --cfg xentrs_without="portable"'
  export CARGO_TARGET_DIR=$target CARGO_PROFILE_TEST_OPT_LEVEL=1
  options=(-Zbuild-std --target "$host")
  must_find "data race" cargo +nightly run -q "${options[@]}" --manifest-path tools/planted/Cargo.toml --bin race
  # What math/ and simd/ test needs one thread.
  cargo +nightly test --locked --no-default-features --lib "${options[@]}" -- --skip math:: --skip simd:: "$@"
  ;;
memcheck)
  export CARGO_TARGET_DIR=$target CARGO_PROFILE_RELEASE_DEBUG=1 CARGO_PROFILE_RELEASE_STRIP=none
  run=(env PYTHONMALLOC=malloc PYTHONPATH="$target/package" valgrind -q --error-exitcode=9)
  cargo build --release --manifest-path tools/planted/Cargo.toml --lib
  # Valgrind hides AVX-512.
  RUSTFLAGS='--cfg xentrs_without="avx512" --cfg xentrs_without="portable"' cargo build --release --locked
  package "$target/release/libxentrs.so"
  # What CPython and the imports do wrong, or seem to, is not looked at: places of it, by their innermost three functions.
  suppressions=$target/imports.supp
  "${run[@]}" --error-exitcode=0 --gen-suppressions=all --log-file="$suppressions.log" \
    "$python" tools/memcheck_calls.py --imports
  sed -n '/^{/,/^}/p' "$suppressions.log" |
    awk '/^{/ {n = 0} /fun:|obj:/ {if (++n > 3) {if (n == 4) print "   ..."; next}} {print}' >"$suppressions"
  if grep -q xentrs "$suppressions"; then echo "the import of xentrs has errors: $suppressions" >&2 && exit 1; fi
  run+=(--suppressions="$suppressions" "$python")
  must_find "Invalid read of size 4" "${run[@]}" -c "$over_read" "$target/release/libplanted.so"
  "${run[@]}" tools/memcheck_calls.py
  ;;
*)
  echo "unknown tool: $tool" >&2
  exit 2
  ;;
esac
