"""Count the instructions of calls at AVX2: ``make bench-instructions``.

Counts are the same at every run and on any machine, so that a small change shows. Valgrind's
callgrind runs this script on one thread; it hides AVX-512. It writes the count out at each call of
the C library's `getppid`, which nothing else calls: between two such marks lies one call (or a
hundred of the smallest ones), and the count of an empty statement is subtracted. ``--json`` keeps
the counts, to be compared with another commit's.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import timeit
from pathlib import Path

from environment import machine
from results import save
from rows import BINARY_LOSS, BOOL, CLASS_WEIGHTS, LATE, SMOOTH, SOFT, TRAINED, Z_LOSS, Case, Row
from sides import xentrs_side

GRAD, LOSS = "loss+grad", "loss"
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
]


def calls(row: Row) -> int:
    """Return how many calls of a row are counted."""
    return 100 if row.tiny else 1


def marked(rows: list[Row]) -> None:
    """Call each row between two marks, after two calls that warm up."""
    for row in rows:
        timer, nothing = xentrs_side(Case(row), "xentrs").timer(), timeit.Timer()
        for warm in (timer, nothing):
            warm.timeit(100 if row.tiny else 2)
        os.getppid()
        nothing.timeit(calls(row))
        os.getppid()
        timer.timeit(calls(row))
        os.getppid()


def counts(rows: list[Row]) -> list[int]:
    """Run the calls under valgrind; the instructions of each."""
    environment = os.environ | {"XENTRS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", "--dump-before=getppid"]
        command += [f"--callgrind-out-file={folder}/out", sys.executable, __file__, "--child"]
        command.append(",".join(str(ROWS.index(row)) for row in rows))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        # The parts are numbered: three a row, each with what came before its mark.
        totals = []
        for part in range(1, 3 * len(rows) + 1):
            text = (Path(folder) / f"out.{part}").read_text()
            found = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
            assert found, "a part without a sum"
            totals.append(int(found[1]))
    return [(totals[3 * i + 2] - totals[3 * i + 1]) // calls(row) for i, row in enumerate(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", action="append", help="only rows with this in their name")
    parser.add_argument("--quick", action="store_true", help="a test: two rows")
    parser.add_argument("--json", type=Path, help="write the counts to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows = ROWS[-2:] if options.quick else ROWS
    if options.rows:
        rows = [row for row in rows if any(part in row.name for part in options.rows)]
    if options.child:
        marked([ROWS[int(i)] for i in options.child.split(",")])
        return
    found = dict(zip((row.name for row in rows), counts(rows), strict=True))
    print("| work at AVX2, one thread | instructions | an element |\n|---|---|---|")
    for row in rows:
        count = found[row.name]
        print(f"| {row.name} | {count} | {count / (row.n * row.c):.3f} |")
    if options.json:
        save({"versions": machine()["versions"], "instructions": found}, options.json)


if __name__ == "__main__":
    main()
