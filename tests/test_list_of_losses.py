"""Whatever is in the compiled module's list of losses has all that a loss must have.

A new loss fails here until it has its public functions, its formula in `reference.py`, its entry in
`losses.py` (after which every law holds for it), its bounds and inputs in `test_accuracy.py` and
its random calls in `fuzz.py`; so does a new option until all of these draw values for it.
"""

import functools
import inspect

import numpy as np
import pytest

import fuzz
import reference
import xentrs
from losses import LOSSES, OF_ONE_CLASS, SUFFIXES
from test_accuracy import BOUNDS, FAMILIES
from xentrs import _xentrs
from xentrs._losses import PYTHON_FUNCTIONS

TABLE = _xentrs.LOSSES
RESULTS = ("loss", "grad", "hess")
# Options that a loss takes for their one value that changes nothing.
FIXED = {name: {"label_smoothing"} for name in OF_ONE_CLASS}
# Options that are outputs: `test_summaries.py` goes through them.
OUTPUTS = {"logsumexp_out", "argmax_out"}

every_loss = pytest.mark.parametrize("name", TABLE)


def twins(name):
    """Return the public functions of a loss, by name."""
    return [name + suffix for suffix in SUFFIXES[: TABLE[name]["derivatives"] + 1]]


def varied(name):
    """Return the options of a loss that can have several values."""
    return set(TABLE[name]["options"]) - FIXED.get(name, set()) - OUTPUTS


@every_loss
def test_public_functions(name):
    for order, twin in enumerate(twins(name)):
        assert twin in xentrs.__all__, f"no xentrs.{twin}"
        parameters = list(inspect.signature(getattr(xentrs, twin)).parameters)
        assert parameters == [
            TABLE[name]["input"],
            *([] if TABLE[name]["second"] is None else [TABLE[name]["second"]]),
            *TABLE[name]["options"],
            *("out", "hess_out")[:order],
        ]
    assert TABLE[name]["axis"] == ("axis" in TABLE[name]["options"])


def test_no_function_is_without_a_loss():
    assert set(PYTHON_FUNCTIONS) == {twin for name in TABLE for twin in twins(name)}


@every_loss
def test_laws(name):
    entries = [loss for loss in LOSSES if loss.name == name]
    assert entries, f"tests/losses.py has no entry for {name}: no law is tested of it"
    drawn = set().union(*(loss.options for loss in entries))
    assert drawn | {"axis"} >= varied(name), "an option that no law draws"
    assert drawn <= varied(name)
    for loss in entries:
        assert loss.class_axis == TABLE[name]["axis"]
        assert loss.bounded == (TABLE[name]["input"] == "probabilities")


@every_loss
def test_reference(name):
    assert hasattr(reference, name), f"tests/reference.py has no formula for {name}"
    for loss in LOSSES:
        if loss.name == name:
            case = loss.case(np.random.default_rng(0), (3, 4), np.float32, loss.options)
            assert case.reference().grad.shape == (3, 4)


@every_loss
def test_accuracy(name):
    results = set(RESULTS[: TABLE[name]["derivatives"] + 1])
    assert set(BOUNDS.get(name, ())) == results, f"no bounds of {name}'s errors"
    families = FAMILIES.values()
    rows = [next(iter(family(np.float32, np.random.default_rng(0)))) for family in families]
    assert name in {row.function for row in rows}, f"no inputs that {name}'s errors are measured at"


@functools.cache
def _drawn():
    """Return the suffixes and the options of random calls, by function."""
    found = {name: (set(), set()) for name in fuzz.NAMES}
    for number in range(300 * len(fuzz.NAMES)):
        call = fuzz.draw(0, number)
        if not (call.fault or call.spoiled):
            suffixes, options = found[call.name]
            suffixes.add(call.suffix)
            options.update(call.options)
    return found


@every_loss
def test_random_calls(name):
    assert name in fuzz.NAMES, f"tests/fuzz.py draws no call of {name}"
    suffixes, drawn = _drawn()[name]
    assert suffixes == set(SUFFIXES[: TABLE[name]["derivatives"] + 1])
    assert drawn - {"out", "hess_out"} == varied(name), "an option that no random call has"
