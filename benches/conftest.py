"""Options and reports of the pytest-benchmark suite in `test_losses.py`: ``make bench``."""

from __future__ import annotations

from typing import Any

import pytest

from environment import PACKAGES, THREADS, machine  # first: it fixes the number of threads
from options import SHARED, select_peers, select_rows
from peers import PEERS, peers_of
from rows import ROWS, Row
from sides import OURS

SELECTED = pytest.StashKey[tuple[list[Row], list[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("xentrs", "what is measured")
    for flag, how in SHARED.items():
        group.addoption(flag, **how)


def pytest_configure(config: pytest.Config) -> None:
    """Select rows and sides before anything runs, so that a wrong name is a short message."""
    # Other libraries warn of things that are not ours to mend.
    config.addinivalue_line("filterwarnings", "default")

    def refuse(message: str) -> None:
        raise pytest.UsageError(message)

    every = [row.name for row in ROWS]
    rows = select_rows(config.getoption("rows"), every, config.getoption("quick"), refuse)
    peers = peers_of(select_peers(config.getoption("peers"), refuse))
    sides = [OURS, *(name for peer in peers for name in PEERS[peer].names)]
    config.stash[SELECTED] = rows, sides


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each row with each library; a row's arrays are made once for all of them."""
    if "row" in metafunc.fixturenames:
        rows, sides = metafunc.config.stash[SELECTED]
        metafunc.parametrize("side_name", sides)
        metafunc.parametrize("row", rows, ids=lambda row: row.name, scope="module")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    """Store beside the results what must be the same for a comparison."""
    info = machine(*PACKAGES)
    del info["load"]
    machine_info["xentrs"] = info


def pytest_report_header(config: pytest.Config) -> str:
    return f"xentrs: level {machine()['level']}, {THREADS} threads"
