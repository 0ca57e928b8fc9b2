#!/usr/bin/env bash
# Runs a command with a Rust toolchain that compiles for aarch64 and an emulator that runs what it made.
#
#   tools/aarch64.sh cargo test --no-default-features --target aarch64-unknown-linux-gnu
#   tools/aarch64.sh maturin build --release --zig --target aarch64-unknown-linux-gnu
#   tools/aarch64.sh python -m pytest tests/test_known_values.py
#
# `python` is Debian's for arm64, with the wheel of dist/aarch64 and what its tests need. Its child processes are
# emulated too.
# Needs Debian 12 on x86-64. Debian's packages of rustc for both architectures, and the emulator where the system has
# none (tools/qemu.sh), are unpacked into target/; the system stays as it is. Where rustup has the target
# (`rustup target add aarch64-unknown-linux-gnu`), or on an Arm machine, plain cargo does all of this.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
tools=$PWD/target/aarch64-tools
root=$tools/root
python=${PYO3_PYTHON:-$PWD/.venv/bin/python}
source tools/qemu.sh aarch64

# Unpack the packages once.
if [ ! -e "$tools/.complete" ]; then
  rm -rf "$tools"
  source tools/debian.sh
  debian_apt "$tools" amd64 arm64
  rust=$(debian_depends libstd-rust-web-dev:amd64 libstd-rust-web-1)
  llvm=$(debian_depends "$rust:amd64" libllvm)
  debian_unpack "$root" \
    rustc-web "$rust" "$llvm" libstd-rust-web-dev libstd-rust-web-dev:arm64 libc6:arm64 libgcc-s1:arm64 \
    python3.11-minimal:arm64 libpython3.11-minimal:arm64 libpython3.11-stdlib:arm64 zlib1g:arm64 \
    libexpat1:arm64 libssl3:arm64 libffi8:arm64 libbz2-1.0:arm64 liblzma5:arm64 libuuid1:arm64 \
    libcrypt1:arm64 libstdc++6:arm64
  cat >"$tools/rustc" <<RUSTC
#!/bin/sh
export LD_LIBRARY_PATH=$root/usr/lib/x86_64-linux-gnu
exec $root/usr/bin/rustc --sysroot $root/usr "\$@"
RUSTC
  cat >"$tools/cc" <<CC
#!/usr/bin/env bash
# zig names targets in another way.
arguments=()
for argument; do [[ \$argument == --target=* ]] || arguments+=("\$argument"); done
exec $python -m ziglang cc -target aarch64-linux-gnu.2.17 "\${arguments[@]}"
CC
  cat >"$tools/ar" <<AR
#!/bin/sh
exec $python -m ziglang ar "\$@"
AR
  # To Python its own program is this script, so that it starts child processes by it.
  cat >"$tools/python" <<PYTHON
#!/bin/sh
export PYTHONHOME=$root/usr
exec $qemu -L $root -0 $tools/python $root/usr/bin/python3.11 "\$@"
PYTHON
  chmod +x "$tools/rustc" "$tools/cc" "$tools/ar" "$tools/python"
  "$python" -m pip download -q --only-binary=:all: --python-version 3.11 \
    --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    --dest "$tools/wheels" hypothesis ml_dtypes mpmath numpy pytest pytest-timeout pytest-xdist scipy
  mkdir -p "$tools/site"
  for wheel in "$tools"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$tools/site"; done
  rm -rf "$tools/wheels"
  touch "$tools/.complete"
fi

if [ "$1" = python ]; then
  shift
  unset OPENBLAS_CORETYPE # it is for x86-64
  wheel=$(echo dist/aarch64/xentrs-*.whl)
  if [ ! "$tools/package" -nt "$wheel" ]; then
    rm -rf "$tools/package"
    "$python" -m zipfile -e "$wheel" "$tools/package"
  fi
  export PYTHONPATH=$tools/package:$tools/site
  exec "$tools/python" "$@"
fi

export RUSTC=$tools/rustc
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/aarch64}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$tools/cc
export CC_aarch64_unknown_linux_gnu=$tools/cc
export AR_aarch64_unknown_linux_gnu=$tools/ar
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="$qemu -L $root"
exec "$@"
