# Read by other scripts: Debian's packages, unpacked into a folder of target/. The system stays as it is.

# Makes apt ready for a folder: debian_apt FOLDER ARCHITECTURE...
debian_apt() {
  local folder=$1
  shift
  debian=$folder/apt
  mkdir -p "$debian/state/lists/partial" "$debian/cache/archives/partial"
  # The system's sources of packages, for other architectures too; the system's own lists stay as they are.
  cat >"$debian/apt.conf" <<CONF
Dir::State "$debian/state";
Dir::State::status "$debian/state/status";
Dir::Cache "$debian/cache";
APT::Architectures { $(printf '"%s"; ' "$@")};
APT::Sandbox::User "root";
CONF
  touch "$debian/state/status"
  apt-get -c "$debian/apt.conf" update -qq || true # a source may be out of reach, or lack an architecture
}

# Prints the first dependency of a package whose name begins so: debian_depends PACKAGE BEGINNING
debian_depends() {
  apt-cache -c "$debian/apt.conf" depends "$1" | sed -n "s/.*Depends: \($2[^: ]*\).*/\1/p" | head -1
}

# Unpacks packages into a folder, and removes what was downloaded: debian_unpack ROOT PACKAGE...
debian_unpack() {
  local root=$1 package
  shift
  mkdir -p "$root"
  (cd "$debian/cache" && apt-get -c "$debian/apt.conf" download -qq "$@")
  for package in "$debian"/cache/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$debian"
}
