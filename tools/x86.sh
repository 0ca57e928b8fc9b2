#!/usr/bin/env bash
# Runs Python tests as if on other x86-64 processors, in an emulator: qemu-user has AVX2 but not AVX-512.
#
#   tools/x86.sh tests/test_laws.py              on each of the processors below
#   CPUS=Nehalem tools/x86.sh tests/test_laws.py -k smoothing
#
# PYO3_PYTHON is the interpreter of a virtual environment that has xentrs and what the tests need. Child processes are
# emulated too. Needs Linux on x86-64; where the emulator is missing, Debian's is unpacked (tools/qemu.sh).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/qemu.sh x86_64

# What xentrs should take on each, and the instruction sets that the processor lacks.
declare -A levels=([Nehalem]=portable [Haswell]=avx2 [Haswell,-fma]=portable [max]=avx2)
declare -A missing=([Nehalem]="avx fma avx512f" [Haswell]=avx512f [Haswell,-fma]="fma avx512f" [max]=avx512f)
# What real Haswells have and the emulator has not, about which it would complain.
without=,-pcid,-x2apic,-tsc-deadline,-hle,-rtm,-invpcid

venv=$(dirname "$(dirname "${PYO3_PYTHON:-.venv/bin/python}")")
venv=$(cd "$venv" && pwd)
ulimit -c 0 # an instruction that traps is expected below
unset OPENBLAS_CORETYPE XENTRS_SIMD # they would choose for the processor

for cpu in ${CPUS:-Nehalem Haswell Haswell,-fma max}; do
  # A virtual environment like the one of `make`, whose Python is the emulator.
  place=$PWD/target/x86/$cpu
  mkdir -p "$place/bin"
  cp "$venv/pyvenv.cfg" "$place/"
  ln -sfn "$venv/lib" "$place/lib"
  options=$cpu
  if [[ $cpu == Haswell* ]]; then options+=$without; fi
  cat >"$place/bin/python" <<PYTHON
#!/bin/sh
exec $qemu -cpu $options -0 $place/bin/python $(readlink -f "$venv/bin/python") "\$@"
PYTHON
  chmod +x "$place/bin/python"
  echo "== $cpu"
  "$place/bin/python" tools/try_level.py "${levels[$cpu]}" ${missing[$cpu]}
  # That is what it takes unless told; told, tests leave out the levels that other processors have.
  XENTRS_SIMD=${levels[$cpu]} "$place/bin/python" -m pytest "$@"
done
