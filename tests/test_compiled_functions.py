"""The functions of the compiled module: how they check options and what they are called with."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from losses import OF_ONE_CLASS
from xentrs import _xentrs

LOGITS = np.random.default_rng(0).normal(size=(4, 5))
TARGET = np.array([0, 3, 4, 1])

# What an argument is left out with, for calls of the compiled function.
DEFAULTS: dict[str, Any] = {
    "axis": -1,
    "gamma": 2.0,
    "q": 0.7,
    "epsilon": 1.0,
    "temperature": 1.0,
    "direction": "forward",
    "beta": 0.5,
    "ignore_index": -100,
    "label_smoothing": 0.0,
    "z_loss": 0.0,
    "reduction": "mean",
}

NUMBERS = ("gamma", "label_smoothing", "z_loss", "q", "epsilon", "temperature")
RANGES = {
    "label_smoothing": r"in \[0, 1\]",
    "q": "above 0 and at most 1",
    "epsilon": "finite",
    "temperature": "finite and above 0",
}


def compute(loss: str, order: int, values: Any, target: Any, **given: Any) -> Any:
    options = [given.get(name, DEFAULTS.get(name)) for name in _xentrs.LOSSES[loss]["options"]]
    return _xentrs.compute(loss, order, values, target, *options, None, None)


@pytest.mark.parametrize("loss", OF_ONE_CLASS)
def test_losses_that_take_one_class_a_sample(loss: str) -> None:
    with pytest.raises(TypeError, match=rf"{loss} takes no label_smoothing: .*, not 0\.25"):
        compute(loss, 0, LOGITS, TARGET, label_smoothing=0.25)
    names = _xentrs.LOSSES[loss]["options"]
    options = [DEFAULTS | {"label_smoothing": 0.25}][0]
    with pytest.raises(TypeError, match=f"{loss} takes no label_smoothing"):
        _xentrs.plain_options(loss, *(options.get(name) for name in names))
    soft = np.full_like(LOGITS, 0.2)
    with pytest.raises(TypeError, match=f"{loss} takes no probabilities as target"):
        compute(loss, 1, LOGITS, soft)
    assert compute(loss, 0, LOGITS, TARGET) > 0.0


@pytest.mark.parametrize("loss", _xentrs.LOSSES)
@pytest.mark.parametrize("option", NUMBERS)
def test_numbers_are_checked(loss: str, option: str) -> None:
    if option not in _xentrs.LOSSES[loss]["options"]:
        pytest.skip("no such option")
    target = TARGET if _xentrs.LOSSES[loss]["axis"] else LOGITS > 0
    values = np.full_like(LOGITS, 0.2)
    accepted = RANGES.get(option, "finite and at least 0")
    wrong = {-1.0, np.nan, np.inf, -np.inf, -5e-324}
    for value in wrong - ({-1.0, -5e-324} if option == "epsilon" else set()):
        message = f"{option} must be {accepted}, not {value}"
        with pytest.raises(ValueError, match=message):
            compute(loss, 0, values, target, **{option: value})
    with pytest.raises(ValueError, match=f"{option} is too large for a float"):
        compute(loss, 0, values, target, **{option: 10**400})
    for value in ("1", None, 1j, [1.0]):
        with pytest.raises(TypeError, match=f"{option} must be a number, not "):
            compute(loss, 0, values, target, **{option: value})
    if loss in OF_ONE_CLASS and option == "label_smoothing":
        return
    expected = compute(loss, 0, values, target, **{option: 1.0})
    for same in (1, True, np.float32(1), np.int8(1), Fraction(1), Decimal(1)):
        assert compute(loss, 0, values, target, **{option: same}) == expected
    if option == "temperature":
        with pytest.raises(ValueError, match="temperature must be finite and above 0, not 0"):
            compute(loss, 0, values, target, temperature=0.0)
        return
    if option == "q":
        with pytest.raises(ValueError, match=r"q must be above 0 and at most 1, not 0\.0"):
            compute(loss, 0, values, target, q=0.0)
        return
    zero = compute(loss, 0, values, target, **{option: 0.0})
    assert compute(loss, 0, values, target, **{option: -0.0}) == zero


def test_plain_options_are_of_pythons_own_types() -> None:
    class Word(str):
        pass

    options = (1, None, "anything", (5,), np.float32(0.5), Fraction(1, 4), 30, True)
    options += (Word("sum"), 3, None, None, None)
    plain = _xentrs.plain_options("cross_entropy", *options)
    assert plain == (1, None, "anything", (5,), 0.5, 0.25, 30.0, 1.0, "sum", 3.0, *[None] * 3)
    types = [float, float, float, float, str, float]
    assert [type(value) for value in plain[4:10]] == types


def test_wrong_calls_of_the_compiled_function() -> None:
    with pytest.raises(ValueError, match="there is no loss"):
        _xentrs.compute("nothing", 0, LOGITS, TARGET)
    with pytest.raises(ValueError, match="cross_entropy has 2 derivatives, not 3"):
        _xentrs.compute("cross_entropy", 3, LOGITS, TARGET)
    with pytest.raises(TypeError, match=r"log_loss takes axis, .*, out and hess_out, but 1 "):
        _xentrs.compute("log_loss", 0, LOGITS, TARGET, -1)
    with pytest.raises(TypeError, match="log_loss has 8 options, but 1 "):
        _xentrs.plain_options("log_loss", -1)
