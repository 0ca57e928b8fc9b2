# Read by other scripts: sets `qemu` to the emulator of programs of $1 (aarch64, x86_64). Where the system has none,
# Debian's is unpacked into target/qemu, with its libraries.
qemu=$(command -v "qemu-$1" || true)
if [ -z "$qemu" ]; then
  emulator=$PWD/target/qemu
  if [ ! -e "$emulator/.complete" ]; then
    rm -rf "$emulator"
    source tools/debian.sh
    debian_apt "$emulator" amd64
    # The system has the C library, and what makes no sense outside of an installation is left out.
    readarray -t packages < <(apt-cache -c "$debian/apt.conf" depends --recurse --no-recommends --no-suggests \
      --no-conflicts --no-breaks --no-replaces --no-enhances qemu-user |
      grep -E '^(lib|zlib|qemu-user$)' | grep -vE '^libc6|^libcrypt|^libgcc')
    debian_unpack "$emulator/root" "${packages[@]}"
    for file in "$emulator"/root/usr/bin/qemu-*; do
      # The libraries are for the emulator alone, not for what it runs: no variable of the environment names them.
      printf '#!/bin/sh\nexec /lib64/ld-linux-x86-64.so.2 --library-path %s %s "$@"\n' \
        "$emulator/root/usr/lib/x86_64-linux-gnu:$emulator/root/lib/x86_64-linux-gnu" "$file" \
        >"$emulator/${file##*/}"
      chmod +x "$emulator/${file##*/}"
    done
    touch "$emulator/.complete"
  fi
  qemu=$emulator/qemu-$1
fi
