#!/usr/bin/env bash
# Compiles the crate and its bindings for the systems and processors that wheels are built for, as far as
# `cargo check` goes: types, `cfg`, borrows. Nothing is linked and nothing runs. Warnings are errors.
#
#   tools/check_targets.sh                        all of them
#   tools/check_targets.sh aarch64-apple-darwin   some of them
#
# Takes the standard libraries that rustup has. If one is missing, Debian's rustc and the source of its standard
# library are unpacked (tools/debian_rust.sh), and the library is compiled for each target: half a minute a target at
# first. `rustup target add` is faster where it reaches its server.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

targets=(
  aarch64-apple-darwin x86_64-apple-darwin
  x86_64-pc-windows-msvc aarch64-pc-windows-msvc
  x86_64-unknown-linux-musl aarch64-unknown-linux-musl
)
if (($#)); then targets=("$@"); fi
command=(check --locked --lib)

installed=$(rustup target list --installed 2>/dev/null || true)
missing=$(comm -23 <(printf '%s\n' "${targets[@]}" | sort) <(sort <<<"$installed"))
if [ -n "$missing" ]; then
  if ! command -v apt-get >/dev/null; then
    echo "missing standard libraries: rustup target add" $missing >&2
    exit 1
  fi
  source tools/debian_rust.sh
  command+=(-Zbuild-std=std,panic_unwind)
fi

export CARGO_TARGET_DIR=$PWD/target/check-targets/${RUSTC:+debian}
export CARGO_PROFILE_DEV_DEBUG=0
export PYO3_CROSS_PYTHON_VERSION=3.11 # the oldest that the abi3 wheel is for; no target's Python is needed
unset PYO3_PYTHON
# As maturin builds for musl, where a shared library is dynamically linked; elsewhere it changes nothing.
export RUSTFLAGS="-C target-feature=-crt-static"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
cargo "${command[@]}" "${targets[@]/#/--target=}" 2>&1 | tee "$log"
if grep -q '^warning' "$log"; then
  echo "there are warnings" >&2
  exit 1
fi
