#!/usr/bin/env bash
# Runs a command with a Rust toolchain that compiles for aarch64 and an emulator that runs what it made.
#
#   tools/aarch64.sh cargo test --target aarch64-unknown-linux-gnu
#
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
  key=/usr/share/keyrings/debian-archive-keyring.gpg
  cat >"$tools/apt/sources.list" <<SOURCES
deb [signed-by=$key] http://deb.debian.org/debian bookworm main
deb [signed-by=$key] http://deb.debian.org/debian-security bookworm-security main
SOURCES
  # An apt of its own: with a second architecture, and without the packages of the system.
  cat >"$tools/apt/apt.conf" <<CONF
Dir::State "$tools/apt/state";
Dir::State::status "$tools/apt/state/status";
Dir::Cache "$tools/apt/cache";
Dir::Etc::sourcelist "$tools/apt/sources.list";
Dir::Etc::sourceparts "-";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "root";
CONF
  touch "$tools/apt/state/status"
  apt-get -c "$tools/apt/apt.conf" update -qq
  rust=$(apt-cache -c "$tools/apt/apt.conf" depends libstd-rust-web-dev:amd64 |
    sed -n 's/.*Depends: \(libstd-rust-web-1[^:]*\).*/\1/p' | head -1)
  llvm=$(apt-cache -c "$tools/apt/apt.conf" depends "$rust:amd64" |
    sed -n 's/.*Depends: \(libllvm[^:]*\).*/\1/p' | head -1)
  (cd "$tools/apt/cache" && apt-get -c "$tools/apt/apt.conf" download -qq \
    rustc-web "$rust" "$llvm" libstd-rust-web-dev libstd-rust-web-dev:arm64 libc6:arm64 libgcc-s1:arm64)
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
  touch "$tools/.complete"
fi

export RUSTC=$tools/rustc
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/target/aarch64}
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=$tools/cc
export CC_aarch64_unknown_linux_gnu=$tools/cc
export AR_aarch64_unknown_linux_gnu=$tools/ar
export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L $root"
exec "$@"
