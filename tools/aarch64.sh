#!/usr/bin/env bash
# Runs a command with a Rust toolchain that compiles for aarch64 and an emulator that runs what it made.
#
#   tools/aarch64.sh cargo test --no-default-features --target aarch64-unknown-linux-gnu
#   tools/aarch64.sh maturin build --release --zig --target aarch64-unknown-linux-gnu
#   tools/aarch64.sh python -m pytest tests/test_known_values.py
#
# `python` is Debian's for arm64, with the wheel of dist/aarch64 and what its tests need.
# Needs Debian or Ubuntu on x86-64, and root for qemu-user where that is not installed. Debian's packages of rustc
# for both architectures are unpacked into target/aarch64-tools; nothing else of the system changes. Where rustup has
# the target (`rustup target add aarch64-unknown-linux-gnu`), or on an Arm machine, plain cargo does all of this.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$here/target/aarch64-tools
root=$tools/root
python=${PYO3_PYTHON:-$here/.venv/bin/python}

# Unpack the packages once.
if [ ! -e "$tools/.complete" ]; then
  rm -rf "$tools" && mkdir -p "$tools/apt/state/lists/partial" "$tools/apt/cache/archives/partial" "$root"
  command -v qemu-aarch64 >/dev/null || apt-get install -y -qq qemu-user >/dev/null
  # The system's sources of packages, for a second architecture too; the system's own lists stay as they are.
  cat >"$tools/apt/apt.conf" <<CONF
Dir::State "$tools/apt/state";
Dir::State::status "$tools/apt/state/status";
Dir::Cache "$tools/apt/cache";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
CONF
  touch "$tools/apt/state/status"
  apt-get -c "$tools/apt/apt.conf" update -qq || true # a source may lack arm64
  rust=$(apt-cache -c "$tools/apt/apt.conf" depends libstd-rust-web-dev:amd64 |
    sed -n 's/.*Depends: \(libstd-rust-web-1[^:]*\).*/\1/p' | head -1)
  llvm=$(apt-cache -c "$tools/apt/apt.conf" depends "$rust:amd64" |
    sed -n 's/.*Depends: \(libllvm[^:]*\).*/\1/p' | head -1)
  (cd "$tools/apt/cache" && apt-get -c "$tools/apt/apt.conf" download -qq \
    rustc-web "$rust" "$llvm" libstd-rust-web-dev libstd-rust-web-dev:arm64 libc6:arm64 libgcc-s1:arm64 \
    python3.11-minimal:arm64 libpython3.11-minimal:arm64 libpython3.11-stdlib:arm64 zlib1g:arm64 \
    libexpat1:arm64 libssl3:arm64 libffi8:arm64 libbz2-1.0:arm64 liblzma5:arm64 libuuid1:arm64 \
    libcrypt1:arm64 libstdc++6:arm64)
  for package in "$tools"/apt/cache/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$tools/apt"
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
  chmod +x "$tools/rustc" "$tools/cc" "$tools/ar"
  "$python" -m pip download -q --only-binary=:all: --python-version 3.11 \
    --platform manylinux2014_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_28_aarch64 \
    --dest "$tools/wheels" hypothesis ml_dtypes mpmath numpy pytest pytest-timeout pytest-xdist
  mkdir -p "$tools/site"
  for wheel in "$tools"/wheels/*.whl; do "$python" -m zipfile -e "$wheel" "$tools/site"; done
  touch "$tools/.complete"
fi

if [ "$1" = python ]; then
  shift
  rm -rf "$tools/package"
  "$python" -m zipfile -e "$here"/dist/aarch64/xentrs-*.whl "$tools/package"
  export PYTHONPATH=$tools/package:$tools/site PYTHONHOME=$root/usr
  exec qemu-aarch64 -L "$root" "$root/usr/bin/python3.11" "$@"
fi

export RUSTC=$tools/rustc
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/target/aarch64}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$tools/cc
export CC_aarch64_unknown_linux_gnu=$tools/cc
export AR_aarch64_unknown_linux_gnu=$tools/ar
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $root"
exec "$@"
