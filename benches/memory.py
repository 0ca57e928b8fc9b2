"""Measure the peak of memory that a call takes beyond its arrays: ``make bench-memory``.

Each call runs in a process of its own, on fresh arrays with `out=`. Small calls of its kind come
first, and a large one of another kind, which wakes the threads. Linux counts the memory: a write to
``/proc/self/clear_refs`` resets the peak (``VmHWM``), which is compared with the memory in use
before the call. Huge pages are off, and the allocator returns freed memory at once, so that the
count is of pages that the call touched. In the shapes, rows or samples weigh far more than pages
do: 32 rows of 2^20 classes, and 2^21 samples of 16.

The bound is 8 bytes a sample and two rows a thread. `SLACK` allows for stacks and for the kernel's
own counters, which are exact to some dozens of pages a CPU. The script fails where a call exceeds
the bound.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

import xentrs
from environment import THREADS, describe, machine
from results import save
from rows import (
    AXIS_1,
    BINARY_LOSS,
    BOOL,
    CLASS_WEIGHTS,
    F_ORDER,
    HALF_IGNORED,
    SAMPLE_WEIGHTS,
    SMOOTH,
    SOFT,
    Z_LOSS,
    Case,
    Row,
)
from sides import xentrs_side

SLACK = 2**19  # bytes
PR_SET_THP_DISABLE = 41

SHAPES = {"wide": (32, 2**20, 1), "tall": (2**21, 16, 1)}
# The same sizes where an axis comes after the classes: samples are n * d.
DEEP = {"wide": (2, 2**20, 16), "tall": (2**16, 16, 32)}
OPTIONS = ("", SOFT, SMOOTH, CLASS_WEIGHTS, SAMPLE_WEIGHTS, HALF_IGNORED, Z_LOSS, AXIS_1, F_ORDER)
KINDS = [
    *(("cross_entropy", option) for option in OPTIONS),
    ("focal_loss", ""),
    ("log_loss", ""),
    ("log_loss", SOFT),
    (BINARY_LOSS, SOFT),
    (BINARY_LOSS, BOOL),
]
DTYPES = {"f32": 4, "f64": 8}


def all_rows() -> list[Row]:
    found = []
    for loss, option in KINDS:
        for n, c, d in (DEEP if option == AXIS_1 else SHAPES).values():
            for work in ("loss+grad", "loss"):
                found.append(Row(work, n, c, option=option, d=d, loss=loss))
    return found


def bound(row: Row) -> int:
    return 8 * row.n * row.d + 2 * row.c * DTYPES[row.dtype] * THREADS


def status(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def measured(row: Row) -> int:
    """Call once, in a process that does nothing else; return the bytes in use at the peak."""
    ctypes.CDLL(None).prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0)
    xentrs.set_num_threads(THREADS)
    case = Case(row)
    case.grad.fill(0)
    warm = Case(row.small(4096))
    side = xentrs_side(warm, "warm")
    for _ in range(3):
        side.timer().timeit(1)
    awake = np.zeros((2**19, 3), np.float32)
    for _ in range(20):
        xentrs.cross_entropy_with_grad(awake, np.zeros(len(awake), np.int64), out=awake)
    timer = xentrs_side(case, "xentrs").timer()
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    timer.timeit(1)
    return status("VmHWM") - before


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", action="append", help="only rows with this in their name")
    parser.add_argument("--quick", action="store_true", help="a test: 1/8 of the samples")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = all_rows()
    if options.quick:
        rows = [row.small(2**22) for row in rows]
    if options.child:
        print(measured(next(row for row in rows if row.name == options.child)))
        return 0
    if options.rows:
        rows = [row for row in rows if any(part in row.name for part in options.rows)]
    environment = os.environ | {
        # Fixed limits: left to itself glibc raises them, and keeps up to 32 MiB that were freed.
        "MALLOC_MMAP_THRESHOLD_": "131072",
        "MALLOC_TRIM_THRESHOLD_": "131072",
        "XENTRS_NUM_THREADS": str(THREADS),
    }
    report = machine() | {"slack": SLACK, "rows": []}
    print("| work | peak beyond inputs and gradient | bound | |\n|---|---|---|---|")
    for row in rows:
        command = [sys.executable, __file__, "--child", row.name]
        command += ["--quick"] if options.quick else []
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{row.name}:\n{done.stderr}")
        peak, most = int(done.stdout), bound(row)
        report["rows"].append({"name": row.name, "peak": peak, "bound": most})
        verdict = "" if peak <= most + SLACK else "exceeded"
        print(f"| {row.name} | {peak / 2**20:.2f} MiB | {most / 2**20:.2f} MiB | {verdict} |")
    over = sum(r["peak"] > r["bound"] + SLACK for r in report["rows"])
    print(f"\n{over} of {len(rows)} exceed their bound, 8 bytes a sample and two rows a thread, by")
    print(f"more than {SLACK // 1024} KiB. {describe(report)}")
    if options.json:
        save(report, options.json)
    return int(over > 0)


if __name__ == "__main__":
    sys.exit(main())
