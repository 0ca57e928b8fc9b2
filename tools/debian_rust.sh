# Read by other scripts: sets RUSTC to Debian's, with the source of its standard library, so that `-Zbuild-std` compiles
# that for any target. The packages (150 MB) are unpacked into target/debian-rust; the system stays as it is.
rust=$PWD/target/debian-rust
if [ ! -e "$rust/.complete" ]; then
  rm -rf "$rust"
  source tools/debian.sh
  debian_apt "$rust" "$(dpkg --print-architecture)"
  std=$(debian_depends libstd-rust-web-dev libstd-rust-web-1)
  debian_unpack "$rust/root" rustc-web rust-web-src libstd-rust-web-dev "$std" "$(debian_depends "$std" libllvm)"
  cat >"$rust/rustc" <<RUSTC
#!/bin/sh
export LD_LIBRARY_PATH=$rust/root/usr/lib/$(uname -m)-linux-gnu
exec $rust/root/usr/bin/rustc --sysroot $rust/root/usr "\$@"
RUSTC
  chmod +x "$rust/rustc"
  touch "$rust/.complete"
fi
export RUSTC=$rust/rustc
export RUSTC_BOOTSTRAP=1 # -Zbuild-std, with a rustc that is not a nightly
