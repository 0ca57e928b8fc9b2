"""What a type checker makes of a call, and that the call makes the same.

``make lint`` has mypy check the types; pytest runs the calls. A ``type: ignore`` stands where mypy
must refuse a call: one that it does not need is an error too.
"""

import functools
from typing import Any, Literal, assert_type

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

import xentrs
import xentrs.catboost
import xentrs.lightgbm
import xentrs.xgboost

Reduction = Literal["mean", "sum", "none"]
Narrow = NDArray[np.float32]
Wide = NDArray[np.float64]
Half = NDArray[np.float16]
Either = NDArray[np.floating[Any]]

narrow: Narrow = np.array([[0.5, 0.25, 0.25], [0.25, 0.25, 0.5]], np.float32)
wide: Wide = narrow.astype(np.float64)
half: Half = narrow.astype(np.float16)
anything: ArrayLike = narrow.tolist()
target = [0, 2]
labels = [[0, 1, 0], [1, 1, 0]]


def test_a_reduced_loss_is_a_float() -> None:
    assert type(assert_type(xentrs.cross_entropy(narrow, target), float)) is float
    assert type(assert_type(xentrs.cross_entropy(anything, target), float)) is float
    assert type(assert_type(xentrs.log_loss(wide, target, reduction="sum"), float)) is float
    loss = xentrs.binary_cross_entropy_with_logits(narrow, labels, reduction="mean")
    assert type(assert_type(loss, float)) is float


def test_single_losses_have_the_dtype_of_the_logits() -> None:
    one = assert_type(xentrs.cross_entropy(narrow, target, reduction="none"), Narrow)
    assert one.dtype == np.float32
    two = assert_type(xentrs.log_loss(wide, target, reduction="none", base=2), Wide)
    assert two.dtype == np.float64
    three = xentrs.binary_cross_entropy_with_logits(narrow, labels, reduction="none")
    assert assert_type(three, Narrow).dtype == np.float32
    four = assert_type(xentrs.cross_entropy(anything, target, reduction="none"), Either)
    assert four.dtype == np.float64


def test_gradients_have_the_dtype_of_the_logits() -> None:
    loss, grad = assert_type(
        xentrs.cross_entropy_with_grad(narrow, target, axis=-1), tuple[float, Narrow]
    )
    assert type(loss) is float
    assert grad.dtype == np.float32
    each, grad = assert_type(
        xentrs.log_loss_with_grad(narrow, target, reduction="none"), tuple[Narrow, Narrow]
    )
    assert each.dtype == np.float32
    assert grad.dtype == np.float32
    any_loss, any_grad = assert_type(
        xentrs.cross_entropy_with_grad(anything, target, out=None), tuple[float, Either]
    )
    assert type(any_loss) is float
    assert any_grad.dtype == np.float64


def test_half_precision_has_single_losses_of_float32() -> None:
    assert type(assert_type(xentrs.cross_entropy(half, target), float)) is float
    each = assert_type(xentrs.cross_entropy(half, target, reduction="none"), Narrow)
    assert each.dtype == np.float32
    _, grad = assert_type(xentrs.cross_entropy_with_grad(half, target), tuple[float, Half])
    assert grad.dtype == np.float16
    results = assert_type(
        xentrs.log_loss_with_grad_hess(half, target, reduction="none"), tuple[Narrow, Half, Half]
    )
    assert [result.dtype for result in results] == [np.float32, np.float16, np.float16]
    twice = assert_type(
        xentrs.binary_cross_entropy_with_logits_with_grad(half, labels, out=half.copy()),
        tuple[float, Half],
    )
    assert twice[1].dtype == np.float16


def test_hessians_have_the_dtype_of_the_logits() -> None:
    hess = assert_type(xentrs.cross_entropy_with_grad_hess(wide, target), tuple[float, Wide, Wide])[
        2
    ]
    assert hess.dtype == np.float64
    single = assert_type(
        xentrs.binary_cross_entropy_with_logits_with_grad_hess(narrow, labels, reduction="none"),
        tuple[Narrow, Narrow, Narrow],
    )
    assert [result.dtype for result in single] == [np.float32] * 3


def test_outputs_have_the_dtype_of_the_logits() -> None:
    out = np.empty_like(narrow)
    got = assert_type(
        xentrs.cross_entropy_with_grad_hess(narrow, target, out=out, hess_out=None),
        tuple[float, Narrow, Narrow],
    )
    assert got[1] is out
    with pytest.raises(TypeError, match="out"):
        xentrs.cross_entropy_with_grad(narrow, target, out=[])  # type: ignore[call-overload]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_a_reduction_that_is_not_known(reduction: Reduction) -> None:
    either = assert_type(xentrs.cross_entropy(narrow, target, reduction=reduction), Narrow | float)
    assert type(either) is (np.ndarray if reduction == "none" else float)
    loss, grad = xentrs.log_loss_with_grad(wide, target, reduction=reduction)
    assert_type(loss, Wide | float)
    assert assert_type(grad, Wide).dtype == np.float64


def test_a_partial_call() -> None:
    """For mypy a partial function has the first of the overloads: that of the default reduction."""
    smoothed = functools.partial(xentrs.cross_entropy, label_smoothing=0.1)
    assert type(assert_type(smoothed(narrow, target), float)) is float
    loss, _ = functools.partial(xentrs.log_loss_with_grad, base=2.0)(narrow, target)
    assert type(assert_type(loss, float)) is float


def test_a_denominator_that_numpy_added_up() -> None:
    counted = (np.array(target) > 0).sum()
    assert_type(xentrs.cross_entropy(narrow, target, denominator=counted), float)
    loss, _ = xentrs.log_loss_with_grad(narrow, target, denominator=np.float32(2.0))
    assert type(loss) is float
    with pytest.raises(TypeError, match="denominator"):
        xentrs.cross_entropy(narrow, target, denominator="2")  # type: ignore[call-overload]


def test_class_weights_of_objectives() -> None:
    """A list, as in the documentation, a tuple or an array."""
    objectives = [
        xentrs.xgboost.softmax(weight=[1.0, 5.0]),
        xentrs.xgboost.binary(weight=(1, 5)),
        xentrs.lightgbm.softmax(weight=(1.0, 5.0)),
        xentrs.lightgbm.binary(weight=np.array([1.0, 5.0])),
        xentrs.catboost.softmax(weight=np.array([1, 5])),
        xentrs.catboost.binary(weight=[1, 5]),
    ]
    assert [objective.weight for objective in objectives] == [(1.0, 5.0)] * 6


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="reduction"):
        xentrs.cross_entropy(narrow, target, reduction="average")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="axsi"):
        xentrs.cross_entropy(narrow, target, axsi=1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="out"):
        xentrs.cross_entropy(narrow, target, out=narrow)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="positional"):
        xentrs.log_loss(wide, target, -1)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="base"):
        xentrs.log_loss(wide, target, base="2")  # type: ignore[call-overload]
