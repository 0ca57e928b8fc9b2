"""Time calls in a tight loop against floors and against other libraries: ``make bench-peers``.

Peers are the libraries that are installed: NumPy and SciPy by hand, PyTorch eager and compiled, JAX
with optax, TensorFlow with XLA, and scikit-learn's private losses (`peers.py`). Floors move arrays
of the logits' size on the same number of threads: a copy with ordinary stores, a copy with
non-temporal stores, a read (`floors.rs`). A row's own floor is what it must read and write, put
together from these.

Before a row is timed, every answer is compared with float64. A side with a wrong answer is shown as
wrong and not timed. Then the sides take turns in this process (`timing.measure`), and the medians
over the turns are compared.

``make bench-peers`` runs all of it and keeps the measurements in ``benches/results/compare.json``;
``make bench-floors`` runs this script without peers. ``ARGS="--rows binary --seconds 5"`` passes
options; with them a measurement is kept only where ``--json`` says so.

With ``--level avx2`` every side runs at AVX2, in a process whose environment says so to each
library. Then the usual rows are those of plain cross-entropy and those that have goals at AVX2. A
file keeps a report for each level. A second copy of xentrs runs beside the first, at AVX2, or at
AVX-512 where the first is at AVX2 (``--simd`` names another).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import table
import xentrs
from environment import PACKAGES, THREADS, level_of, machine, restart_at, second_copy
from floors import Floors
from options import parser_of, select_peers, select_rows
from peers import peer_sides
from results import save_level
from rows import AVX2_ROWS, HARD, ROWS, Case, Row
from sides import NEW, OURS, PLAIN, at_level, check, floor_sides, xentrs_side
from timing import Side, measure


def sides_of(
    case: Case, floors: Floors, second: ModuleType | None, peers: list[str]
) -> Iterator[Side]:
    yield xentrs_side(case, OURS)
    if case.row.with_grad:
        yield xentrs_side(case, NEW, out=False)
    if second is not None:
        yield xentrs_side(case, at_level(level_of(second)), second)
    yield from floor_sides(case, floors)
    # To other libraries a hard row is a row like any other: they compute it if they are named.
    if peers or case.row.option not in HARD:
        yield from peer_sides(case, peers)


def run(row: Row, seconds: float, turns: int, *how: Any) -> dict[str, Any]:
    """Check and time one row; return what a file keeps of it."""
    print(f"{row.name} ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    case = Case(row)
    sides = list(sides_of(case, *how))
    for side in sides:
        if side.answer is not None:
            check(case, side)
            if side.trouble:
                print(f"  {side.name}: {side.trouble}", file=sys.stderr)
    del case.answer  # it is large
    if row.plain is not None:
        sides.append(xentrs_side(Case(row.plain), PLAIN))
    measure([side for side in sides if not side.trouble], seconds, turns)
    print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return {
        "name": row.name,
        "goals": row.goals_at(level_of(xentrs)),
        "own floor": row.own_floor,
        "sides": {side.name: side.report() for side in sides},
    }


def main() -> int:
    assert __doc__
    parser = parser_of(__doc__, seconds=4.0)
    parser.add_argument("--simd", help="the level of the second xentrs")
    options = parser.parse_args()
    restart_at(options.level)
    usual = AVX2_ROWS if options.level == "avx2" else [row.name for row in ROWS]
    rows = select_rows(options.rows, usual, options.quick, parser.error)
    peers = select_peers(options.peers, parser.error)

    xentrs.set_num_threads(THREADS)
    report = machine(*PACKAGES)
    level = options.simd or ("avx512" if report["level"] == "avx2" else "avx2")
    wanted = level in report["levels"] and level != report["level"]
    second = second_copy(level) if wanted else None
    limits = (0.0, 2) if options.quick else (options.seconds, options.turns)
    floors = Floors()
    report["rows"] = [run(row, *limits, floors, second, peers) for row in rows]

    print(table.loop_tables(report))
    if options.json:
        save_level(report, options.json)
    return int(any("trouble" in row["sides"][OURS] for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
