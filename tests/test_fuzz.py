"""Random calls of a fixed seed; `make test-random` runs those of a new one for minutes."""

import functools
import os

import numpy as np
import pytest

import fuzz
import xentrs

CASES = int(2500 * float(os.environ.get("FUZZ_FACTOR", "1")))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("part", range(3))
def test_random_calls(part):
    """Each gives the right values or raises the right exception: see fuzz.py."""
    done = fuzz.run_apart(None, 0, part * CASES, CASES)
    words = [f"{found['words']}\n    {found['lines']}" for found in done["findings"]]
    assert not words, "\n".join(words)
    refused = done["digests"].count(None)
    assert 0.1 < refused / CASES < 0.5, "too few cases of one kind to be a test"
    assert done["accepted"] == CASES - refused
    for name, error in done["errors"].items():
        assert 1 < error <= fuzz.BOUNDS[name], "no results were compared"


def test_the_same_seed_gives_the_same_calls():
    assert fuzz.run(1, 0, 40)["digests"] == fuzz.run(1, 0, 40)["digests"]
    assert fuzz.run(1, 0, 40)["digests"] != fuzz.run(2, 0, 40)["digests"]


def _wrong_loss(args, result):
    loss, *rest = result if isinstance(result, tuple) else (result,)
    loss = loss * (1 + 64 * np.finfo(args[0].dtype).eps)
    return (loss, *rest) if rest else loss


def _wrong_derivative(args, result):
    if isinstance(result, tuple) and result[-1].size:
        result[-1].flat[-1] += 1e-3
    return result


def _wrong_place(args, result):
    return tuple(np.array(r) if np.ndim(r) else r for r in result) if type(result) is tuple else 0.0


def _wrong_input(args, result):
    if args[0].size and args[0].flags.writeable:
        args[0].flat[0] += 1
    return result


@functools.cache
def _fair_calls():
    """Return the numbers of calls without a fault of their own, by function."""
    found = {name: [] for name in fuzz.NAMES}
    for number in range(100 * len(fuzz.NAMES)):
        call = fuzz.draw(3, number)
        if not call.fault and not call.spoiled:
            found[call.name].append(number)
    return found


@pytest.mark.parametrize("wrong", [_wrong_loss, _wrong_derivative, _wrong_place, _wrong_input])
@pytest.mark.parametrize("name", fuzz.NAMES)
def test_what_is_wrong_is_found(name, wrong, monkeypatch):
    """Each function with a fault put into it: otherwise the test above might find nothing."""

    def fails(number):
        try:
            fuzz.check(fuzz.draw(3, number))
        except fuzz.Finding:
            return True
        return False

    right = [n for n in _fair_calls()[name] if not fails(n)]
    assert len(right) > 40
    for suffix in fuzz.suffixes(name):
        function = getattr(xentrs, name + suffix)

        def spoiled(*args, function=function, **options):
            return wrong(args, function(*args, **options))

        monkeypatch.setattr(xentrs, name + suffix, spoiled)
    assert sum(map(fails, right)) > len(right) / 10


def test_a_wrong_exception_is_found(monkeypatch):
    def careless(*args, **options):
        raise TypeError("something")

    calls = [fuzz.draw(3, n) for n in range(100 * len(fuzz.NAMES))]
    planted = [c for c in calls if c.fault == (ValueError,) and c.name == "log_loss"]
    assert len(planted) > 3
    for suffix in fuzz.suffixes("log_loss"):
        monkeypatch.setattr(xentrs, "log_loss" + suffix, careless)
    for call in planted:
        with pytest.raises(fuzz.Finding, match="TypeError for ValueError"):
            fuzz.check(call)
