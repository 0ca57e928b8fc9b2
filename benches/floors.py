"""Floors: the time that moving the same bytes takes, with no arithmetic to speak of.

`floors.rs` moves them; this module compiles that file when a benchmark first needs it, and calls it
through ctypes. A floor is a side of the comparison like any other (`timing.Side`).
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from results import ROOT
from timing import Side

SOURCE = Path(__file__).with_name("floors.rs")
KINDS = ["copy", "stream copy", "stream fill", "read"]  # in the order of `Kind` in floors.rs
ONE_THREAD = ", one thread"  # follows the name of a floor that is measured on one thread


class Floors:
    """The compiled floors."""

    def __init__(self) -> None:
        library = ROOT / "target" / "floors" / "libfloors.so"
        if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
            library.parent.mkdir(parents=True, exist_ok=True)
            command = ["rustc", "--edition", "2024", "-O", "--crate-type", "cdylib"]
            subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
        self.floor = ctypes.CDLL(str(library)).floor
        self.floor.restype = None
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.floor.argtypes = [size, pointer, pointer, size, size]

    def side(self, kind: str, to: NDArray[Any], source: NDArray[Any], threads: int) -> Side:
        names = {
            "floor": self.floor,
            "kind": KINDS.index(kind),
            "to": ctypes.c_void_p(to.ctypes.data),
            "source": ctypes.c_void_p(source.ctypes.data),
            "bytes": source.nbytes,
            "threads": threads,
            "arrays": (to, source),  # keeps them alive
        }
        name = f"{kind}{ONE_THREAD}" if threads == 1 else kind
        return Side(name, "floor(kind, to, source, bytes, threads)", names)
