"""Time whole Python calls of xentrs against floors, and against how people compute the same today.

Peers are those that are installed: NumPy and SciPy by hand, PyTorch eager and compiled, JAX with
optax, TensorFlow with XLA, and scikit-learn's private losses. Floors (`floors.rs`) move arrays of
the logits' size on the same number of threads: a copy with ordinary stores, a copy with stores past
the caches, a read. A row's own floor is what it must read and write, put together from these.

Before a row is timed every answer is compared with float64; a side that is wrong is shown as such
and not timed. Then the sides take turns in this process, each turn a warm-up and a batch of calls,
and medians over the turns are compared. Only the ratios mean something: machines differ, and one
machine differs from minute to minute.

``make bench-peers`` runs all of it and keeps the measurements in ``benches/results/compare.json``;
``make bench`` does without the peers that are large. ``ARGS="--rows binary --seconds 5"`` passes
options, and then nothing is kept but with ``--json``.

With ``--level avx2`` every side runs at AVX2, in a process whose environment says so to each
library; plain rows are measured then. A file keeps a report for each level. A second copy of xentrs
runs beside the first, at AVX2, or at AVX-512 where the first is at AVX2 (``--simd`` names another).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import table
import xentrs
from common import (
    THREADS,
    Floors,
    Side,
    another,
    everybody_at,
    machine,
    measure,
    save_level,
)
from peers import PEERS, WHOLE, in_step, peer_sides, with_grad, without_grad
from rows import HARD, PLAIN_ROWS, ROWS, Case, Row, StepCase

QUICK = 2**17  # numbers a row, for a test
IN_CACHE = 2**23  # bytes of an array for which floors are measured on one thread too


def xentrs_side(case: Case, name: str, module: ModuleType = xentrs, out: bool = True) -> Side:
    """Make a side of xentrs; the gradient goes to the case's array, or to a new one."""
    functions = {"": "cross_entropy", "log_loss": "log_loss"}
    function = functions.get(case.row.loss, "binary_cross_entropy_with_logits")
    keywords = {key: key for key in case.keywords}
    if case.row.with_grad:
        function += "_with_grad"
        if out:
            keywords["out"] = "g"
    statement = "".join(f", {key}={name}" for key, name in keywords.items())
    names = {"f": getattr(module, function), "x": case.x, "t": case.t, "g": case.grad}
    answer = with_grad if case.row.with_grad else without_grad
    names |= case.keywords
    return Side(name, f"f(x, t{statement})", names, answer, **in_step(case, names))


def floor_sides(case: Case, floors: Floors) -> Iterator[Side]:
    x, g = case.x, case.grad
    if case.row.tiny:
        yield Side("np.exp", "exp(x, out=g)", {"exp": np.exp, "x": x, "g": g})
        return
    kinds = ["copy", "stream copy", "read"] if case.row.with_grad else ["read"]
    if any(factor and kind == "stream fill" for factor, kind in case.row.own_floor):
        kinds.append("stream fill")
    for kind in kinds:
        yield floors.side(kind, g, x, THREADS)
        # What fits into a cache can be done before another thread has it.
        if THREADS > 1 and x.nbytes < IN_CACHE:
            yield floors.side(kind, g, x, 1)


def check(case: Case, side: Side, tolerance: float | None = None) -> None:
    """Run a side once and write into `trouble` how its answer is wrong, if it is."""
    assert side.answer is not None
    expected_loss, expected = case.answer
    largest = case.largest if case.row.with_grad else 1.0
    if side.setting == WHOLE:
        assert isinstance(case, StepCase)
        expected_loss, expected = case.whole_answer
        largest = 1.0 if expected is None else float(np.abs(expected).max())
    case.grad.fill(-7)  # nobody gets an answer that another one left here
    names = dict(side.names)
    try:
        exec(side.before, names)
        loss, grad = side.answer(eval(side.statement, names))
    except Exception as error:
        side.trouble = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        return
    # Errors are measured against the largest entry of the gradient. The peers' limits find a wrong
    # formula and no more: their single entries can be far less exact, and sums of 2^26 float32
    # numbers, one by one, are off by half a percent; that is not the subject.
    ours = side.name.startswith("xentrs")
    limits = {"f32": (1e-6, 1e-2), "f64": (1e-13, 1e-9)}[case.row.dtype]
    if tolerance is None:
        tolerance = limits[0] if ours else limits[1]
    if not np.isclose(loss, expected_loss, rtol=tolerance, atol=0, equal_nan=True):
        side.trouble = f"wrong: the loss is {loss!r}, not {expected_loss!r}"
    if expected is None:
        return
    if grad.shape != expected.shape:
        side.trouble = f"wrong: the gradient has shape {grad.shape}"
        return
    worst = np.float64(0)
    step = max(1, 2**20 // expected[0].size)
    for start in range(0, len(expected), step):
        right = expected[start : start + step]
        off = grad[start : start + step] - right
        np.abs(off, out=off)
        if np.isnan(off.max()):
            off[np.isnan(grad[start : start + step]) & np.isnan(right)] = 0
        worst = np.maximum(worst, off.max())  # keeps a NaN
    if not worst <= tolerance * largest:
        side.trouble = f"wrong: the gradient is off by {worst / largest:.1e} of its largest entry"


def sides_of(
    case: Case, floors: Floors, other: ModuleType | None, asked: list[str]
) -> Iterator[Side]:
    yield xentrs_side(case, table.OURS)
    if case.row.with_grad:
        yield xentrs_side(case, table.NEW, out=False)
    if other is not None:
        yield xentrs_side(case, table.at_level(level_of(other)), other)
    yield from floor_sides(case, floors)
    if asked or case.row.option not in HARD:  # to a peer they are rows like others
        yield from peer_sides(case, asked)


def level_of(module: ModuleType) -> str:
    return str(module.show_config(mode="dicts")["simd"]["level"])


def run(row: Row, seconds: float, turns: int, *how: Any) -> dict[str, Any]:
    """Check and time one row; return what is kept of it."""
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
    if row.base is not None:
        sides.append(xentrs_side(Case(row.base), table.PLAIN))
    measure([side for side in sides if not side.trouble], seconds, turns)
    print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return {
        "name": row.name,
        "goals": row.goals_at(level_of(xentrs)),
        "own floor": row.own_floor,
        "sides": {side.name: side.report() for side in sides},
    }


def arguments(text: str, seconds: float) -> argparse.ArgumentParser:
    """Return the options that the two tables share."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="append", help="a row, or rows with this in their name")
    parser.add_argument("--quick", action="store_true", help="a test: few turns, small arrays")
    parser.add_argument("--seconds", type=float, default=seconds, help="for each row")
    parser.add_argument("--turns", type=int, default=100, help="at most, for each row")
    parser.add_argument("--peers", help="only these, with commas between their names")
    parser.add_argument("--level", choices=["avx512", "avx2"], help="force every library to it")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    return parser


def chosen(
    parser: argparse.ArgumentParser, options: argparse.Namespace, usual: list[str]
) -> tuple[list[Row], list[str]]:
    """Return the rows and the peers that were asked for, or the usual rows and all peers."""
    rows = [row for row in ROWS if row.name in usual]
    if options.rows:
        names = {row.name for row in ROWS}

        def asked_for(name: str) -> bool:
            return any(part == name if part in names else part in name for part in options.rows)

        rows = [row for row in ROWS if asked_for(row.name)]
    if not rows:
        parser.error(
            "no row has that in its name; the rows are: " + "; ".join(r.name for r in ROWS)
        )
    if options.quick:
        rows = [row.small(QUICK) for row in rows]
    asked = [part.strip() for part in (options.peers or "").lower().split(",") if part.strip()]
    known = [name.lower() for name in [*PEERS, "none"]]
    for part in asked:
        if not any(name.startswith(part) for name in known):
            parser.error(f"no peer is called {part!r}; there are {', '.join(PEERS)}")
    return rows, asked


def main() -> int:
    parser = arguments(__doc__, seconds=4.0)
    parser.add_argument("--simd", help="the level of the second xentrs")
    options = parser.parse_args()
    everybody_at(options.level)
    every = [row.name for row in ROWS]
    rows, asked = chosen(parser, options, PLAIN_ROWS if options.level == "avx2" else every)

    xentrs.set_num_threads(THREADS)
    report = machine("scipy", "torch", "jax", "optax", "tensorflow", "scikit-learn")
    second = options.simd or ("avx512" if report["level"] == "avx2" else "avx2")
    wanted = second in report["levels"] and second != report["level"]
    other = another(second) if wanted else None
    limits = (0.0, 2) if options.quick else (options.seconds, options.turns)
    floors = Floors()
    report["rows"] = [run(row, *limits, floors, other, asked) for row in rows]

    print(table.markdown(report, with_goals=True))
    print()
    print(table.verdict(report))
    if options.json:
        save_level(report, options.json)
    return int(any("trouble" in row["sides"][table.OURS] for row in report["rows"]))


if __name__ == "__main__":
    sys.exit(main())
