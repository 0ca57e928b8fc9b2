# Read by other scripts: sets RUSTC to Debian's, with the source of its standard library, so that `-Zbuild-std` compiles
# that for any target. The packages (150 MB) are unpacked into target/debian-rust; the system stays as it is.
debian=$PWD/target/debian-rust
if [ ! -e "$debian/.complete" ]; then
  rm -rf "$debian" && mkdir -p "$debian/apt/state/lists/partial" "$debian/apt/cache/archives/partial" "$debian/root"
  cat >"$debian/apt/apt.conf" <<CONF
Dir::State "$debian/apt/state";
Dir::State::status "$debian/apt/state/status";
Dir::Cache "$debian/apt/cache";
APT::Sandbox::User "root";
CONF
  touch "$debian/apt/state/status"
  apt=(-c "$debian/apt/apt.conf")
  apt-get "${apt[@]}" update -qq || true # one of the sources may be out of reach
  depends() { apt-cache "${apt[@]}" depends "$1" | sed -n "s/.*Depends: \($2[^:]*\).*/\1/p" | head -1; }
  std=$(depends libstd-rust-web-dev libstd-rust-web-1)
  (cd "$debian/apt/cache" && apt-get "${apt[@]}" download -qq \
    rustc-web rust-web-src libstd-rust-web-dev "$std" "$(depends "$std" libllvm)")
  for package in "$debian"/apt/cache/*.deb; do dpkg-deb -x "$package" "$debian/root"; done
  rm -rf "$debian/apt"
  cat >"$debian/rustc" <<RUSTC
#!/bin/sh
export LD_LIBRARY_PATH=$debian/root/usr/lib/$(uname -m)-linux-gnu
exec $debian/root/usr/bin/rustc --sysroot $debian/root/usr "\$@"
RUSTC
  chmod +x "$debian/rustc"
  touch "$debian/.complete"
fi
export RUSTC=$debian/rustc
export RUSTC_BOOTSTRAP=1 # -Zbuild-std, with a rustc that is not a nightly
