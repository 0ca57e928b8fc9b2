"""No result changes unnoticed: every group of calls has the digest that is recorded for it."""

import json
import os

import numpy as np
import pytest

import recorded_bits
import xentrs
from levels import LEVELS, SIMD

RECORDED = json.loads(recorded_bits.FILE.read_text())
IF_MEANT = (
    "If the change of bits is meant, record anew with `python tests/recorded_bits.py`. If not, "
    "`python tests/recorded_bits.py GROUP` prints a digest of each call of a group, to compare "
    "with those of a build from before the change."
)


@pytest.mark.timeout(1800)  # in an emulator it takes minutes
@pytest.mark.parametrize("level", LEVELS)
def test_bits_are_those_recorded(level, request):
    if level not in SIMD["available"]:
        pytest.skip(f"{level} is not available on this machine, which has {SIMD['available']}")
    if "XENTRS_SIMD" in os.environ and level != SIMD["level"]:
        pytest.skip(f"XENTRS_SIMD={SIMD['level']} is set from outside")
    every = request.config.getoption("every_group")
    recorded = recorded_bits.every_nth(RECORDED[recorded_bits.kind_of(level)], every)
    groups = recorded_bits.differing(recorded, recorded_bits.run_at(level, every))
    differing = "\n  ".join(groups)
    assert not groups, (
        f"{len(groups)} of {len(recorded)} differ at {level}:\n  {differing}\n{IF_MEANT}"
    )


def test_every_loss_has_groups():
    """Add one that has none to `recorded_bits.FURTHER`, and record anew."""
    named = {name.split()[0] for name, _ in recorded_bits.groups()}
    assert named == {*xentrs._xentrs.LOSSES, *recorded_bits.FUNCTIONS}


def _digest(outcome):
    return recorded_bits.digest_of([("call", outcome)])


def test_a_digest_sees_every_bit():
    """One ULP, the sign of zero, a dtype, a shape, an order, an error; but not the kind of NaN."""
    x = np.array([1.0, 0.0, np.inf])
    others = [
        (np.array([np.nextafter(1.0, 2), 0.0, np.inf]), 0.5),
        (np.array([1.0, -0.0, np.inf]), 0.5),
        (np.array([1.0, 0.0, -np.inf]), 0.5),
        (np.array([1.0, 0.0, np.nan]), 0.5),
        (x.astype(np.float32), 0.5),
        (x[None], 0.5),
        (x[::-1], 0.5),
        (x, 0.25),
        (x, np.float32(0.5)),
        x,
        ValueError,
        IndexError,
    ]
    digests = {_digest(outcome) for outcome in [(x, 0.5), *others]}
    assert len(digests) == len(others) + 1
    nans = np.array([np.nan, -np.nan]), np.array([np.nan, np.nan])
    assert np.signbit(nans[0][0]) != np.signbit(nans[0][1])
    assert _digest(nans[0]) == _digest(nans[1])


def test_differing_groups_are_named():
    recorded = {"same": "1", "changed": "2", "gone": "3"}
    digests = {"same": "1", "changed": "4", "new": "5"}
    assert recorded_bits.differing(recorded, digests) == ["changed", "gone", "new"]


def test_every_call_but_the_invalid_has_a_result(request):
    """Else the inputs are wrong, and the digest holds errors in place of bits."""
    every = request.config.getoption("every_group")
    for name, group in recorded_bits.every_nth(dict(recorded_bits.groups()), every).items():
        if "(1, " in name or "(5, " in name:  # few samples: quick
            outcomes = dict(recorded_bits.outcomes(group))
            raised = [call for call, outcome in outcomes.items() if isinstance(outcome, type)]
            assert bool(raised) == name.endswith("invalid"), name
