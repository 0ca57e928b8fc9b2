"""Tries xentrs on an emulated processor: ``python try_level.py avx2 avx512f``.

The first argument is the level that xentrs should choose there. Others are instruction sets of
x86-64 that the processor lacks: an instruction of each must end a process. Else the emulator would
hide it if xentrs executed one.
"""

import platform
import signal
import subprocess
import sys

import xentrs

# One instruction of each set, on the lowest registers
INSTRUCTIONS = {
    "avx": "c5f857c0",  # vxorps xmm0, xmm0, xmm0
    "fma": "c4e279b8c0",  # vfmadd231ps xmm0, xmm0, xmm0
    "avx512f": "62f17c4858c0",  # vaddps zmm0, zmm0, zmm0
}
EXECUTE = """
import ctypes, mmap, sys
code = bytes.fromhex(sys.argv[1]) + b"\\xc3"  # and return
memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
memory.write(code)
ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(memory)))()
"""


def executed(code: str) -> bool:
    """Return whether this processor executes an instruction."""
    done = subprocess.run([sys.executable, "-c", EXECUTE, code], capture_output=True, check=False)
    assert done.returncode in (0, -signal.SIGILL), done
    return done.returncode == 0


expected, *missing = sys.argv[1:]
simd = xentrs.show_config(mode="dicts")["simd"]
assert simd["level"] == expected, simd
assert simd["available"] == (["portable"] if expected == "portable" else [expected, "portable"])
if platform.machine() == "x86_64":
    assert executed("90"), "even nop traps"
    for name, code in INSTRUCTIONS.items():
        assert executed(code) == (name not in missing), name
    print(f"instructions that trap: {', '.join(missing)}")
print(f"{platform.machine()}: xentrs takes {expected}")
