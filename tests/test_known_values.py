"""Numbers that are known from elsewhere: from the literature, by hand, from other libraries."""

import math

import numpy as np
import pytest

import xentrs
from losses import every_dtype


def close(expected, dtype=np.float32, digits=None):
    """Match to the digits given, else to the precision of the dtype."""
    return pytest.approx(expected, rel=digits or 8 * float(np.finfo(dtype).eps), abs=0)


@every_dtype
@pytest.mark.parametrize("target", [[0.0, 1.0, 0.0], 1], ids=["probabilities", "index"])
def test_three_class_example(dtype, target):
    q = np.array([0.228, 0.619, 0.153], dtype)
    target = np.array(target, dtype if isinstance(target, list) else int)
    for function, scores in ((xentrs.log_loss, q), (xentrs.cross_entropy, np.log(q))):
        assert function(scores, target) == close(0.47965, digits=1e-5)
        assert function(scores, target) == close(-math.log(0.619), dtype)
        assert function(scores, target, base=2) == close(0.692, digits=1e-3)
        assert function(scores, target, base=2) == close(-math.log2(0.619), dtype)


@every_dtype
def test_true_class_second_or_first_of_five(dtype):
    p = np.array([0.1, 0.5, 0.1, 0.1, 0.2], dtype)
    assert xentrs.log_loss(p, np.array(1)) == close(0.6931, digits=1e-4)
    assert xentrs.log_loss(p, np.array(0)) == close(2.3026, digits=1e-4)
    assert xentrs.log_loss(p, np.array(1)) == close(math.log(2), dtype)
    assert xentrs.log_loss(p, np.array(0)) == close(math.log(10), dtype)
    losses = xentrs.log_loss(np.array([p, p]), np.array([1, 0]), reduction="none")
    np.testing.assert_allclose(losses, [0.6931, 2.3026], rtol=1e-4)


@every_dtype
def test_two_one_tenth(dtype):
    logits = np.array([2.0, 1.0, 0.1], dtype)
    loss, grad = xentrs.cross_entropy_with_grad(logits, np.array(0))
    assert loss == close(0.4170, digits=1e-4)
    p = np.exp([2.0, 1.0, 0.1]) / np.exp([2.0, 1.0, 0.1]).sum()
    np.testing.assert_allclose(grad, p - [1, 0, 0], rtol=1e-6)


@every_dtype
@pytest.mark.parametrize(("p", "loss"), [(0.001, 6.9078), (0.998, 0.0020020)])
def test_price_of_a_prediction(dtype, p, loss):
    assert xentrs.log_loss(np.array([p, 1 - p], dtype), np.array(0)) == close(loss, digits=3e-5)
    logit = np.array(math.log(p / (1 - p)), dtype)
    assert xentrs.binary_cross_entropy_with_logits(logit, 1) == close(loss, digits=3e-5)
    assert xentrs.binary_cross_entropy_with_logits(-logit, 0) == close(loss, digits=3e-5)
    logits = np.array([logit, 0], dtype)
    assert xentrs.cross_entropy(logits, np.array(0)) == close(loss, digits=3e-5)


@pytest.mark.parametrize("repeat", [1, 5, 100])
def test_loss_does_not_depend_on_a_shared_offset(repeat):
    logits = np.array([[0, 1, 2]] * repeat, np.float32) + np.float32(1e7)
    target = np.ones(repeat, int)
    assert xentrs.cross_entropy(logits, target) == close(1.4076, digits=2e-5)
    each, grad = xentrs.cross_entropy_with_grad(logits, target, reduction="none")
    plain = xentrs.cross_entropy_with_grad(logits - np.float32(1e7), target, reduction="none")
    exact = 1 + math.log(sum(math.exp(k - 2) for k in range(3)))
    np.testing.assert_allclose(each, exact, rtol=2.4e-7)
    np.testing.assert_allclose(plain[0], exact, rtol=2.4e-7)
    np.testing.assert_allclose(grad, plain[1], rtol=5e-7)


def test_tiny_loss_keeps_its_digits():
    logits = np.array([[17, 0]], np.float32)
    loss, grad = xentrs.cross_entropy_with_grad(logits, np.array([0]))
    assert loss == close(4.1399e-08, digits=2e-5)
    exact = math.log1p(math.exp(-17))
    assert loss == close(exact, digits=5e-7)
    assert float(grad[0, 0]) == close(-exact, digits=5e-7)
    assert float(grad[0, 1]) == close(exact, digits=5e-7)


@every_dtype
def test_sum_of_the_micro_batches_is_the_batch(dtype):
    """What `denominator` is for, on three micro-batches of unlike sizes."""
    rng = np.random.default_rng(0)
    logits, target = rng.normal(size=(10, 4)).astype(dtype), rng.integers(0, 4, 10)
    target[3] = -100
    whole = xentrs.cross_entropy_with_grad(logits, target)
    parts = [
        xentrs.cross_entropy_with_grad(logits[s], target[s], denominator=9)
        for s in (slice(0, 2), slice(2, 7), slice(7, 10))
    ]
    assert sum(loss for loss, _ in parts) == close(whole[0], dtype)
    np.testing.assert_array_equal(np.concatenate([grad for _, grad in parts]), whole[1])


LOGITS = np.array([[0.5, -1.25, 2.0], [1.5, 0.25, -0.75], [-2.0, 3.0, 0.0], [0.0, 0.0, 1.0]])
TARGET = np.array([2, 0, -100, 1])
WEIGHT = np.array([0.5, 2.0, 1.25])


@every_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("target", [TARGET, np.eye(3)[[2, 0, 0, 1]]], ids=["index", "probability"])
def test_options_by_scipy(dtype, smoothing, weight, target):
    """The contract's formulas in SciPy's words, term by term."""
    special = pytest.importorskip("scipy.special")
    logp = special.log_softmax(LOGITS, axis=1)
    w = np.ones(3) if weight is None else weight
    if target.ndim == 1:
        kept = [(n, y) for n, y in enumerate(target) if y != -100]
        each = {
            n: (1 - smoothing) * w[y] * -logp[n, y] + smoothing / 3 * (w * -logp[n]).sum()
            for n, y in kept
        }
        divisor = sum(w[y] for _, y in kept)
    else:
        q = (1 - smoothing) * target + smoothing / 3
        each = dict(enumerate((w * q * -logp).sum(1)))
        divisor = 4
    options = {"weight": weight, "label_smoothing": smoothing}
    logits = LOGITS.astype(dtype)
    expected = [each.get(n, 0.0) for n in range(4)]
    got = xentrs.cross_entropy(logits, target, reduction="none", **options)
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    total = xentrs.cross_entropy(logits, target, reduction="sum", **options)
    assert total == close(sum(expected), digits=1e-6)
    mean = xentrs.cross_entropy(logits, target, **options)
    assert mean == close(sum(expected) / divisor, digits=1e-6)
