"""The pytest-benchmark suite: one test for each row and each library. Run it with ``make bench``.

``make bench`` saves its results in ``.benchmarks/``, and
``make bench ARGS="--benchmark-compare --benchmark-compare-fail=median:10%"`` fails where a test
takes a tenth longer than in the run before. ``--rows``, ``--peers`` and ``--quick`` select as in
`compare.py`; ``--peers none`` times xentrs alone. Libraries that are not installed are skipped.
``XENTRS_SIMD=avx2 make bench`` restricts xentrs to AVX2.

The answer of each side is compared with float64 before it is timed. Here each side is timed by
itself, as pytest-benchmark does it. For ratios between libraries use `compare.py`, where the sides
take turns: the machine may change between two tests.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import xentrs
from environment import THREADS
from peers import PEERS
from rows import Case, Row
from sides import OURS, check, xentrs_side
from timing import Side


@pytest.fixture(scope="module")
def case(row: Row) -> Case:
    """Return the arrays of a row and its exact answer; only one row is in memory at a time."""
    xentrs.set_num_threads(THREADS)
    return Case(row)


@pytest.fixture
def side(case: Case, side_name: str) -> Side:
    """Return a library's side; skip if it is not installed or cannot compute the row."""
    if side_name == OURS:
        return xentrs_side(case, OURS)
    peer = next(peer for peer in PEERS.values() if side_name in peer.names)
    if peer.missing:
        pytest.skip(f"{' and '.join(peer.missing)} not installed: see bench-peers in the Makefile")
    side = next((side for side in peer.sides(case) if side.name == side_name), None)
    if side is None:
        pytest.skip(f"{side_name} has no way of computing this row")
    return side


def test_losses(benchmark: BenchmarkFixture, row: Row, case: Case, side: Side, quick: bool) -> None:
    check(case, side)
    assert not side.trouble, side.trouble
    benchmark.group = row.name
    benchmark.extra_info["side"] = side.name
    if quick:
        benchmark.pedantic(side.function(), rounds=2, iterations=1)  # type: ignore[no-untyped-call]
    else:
        benchmark(side.function())


@pytest.fixture
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("quick"))
