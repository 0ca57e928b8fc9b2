"""Count the instructions of calls at AVX2 and at NEON: ``make bench-instructions``.

Counts are the same at every run and on any machine, so that a small change shows. Valgrind's
callgrind runs this script on one thread; it hides AVX-512. It writes the count out at each call of
the C library's `getppid`, which nothing else calls: between two such marks lies one call (or a
hundred of the smallest ones), and the count of an empty statement is subtracted. ``--json`` keeps
the counts, to be compared with another commit's.

``--neon`` (``make bench-neon``) counts at NEON too, of the wheel for 64-bit Arm in
the emulator, by a plugin of it (`counts.rs`). A vector is four registers there and two at AVX2, so
the ratio is about 2 where the same work is done. A call that is much more has code that did not
become vector instructions.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

import ml_dtypes
import numpy as np

from environment import machine
from results import ROOT, save
from rows import (
    AXIS_1,
    BINARY_LOSS,
    BOOL,
    CLASS_WEIGHTS,
    F_ORDER,
    LATE,
    PAIRS,
    SAMPLE_WEIGHTS,
    SMOOTH,
    SOFT,
    TRAINED,
    Z_LOSS,
    Case,
    Row,
)
from sides import xentrs_side

GRAD, LOSS = "loss+grad", "loss"
HALVES = {"as float16": np.float16, "as bfloat16": ml_dtypes.bfloat16}
OPTIONS = (SOFT, SMOOTH, CLASS_WEIGHTS, TRAINED, LATE, Z_LOSS)
ROWS = [
    Row(GRAD, 8, 32000),
    Row(LOSS, 8, 32000),
    Row(GRAD, 8, 32000, "f64"),
    Row(GRAD, 64, 1000),
    *(Row(GRAD, 2**14 // c, c) for c in (2, 3, 5, 10, 16, 32, 64, 65, 128)),
    Row(LOSS, 1638, 10),
    Row(GRAD, 1638, 10, "f64"),
    Row(GRAD, 1638, 10, option=SOFT),
    Row(GRAD, 1, 10),
    *(Row(GRAD, 8, 32000, option=option) for option in OPTIONS),
    Row(GRAD, 8, 32000, loss="focal_loss"),
    Row(GRAD, 1638, 10, loss="focal_loss"),
    Row(GRAD, 1638, 10, option=Z_LOSS),
    Row(GRAD, 16, 1024, loss="log_loss"),
    Row(GRAD, 16, 1024, loss="log_loss", option=SOFT),
    Row(GRAD, 16, 1024, loss=BINARY_LOSS, option=SOFT),
    Row(GRAD, 16, 1024, loss=BINARY_LOSS, option=BOOL),
    # Samples next to each other in memory; pixels of images
    Row(GRAD, 64, 1000, option=F_ORDER),
    Row(GRAD, 1638, 10, option=F_ORDER),
    Row(GRAD, 2, 21, option=AXIS_1, d=400),
    *(Row(GRAD, 1638, 10, option=option) for option in (SMOOTH, CLASS_WEIGHTS, SAMPLE_WEIGHTS)),
    Row(GRAD, 8, 32000, option=PAIRS),
    *(Row(GRAD, *shape, option=half) for shape in ((8, 32000), (1638, 10)) for half in HALVES),
    *(
        Row(GRAD, *shape, loss=loss)
        for shape in ((8, 32000), (1638, 10))
        for loss in ("kl_divergence", "js_divergence", "softmax_entropy")
    ),
    Row(GRAD, 16, 1024, loss="nll_loss"),
    Row(GRAD, 16, 1024, loss="sigmoid_focal_loss"),
]
QUICK = [row for row in ROWS if row.loss == BINARY_LOSS]


def calls(row: Row) -> int:
    """Return how many calls of a row are counted."""
    return 100 if row.tiny else 1


def marked(rows: list[Row]) -> None:
    """Call each row between two marks, after two calls that warm up."""
    for row in rows:
        case = Case(row)
        if row.option in HALVES:
            case.x = case.x.astype(HALVES[row.option])
            case.grad = np.empty_like(case.x)
        timer, nothing = xentrs_side(case, "xentrs").timer(), timeit.Timer()
        for warm in (timer, nothing):
            warm.timeit(100 if row.tiny else 2)
        os.getppid()
        nothing.timeit(calls(row))
        os.getppid()
        timer.timeit(calls(row))
        os.getppid()


def child(rows: list[Row]) -> list[str]:
    """Return the arguments of Python that make it call the rows."""
    return [__file__, "--child", ",".join(str(ROWS.index(row)) for row in rows)]


def run(command: list[str], **variables: str) -> None:
    """Run a command on one thread; end with what it says if it fails."""
    environment = os.environ | {"XENTRS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def at_avx2(rows: list[Row], folder: Path) -> list[int]:
    """Return valgrind's count of what lies before each mark, from the mark before it."""
    command = ["valgrind", "--tool=callgrind", "--dump-before=getppid"]
    run([*command, f"--callgrind-out-file={folder}/out", sys.executable, *child(rows)])
    totals = []
    for part in range(1, 3 * len(rows) + 1):
        text = (folder / f"out.{part}").read_text()
        found = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
        assert found, "a part without a sum"
        totals.append(int(found[1]))
    return totals


def at_neon(rows: list[Row], folder: Path) -> list[int]:
    """Return the emulator's count of what lies before each mark, from the mark before it."""
    plugin = folder / "libcounts.so"
    source = Path(__file__).with_name("counts.rs")
    compiler = ["rustc", "--edition", "2024", "-O", "--crate-type", "cdylib"]
    subprocess.run([*compiler, "-o", str(plugin), str(source)], check=True)
    command = [str(ROOT / "tools" / "aarch64.sh"), "python", *child(rows)]
    run(command, QEMU_PLUGIN=f"{plugin},out={folder}/counts")
    marks = [int(line) for line in (folder / "counts").read_text().split()]
    return [after - before for before, after in itertools.pairwise([0, *marks])]


def counts(rows: list[Row], neon: bool) -> list[int]:
    """Return the instructions of a call of each row."""
    with tempfile.TemporaryDirectory() as folder:
        totals = (at_neon if neon else at_avx2)(rows, Path(folder))
    # Three a row: what comes before its first mark, nothing, and its calls.
    assert len(totals) == 3 * len(rows)
    return [(totals[3 * i + 2] - totals[3 * i + 1]) // calls(row) for i, row in enumerate(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", action="append", help="only rows with this in their name")
    parser.add_argument("--quick", action="store_true", help="a test: some rows")
    parser.add_argument("--neon", action="store_true", help="count at NEON too, in the emulator")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = QUICK if options.quick else ROWS
    if options.rows:
        rows = [row for row in rows if any(part in row.name for part in options.rows)]
    if options.child:
        marked([ROWS[int(i)] for i in options.child.split(",")])
        return
    names = [row.name for row in rows]
    found = {"instructions": dict(zip(names, counts(rows, neon=False), strict=True))}
    if options.neon:
        found["neon"] = dict(zip(names, counts(rows, neon=True), strict=True))
    columns = ["instructions", "an element", *(["at NEON", "ratio"] if options.neon else [])]
    print(f"| work at AVX2, one thread | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}")
    for row in rows:
        count = found["instructions"][row.name]
        cells = [f"{count}", f"{count / (row.n * row.c * row.d):.3f}"]
        if options.neon:
            other = found["neon"][row.name]
            cells += [f"{other}", f"{other / count:.2f}"]
        print(f"| {row.name} | {' | '.join(cells)} |")
    if options.json:
        save({"versions": machine()["versions"], **found}, options.json)


if __name__ == "__main__":
    main()
