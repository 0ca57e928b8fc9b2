"""The table of edge cases of the contract (semantics, section 3), row by row."""

import itertools

import numpy as np
import pytest

import fuzz
import reference
import xentrs
from losses import (
    BY_ID,
    SUFFIXES,
    assert_same_bits,
    every_class_loss,
    every_dtype,
    every_index_loss,
    every_loss,
)
from xentrs import _xentrs

INF, NAN = np.inf, np.nan
# Class counts of both kernels, with tails and without.
every_count = pytest.mark.parametrize("classes", [2, 3, 8, 10, 16, 64, 65, 100, 1000, 2048])

S = float(np.log(np.exp([0, 1, 2]).sum()))  # logsumexp of 0, 1, 2
A, B, C = (float(v) for v in np.exp([0, 1, 2]) / np.exp([0, 1, 2]).sum())  # softmax of 0, 1, 2
LN2_BITS = np.array([0.5, -0.5]) / np.log(2)

# One sample: function, arguments, options, loss, gradient.
TABLE = {
    "logit -inf, not the target": (
        *("cross_entropy", [0, 1, 2, -INF], 1, {}),
        *(-np.log(B), [A, B - 1, C, 0]),
    ),
    "logit -inf, not the target, given as probability": (
        *("cross_entropy", [0, 1, 2, -INF], [0.0, 1.0, 0.0, 0.0], {}),
        *(-np.log(B), [A, B - 1, C, 0]),
    ),
    "the same, with smoothing": (
        *("cross_entropy", [0, 1, 2, -INF], 1, {"label_smoothing": 0.4}),
        *(INF, [A - 0.1, B - 0.7, C - 0.1, -0.1]),
    ),
    "logit -inf with a weight of 0, with smoothing": (
        "cross_entropy",
        [0, 1, 2, -INF],
        1,
        {"label_smoothing": 0.4, "weight": [1.0, 1.0, 1.0, 0.0]},
        -0.1 * np.log(A) - 0.7 * np.log(B) - 0.1 * np.log(C),
        [0.9 * A - 0.1, 0.9 * B - 0.7, 0.9 * C - 0.1, 0],
    ),
    "logit -inf at the target": (
        *("cross_entropy", [0, 1, 2, -INF], 3, {}),
        *(INF, [A, B, C, -1]),
    ),
    "logit -inf at the target, with factors": (
        "cross_entropy",
        [0, 1, 2, -INF],
        3,
        {"weight": [1.0, 1.0, 1.0, 2.0], "sample_weight": 3.0},
        INF,
        [6 * A, 6 * B, 6 * C, -6],
    ),
    "logit -inf where a probability has weight": (
        *("cross_entropy", [0, 1, 2, -INF], [0.0, 0.5, 0.0, 0.5], {}),
        *(INF, [A, B - 0.5, C, -0.5]),
    ),
    "the only finite logit at the target": (
        *("cross_entropy", [-INF, 5, -INF], 1, {}),
        *(0, [0, 0, 0]),
    ),
    "the only finite logit not at the target": (
        *("cross_entropy", [-INF, 5, -INF], 0, {}),
        *(INF, [-1, 1, 0]),
    ),
    "all logits -inf": ("cross_entropy", [-INF] * 3, 1, {}, NAN, [NAN] * 3),
    "a logit +inf, not the target": ("cross_entropy", [0, 1, INF], 1, {}, NAN, [NAN] * 3),
    "a logit +inf at the target": ("cross_entropy", [0, INF, 1], 1, {}, NAN, [NAN] * 3),
    "+inf and -inf": ("cross_entropy", [INF, -INF, 0], 1, {}, NAN, [NAN] * 3),
    "a NaN, not the target": ("cross_entropy", [0, 1, NAN], 1, {}, NAN, [NAN] * 3),
    "a NaN at the target": ("cross_entropy", [0, NAN, 1], 1, {}, NAN, [NAN] * 3),
    "a NaN where the probability is 0": (
        *("cross_entropy", [0, NAN, 1], [1.0, 0.0, 0.0], {}),
        *(NAN, [NAN] * 3),
    ),
    "NaN and -inf at the target": ("cross_entropy", [-INF, NAN, 1], 0, {}, NAN, [NAN] * 3),
    "one class": ("cross_entropy", [3.5], 0, {}, 0, [0]),
    "one class, smoothing, weight": (
        *("cross_entropy", [-1e9], 0, {"label_smoothing": 0.3, "weight": [7.0]}),
        *(0, [0]),
    ),
    "one class, probability": ("cross_entropy", [3.5], [0.7], {}, 0, [0]),
    "one class, ignored": ("cross_entropy", [3.5], 0, {"ignore_index": 0}, 0, [0]),
    "equal logits": ("cross_entropy", [4.0] * 4, 2, {}, np.log(4), [0.25, 0.25, -0.75, 0.25]),
    "ignored": ("cross_entropy", [0, 1, 2], -100, {}, 0, [0, 0, 0]),
    "ignored, with NaN": ("cross_entropy", [0, NAN, 2], -100, {}, 0, [0, 0, 0]),
    "ignored, with +inf": ("cross_entropy", [0, INF, 2], -100, {}, 0, [0, 0, 0]),
    "ignored, all -inf": ("cross_entropy", [-INF] * 3, -100, {}, 0, [0, 0, 0]),
    "ignored inside the range": (
        *("cross_entropy", [NAN, 1, 2], 1, {"ignore_index": 1}),
        *(0, [0, 0, 0]),
    ),
    "ignored, with smoothing": (
        *("cross_entropy", [-INF, NAN, 2], 1, {"ignore_index": (0, 1), "label_smoothing": 0.5}),
        *(0, [0, 0, 0]),
    ),
    "probabilities that do not sum to 1": (
        *("cross_entropy", [0, 1, 2], [0.0, 2.0, 1.0], {}),
        *(-2 * np.log(B) - np.log(C), [3 * A, 3 * B - 2, 3 * C - 1]),
    ),
    "probabilities all 0": ("cross_entropy", [0, 1, -INF], [0.0, 0.0, 0.0], {}, 0, [0, 0, 0]),
    "z-loss": (
        *("cross_entropy", [0, 1, 2], 1, {"z_loss": 0.1}),
        *(-np.log(B) + 0.1 * S**2, [A, B - 1, C] + 0.2 * S * np.array([A, B, C])),
    ),
    "z-loss, class weights do not touch it": (
        *("cross_entropy", [0, 1, 2], 1, {"z_loss": 0.1, "weight": [1.0, 3.0, 1.0]}),
        *(-3 * np.log(B) + 0.1 * S**2, np.array([A, B, C]) * (3 + 0.2 * S) - [0, 3, 0]),
    ),
    "z-loss, smoothing does not touch it": (
        *("cross_entropy", [0, 1, 2], 1, {"z_loss": 0.1, "label_smoothing": 1.0}),
        *(S - 1 + 0.1 * S**2, np.array([A, B, C]) * (1 + 0.2 * S) - 1 / 3),
    ),
    "z-loss, probabilities, sample weight": (
        *("cross_entropy", [0, 1, 2], [0.0, 2.0, 0.0], {"z_loss": 0.1, "sample_weight": 5.0}),
        *(5 * (-2 * np.log(B) + 0.1 * S**2), 5 * (np.array([A, B, C]) * (2 + 0.2 * S) - [0, 2, 0])),
    ),
    "z-loss, in bits": (
        *("cross_entropy", [0, 1, 2], 1, {"z_loss": 0.1, "base": 2}),
        (-np.log(B) + 0.1 * S**2) / np.log(2),
        ([A, B - 1, C] + 0.2 * S * np.array([A, B, C])) / np.log(2),
    ),
    "z-loss, logit -inf, not the target": (
        *("cross_entropy", [0, 1, 2, -INF], 1, {"z_loss": 0.1}),
        *(-np.log(B) + 0.1 * S**2, [*(np.array([A, B, C]) * (1 + 0.2 * S) - [0, 1, 0]), 0]),
    ),
    "z-loss, logit -inf at the target": (
        *("cross_entropy", [0, 1, 2, -INF], 3, {"z_loss": 0.1}),
        *(INF, [*(np.array([A, B, C]) * (1 + 0.2 * S)), -1]),
    ),
    "z-loss, one class": ("cross_entropy", [-3.0], 0, {"z_loss": 0.5}, 4.5, [-3.0]),
    "z-loss, one class, offset": ("cross_entropy", [1e7], 0, {"z_loss": 0.5}, 5e13, [1e7]),
    "z-loss, ignored": ("cross_entropy", [2.0, NAN], -100, {"z_loss": 0.5}, 0, [0, 0]),
    "z-loss, class weight 0": (
        *("cross_entropy", [2.0, 1.0], 0, {"z_loss": 0.5, "weight": [0.0, 1.0]}),
        *(0, [0, 0]),
    ),
    "z-loss, sample weight 0": (
        *("cross_entropy", [2.0, INF], 0, {"z_loss": 0.5, "sample_weight": 0.0}),
        *(0, [0, 0]),
    ),
    "z-loss, NaN": ("cross_entropy", [0, NAN], 0, {"z_loss": 0.5}, NAN, [NAN, NAN]),
    "z-loss, +inf": ("cross_entropy", [0, INF], 0, {"z_loss": 0.5}, NAN, [NAN, NAN]),
    "z-loss, all -inf": ("cross_entropy", [-INF, -INF], 0, {"z_loss": 0.5}, NAN, [NAN, NAN]),
    "focal, half": (
        *("focal_loss", [0.0, 0.0], 1, {}),
        *(np.log(2) / 4, np.array([0.5, -0.5]) * (0.25 + np.log(2) / 2)),
    ),
    "focal, half, gamma 1, weights": (
        *("focal_loss", [0.0, 0.0], 1, {"gamma": 1, "weight": [1.0, 3.0], "sample_weight": 2.0}),
        *(3 * np.log(2), np.array([3, -3]) * (0.5 + np.log(2) / 2)),
    ),
    "focal, half, in bits": ("focal_loss", [0.0, 0.0], 1, {"gamma": 0, "base": 2}, 1, LN2_BITS),
    "focal, logit -inf at the target": (
        *("focal_loss", [0, 1, 2, -INF], 3, {"gamma": 0.5}),
        *(INF, [A, B, C, -1]),
    ),
    "focal, logit -inf at the target, with factors": (
        "focal_loss",
        [0, 1, 2, -INF],
        3,
        {"weight": [1.0, 1.0, 1.0, 2.0], "sample_weight": 3.0},
        INF,
        [6 * A, 6 * B, 6 * C, -6],
    ),
    "focal, p 1, gamma below 1": ("focal_loss", [0, -INF], 0, {"gamma": 0.5}, 0, [0, 0]),
    "focal, p 1, gamma 0": ("focal_loss", [0, -INF], 0, {"gamma": 0}, 0, [0, 0]),
    "focal, p 1, gamma above 1": ("focal_loss", [0, -INF], 0, {"gamma": 3}, 0, [0, 0]),
    "focal, p next to 1, gamma below 1": (
        *("focal_loss", [40.0, 0.0], 0, {"gamma": 0.5}),
        *(np.exp(-60.0), [-1.5 * np.exp(-60.0), 1.5 * np.exp(-60.0)]),
    ),
    "focal, p next to 1, gamma far below 1": (
        *("focal_loss", [80.0, 0.0], 0, {"gamma": 2.0**-7}),
        *(np.exp(-80.625), [-1.0078125 * np.exp(-80.625), 1.0078125 * np.exp(-80.625)]),
    ),
    "focal, one class": ("focal_loss", [3.0], 0, {"gamma": 0.5}, 0, [0]),
    "focal, ignored": ("focal_loss", [NAN, INF], -100, {}, 0, [0, 0]),
    "focal, class weight 0": ("focal_loss", [INF, 0], 0, {"weight": [0.0, 1.0]}, 0, [0, 0]),
    "focal, NaN": ("focal_loss", [0, NAN], 0, {}, NAN, [NAN, NAN]),
    "focal, +inf": ("focal_loss", [0, INF], 1, {}, NAN, [NAN, NAN]),
    "focal, all -inf": ("focal_loss", [-INF, -INF], 1, {}, NAN, [NAN, NAN]),
    "generalized, half": (
        *("generalized_cross_entropy", [0.0, 0.0], 1, {"q": 0.5}),
        *(2 - np.sqrt(2), np.array([0.5, -0.5]) * np.sqrt(0.5)),
    ),
    "generalized, q 1, weights": (
        "generalized_cross_entropy",
        [0.0, 0.0],
        1,
        {"q": 1, "weight": [1.0, 3.0], "sample_weight": 2.0},
        3,
        [1.5, -1.5],
    ),
    "generalized, logit -inf at the target": (
        *("generalized_cross_entropy", [0, 1, 2, -INF], 3, {}),
        *(1 / 0.7, [0, 0, 0, 0]),
    ),
    "generalized, logit -inf at the target, with factors": (
        "generalized_cross_entropy",
        [0, 1, 2, -INF],
        3,
        {"q": 0.25, "weight": [1.0, 1.0, 1.0, 2.0], "sample_weight": 3.0},
        24,
        [0, 0, 0, 0],
    ),
    "generalized, p far below 1": (
        *("generalized_cross_entropy", [0.0, 200.0], 0, {"q": 0.05}),
        *(20 * -np.expm1(-10.0), [-np.exp(-10.0), np.exp(-10.0)]),
    ),
    "generalized, p next to 1": (
        *("generalized_cross_entropy", [40.0, 0.0], 0, {}),
        *(np.exp(-40.0), [-np.exp(-40.0), np.exp(-40.0)]),
    ),
    "generalized, p 1": ("generalized_cross_entropy", [0, -INF], 0, {}, 0, [0, 0]),
    "generalized, one class": ("generalized_cross_entropy", [3.0], 0, {}, 0, [0]),
    "generalized, ignored": ("generalized_cross_entropy", [NAN, INF], -100, {}, 0, [0, 0]),
    "generalized, NaN": ("generalized_cross_entropy", [0, NAN], 0, {}, NAN, [NAN, NAN]),
    "generalized, +inf": ("generalized_cross_entropy", [0, INF], 1, {}, NAN, [NAN, NAN]),
    "generalized, all -inf": ("generalized_cross_entropy", [-INF, -INF], 1, {}, NAN, [NAN, NAN]),
    "poly, half": ("poly_loss", [0.0, 0.0], 1, {}, np.log(2) + 0.5, [0.75, -0.75]),
    "poly, epsilon -1, weights": (
        *("poly_loss", [0.0, 0.0], 1, {"epsilon": -1, "weight": [1.0, 3.0], "sample_weight": 2.0}),
        *(6 * np.log(2) - 3, [1.5, -1.5]),
    ),
    "poly, logit -inf at the target": (
        *("poly_loss", [0, 1, 2, -INF], 3, {"epsilon": 7.0}),
        *(INF, [A, B, C, -1]),
    ),
    "poly, p next to 1": (
        *("poly_loss", [40.0, 0.0], 0, {"epsilon": 2.0}),
        *(3 * np.exp(-40.0), [-3 * np.exp(-40.0), 3 * np.exp(-40.0)]),
    ),
    "poly, p 1": ("poly_loss", [0, -INF], 0, {}, 0, [0, 0]),
    "poly, one class": ("poly_loss", [3.0], 0, {}, 0, [0]),
    "poly, ignored": ("poly_loss", [NAN, INF], -100, {}, 0, [0, 0]),
    "poly, NaN": ("poly_loss", [0, NAN], 0, {}, NAN, [NAN, NAN]),
    "poly, +inf": ("poly_loss", [0, INF], 1, {}, NAN, [NAN, NAN]),
    "poly, all -inf": ("poly_loss", [-INF, -INF], 1, {}, NAN, [NAN, NAN]),
    "smoothing of 1": (
        *("cross_entropy", [0, 1, 2], 0, {"label_smoothing": 1.0}),
        *(-np.log(A * B * C) / 3, [A - 1 / 3, B - 1 / 3, C - 1 / 3]),
    ),
    "log_loss, 0 at the target": ("log_loss", [0.0, 1.0], 0, {}, INF, [-INF, 0]),
    "log_loss, 0 elsewhere": ("log_loss", [0.0, 0.5], 1, {}, np.log(2), [0, -2]),
    "log_loss, 1 at the target": ("log_loss", [0.0, 1.0], 1, {}, 0, [0, -1]),
    "log_loss, 0 log 0": ("log_loss", [0.0, 0.5], [0.0, 1.0], {}, np.log(2), [0, -2]),
    "log_loss, 0 with weight 0": (
        *("log_loss", [0.0, 0.5], 1, {"weight": [0.0, 1.0], "label_smoothing": 0.5}),
        *(0.75 * np.log(2), [0, -1.5]),
    ),
    "log_loss, 0 and smoothing": (
        *("log_loss", [0.0, 0.5], 1, {"label_smoothing": 0.5}),
        *(INF, [-INF, -1.5]),
    ),
    "log_loss, one class": ("log_loss", [0.25], 0, {}, np.log(4), [-4]),
    "log_loss, ignored": ("log_loss", [0.0, 1.0], -100, {}, 0, [0, 0]),
    "log_loss, ignored, with NaN": ("log_loss", [NAN, INF], -100, {}, 0, [0, 0]),
    "log_loss, rows need not sum to 1": ("log_loss", [1.0, 1.0], [0.5, 0.5], {}, 0, [-0.5, -0.5]),
    "nll_loss, -inf and NaN elsewhere": ("nll_loss", [-INF, -0.5, NAN], 1, {}, 0.5, [0, -1, 0]),
    "nll_loss, -inf at the target": ("nll_loss", [-INF, 0.0], 0, {}, INF, [-1, 0]),
    "nll_loss, above 0": ("nll_loss", [2.0, 0.0], 0, {}, -2, [-1, 0]),
    "nll_loss, one class": ("nll_loss", [-3.0], 0, {}, 3, [-1]),
    "nll_loss, 0 log 0": ("nll_loss", [-INF, -0.5], [0.0, 1.0], {}, 0.5, [0, -1]),
    "binary_cross_entropy, 0 and false": ("binary_cross_entropy", 0.0, 0.0, {}, 0, 1),
    "binary_cross_entropy, 1 and true": ("binary_cross_entropy", 1.0, 1.0, {}, 0, -1),
    "binary_cross_entropy, 0 and true": ("binary_cross_entropy", 0.0, 1.0, {}, INF, -INF),
    "binary_cross_entropy, 1 and false": ("binary_cross_entropy", 1.0, 0.0, {}, INF, INF),
    "binary_cross_entropy, NaN that does not count": (
        *("binary_cross_entropy", NAN, 1.0, {"where": False}),
        *(0, 0),
    ),
    "sigmoid_focal_loss, +inf and true": ("sigmoid_focal_loss", INF, 1.0, {}, 0, 0),
    "sigmoid_focal_loss, -inf and true": ("sigmoid_focal_loss", -INF, 1.0, {}, INF, -1),
    "sigmoid_focal_loss, +inf and false": (
        *("sigmoid_focal_loss", INF, 0.0, {"alpha": 0.25}),
        *(INF, 0.75),
    ),
    "sigmoid_focal_loss, NaN": ("sigmoid_focal_loss", NAN, 1.0, {}, NAN, NAN),
    "binary, +inf and true": ("binary", INF, 1.0, {}, 0, 0),
    "binary, -inf and false": ("binary", -INF, 0.0, {}, 0, 0),
    "binary, +inf and false": ("binary", INF, 0.0, {}, INF, 1),
    "binary, -inf and true": ("binary", -INF, 1.0, {}, INF, -1),
    "binary, -inf and true, with factors": (
        *("binary", -INF, 1.0, {"weight": 2.0, "pos_weight": 3.0}),
        *(INF, -6),
    ),
    "binary, +inf and soft": ("binary", INF, 0.25, {}, INF, 0.75),
    "binary, -inf and soft": ("binary", -INF, 0.25, {}, INF, -0.25),
    "binary, +inf, true and smoothing": (
        *("binary", INF, 1.0, {"label_smoothing": 0.5}),
        *(INF, 0.25),
    ),
    "binary, NaN": ("binary", NAN, 1.0, {}, NAN, NAN),
    "binary, NaN that does not count": ("binary", NAN, 1.0, {"where": False}, 0, 0),
    "binary, 0": ("binary", 0.0, 1.0, {}, np.log(2), -0.5),
}
NAMES = {"binary": "binary_cross_entropy_with_logits"}


@every_dtype
@pytest.mark.parametrize("row", TABLE.values(), ids=TABLE)
def test_table(row, dtype):
    """Each row alone, and repeated to a batch of every small size."""
    name, scores, target, options, loss, grad = row
    name = NAMES.get(name, name)
    orders = range(_xentrs.LOSSES[name]["derivatives"] + 1)
    functions = [getattr(xentrs, name + SUFFIXES[order]) for order in orders]
    scores, target = np.array(scores, dtype), np.asarray(target)
    options = dict(options)
    for batch in (None, 1, 2, 15, 16, 17, 33):
        given = dict(options)
        x, t = scores, target
        if batch:
            x, t = np.array([x] * batch), np.array([t] * batch)
            for key in ("sample_weight", "where"):
                if key in given:
                    given[key] = np.full(batch, given[key])
        expected = np.full(x.shape[: x.ndim - np.ndim(grad)], loss)
        expected_grad = np.broadcast_to(grad, x.shape)
        each, *_ = results = functions[-1](x, t, reduction="none", **given)
        rtol = 8 * np.finfo(dtype).eps
        np.testing.assert_allclose(each, expected, rtol=rtol)
        np.testing.assert_allclose(results[1], expected_grad, rtol=rtol, atol=rtol / 8)
        exact = expected_grad == 0
        assert np.all(results[1][exact] == 0)
        assert all(np.all(np.isnan(row) == np.isnan(expected_grad)) for row in results[2:])
        assert each.dtype == dtype
        assert isinstance(each, np.ndarray)
        right = getattr(reference, name)(x, t, reduction="none", **given)
        np.testing.assert_allclose(each, right.loss.astype(dtype), rtol=rtol)
        for row, (exact_row, _) in zip(results[1:], right.derivatives, strict=True):
            np.testing.assert_allclose(row, exact_row.astype(dtype), rtol=rtol, atol=rtol)
        assert_same_bits(functions[1](x, t, reduction="none", **given), results[:2])
        assert_same_bits(functions[0](x, t, reduction="none", **given), each)
        total = functions[0](x, t, reduction="sum", **given)
        assert type(total) is float
        np.testing.assert_allclose(total, expected.sum(), rtol=rtol)


def _all_ignored(loss, shape, dtype, rng):
    case = loss.case(rng, shape, dtype)
    if loss.indices:
        return case.but(target=np.full(shape[:-1], -100))
    if not loss.class_axis:
        return case.but(where=np.zeros(shape, bool))
    return case.but(sample_weight=np.zeros(shape[:-1], dtype))  # how probabilities are left out


@every_dtype
@every_loss
@pytest.mark.parametrize("shape", [(1, 3), (20, 3), (3, 100), (2, 2, 5)], ids=str)
@pytest.mark.parametrize("poison", [0.5, NAN, INF, -INF])
def test_all_ignored(loss, shape, poison, dtype, rng):
    case = _all_ignored(loss, shape, dtype, rng)
    _assert_nothing(case.but(scores=np.full(shape, poison, dtype)))


@every_dtype
@every_loss
@pytest.mark.parametrize("shape", [(0, 3), (0, 100), (2, 0, 5), (0, 1)], ids=str)
def test_no_sample(loss, shape, dtype, rng):
    _assert_nothing(loss.case(rng, shape, dtype))


def _assert_nothing(case):
    dtype, shape = case.scores.dtype, case.scores.shape
    zeros = (np.zeros(shape, dtype),) * case.loss.derivatives
    each = shape[:-1] if case.loss.class_axis else shape
    values = {"weight": np.full(shape[-1], 2, dtype)}
    values |= {"base": 2, "label_smoothing": 0.5, "z_loss": 0.1, "gamma": 0.5, "q": 0.5}
    values["epsilon"] = -0.5
    several = [{name: value} for name, value in values.items() if name in case.loss.options]
    several.append({})
    for options in several:
        value, *rows = case.all(**options)
        assert type(value) is float
        assert np.isnan(value)
        assert np.isnan(case.call(0, **options))
        assert_same_bits(tuple(rows), zeros)  # exactly 0, and not -0 either
        assert_same_bits(case.all(denominator=5.0, **options), (0.0, *zeros))
        assert_same_bits(case.all(reduction="sum", **options), (0.0, *zeros))
        none = case.all(reduction="none", **options)
        assert_same_bits(none, (np.zeros(each, dtype), *zeros))


def test_no_sample_as_empty_lists():
    assert np.isnan(xentrs.cross_entropy(np.zeros((0, 3)), []))


@every_dtype
@every_index_loss
@every_count
def test_ignored_samples_leave_no_trace(loss, classes, dtype, rng):
    """Whatever ignored rows hold, other rows and the mean are as if they were not there."""
    samples = 50
    case = loss.case(rng, (samples, classes), dtype, reduction="none")
    ignored = rng.random(samples) < 0.4
    target = np.where(ignored, -100, case.target)
    without = case.take(~ignored)
    for poison in (NAN, INF, -INF, 3e38, 7.0):
        scores = np.where(ignored[:, None], dtype(poison), case.scores)
        got = case.but(scores=scores, target=target)
        for a, b in zip(got.all(), without.all(), strict=True):
            assert_same_bits(a[~ignored], b)
            assert not a[ignored].any()
        for reduction in ("mean", "sum"):
            a, b = got.both(reduction=reduction), without.both(reduction=reduction)
            np.testing.assert_allclose(a[0], b[0], rtol=1e-14)
            eps = np.finfo(dtype).eps
            np.testing.assert_allclose(a[1][~ignored], b[1], rtol=2 * eps, atol=0)
            assert not a[1][ignored].any()


@every_dtype
@every_count
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"weighted": 1}], ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["indices", "probabilities"])
def test_nan_leaks_to_nobody(soft, options, classes, dtype, rng):
    """A bad logit at any place of the row makes its sample NaN, and no other's bits change."""
    loss = BY_ID["cross_entropy-probabilities" if soft else "cross_entropy-indices"]
    samples = max(3, 1100 // classes)  # the first kernel's block is about 1024 elements
    names = {"weight", "sample_weight"} if "weighted" in options else ()
    options = {k: v for k, v in options.items() if k != "weighted"}
    case = loss.case(rng, (samples, classes), dtype, names, reduction="none", **options)
    clean = case.all()
    rows = sorted({0, 1, samples // 2, samples - 1})
    columns = sorted({0, 1, classes // 2, classes - 1})
    for bad, row, column in itertools.product((NAN, INF), rows, columns):
        scores = case.scores.copy()
        scores[row, column] = bad
        _assert_only_nan(case.but(scores=scores).all(), clean, row)
    for row in rows:
        scores = case.scores.copy()
        scores[row] = -INF
        _assert_only_nan(case.but(scores=scores).all(), clean, row)
        assert np.isnan(case.but(scores=scores).call(0, reduction="mean"))


def _assert_only_nan(results, clean, row):
    others = np.arange(len(clean[0])) != row
    for a, b in zip(results, clean, strict=True):
        assert np.all(np.isnan(a[row]))
        assert_same_bits(a[others], b[others])


@every_dtype
@every_count
def test_infinite_loss_leaks_to_nobody(classes, dtype, rng):
    loss = BY_ID["cross_entropy-indices"]
    samples = max(3, 1100 // classes)
    case = loss.case(rng, (samples, classes), dtype, reduction="none")
    clean = case.all()
    for row in (0, samples // 2, samples - 1):
        scores = case.scores.copy()
        scores[row, case.target[row]] = -INF
        each, grad, hess = case.but(scores=scores).all()
        assert each[row] == INF
        assert grad[row, case.target[row]] == -1
        assert hess[row, case.target[row]] == 0
        np.testing.assert_allclose(grad[row].sum(), 0, atol=1e-5)
        others = np.arange(samples) != row
        for a, b in zip((each, grad, hess), clean, strict=True):
            assert_same_bits(a[others], b[others])
        assert case.but(scores=scores).call(0, reduction="mean") == INF


@every_dtype
@every_count
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masked_classes(classes, smoothing, dtype, rng):
    """Classes masked with -inf: no gradient, no loss; the rest as if they were not there."""
    loss = BY_ID["cross_entropy-indices"]
    case = loss.case(rng, (30, classes), dtype, reduction="none", label_smoothing=smoothing)
    masked = rng.random(case.scores.shape) < 0.5
    masked[np.arange(30), case.target] = False
    masked[:, classes // 2] |= case.target != classes // 2  # at least one, where possible
    scores = np.where(masked, dtype(-INF), case.scores)
    each, grad, hess = case.but(scores=scores).all()
    right = case.but(scores=scores).reference()
    if smoothing:
        assert np.all(np.isinf(each) == masked.any(-1))
        assert np.all(grad[masked] < 0)
    else:
        assert np.all(np.isfinite(each))
        assert np.all(grad[masked] == 0)
    assert np.all(hess[masked] == 0)
    rtol = 8 * np.finfo(dtype).eps
    np.testing.assert_allclose(each, right.loss.astype(float), rtol=rtol)
    np.testing.assert_allclose(grad, right.grad.astype(float), rtol=rtol, atol=rtol)


@every_dtype
@every_class_loss
def test_one_sample_without_a_batch(loss, dtype, rng):
    """Logits of shape (C,): a 0-d target, or a Python int; scalar losses."""
    case = loss.case(rng, (1, 5), dtype)
    one = case.but(scores=case.scores[0], target=case.target[0])
    value, grad = one.both()
    assert type(value) is float
    assert grad.shape == (5,)
    assert value == case.call(0)
    each, grad = one.both(reduction="none")
    assert isinstance(each, np.ndarray)
    assert each.shape == ()
    assert each.dtype == dtype
    if loss.indices:
        for target in (int(case.target[0]), np.int8(case.target[0]), np.array(case.target[0])):
            assert one.but(target=target).call(0) == value
        assert one.but(target=np.array(case.target[0])).call(0, sample_weight=2.0) == value


@every_dtype
def test_binary_of_one_number(dtype):
    value, grad = xentrs.binary_cross_entropy_with_logits_with_grad(dtype(0), 1)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    assert type(value) is float
    assert grad.shape == ()
    assert grad.dtype == dtype
    assert grad == -0.5


@every_dtype
def test_binary_pos_weight_and_where_by_hand(dtype):
    x = np.array([[0.0, 0.0], [0.0, 0.0]], dtype)
    t = np.array([[1, 0], [1, 0]])
    where = np.array([[True, True], [False, True]])
    value, grad = xentrs.binary_cross_entropy_with_logits_with_grad(
        x, t, pos_weight=[3.0, 1.0], where=where
    )
    np.testing.assert_allclose(value, 5 * np.log(2) / 3, rtol=1e-6)
    np.testing.assert_allclose(grad, np.array([[-1.5, 0.5], [0, 0.5]]) / 3, rtol=1e-6)


@pytest.mark.parametrize("classes", [3, 10, 300])
@pytest.mark.parametrize("scale", [1e30, 1e34])
@pytest.mark.parametrize(
    ("name", "options", "true_logit"),
    [
        ("generalized_cross_entropy", {"q": 0.3}, -300.0),
        ("generalized_cross_entropy", {"q": 0.7}, -200.0),
        ("focal_loss", {"gamma": 7.0}, 12.0),
        ("poly_loss", {"epsilon": -1.0}, 35.0),
    ],
)
def test_tiny_slope_times_a_large_scale(name, options, true_logit, scale, classes):
    """A derivative in `-log p` far below float32 costs a gradient in its range no digit."""
    logits = np.linspace(-1, 1, 20 * classes, dtype=np.float32).reshape(20, classes)
    logits[:, 1] = true_logit
    function = getattr(xentrs, f"{name}_with_grad")
    options = {"denominator": 1 / scale, **options}
    _, grad = function(logits, np.ones(20, int), **options)
    _, exact = function(logits.astype(np.float64), np.ones(20, int), **options)
    normal = abs(exact) >= np.finfo(np.float32).tiny
    assert normal.any()
    np.testing.assert_allclose(grad[normal], exact[normal], rtol=3e-7)


@every_dtype
def test_denominator_zero_and_sum_of_weights(dtype):
    """A denominator of 0 is allowed, and gives what division gives."""
    logits, target = np.zeros((2, 3), dtype), np.array([0, 1])
    assert xentrs.cross_entropy(logits, target, denominator=0) == INF
    assert xentrs.cross_entropy(logits, target, denominator=INF) == 0
    assert np.isnan(xentrs.cross_entropy(logits, target, sample_weight=np.zeros(2, dtype)))


@every_dtype
@pytest.mark.parametrize("gap", [3.0, 20.0, 60.0])
@pytest.mark.parametrize("classes", [2, 10, 256])
def test_smoothing_where_only_a_likely_class_has_weight(classes, gap, dtype):
    """The loss is then that of this class alone, however small, though another is the target."""
    x = np.zeros((3, classes), dtype)
    x[:, 1] = gap
    weight = np.zeros(classes, dtype)
    weight[1] = 2.0
    options = {"weight": weight, "label_smoothing": 0.5, "reduction": "none"}
    losses, grad = xentrs.cross_entropy_with_grad(x, [0, classes - 1, 0], **options)
    # With two classes, class 1 is the target of the second row.
    factor = 2.0 * np.array([0.5, 0.5 + (classes == 2) * classes / 2, 0.5]) / classes
    rest = (classes - 1) * np.exp(-gap)
    np.testing.assert_allclose(losses, factor * np.log1p(rest), rtol=4 * np.finfo(dtype).eps)
    # Its gradient is the difference of two terms of this size.
    error = np.abs(grad[:, 1] + factor * rest / (1 + rest))
    assert (error <= 4 * np.finfo(dtype).eps * factor).all()


# What `make test-random` found, each as the smallest call that showed it: function, logits or
# probabilities, target, options, and the exception if the call must raise. Comments name the rule.
BINARY = "binary_cross_entropy_with_logits"
SOFT = np.array([[0.25, 0.75], [0.5, 0.5]])
FOUND = {
    # A sample of weight 0 counts for nothing.
    "weight 0, logits -inf at the class": (
        *("cross_entropy", [[-INF, 0], [0, 0]], [0, 0], {"sample_weight": np.array([0, 1])}),
    ),
    "weight 0, logits NaN, probabilities as target": (
        *("cross_entropy", [[NAN, 1], [0, 1]], SOFT, {"sample_weight": np.array([0.0, 2.0])}),
    ),
    "weight 0, all logits -inf, smoothing": (
        "cross_entropy",
        *([[-INF, -INF], [0, 1]], [0, 1]),
        {"sample_weight": np.array([0, 2]), "label_smoothing": 0.5},
    ),
    "weight 0, target NaN": (
        *("cross_entropy", [[2, 1], [0, 1]], [[NAN, 0.0], [0.5, 0.5]]),
        {"sample_weight": np.array([0.0, 2.0])},
    ),
    "no sample of any weight": (
        *("cross_entropy", [[0.5, 1.0]], [[0.5, 0.5]], {"sample_weight": np.array([0.0])}),
    ),
    "no sample of any weight, class index": (
        *("cross_entropy", [[0.5, 1.0]], [1], {"sample_weight": np.array([0.0])}),
    ),
    "class weight 0 at the class, logits NaN": (
        *("cross_entropy", [[NAN, 1], [0, 1]], [0, 1], {"weight": np.array([0.0, 2.0])}),
    ),
    "weight 0, base below 1": (
        *("cross_entropy", [[INF, 1], [0, 1]], [0, 1]),
        {"sample_weight": np.array([0, 1]), "base": 0.5},
    ),
    "log_loss, weight 0, probability 0 at the class": (
        *("log_loss", [[0.0, 1], [0.5, 0.5]], [0, 0], {"sample_weight": np.array([0, 1])}),
    ),
    "log_loss, weight 0, target infinite": (
        *("log_loss", [[0.5, 0.5], [0.25, 0.75]], [[INF, 0.0], [0.5, 0.5]]),
        {"sample_weight": np.array([0, 3])},
    ),
    "log_loss, weight 0, probabilities NaN": (
        *("log_loss", [[NAN, 2.0], [0.25, 0.75]], SOFT, {"sample_weight": np.array([0, 3])}),
    ),
    "binary, weight 0, logit NaN": (
        *(BINARY, [NAN, 10.0], [0.0, 1.0], {"weight": np.array([0.0, 2.0])}),
    ),
    "binary, weight 0, label NaN": (
        *(BINARY, [-INF, 10.0], [NAN, 1.0], {"weight": np.array([0, 1], "u1")}),
    ),
    "binary, does not count, logit and label NaN": (
        *(BINARY, [NAN, 10.0], [NAN, 1.0], {"where": np.array([False, True])}),
    ),
    # Labels and weights of a wider type are used as they are.
    "binary, label next to 1": (BINARY, [20.0, 100.0, 1810.0], [0.999999, 1 - 1e-9, 1 - 2e-8], {}),
    "binary, weights beyond float32": (
        *(BINARY, [0.5, -1.0], [1, 0], {"weight": np.array([1e39, 1.0])}),
    ),
    "binary, positive weight beyond float32": (
        *(BINARY, [0.5, -1.0], [1, 0], {"pos_weight": np.array([1e39, 1.0])}),
    ),
    "binary, large weights": (
        *(BINARY, [0.0, 1.0, -2.0, 5.0, -30.0, 40.0, 90.0], [0, 1, 1, 1, 0.25, 0, 1]),
        {"weight": np.array([2e19, 1e25, 1e30, 1e37, 1e30, 1e20, 1e30], "f4")},
    ),
    "binary, large positive weights": (
        *(BINARY, [0.0, 1.0, -2.0, 5.0, -30.0], [1, 1, 0.5, 1, 0.25]),
        {"pos_weight": np.array([2e19, 1e25, 1e30, 1e37, 1e30], "f4")},
    ),
    "class weights beyond float32": (
        *("cross_entropy", [[0.5, 0]], [[0.5, 0.5]], {"weight": np.array([2.7e39, 6.8e38])}),
    ),
    "log_loss, probability 0 where the target is below float32": (
        *("log_loss", [[0.0, 0.5]], [[1e-100, 1.0]], {}),
    ),
    "log_loss, a sample weight below float32": (
        *("log_loss", [[1e-25, 0.5], [0.5, 0.5]], [0, 1]),
        {"sample_weight": np.array([3.65e-39, 7e-39])},
    ),
    "log_loss, a sample weight below float32, probabilities": (
        *("log_loss", [[1e-25, 0.5]], [[0.25, 0.75]], {"sample_weight": np.array([-3.65e-39])}),
    ),
    "class weights below float32": (
        *("log_loss", [[1e-25, 0.5]], [0], {"weight": np.array([3.65e-39, 1.0])}),
    ),
    # Sums that become a Python float are float64 throughout.
    "binary, sum beyond float32": (BINARY, np.full(17, 3e38), np.zeros(17), {}),
    "binary, a loss beyond float32": (BINARY, [3e38], [0], {"weight": np.array([2])}),
    "binary, a loss beyond float32 in nats only": (
        *(BINARY, [3e38, -1.0], [0, 1], {"weight": np.array([2.0, 1.0]), "base": 10}),
    ),
    "probabilities as target, a loss beyond float32": (
        *("cross_entropy", [[-3.4e38, 3.4e38]], [[1.0, 0.0]], {}),
    ),
    "smoothing, a logit beyond float32 below": (
        *("cross_entropy", [[-3.4e38, 3.4e35]], [1], {"label_smoothing": 0.5}),
    ),
    "log_loss, a loss beyond float32": ("log_loss", [[0.1, 0.9]], [[3e38, 3e38]], {}),
    # Outputs in place.
    "hess_out in place, class index": ("log_loss", [[0.25, 0.5]], [1], {"hess_out": "x"}),
    "hess_out in place, probabilities": (
        "log_loss",
        [[0.25, 0.5]],
        [[0.5, 0.5]],
        {"hess_out": "x"},
    ),
    "hess_out in place, softmax": ("cross_entropy", [[0.25, 0.5]], [1], {"hess_out": "x"}),
    "hess_out in place, binary": (BINARY, [0.25, 0.5], [1, 0], {"hess_out": "x"}),
    # Which targets are class indices, probabilities or one-hot.
    "labels as whole floats": (
        "cross_entropy",
        [[0.25, 0.5]] * 3,
        np.array([0, 1, -100], "f4"),
        {},
    ),
    "labels as whole floats, probabilities": ("log_loss", [[0.25, 0.5]], np.array([1.0]), {}),
    "labels as floats, a fraction": ("cross_entropy", [[0.25, 0.5]], [0.5], {}, ValueError),
    "labels as floats, NaN": ("log_loss", [[0.25, 0.5]], [NAN], {}, ValueError),
    "labels as floats, outside": ("cross_entropy", [[0.25, 0.5]], [2.0], {}, IndexError),
    "margins with labels": ("cross_entropy", [2.0, -1.0, 3.0], [1, 0, 1], {}, ValueError),
    "probabilities with labels": ("log_loss", [0.1, 0.9, 0.8], [0, 1, 1], {}, ValueError),
    "a row of no class": (
        *("cross_entropy", [[2.0, -1.0], [0, 1]], [[1, 0], [0, 0]], {}, ValueError),
    ),
    "a row of bools of two classes": (*("log_loss", [[0.5, 0.5]], [[True, True]], {}, ValueError),),
    # log_loss reads only the probabilities that count.
    "log_loss, anything beside the class": ("log_loss", [[2.0, 0.5], [0.5, NAN]], [1, 0], {}),
    "log_loss, outside at the class": ("log_loss", [[2.0, 0.5]], [0], {}, ValueError),
    "log_loss, outside beside the class, smoothing": (
        *("log_loss", [[2.0, 0.5]], [1], {"label_smoothing": 0.1}, ValueError),
    ),
    # The binary loss.
    "binary, little smoothing keeps its digits": (
        *(BINARY, [32.97, 88.0, INF], [1, 1, 1], {"label_smoothing": 1e-9}),
    ),
    "binary, labels outside [0, 1]": (
        *(BINARY, [1e30, INF, -98.5, -88.137], np.array([1.0561, 1.0553, -0.0607, 2.0], "f4"), {}),
    ),
    "binary, labels outside [0, 1], smoothing": (
        *(BINARY, [1e30, INF, -98.5], np.array([1.0561, 1.0553, -0.0607], "f4")),
        {"label_smoothing": 0.1},
    ),
    "binary, a mean of an infinite number": (
        *(BINARY, [-1.6e-5, 3.0], [1, 0], {"denominator": INF}),
    ),
}


@every_dtype
@pytest.mark.parametrize("found", FOUND.values(), ids=FOUND)
def test_found(found, dtype):
    """By every twin and reduction; `fuzz.check` says what a call must satisfy."""
    name, scores, target, given, *exceptions = found
    for suffix, reduction in itertools.product(fuzz.suffixes(name), ("mean", "sum", "none")):
        x = np.array(scores, dtype)
        options = {key: x if isinstance(value, str) else value for key, value in given.items()}
        if suffix != "_with_grad_hess":
            options.pop("hess_out", None)
        options["reduction"] = reduction
        call = fuzz.Call(name, suffix, x, np.array(target), options, fault=tuple(exceptions))
        results = fuzz.check(call)
        assert (results is None) == bool(exceptions)


@every_dtype
@pytest.mark.parametrize("gamma", [0.5, 2.0, 3, 40])
@pytest.mark.parametrize("alpha", [0, 1])
def test_sigmoid_focal_loss_without_a_side_next_to_overflow(alpha, gamma, dtype):
    """``gamma l`` overflows beside an ``alpha_t`` of 0: loss and gradient are 0."""
    largest = np.finfo(dtype).max
    x = np.repeat(largest * np.array([1, 0.5, 0.3, 1e-3], dtype), 6) * dtype(1 - 2 * alpha)
    for side in (x, -x):
        target = np.full(x.shape, alpha == 0)
        results = xentrs.sigmoid_focal_loss_with_grad(
            side, target, alpha=alpha, gamma=gamma, reduction="none"
        )
        for result in results:
            np.testing.assert_array_equal(result, 0)


@every_dtype
@pytest.mark.parametrize("classes", [2, 3, 5, 17, 40, 70, 300, 1000])
def test_hessian_of_two_classes_that_share_the_probability(classes, dtype, rng):
    """Each has a probability of 1/2, which may be rounded above it: 1/4 at every offset."""
    samples = 20_000 // classes + 400
    low = -300.0 if dtype == np.float32 else -2000.0
    offset = rng.uniform(-2e4, 2e4, (samples, 1))
    x = np.full((samples, classes), low) + offset
    first, second = 0, classes // 2
    x[:, [first, second]] = offset
    x = x.astype(dtype)
    for target in {first, second, classes - 1}:
        t = np.full(samples, target)
        for name, options in [("cross_entropy", {}), ("focal_loss", {"gamma": 0.5})]:
            function = getattr(xentrs, name + "_with_grad_hess")
            hess = function(x, t, reduction="none", **options)[2]
            if name == "cross_entropy" or target not in (first, second):
                np.testing.assert_allclose(hess[:, [first, second]], 0.25, rtol=1e-5)


@every_dtype
@pytest.mark.parametrize("cap", [0.5, 5.5, 30.0])
def test_derivative_of_a_cap_next_to_underflow(cap, dtype):
    """``1 - tanh^2`` is ``4 e^-2z``: a normal number also where ``e^-2z`` is none."""
    tiny = float(np.finfo(dtype).tiny)
    z = -np.log(tiny) / 2 + np.linspace(-1, 0.99 * np.log(2), 101)
    x = np.stack([cap * z, np.zeros(len(z))], -1).astype(dtype)
    _, grad = xentrs.cross_entropy_with_grad(x, [1] * len(z), softcap=cap, reduction="sum")
    slope = 4 * np.exp(-2 * (x[:, 0].astype(np.longdouble) / cap))
    exact = slope / (1 + np.exp(-np.longdouble(cap)))
    kept = exact > tiny
    assert kept.sum() > 80
    bound = 4 * (1 + 2 * cap) * float(np.finfo(dtype).eps)
    assert np.max(abs(grad[:, 0] / exact - 1)[kept]) < bound


@every_dtype
@pytest.mark.parametrize("classes", [3, 300])
def test_caps_beyond_the_range_of_the_type(classes, dtype, rng):
    """A huge one leaves the logits as they are, a tiny one makes them all equal."""
    x = rng.normal(size=(4, classes)).astype(dtype)
    x[1] = 0
    t = rng.integers(0, classes, 4)
    plain = xentrs.cross_entropy_with_grad_hess(x, t, reduction="none")
    for cap in (1e30, 3e38, 1e39, 1e300, 1.7e308):
        capped = xentrs.cross_entropy_with_grad_hess(x, t, reduction="none", softcap=cap)
        for actual, expected in zip(capped, plain, strict=True):
            np.testing.assert_allclose(actual, expected, 1e-5, 1e-30, err_msg=str(cap))
    for cap in (1e-30, 1e-40, 1e-300, 1e-310, 5e-324):
        loss, grad, hess = xentrs.cross_entropy_with_grad_hess(x, t, reduction="none", softcap=cap)
        np.testing.assert_allclose(loss, np.log(classes), 1e-6, err_msg=str(cap))
        others = np.arange(4) != 1  # where the cap is flat
        assert (grad[others] == 0).all()
        assert np.isfinite(grad).all()
        assert np.isfinite(hess).all()


@every_dtype
@every_class_loss
@pytest.mark.parametrize("step", [-1, 2])
@pytest.mark.parametrize("shape", [(1, 300), (3, 300), (1, 9001)], ids=str)
def test_wide_options_beside_rows_of_other_strides(loss, shape, step, dtype, rng):
    """Rows longer than a tile, which are copied and converted to float64 at once."""
    samples, classes = shape
    case = loss.case(rng, shape, dtype)
    scores = np.repeat(case.scores, abs(step), axis=1)[:, ::step]
    target = case.target if loss.indices else case.target.astype(np.float64) + 1e-9
    weight = rng.uniform(0.1, 1, classes)
    assert not np.array_equal(weight, weight.astype(np.float32))
    for name, given in (("weight", weight), ("sample_weight", rng.uniform(0.1, 1, samples))):
        for suffix in fuzz.suffixes(loss.name):
            options = {name: given, "label_smoothing": loss.smoothings[-1], "reduction": "none"}
            options = {key: value for key, value in options.items() if key in loss.keywords}
            fuzz.check(fuzz.Call(loss.name, suffix, scores, target, options))


@every_dtype
@pytest.mark.parametrize("classes", [2, 3, 10, 40, 300, 2000])
@pytest.mark.parametrize("layout", ["rows", "columns"])
@pytest.mark.parametrize("z_loss", [0, 1e-3])
def test_target_of_a_tiny_total(classes, layout, z_loss, dtype, rng):
    """The gradient keeps its digits: it is a factor of that total times exponentials."""
    samples = 40
    scores = rng.normal(size=(samples, classes)).astype(dtype)
    smallest = np.log10(float(np.finfo(dtype).tiny))
    # From one of 1 on down, in turns, and with samples of total 0.
    total = 10.0 ** rng.uniform(0.95 * smallest, 0, (samples, 1))
    total[::7], total[1::7] = 0, 1
    target = (total * rng.uniform(0.1, 1, scores.shape)).astype(dtype)
    target[:, classes // 2 :: 2] = 0
    options = {"reduction": "sum", "axis": 1}
    if z_loss:
        options["z_loss"] = z_loss
    if layout == "columns":
        scores, target = (np.ascontiguousarray(a.T) for a in (scores, target))
        options["axis"] = 0
    for suffix in fuzz.suffixes("cross_entropy"):
        for more in ({}, {"weight": np.full(classes, 0.7)}):
            fuzz.check(fuzz.Call("cross_entropy", suffix, scores, target, options | more))


@every_dtype
@pytest.mark.parametrize("shape", [(1, 3), (50, 3), (7, 300)], ids=str)
@pytest.mark.parametrize("least", [0, 1e-3], ids=["any", "large"])
def test_log_loss_of_tiny_probabilities(shape, least, dtype, rng):
    """A target of few digits over a probability of few digits may be any number."""
    smallest = np.log10(float(np.finfo(dtype).smallest_subnormal))
    p, target = (10.0 ** rng.uniform(smallest, 0, (2, *shape))).astype(dtype)
    p = np.maximum(p, dtype(least))
    target *= rng.choice([-1, 0, 1, 1], shape)
    for suffix in fuzz.suffixes("log_loss"):
        for options in ({}, {"reduction": "none"}, {"sample_weight": np.full(shape[0], 0.7)}):
            fuzz.check(fuzz.Call("log_loss", suffix, p, target, options))
    p[rng.random(shape) < 0.3] = 0
    for suffix in fuzz.suffixes("log_loss"):
        fuzz.check(fuzz.Call("log_loss", suffix, p, target, {}))


@every_dtype
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_true_and_false_labels_have_the_bits_of_any(dtype, reduction, rng):
    """Whole vectors of them have arithmetic of their own, but where a weight is given."""
    tiny = np.finfo(dtype).tiny
    special = np.array([0, 1, tiny, tiny / 8, 1 - np.finfo(dtype).epsneg, 0.5, -0.0], dtype)
    for n in (64, 200, 5000):
        for share in (0, 0.01, 0.5):
            p = rng.random(n).astype(dtype)
            p = np.where(rng.random(n) < share, rng.choice(special, n), p)
            for target in (rng.random(n) < 0.3, np.round(rng.random(n)), rng.random(n)):
                target = target if target.dtype == bool else target.astype(dtype)
                plain, weighted = (
                    xentrs.binary_cross_entropy_with_grad(p, target, reduction=reduction, **more)
                    for more in ({}, {"weight": dtype(1)})
                )
                assert_same_bits(plain, weighted)


@pytest.mark.parametrize("scale", [1, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("temperature", [1e-290, 1e-45, 1e-38, 1e-31, 1e31, 1e38, 1e45, 1e290])
def test_temperatures_beyond_float32(temperature, scale, rng):
    """The results are those of the same logits in float64, rounded once."""

    def assert_rounded(function, *arguments, **options):
        wide = [np.asarray(a, np.float64) if a.dtype == np.float32 else a for a in arguments]
        options["temperature"] = temperature
        got, right = function(*arguments, **options), function(*wide, **options)
        for a, b in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, right)), strict=True):
            with np.errstate(over="ignore"):
                assert_same_bits(a, b.astype(np.float32))
            assert not np.isnan(a).any()

    for classes in (2, 10, 300):
        x, other = (scale * rng.uniform(-1, 1, (2, 20, classes))).astype(np.float32)
        y = rng.integers(0, classes, 20)
        for suffix in SUFFIXES:
            assert_rounded(getattr(xentrs, "cross_entropy" + suffix), x, y, reduction="none")
        assert_rounded(xentrs.kl_divergence, x, other, reduction="none")
        assert_rounded(xentrs.js_divergence, x, other, reduction="none")
        for function in (xentrs.softmax, xentrs.log_softmax):
            assert_rounded(function, x)


@every_dtype
@pytest.mark.parametrize("classes", [3, 400])
def test_z_loss_beside_a_loss_that_is_divided_by_zero(rng, classes, dtype):
    """With smoothing, samples count although all of their classes have the weight 0."""
    x, weight = rng.normal(size=(2, classes)).astype(dtype), np.ones(classes)
    weight[1] = 0
    options = {"weight": weight, "label_smoothing": 0.1}
    for more in ({}, {"z_loss": 0.1}):
        assert xentrs.cross_entropy(x, [1, 1], **options, **more) == np.inf
        loss, grad = xentrs.cross_entropy_with_grad(x, [1, 1], **options, **more)
        assert loss == np.inf
        assert not np.isfinite(grad).any()
    assert np.isnan(xentrs.cross_entropy(x, [1, 1], weight=weight, z_loss=0.1))  # none counts


BINARY = (
    "binary_cross_entropy_with_logits_with_grad_hess",
    "binary_cross_entropy_with_grad",
    "sigmoid_focal_loss_with_grad",
)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("number", [0, 1, 128, 16384, 16385])  # few are made bools in Rust
@pytest.mark.parametrize("name", BINARY)
def test_integer_labels_are_those_of_bools(name, number, dtype, rng):
    x, y = rng.random(number).astype(dtype), rng.integers(0, 2, number)
    function = getattr(xentrs, name)
    for options in ({}, {"where": rng.random(number) > 0.3}, {"weight": rng.random(number)}):
        right = function(x, y.astype(np.bool_), reduction="none", **options)
        for code in "bBhHiIqQ":
            for one, other in zip(
                function(x, y.astype(code), reduction="none", **options), right, strict=True
            ):
                np.testing.assert_array_equal(one, other, strict=True)


@pytest.mark.parametrize("label", [2, -1, 127, 255])
def test_integer_labels_beside_0_and_1(label, rng):
    """They are taken as they are, as floats would be."""
    x, y = rng.random(9), rng.integers(0, 2, 9)
    y[4] = label
    for code in ("B", "q") if label > 127 else ("b", "h", "q"):
        found = xentrs.binary_cross_entropy_with_logits(x, y.astype(code))
        right = xentrs.binary_cross_entropy_with_logits(x, y.astype(code).astype(float))
        assert found == right
