"""Fixtures of all tests."""

import collections
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import hypothesis
import numpy as np
import pytest

import xentrs

# The same examples in every run: a failure is a change, not luck. Raise HYPOTHESIS_EXAMPLES
# (a factor) for a longer search.
hypothesis.settings.register_profile(
    "xentrs",
    deadline=None,
    derandomize=True,
    max_examples=int(40 * float(os.environ.get("HYPOTHESIS_EXAMPLES", "1"))),
    database=None,
    # It judges the speed of the machine, which may be busy or emulated.
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("xentrs")


def pytest_addoption(parser):
    parser.addoption(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="run every N-th case of each test that has more: in an emulator all take too long",
    )
    parser.addoption(
        "--every-group",
        type=int,
        default=1,
        metavar="N",
        help="compare the recorded bits of every N-th group of calls",
    )


def pytest_collection_modifyitems(config, items):
    """Keep every N-th case of each test; a prime N meets all values of all parameters.

    What runs whole files of tests comes first, so that it is not what all processes wait for.
    """
    items.sort(key=lambda item: item.path.name != "test_levels.py")  # stable
    every = config.getoption("every")
    cases = collections.defaultdict(list)
    for item in items:
        cases[item.nodeid.split("[")[0]].append(item)
    chosen = [
        item for same in cases.values() for item in (same[::every] if len(same) > every else same)
    ]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[*{*items} - {*chosen}])
        items[:] = chosen


def pytest_report_header(config):
    """Return the instruction set and the threads of this run, for the report's header."""
    return f"xentrs: {xentrs.show_config(mode='dicts')}"


@pytest.fixture
def rng(request):
    """Return a generator seeded by the name of the test."""
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def threads():
    """Return `xentrs.set_num_threads`, undone after the test."""
    before = xentrs.get_num_threads()
    yield xentrs.set_num_threads
    xentrs.set_num_threads(before)


@pytest.fixture(scope="session")
def python():
    """Return a function that runs a script in a new interpreter and returns what it printed.

    Environment variables are given as keywords, None for unset. A script that fails, crashes or
    does not end in time fails the test.
    """

    def run(script, *, timeout=60, arguments=(), check=True, **environment):
        env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), env["PYTHONPATH"]])
        for name, value in environment.items():
            env.pop(name, None)
            if value is not None:
                env[name] = str(value)
        result = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
            env=env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert result.returncode == 0, (
                f"ended with {result.returncode}\n{result.stdout}\n{result.stderr}"
            )
        return result

    return run
