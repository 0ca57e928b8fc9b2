"""The options that the benchmarks share: which rows, which peers. It is not run by itself."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peers import PEERS
from rows import ROWS, Row

QUICK = 2**17  # numbers a row, for a test

# Flags of the scripts and of the pytest-benchmark suite
SHARED: dict[str, dict[str, Any]] = {
    "--rows": {"action": "append", "help": "a row, or all rows with this text in their name"},
    "--peers": {"help": "only these, with commas between their names; 'none' for none"},
    "--quick": {"action": "store_true", "help": "a test: few calls, small arrays"},
}


def parser_of(text: str, seconds: float) -> argparse.ArgumentParser:
    """Return a parser of the options that `compare.py` and `steps.py` share."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for flag, how in SHARED.items():
        parser.add_argument(flag, **how)
    parser.add_argument("--seconds", type=float, default=seconds, help="for each row")
    parser.add_argument("--turns", type=int, default=100, help="at most, for each row")
    parser.add_argument("--level", choices=["avx512", "avx2"], help="restrict every library to it")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    return parser


def select_rows(
    named: Sequence[str] | None,
    usual: Sequence[str],
    quick: bool,
    refuse: Callable[[str], Any],
) -> list[Row]:
    """Return the rows that are named, or the usual ones; small arrays for a quick run."""
    rows = [row for row in ROWS if row.name in usual]
    if named:
        names = {row.name for row in ROWS}
        rows = [
            row
            for row in ROWS
            if any(part == row.name if part in names else part in row.name for part in named)
        ]
    if not rows:
        refuse("no row has that in its name; the rows are: " + "; ".join(r.name for r in ROWS))
    return [row.small(QUICK) for row in rows] if quick else rows


def select_peers(text: str | None, refuse: Callable[[str], Any]) -> list[str]:
    """Return the beginnings of the names of peers that are named; none means all peers."""
    beginnings = [part.strip() for part in (text or "").lower().split(",") if part.strip()]
    known = [name.lower() for name in [*PEERS, "none"]]
    for part in beginnings:
        if not any(name.startswith(part) for name in known):
            refuse(f"no peer is called {part!r}; there are {', '.join(PEERS)}")
    return beginnings
