"""`CrossEntropyMeter`: every statistic against plain NumPy, and bits that nothing changes."""

import copy
import dataclasses
import functools
import io
import itertools
import json
import math
import pickle
import re
import sys
import tracemalloc
import typing
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, log_loss, top_k_accuracy_score

import xentrs
from interface import same_state
from xentrs import CrossEntropyMeter, _xentrs
from xentrs._meter import batches

TYPES = (np.float32, np.float64)
every_type = pytest.mark.parametrize("dtype", TYPES)
CLASS_COUNTS = (1, 2, 3, 10, 100, 256, 257, 1030, 9000)
every_count = pytest.mark.parametrize("classes", CLASS_COUNTS)

# Relative errors of means of single-precision probabilities, and of double precision.
TOLERANCE = {np.float32: 2e-6, np.float64: 1e-13}


def draw(rng, samples, classes, dtype, spread=3.0, offset=0.0):
    x = (rng.normal(size=(samples, classes)) * spread + offset).astype(dtype)
    return x, rng.integers(0, classes, samples)


def log_softmax(x):
    x = x.astype(np.longdouble)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def expected(x, target, *, sample_weight=None, weight=None, smoothing=0.0, ignore=-100, **options):
    """Return the statistics in plain NumPy and long doubles."""
    reference = options.pop("reference", None)
    bins, top_k = options.pop("bins", 15), options.pop("top_k", (1, 5))
    samples, classes = x.shape
    s = np.ones(samples) if sample_weight is None else np.asarray(sample_weight, float)
    v = np.ones(classes) if weight is None else np.asarray(weight, float)
    hard = target.ndim == 1
    kept = s != 0
    if hard:
        kept &= target != ignore
        if not smoothing:
            kept &= v[np.where(kept, target, 0)] != 0
    x, target, s = x[kept], target[kept], s[kept]
    log_p = log_softmax(x)
    p = np.exp(log_p)
    q = np.eye(classes)[target] if hard else target.astype(float)
    y = q.argmax(-1)
    w = s * v[y] if hard else s
    keep = (1 - smoothing) * (q * v if not hard else np.eye(classes)[y] * v[y][:, None])
    mixed = keep + smoothing / classes * v

    def losses_of(log_p):
        return s * -np.where(mixed == 0, 0, mixed * log_p).sum(-1)

    losses = losses_of(log_p)
    total = w.sum()
    own = x[np.arange(len(x)), y][:, None]
    above = (x > own).sum(-1)
    hits = x.argmax(-1) == y
    confidence = p.max(-1)
    edges = np.linspace(0, 1, bins + 1)
    where = np.searchsorted(edges[1:-1], confidence.astype(float))
    gaps = [abs((w * (hits - confidence))[where == i].sum()) for i in range(bins)]
    loss = losses.sum() / total
    result = {
        "loss": loss,
        "count": len(x),
        "bits": loss / np.log(np.longdouble(2)),
        "perplexity": np.exp(loss),
        "accuracy": (w * hits).sum() / total,
        "top_k": {k: (w * (above < k)).sum() / total for k in top_k},
        "brier": (w * ((p - q) ** 2).sum(-1)).sum() / total,
        "entropy": (w * -np.where(p == 0, 0, p * log_p).sum(-1)).sum() / total,
        "calibration_error": sum(gaps) / total,
        "stderr": np.sqrt(len(x) / (len(x) - 1) * ((losses - w * loss) ** 2).sum()) / total
        if len(x) > 1
        else math.nan,
    }
    if reference is not None:
        log_r = log_softmax(reference[kept])
        r = np.exp(log_r)
        deltas = losses - losses_of(log_r)
        delta = deltas.sum() / total
        result["kl"] = (w * (r * (log_r - log_p)).sum(-1)).sum() / total
        result["same_top"] = (w * (reference[kept].argmax(-1) == x.argmax(-1))).sum() / total
        result["delta_loss"] = delta
        result["delta_stderr"] = (
            np.sqrt(len(x) / (len(x) - 1) * ((deltas - w * delta) ** 2).sum()) / total
        )
    return result


def assert_statistics(result, right, tolerance, absolute=0.0):
    for name, value in right.items():
        actual = getattr(result, name)
        pairs = (
            zip(actual.values(), value.values(), strict=True)
            if name == "top_k"
            else [(actual, value)]
        )
        for a, b in pairs:
            np.testing.assert_allclose(
                float(a), float(b), rtol=tolerance, atol=absolute, err_msg=name
            )


def filled(x, target, *, options=None, **arguments):
    return CrossEntropyMeter(**(options or {})).update(x, target, **arguments)


# Every statistic


@every_type
@every_count
def test_class_indices(classes, dtype, rng):
    x, target = draw(rng, 70, classes, dtype)
    x[:, rng.integers(0, classes, 3)] += dtype(4)
    target[:3] = -100
    s = rng.choice([0.0, 0.5, 1.0, 3.25], 70)
    reference = (x + rng.normal(size=x.shape) * 0.3).astype(dtype)
    for arguments in ({}, {"sample_weight": s}):
        result = filled(x, target, reference_logits=reference, **arguments).compute()
        right = expected(x, target, reference=reference, **arguments)
        if classes == 1:
            assert (result.loss, result.entropy, result.brier, result.kl) == (0, 0, 0, 0)
            continue
        assert_statistics(result, right, 20 * TOLERANCE[dtype])


@every_type
@pytest.mark.parametrize("classes", [2, 10, 257, 1030])
def test_weights_smoothing_and_probabilities(classes, dtype, rng):
    x, target = draw(rng, 50, classes, dtype)
    s = rng.choice([0.0, 0.5, 1.0, 3.0], 50)
    v = rng.choice([0.0, 0.5, 1.0, 2.0], classes)
    v[0] = 1.0
    soft = rng.dirichlet(np.ones(classes), 50)
    for weight, smoothing, t in itertools.product(
        [None, v], [0.0, 0.1], [target, soft, soft.astype(dtype)]
    ):
        options = {"weight": weight, "label_smoothing": smoothing, "ignore_index": None}
        reference = (x * 0.9).astype(dtype)
        result = filled(
            x, t, options=options, sample_weight=s, reference_logits=reference
        ).compute()
        right = expected(
            x, t, sample_weight=s, weight=weight, smoothing=smoothing, reference=reference
        )
        assert_statistics(result, right, 100 * TOLERANCE[dtype])
        # The same as the loss.
        loss = xentrs.cross_entropy(
            x, t, sample_weight=s, weight=weight, label_smoothing=smoothing, ignore_index=None
        )
        assert result.loss == pytest.approx(loss, rel=1e-14 if dtype is np.float64 else 1e-6)


@every_type
@pytest.mark.parametrize("classes", [2, 10, 300])
def test_agrees_with_scikit_learn(classes, dtype, rng):
    x, target = draw(rng, 400, classes, dtype)
    x[np.arange(400), target] += 2
    target[:classes] = np.arange(classes)
    s = rng.random(400)
    p = np.exp(log_softmax(x)).astype(float)
    p /= p.sum(-1, keepdims=True)
    labels = np.arange(classes)
    result = filled(x, target, sample_weight=s).compute()
    tolerance = 1e-6 if dtype is np.float32 else 1e-12
    right = log_loss(target, p, sample_weight=s, labels=labels)
    assert result.loss == pytest.approx(right, rel=tolerance)
    scores = p if classes > 2 else p[:, 1]
    for k in (1, 5):
        if k < classes and classes > 2:
            right = top_k_accuracy_score(target, scores, k=k, sample_weight=s, labels=labels)
            assert result.top_k[k] == pytest.approx(right, rel=1e-12)
    right = brier_score_loss(target, p, sample_weight=s, labels=labels, scale_by_half=False)
    assert result.brier == pytest.approx(right, rel=tolerance)


@every_type
def test_confident_samples_keep_their_digits(dtype, rng):
    for classes in (2, 10, 300, 5000):
        for at, peak in itertools.product((0, classes - 1), (10, 14, 18, 30, 60)):
            x = rng.normal(size=(4, classes)).astype(dtype)
            x[:, at] = peak
            right_class = filled(x, np.full(4, at)).compute()
            wrong_class = filled(x, np.full(4, 1 if at == 0 else 0)).compute()
            for result, target in ((right_class, at), (wrong_class, 1 if at == 0 else 0)):
                right = expected(x, np.full(4, target))
                for name in ("loss", "entropy", "brier"):
                    tolerance = 2e-6 if dtype is np.float32 else 1e-12
                    value = float(right[name])
                    # Long doubles keep fewer digits of a Brier score than there are.
                    if value > 1e-35:
                        assert getattr(result, name) == pytest.approx(value, rel=tolerance), name


@every_type
@pytest.mark.parametrize("offset", [-1e5, 1e4, 3e5])
def test_offsets_and_late_peaks(dtype, offset, rng):
    for classes in (10, 300, 20_000):
        x, target = draw(rng, 9, classes, np.float64)
        x[:3, -1] += 60
        x[3:6, classes // 2] += 200
        x = np.round((x + offset) * 4) / 4
        x = x.astype(dtype)
        reference = (x[::-1] / dtype(2)).astype(dtype)
        for smoothing in (0.0, 0.1):
            right = expected(x, target, smoothing=smoothing, reference=reference)
            options = {"label_smoothing": smoothing}
            meter = filled(x, target, options=options, reference_logits=reference)
            assert_statistics(meter.compute(), right, 1e-5, absolute=1e-15)


# Exact sums


@every_count
def test_the_loss_is_that_of_the_single_losses(classes, rng):
    x, target = draw(rng, 300, classes, np.float64)
    losses = xentrs.cross_entropy(x, target, reduction="none")
    meter = filled(x, target)
    assert meter.compute().loss == math.fsum(losses) / 300
    assert CrossEntropyMeter().update_losses(losses).compute().loss == math.fsum(losses) / 300
    s = rng.random(300)
    weighted = CrossEntropyMeter().update_losses(losses, sample_weight=s).compute().loss
    assert weighted == math.fsum(losses * s) / math.fsum(s)
    assert filled(x, target, sample_weight=s).compute().loss == weighted


@every_count
def test_losses_are_those_before_they_are_rounded(classes, rng):
    x, target = draw(rng, 40, classes, np.float32)
    losses = xentrs.cross_entropy(x, target, reduction="none")
    singles = [filled(x[i : i + 1], target[i : i + 1]).compute().loss for i in range(40)]
    np.testing.assert_array_equal(np.float32(singles), losses)
    if classes > 256:  # of fewer the loss is computed in float32
        assert (np.float32(singles) != singles).any()
    assert filled(x, target).compute().loss == math.fsum(singles) / 40


def test_the_standard_error_does_not_cancel(rng):
    losses = 1e8 + rng.normal(size=1000) * 1e-6
    exact = [Fraction(loss) for loss in losses.tolist()]
    mean = sum(exact) / 1000
    variance = sum((x - mean) ** 2 for x in exact) / 999
    result = CrossEntropyMeter().update_losses(losses).compute()
    assert result.stderr == pytest.approx(math.sqrt(variance / 1000), rel=1e-14)
    same = CrossEntropyMeter().update_losses(np.full(1000, 0.1)).compute()
    assert same.stderr == 0.0
    for factor in (2.0**-300, 2.0**300):
        scaled = CrossEntropyMeter().update_losses(losses * factor).compute()
        assert scaled.stderr == pytest.approx(result.stderr * factor, rel=1e-14)


def test_standard_error_by_groups(rng):
    losses, s = rng.gamma(2, size=500), rng.random(500)
    group = rng.integers(-3, 40, 500)
    result = CrossEntropyMeter().update_losses(losses, sample_weight=s, group=group).compute()
    mean = (s * losses).sum() / s.sum()
    sums = [(s * (losses - mean))[group == g].sum() for g in np.unique(group)]
    number = len(sums)
    right = math.sqrt(number / (number - 1) * np.square(sums).sum()) / s.sum()
    assert result.stderr == pytest.approx(right, rel=1e-12)
    # Each sample a group of its own: as without groups.
    alone = CrossEntropyMeter().update_losses(losses, group=np.arange(500)).compute()
    assert alone.stderr == pytest.approx(losses.std(ddof=1) / math.sqrt(500), rel=1e-13)
    names = np.array([f"document {g}" for g in group])
    named = CrossEntropyMeter().update_losses(losses, sample_weight=s, group=names).compute()
    assert named == result
    # One group for a whole batch; a group of ignored samples is none.
    meter = CrossEntropyMeter()
    for g in np.unique(group):
        meter.update_losses(losses[group == g], sample_weight=s[group == g], group=g)
    meter.update_losses([3.0], sample_weight=[0.0], group=77)
    assert meter.compute() == result
    assert math.isnan(CrossEntropyMeter().update_losses([1.0, 2.0], group=[5, 5]).compute().stderr)
    assert math.isnan(CrossEntropyMeter().update_losses([1.0]).compute().stderr)


def cuts(draw, total, most):
    ends = draw(st.lists(st.integers(0, total), max_size=most))
    return list(itertools.pairwise([0, *sorted(ends), total]))


@pytest.mark.parametrize("classes", [7, 300])
@pytest.mark.parametrize("soft", [False, True])
@given(data=st.data())
def test_order_cuts_and_merges_change_no_bit(classes, soft, data):
    rng = np.random.default_rng(classes + soft)
    dtype = data.draw(st.sampled_from([np.float16, np.float32, np.float64, ml_dtypes.bfloat16]))
    total = data.draw(st.integers(1, 60))
    x = (rng.normal(size=(total, classes)) * data.draw(st.sampled_from([0.1, 5, 60]))).astype(dtype)
    t = rng.dirichlet(np.ones(classes), total) if soft else rng.integers(-1, classes, total)
    s = data.draw(st.sampled_from([None, rng.choice([0.0, 0.1, 1.0, 1e-30, 1e30], total)]))
    g = data.draw(st.sampled_from([None, rng.integers(0, 5, total)]))
    r = data.draw(st.sampled_from([None, (x + x[::-1]) / dtype(2)]))
    options = {
        "per_class": True,
        "ignore_index": None if soft else -1,
        "label_smoothing": data.draw(st.sampled_from([0.0, 0.1])),
        "weight": data.draw(st.sampled_from([None, rng.choice([0.0, 0.3, 2.0], classes)])),
    }

    def part(index):
        def of(a):
            return None if a is None else a[index]

        return filled(
            x[index],
            t[index],
            options=options,
            sample_weight=of(s),
            group=of(g),
            reference_logits=of(r),
        )

    whole = part(slice(None))
    order = np.array(data.draw(st.permutations(range(total))))
    meters = [part(order[a:b]) for a, b in cuts(data.draw, total, 6)]
    while len(meters) > 1:
        i = data.draw(st.integers(0, len(meters) - 2))
        other = meters.pop(i + 1)
        before = other.to_state()
        assert meters[i].merge(other) is meters[i]
        assert_same_state(other.to_state(), before)
    assert meters[0].compute() == whole.compute()
    assert_same_state(meters[0].to_state(), whole.to_state())
    # One meter that is updated again and again.
    meter = CrossEntropyMeter(**options)
    for a, b in cuts(data.draw, total, 4):
        meter.merge(part(order[a:b]))
    assert_same_state(meter.to_state(), whole.to_state())


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
        assert array.dtype == b[name].dtype, name


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("classes", [7, 300])
@pytest.mark.parametrize("soft", [False, True])
def test_layouts_change_no_bit(classes, dtype, soft, rng):
    shape = (3, 70, classes)
    x = (rng.normal(size=shape) * 3).astype(dtype)
    r = (rng.normal(size=shape) * 3).astype(dtype)
    t = rng.integers(0, classes, shape[:2])
    if soft:
        t = rng.dirichlet(np.ones(classes), shape[:2]).astype(
            np.float64 if dtype is np.float64 else np.float32
        )
    s = rng.random(shape[:2])

    def result(x, r, t, axis):
        return filled(
            x, t, options={"axis": axis, "ignore_index": None}, sample_weight=s, reference_logits=r
        )

    plain = result(x, r, t, -1)

    def spread(a, axis):
        return np.repeat(np.moveaxis(a, -1, axis), 2, axis=-1)[..., ::2]

    def columns(a, axis):
        return np.asfortranarray(np.moveaxis(a, -1, axis))

    def swapped(a, axis):
        return np.moveaxis(a, -1, axis).astype(a.dtype.newbyteorder()) if a.dtype.kind == "f" else a

    for axis, layout in itertools.product((0, 1, 2), (spread, columns, swapped)):
        if layout is swapped and dtype is ml_dtypes.bfloat16:
            continue  # ml_dtypes has no other byte order
        moved = result(
            layout(x, axis),
            layout(r, axis),
            layout(t, axis) if soft else np.asfortranarray(t),
            axis,
        )
        assert moved.compute() == plain.compute(), (axis, layout.__name__)


@pytest.mark.parametrize("classes", [7, 300])
def test_half_precision_is_computed_in_float32(classes, rng):
    x, target = draw(rng, 90, classes, np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16):
        half = x.astype(dtype)
        again = half.astype(np.float32)
        a = filled(half, target, reference_logits=half[::-1])
        b = filled(again, target, reference_logits=again[::-1])
        assert a.compute() == b.compute()
        # Types of their own for the reference.
        a = filled(half, target, reference_logits=x)
        assert a.compute() == filled(again, target, reference_logits=x).compute()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_threads_change_no_bit(count, threads, rng):
    x, target = draw(rng, 64, 20_000, np.float32)
    r = x + x[::-1]
    threads(1)
    one = filled(x, target, reference_logits=r).compute()
    threads(count)
    assert filled(x, target, reference_logits=r).compute() == one


BITS = """
import hashlib
import numpy as np
import xentrs

rng = np.random.default_rng(0)
for dtype in (np.float32, np.float64):
    for classes in (5, 300, 9000):
        x = (rng.normal(size=(40, classes)) * 4).astype(dtype)
        x[::3, -1] += 40
        r = (x + rng.normal(size=x.shape) * 0.5).astype(dtype)
        for target in (rng.integers(0, classes, 40), rng.dirichlet(np.ones(classes), 40)):
            for smoothing in (0.0, 0.1):
                meter = xentrs.CrossEntropyMeter(label_smoothing=smoothing, ignore_index=None)
                state = meter.update(x, target, reference_logits=r).to_state()
                digest = hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state)))
                print(dtype.__name__, classes, target.ndim, smoothing, digest.hexdigest())
"""


def test_instruction_sets_change_no_bit(python):
    levels = xentrs.show_config(mode="dicts")["simd"]["available"]
    fused = [level for level in levels if level != "portable"]
    found = {level: python(BITS, XENTRS_SIMD=level).stdout.splitlines() for level in fused}
    for level in fused:
        assert len(found[level]) == 24
        assert found[level] == found[fused[0]], level


# Calibration


def test_bins_are_closed_on_the_right():
    # Confidences of 1/2, 1/4, 1/5 and 1.
    cases = ((2, 10, 4), (2, 2, 0), (4, 4, 0), (5, 5, 0), (1, 15, 14), (1, 1, 0), (300, 300, 0))
    for classes, bins, place in cases:
        for dtype in TYPES:
            result = filled(
                np.zeros((3, classes), dtype), np.zeros(3, int), options={"bins": bins}
            ).compute()
            reliability = result.reliability
            right = np.zeros(bins, int)
            right[place] = 3
            np.testing.assert_array_equal(reliability.count, right)
            np.testing.assert_array_equal(reliability.edges, np.linspace(0, 1, bins + 1))
            assert reliability.confidence[place] == pytest.approx(1 / classes, rel=1e-15)
            assert reliability.accuracy[place] == 1.0
            empty = right == 0
            assert np.isnan(reliability.accuracy[empty]).all()
            assert np.isnan(reliability.confidence[empty]).all()
            assert result.calibration_error == pytest.approx(1 - 1 / classes)
    certain = filled(np.array([[1000.0, 0.0]]), [1]).compute()
    assert certain.reliability.count[-1] == 1
    assert certain.calibration_error == 1.0


@pytest.mark.parametrize("bins", [*range(1, 40), 100, 999])
def test_confidences_at_the_edges_of_bins(bins, rng):
    edges = np.linspace(0.0, 1.0, bins + 1)
    beside = [np.nextafter(edges, 2.0), np.nextafter(edges[1:], -1.0)]
    confidences = np.concatenate([edges, *beside, rng.random(1000), [np.nan]])
    right = [sum(edge < c for edge in edges[1:-1]) for c in confidences[:-1].tolist()] + [bins]
    of = CrossEntropyMeter(bins=bins)._sums._bins
    # Many are computed. Few are searched for, and those with a NaN, which has a bin of its own.
    assert [*of(confidences[:-1]), bins] == right
    assert of(confidences).tolist() == right
    assert [int(of(c)[0]) for c in confidences.reshape(-1, 1)] == right


def test_reliability_of_weighted_samples(rng):
    x, target = draw(rng, 500, 5, np.float64)
    s = rng.random(500)
    result = filled(x, target, options={"bins": 7}, sample_weight=s).compute()
    p = np.exp(log_softmax(x)).astype(float)
    confidence, hits = p.max(-1), x.argmax(-1) == target
    where = np.ceil(confidence * 7).astype(int) - 1
    for i in range(7):
        inside = where == i
        assert result.reliability.count[i] == inside.sum()
        if inside.any():
            for name, values in (("accuracy", hits), ("confidence", confidence)):
                right = np.average(values[inside], weights=s[inside])
                assert getattr(result.reliability, name)[i] == pytest.approx(right)


# Quantiles


def test_quantiles(rng):
    losses = np.concatenate(
        [
            rng.gamma(0.5, size=3000),
            10.0 ** rng.uniform(-37.9, 38, 3000),
            2.0 ** rng.integers(-120, 120, 500),
            np.nextafter(2.0 ** rng.integers(-120, 120, 500), 0),
        ]
    )
    rng.shuffle(losses)
    for s in (None, rng.choice([0.0, 0.5, 1.0, 2.0], losses.size)):
        result = CrossEntropyMeter().update_losses(losses, sample_weight=s).compute()
        kept = losses if s is None else losses[s > 0]
        weights = None if s is None else s[s > 0]
        for q in (0.0, 1e-4, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0):
            right = np.quantile(kept, q, method="inverted_cdf", weights=weights)
            assert abs(result.quantile(q) - right) <= right / 128, q
        many = result.quantile([0.1, 0.5])
        np.testing.assert_array_equal(many, [result.quantile(0.1), result.quantile(0.5)])
        assert isinstance(result.quantile(0.5), float)


def test_the_least_and_the_largest_losses():
    def quantiles(*losses):
        result = CrossEntropyMeter().update_losses(losses).compute()
        return [result.quantile(i / len(losses)) for i in range(1, len(losses) + 1)]

    assert quantiles(0.0, 1e-39, 9.9e-39, -3.0) == [0.0] * 4
    (least,) = quantiles(1e-38)
    assert abs(least - 1e-38) <= 1e-38 / 128
    assert quantiles(1.0, math.inf)[1] == math.inf
    assert np.isnan(quantiles(1.0, math.nan)).all()


def test_quantiles_of_every_magnitude(rng):
    """Within 1/128 from 1e-38 up to the largest float64; infinity comes after all of them."""
    most = np.finfo(np.float64).max
    losses = np.concatenate(
        [10.0 ** rng.uniform(-38, 308, 2000), [1e-38, 3.4e38, 3.5e38, 1e300, most, math.inf]]
    )
    ascending = np.sort(losses)
    parts = [CrossEntropyMeter().update_losses(part) for part in (losses[:1000], losses[1000:])]
    states = [part.to_state() for part in parts]
    orders = (parts[0].merge(parts[1]), CrossEntropyMeter.from_state(states[1]))
    orders[1].merge(CrossEntropyMeter.from_state(states[0]))
    whole = CrossEntropyMeter().update_losses(losses)
    for result in (whole, *orders, CrossEntropyMeter().update_losses(losses[::-1])):
        found = result.compute().quantile((np.arange(losses.size) + 0.5) / losses.size)
        np.testing.assert_allclose(found[:-1], ascending[:-1], rtol=1 / 128)
        assert found[-1] == math.inf
        for name, part in result.to_state().items():
            np.testing.assert_array_equal(part, whole.to_state()[name])
    x = np.array([[0.0, most], [0.0, 1e39], [0.0, 1.0]])
    other = CrossEntropyMeter().update(x, [0, 0, 0], reference_logits=np.zeros((3, 2))).compute()
    assert other.quantile(1.0) == pytest.approx(most, rel=1 / 128)
    assert other.quantile(0.6) == pytest.approx(1e39, rel=1 / 128)
    assert other.kl_quantile(0.6) == pytest.approx(0.5e39, rel=1 / 128)


def test_quantiles_of_divergences(rng):
    x, target = draw(rng, 2000, 10, np.float64)
    reference = x + rng.normal(size=x.shape) * rng.choice([1e-6, 0.1, 1], (2000, 1))
    result = filled(x, target, reference_logits=reference).compute()
    divergences = xentrs.kl_divergence(x, reference, reduction="none")
    assert result.kl == math.fsum(divergences) / 2000
    for q in (0.01, 0.5, 0.9, 0.999):
        right = np.quantile(divergences, q, method="inverted_cdf")
        assert abs(result.kl_quantile(q) - right) <= right / 128


# The reference


@pytest.mark.parametrize("classes", [10, 300, 5000])
def test_nearly_equal_models(classes, rng):
    x, target = draw(rng, 60, classes, np.float64)
    d = rng.normal(size=x.shape) * 1e-7
    result = filled(x + d, target, reference_logits=x).compute()
    d = (x + d) - x
    p = np.exp(log_softmax(x))
    variance = (p * d**2).sum(-1) - (p * d).sum(-1) ** 2
    assert result.kl == pytest.approx(float(variance.mean() / 2), rel=1e-5)
    assert result.same_top == 1.0
    same = filled(x, target, reference_logits=x).compute()
    assert (same.kl, same.delta_loss, same.delta_stderr, same.same_top) == (0.0, 0.0, 0.0, 1.0)
    assert same.kl_quantile(0.999) == 0.0


NAMES = ["a", "b", "a"]
STRINGS = {
    "list": list(NAMES),
    "tuple": tuple(NAMES),
    "strings of NumPy": [np.str_(name) for name in NAMES],
    "array": np.array(NAMES),
    "longer items": np.array(NAMES, "U9"),
    "big-endian": np.array(NAMES, ">U1"),
    "objects": np.array(NAMES, object),
    "masking nothing": np.ma.masked_array(NAMES, False),
    "of masked arrays": list(np.ma.masked_array(NAMES, False)),
}
if hasattr(np.dtypes, "StringDType"):
    STRINGS |= {
        f"StringDType({', '.join(map(str, options.values()))})": np.array(
            NAMES, np.dtypes.StringDType(**options)
        )
        for options in ({}, {"na_object": None}, {"na_object": np.nan}, {"na_object": "?"})
    }


@pytest.mark.parametrize("kind", STRINGS)
def test_groups_of_strings(kind):
    right = CrossEntropyMeter().update_losses([1.0, 2.0, 4.0], group=NAMES)
    found = CrossEntropyMeter().update_losses([1.0, 2.0, 4.0], group=STRINGS[kind])
    assert found.to_state().keys() == right.to_state().keys()
    for key, array in right.to_state().items():
        np.testing.assert_array_equal(found.to_state()[key], array)
    assert found.compute().stderr == right.compute().stderr > 0


def _missing_in(kind, missing):
    """Return groups of which the second is missing."""
    if kind in (list, tuple):
        return kind(["a", missing, "b"])
    return np.array(["a", missing, "b"], kind)


MISSING_GROUPS = [
    *((kind, missing) for kind in (list, tuple, object) for missing in (None, np.nan)),
    (list, np.float32("nan")),
    (list, np.float64("nan")),
]
if hasattr(np.dtypes, "StringDType"):
    MISSING_GROUPS += [
        (np.dtypes.StringDType(na_object=missing), missing) for missing in (None, np.nan)
    ]


@pytest.mark.parametrize(("kind", "missing"), MISSING_GROUPS, ids=str)
def test_missing_groups(kind, missing):
    message = rf"group has dtype .*missing values: group\[1\] is {missing}"
    with pytest.raises(TypeError, match=message):
        CrossEntropyMeter().update_losses([1.0, 2.0, 3.0], group=_missing_in(kind, missing))
    message = rf"group has dtype .*missing values: group\[0, 1\] is {missing}"
    group = _missing_in(kind, missing)
    group = [group] if kind in (list, tuple) else group[None]
    with pytest.raises(TypeError, match=message):
        filled(np.zeros((1, 3, 2)), np.zeros((1, 3), int), group=group)


def test_missing_groups_among_integers():
    for group in ([3, np.nan, 4], [3, None, 4], np.array([3, np.nan, 4]), (3, np.nan, np.nan)):
        with pytest.raises(TypeError, match=r"missing values: group\[1\] is (nan|None)"):
            CrossEntropyMeter().update_losses([1.0, 2.0, 3.0], group=group)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (["a", 1, "b"], r"group\[1\] is 1, but must be a string"),
        ((2, "a", "b"), r"group\[0\] is 2, but must be a string"),
        (["a", "b", 1.5], r"group\[2\] is 1.5, but must be a string"),
        (["a", True, "b"], r"group\[1\] is True, but must be a string"),
        (["a", b"b", "c"], r"group\[1\] is b'b', but must be a string"),
        (np.array(["a", 1, "b"], object), r"group\[1\] is 1, but must be a string"),
        (np.array([1, 2, 3], object), "group has dtype object"),
    ],
)
def test_groups_of_several_types(group, message):
    """NumPy writes the numbers of a list with strings as strings."""
    with pytest.raises(TypeError, match=message):
        CrossEntropyMeter().update_losses([1.0, 2.0, 3.0], group=group)


@pytest.mark.parametrize("of", [int, str])
def test_masked_groups_would_lose_their_mask(of):
    group = np.ma.masked_array(np.array([1, 2, 3]).astype(of), [0, 1, 0])
    for masked, name in ((group, "group"), (list(group), r"group\[1\]")):
        message = f"{name} is a masked array, whose mask would be lost"
        with pytest.raises(TypeError, match=message):
            CrossEntropyMeter().update_losses([1.0, 2.0, 3.0], group=masked)
        with pytest.raises(TypeError, match=message):
            filled(np.zeros((3, 2)), [0, 0, 0], group=masked)


def test_delta_by_groups(rng):
    x, target = draw(rng, 300, 6, np.float64)
    reference = x + rng.normal(size=x.shape)
    group = rng.integers(0, 20, 300)
    result = filled(x, target, group=group, reference_logits=reference).compute()
    differences = xentrs.cross_entropy(x, target, reduction="none") - xentrs.cross_entropy(
        reference, target, reduction="none"
    )
    mean = differences.mean()
    sums = [(differences - mean)[group == g].sum() for g in range(20)]
    assert result.delta_loss == math.fsum(differences) / 300
    right = math.sqrt(20 / 19 * np.square(sums).sum()) / 300
    assert result.delta_stderr == pytest.approx(right, rel=1e-12)


def test_some_samples_with_a_reference(rng):
    x, target = draw(rng, 80, 6, np.float64)
    reference = x * 0.8
    meter = filled(x[:30], target[:30], reference_logits=reference[:30])
    alone = meter.compute()
    result = meter.update(x[30:], target[30:]).update_losses([1.0, 2.0]).compute()
    for name in ("kl", "same_top", "delta_loss", "delta_stderr"):
        assert getattr(result, name) == getattr(alone, name)
    both = filled(x, target).compute()
    for name in ("accuracy", "top_k", "brier", "entropy", "calibration_error"):
        assert getattr(result, name) == getattr(both, name)
    assert result.count == 82


# Classes


def test_per_class(rng):
    x, target = draw(rng, 200, 5, np.float64)
    target[target == 3] = 2
    s = rng.random(200)
    result = filled(x, target, options={"per_class": True}, sample_weight=s).compute()
    losses = xentrs.cross_entropy(x, target, reduction="none")
    hits = x.argmax(-1) == target
    shares = np.bincount(target, s, 5) / s.sum()
    for c in (0, 1, 2, 4):
        inside = target == c
        assert result.per_class.count[c] == inside.sum()
        right = np.average(losses[inside], weights=s[inside])
        assert result.per_class.loss[c] == pytest.approx(right, rel=1e-14)
        right = np.average(hits[inside], weights=s[inside])
        assert result.per_class.accuracy[c] == pytest.approx(right, rel=1e-14)
    assert result.per_class.count[3] == 0
    assert np.isnan([result.per_class.loss[3], result.per_class.accuracy[3]]).all()
    shares = shares[shares > 0]
    assert result.prior_loss == pytest.approx(-(shares * np.log(shares)).sum(), rel=1e-14)
    soft = np.eye(5)[target] * 0.6 + 0.08
    other = filled(x, soft, options={"per_class": True, "ignore_index": None}).compute()
    np.testing.assert_array_equal(other.per_class.count, result.per_class.count)
    plain = filled(x, target).compute()
    assert plain.per_class is None
    assert math.isnan(plain.prior_loss)
    one = CrossEntropyMeter(per_class=True).update(np.zeros((2, 3)), [1, 1]).compute()
    assert str(one.prior_loss) == "0.0"


def test_a_result_has_public_types_and_fields(rng):
    x, target = draw(rng, 50, 3, np.float32)
    result = filled(x, target, options={"per_class": True}).compute()
    assert isinstance(result, xentrs.MeterResult)
    assert isinstance(result.reliability, xentrs.Reliability)
    assert isinstance(result.per_class, xentrs.PerClass)
    as_dict = dataclasses.asdict(result)
    assert not [name for name in as_dict if name.startswith("_")]
    assert as_dict["loss"] == result.loss
    assert as_dict["per_class"].keys() == {"loss", "count", "accuracy"}
    for kind in (xentrs.MeterResult, xentrs.Reliability, xentrs.PerClass):
        hints = typing.get_type_hints(kind)
        assert {f.name for f in dataclasses.fields(kind)} <= set(hints)
        assert kind.__module__ == "xentrs"
    again = pickle.loads(pickle.dumps(result))
    assert again == result
    assert again.quantile(0.5) == result.quantile(0.5)
    assert again.bits_per_byte(7) == result.bits_per_byte(7)
    assert result != filled(x * 1.0001, target, options={"per_class": True}).compute()


# Odd values


def assert_nothing(result):
    for f in dataclasses.fields(result):
        value = getattr(result, f.name)
        if isinstance(value, float):
            assert math.isnan(value), f.name
    assert result.count == 0
    assert result.top_k == pytest.approx({1: math.nan, 5: math.nan}, nan_ok=True)
    assert result.per_class is None
    assert (result.reliability.count == 0).all()
    assert np.isnan(result.reliability.accuracy).all()
    for value in (result.quantile(0.5), result.kl_quantile(0.5), result.bits_per_byte(10)):
        assert math.isnan(value)


def test_no_samples():
    meter = CrossEntropyMeter()
    assert_nothing(meter.compute())
    meter.update(np.zeros((0, 3)), np.zeros(0, int))
    meter.update(np.zeros((2, 0, 3)), np.zeros((2, 0), int), group=np.zeros((2, 0), int))
    meter.update_losses([])
    meter.update(np.full((2, 3), np.nan), [-100, -100])
    meter.update(np.full((2, 3), np.nan), [0, 1], sample_weight=[0, 0])
    assert_nothing(meter.compute())
    assert_nothing(meter.merge(CrossEntropyMeter()).compute())


def test_arrays_that_are_not_aligned(rng):
    """Each array of an update alone, and all of them together."""

    def unaligned(a):
        return np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape)

    x, target = draw(rng, 7, 5, np.float64)
    arrays = {"logits": x, "target": target, "reference_logits": x * 0.5}
    both = {"sample_weight": rng.random(7), "group": rng.integers(0, 2, 7)}
    for whole, update in (
        (arrays | both, CrossEntropyMeter.update),
        ({"losses": rng.random(7)} | both, CrossEntropyMeter.update_losses),
    ):
        right = update(CrossEntropyMeter(), **whole).to_state()
        for moved in [*({name} for name in whole), set(whole)]:
            odd = {name: unaligned(a) if name in moved else a for name, a in whole.items()}
            assert not any(odd[name].flags.aligned for name in moved)
            state = update(CrossEntropyMeter(), **odd).to_state()
            assert all(np.array_equal(state[key], right[key]) for key in right)
    single = rng.random(1)
    meter = CrossEntropyMeter().update_losses(unaligned(single))
    assert meter.compute().loss == single[0]


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_beyond_the_range_of_float64(sign):
    result = CrossEntropyMeter().update_losses(np.array([1e308, 1e308, 1e300]) * sign).compute()
    right = sign * float(Fraction(2 * Fraction(1e308) + Fraction(1e300)) / 3)
    assert result.loss == right
    assert result.bits == right / math.log(2)
    weights = [1e308, 1e308, 1.5e308]
    weighted = CrossEntropyMeter().update_losses([sign, sign, 0.0], sample_weight=weights)
    assert weighted.compute().loss == pytest.approx(sign * 2 / 3.5, rel=1e-15)
    nothing = CrossEntropyMeter().update_losses([sign, sign], sample_weight=[1e308, 1e308])
    assert nothing.compute().loss == sign


@pytest.mark.parametrize("weighted", [False, True])
def test_more_numbers_than_fit_between_carries(weighted, monkeypatch, rng):
    x, t = rng.normal(size=(100, 3)), rng.integers(0, 3, 100)
    weights = rng.random(100) if weighted else None

    def state():
        meter = CrossEntropyMeter(per_class=True)
        for _ in range(2):
            meter.update(x, t, sample_weight=weights)
            meter.update_losses(x[:, 0], sample_weight=weights, group=t)
        return meter.to_state()

    right = state()
    monkeypatch.setattr("xentrs._exact._MOST", 7)
    found = state()
    assert all(np.array_equal(found[key], right[key]) for key in right)


LARGEST = np.finfo(float).max


@pytest.mark.parametrize("weights", [None, [1.0, 1e300, 2.0, 0.5]])
@pytest.mark.parametrize("group", [None, [0, 1, 1, 2]])
@pytest.mark.parametrize(
    "losses",
    [
        [1e155, 3e154, 7.0, 1e-300],
        [1e300, -1e300, 3e299, 1.0],
        [1.5e308, 1.2e308, 1e308, 1.7e308],
        [LARGEST, -LARGEST, -LARGEST, LARGEST],
    ],
)
def test_standard_errors_where_squares_are_beyond_the_range_of_float64(losses, weights, group):
    if weights is not None:
        losses = [loss / 1e301 for loss in losses]  # their products with the weights are finite
    right = standard_error(losses, weights or [1.0] * 4, group or range(4))
    for cut in (slice(0, 4), slice(0, 1)):
        meter = CrossEntropyMeter()
        for i in range(0, 4, cut.stop):
            part = slice(i, i + cut.stop)
            given = {"sample_weight": weights, "group": group}
            given = {name: None if a is None else a[part] for name, a in given.items()}
            meter.update_losses(losses[part], **given)
        meter = CrossEntropyMeter.from_state(meter.to_state()).merge(CrossEntropyMeter())
        assert meter.compute().stderr == pytest.approx(right, rel=1e-15)
    assert math.isnan(meter.update_losses([math.inf]).compute().stderr)


def test_differences_whose_squares_are_beyond_the_range_of_float64():
    x, r = np.array([[0.0, 1e200], [0.0, 3.0]]), np.zeros((2, 2))
    result = CrossEntropyMeter().update(x, [0, 0], reference_logits=r).compute()
    assert (result.delta_loss, result.delta_stderr) == (5e199, 5e199)
    assert (result.loss, result.stderr) == (5e199, 5e199)


def standard_error(losses, weights, group):
    """Return the standard error of a mean, from exact sums, where float64 holds it."""
    losses, weights = ([Fraction(x) for x in numbers] for numbers in (losses, weights))
    total = sum(weights)
    mean = sum(w * x for w, x in zip(weights, losses, strict=True)) / total
    sums = dict.fromkeys(group, Fraction(0))
    for g, w, x in zip(group, weights, losses, strict=True):
        sums[g] += w * (x - mean)
    # Relative to the largest loss.
    unit = max(map(abs, losses))
    variance = sum((s / unit / total) ** 2 for s in sums.values()) * len(sums) / (len(sums) - 1)
    return math.sqrt(variance) * float(unit)


def test_losses_alone():
    result = CrossEntropyMeter().update_losses([[1.0, 2.0], [3.0, 4.0]]).compute()
    assert (result.loss, result.count, result.perplexity) == (2.5, 4, math.exp(2.5))
    assert result.bits_per_byte(5) == 10 / math.log(2) / 5
    for name in (
        "accuracy",
        "brier",
        "entropy",
        "calibration_error",
        "kl",
        "same_top",
        "delta_loss",
    ):
        assert math.isnan(getattr(result, name))
    assert np.isnan(list(result.top_k.values())).all()
    assert CrossEntropyMeter().update_losses([1000.0]).compute().perplexity == math.inf
    assert CrossEntropyMeter().update_losses(np.float16([0.1])).compute().loss == np.float16(0.1)


def test_one_sample_of_one_axis():
    result = filled(np.array([1.0, 2.0, 3.0]), np.array(2), group="a").compute()
    assert result.loss == float(xentrs.cross_entropy(np.array([1.0, 2.0, 3.0]), 2))
    assert result.accuracy == 1.0


@every_type
@pytest.mark.parametrize("classes", [4, 300])
def test_logits_that_are_not_finite(classes, dtype):
    nan, inf = math.nan, math.inf
    cases = [
        # row, target, loss, above, entropy is a number
        ([0, -inf, -inf, 1], 0, None, 1, True),
        ([0, -inf, -inf, 1], 1, inf, 2, True),
        ([-inf] * 4, 0, nan, 0, False),
        ([0, inf, 0, 1], 0, nan, 2, False),
        ([0, nan, 0, 1], 0, nan, 1, False),
        ([0, nan, 0, 1], 1, nan, -1, False),
        ([nan] * 4, 0, nan, -1, False),
        ([inf, inf, 0, 0], 1, nan, 0, False),
    ]
    for row, target, loss, above, number in cases:
        x = np.array(row + [-inf] * (classes - 4), dtype)[None]
        result = filled(x, [target]).compute()
        finite = filled(np.zeros((1, classes), dtype), [0])
        both = finite.update(x, [target]).compute()
        if loss is None:
            loss = math.log1p(math.exp(1))
        assert result.loss == pytest.approx(loss, rel=1e-6, nan_ok=True)
        for k in (1, 5):
            assert result.top_k[k] == float(0 <= above < k), (row, target)
        assert math.isnan(result.entropy) is not number
        assert math.isnan(result.calibration_error) is not number
        assert result.accuracy == float(np.argmax(x[0]) == target and above >= 0)
        assert both.count == 2
        assert math.isnan(both.loss) == math.isnan(loss)
        # Nothing reaches a sample beside it.
        assert both.reliability.count.sum() == 1 + number


@every_type
@pytest.mark.parametrize("soft", [False, True])
def test_a_reference_that_is_not_finite(dtype, soft):
    nan, inf = math.nan, math.inf
    rows = [
        [0, 0, 0, 0],
        [0, -inf, 1, 2],
        [0, inf, 1, 2],
        [0, nan, 1, 2],
        [-inf] * 4,
        [5, 4, 3, -inf],
    ]
    for classes in (4, 300):
        padding = [-inf] * (classes - 4)
        target = np.eye(classes)[[0]].astype(dtype) if soft else [0]
        options = {"ignore_index": None}
        for x, r in itertools.product(rows, rows):
            x, r = (np.array([row + padding], dtype) for row in (x, r))
            result = filled(x, target, options=options, reference_logits=r).compute()
            kl = float(xentrs.kl_divergence(x, r))
            assert result.kl == pytest.approx(kl, rel=1e-5, abs=1e-12, nan_ok=True)
            losses = [float(xentrs.cross_entropy(a, target, ignore_index=None)) for a in (x, r)]
            with np.errstate(all="ignore"):
                delta = np.float64(losses[0]) - losses[1]
            assert result.delta_loss == pytest.approx(delta, rel=1e-5, abs=1e-6, nan_ok=True)
            assert result.same_top == float(np.argmax(x) == np.argmax(r))


def test_infinite_losses():
    result = CrossEntropyMeter().update_losses([1.0, math.inf]).compute()
    assert (result.loss, result.perplexity) == (math.inf, math.inf)
    assert math.isnan(result.stderr)
    assert result.quantile(0.5) == pytest.approx(1.0, rel=1 / 128)
    assert math.isnan(CrossEntropyMeter().update_losses([math.inf, -math.inf]).compute().loss)


@pytest.mark.parametrize("logits", [[1.0, 2.0, 3.0], [0.0, -math.inf, -math.inf]])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_mean_over_no_weight(logits, smoothing):
    """The class of all samples has weight 0: with smoothing, their losses are not 0."""
    options = {"weight": [0.0, 1.0, 1.0], "label_smoothing": smoothing}
    x = np.array([logits, logits])
    meter = CrossEntropyMeter(**options, per_class=True).update(x, [0, 0], reference_logits=x / 2)
    result = meter.compute()
    right = xentrs.cross_entropy(x, [0, 0], **options)
    assert right == math.inf if smoothing else math.isnan(right)
    for found in (result.loss, result.bits, result.perplexity, result.per_class.loss[0]):
        np.testing.assert_equal(found, right)
    of_no_weight = (result.accuracy, result.top_k[1], result.brier, result.entropy, result.stderr)
    assert np.isnan([*of_no_weight, result.calibration_error, result.kl, result.same_top]).all()


def test_ties_take_the_first_class():
    x = np.array([[1.0, 2.0, 2.0], [2.0, 2.0, 1.0]])
    result = filled(x, [2, 0], options={"top_k": [1, 2]}).compute()
    assert result.accuracy == 0.5
    assert result.top_k == {1: 1.0, 2: 1.0}
    assert list(filled(x, [2, 0], options={"top_k": 3}).compute().top_k) == [3]


# States


def example(rng, **options):
    x, target = draw(rng, 90, 6, np.float64)
    return filled(
        x,
        target,
        options={"per_class": True, "weight": rng.random(6), "top_k": (1, 2), **options},
        sample_weight=rng.random(90),
        group=rng.integers(0, 9, 90),
        reference_logits=x * 0.5,
    )


def test_states(rng):
    meter = example(rng)
    state = meter.to_state()
    assert all(isinstance(array, np.ndarray) for array in state.values())
    file = io.BytesIO()
    np.savez(file, **state)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        again = CrossEntropyMeter.from_state(loaded)
    assert again.compute() == meter.compute()
    assert_same_state(again.to_state(), state)
    copied = pickle.loads(pickle.dumps(meter))
    assert copied.compute() == meter.compute()
    assert pickle.loads(pickle.dumps(meter.compute())) == meter.compute()
    # Options at the ends of their ranges are integers of 64 bits.
    ends = CrossEntropyMeter(axis=-64, top_k=(1 << 63) - 1, ignore_index=1 << 70)
    assert not any(array.dtype.hasobject for array in ends.to_state().values())
    assert_same_state(CrossEntropyMeter.from_state(ends.to_state()).to_state(), ends.to_state())
    # The state is a copy.
    before = meter.compute()
    for array in state.values():
        array[...] = np.zeros_like(array)
    assert meter.compute() == before
    assert_same_state(
        CrossEntropyMeter.from_state(CrossEntropyMeter().to_state()).to_state(),
        CrossEntropyMeter().to_state(),
    )
    assert again.merge(copied).compute().count == 2 * before.count


# Of each, some arrays of the state are empty.
FOR_JSON = {
    "empty": lambda rng: CrossEntropyMeter(),
    "nothing ignored": lambda rng: CrossEntropyMeter(ignore_index=None, per_class=True),
    "weights": lambda rng: CrossEntropyMeter(weight=[1.0, 2.0], label_smoothing=0.5),
    "losses": lambda rng: CrossEntropyMeter().update_losses([0.5, 1.5]),
    "losses of 0": lambda rng: CrossEntropyMeter().update_losses([0.0, 0.0], group=[3, 4]),
    "a loss of NaN": lambda rng: CrossEntropyMeter().update_losses([math.nan]),
    "names": lambda rng: CrossEntropyMeter().update_losses([0.5, 1e60], group=["a", "b"]),
    "logits": lambda rng: filled(np.zeros((3, 2)), [0, 1, 1]),
    "everything": example,
}


@pytest.mark.parametrize("kind", FOR_JSON)
def test_states_as_json(rng, kind):
    """A list without numbers has neither type nor width, and a whole float may have no dot."""
    state = FOR_JSON[kind](rng).to_state()
    text = json.dumps({name: array.tolist() for name, array in state.items()})
    for form in (text, re.sub(r"\b(\d+)\.0\b", r"\1", text)):
        assert_same_state(CrossEntropyMeter.from_state(json.loads(form)).to_state(), state)
    # Where numbers are missing, an empty list stands for none.
    for name, array in state.items():
        if array.shape and array.size and name not in ("ignore_index", "weight", "top_k"):
            with pytest.raises(ValueError, match="state"):
                CrossEntropyMeter.from_state(state | {name: []})


def test_states_that_are_none(rng):
    state = example(rng).to_state()
    with pytest.raises(ValueError, match=r"state\['bin_counts'\] has dtype int64 and shape"):
        CrossEntropyMeter.from_state(state | {"bins": np.array(1 << 24)})  # and no memory for them
    for digit in (1 << 32, -(1 << 32), np.iinfo(np.int64).max, np.iinfo(np.int64).min):
        digits = state["sums.digits"].copy()
        digits[0, -1] = digit
        with pytest.raises(
            ValueError, match=r"state\['sums.digits'\] has numbers that are no digits"
        ):
            CrossEntropyMeter.from_state(state | {"sums.digits": digits})
    with pytest.raises(TypeError, match="state must be a mapping of arrays, not int"):
        CrossEntropyMeter.from_state(3)
    for name in state:
        if name == "weight":
            continue
        with pytest.raises(ValueError, match=re.escape(name)):
            CrossEntropyMeter.from_state({k: v for k, v in state.items() if k != name})
        for wrong in (np.zeros((3, 3, 3, 3)), np.zeros(state[name].shape, "M8[s]")):
            with pytest.raises(ValueError, match=f"state\\['{re.escape(name)}'\\] has dtype"):
                CrossEntropyMeter.from_state(state | {name: wrong})
    for name, wrong, message in [
        ("format", np.array(99), "format 99"),
        ("label_smoothing", np.array(7.0), "label_smoothing"),
        ("bins", np.array(-1), "bins"),
        ("groups", np.zeros(9, int), "twice"),
        ("ignore_index", np.array(["x"]), "ignore_index"),
        ("ignore_index", np.array([0x7FFFFFFF], np.uint32).view("U1"), "strings that are none"),
        ("losses.bins", state["losses.bins"][::-1], "losses.bins"),
        ("sums.first", np.array(-5), "sums.first"),
        ("losses.first", np.array(2000), "losses.first"),
        ("classes", np.array(-5), "classes.* is -5"),
        *(
            (name, -1 - state[name], f"{name}.* has counts below 0")
            for name in ("counts", "nans", "bin_counts", "class_counts", "group_reference_counts")
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            CrossEntropyMeter.from_state(state | {name: wrong})


def test_meters_of_other_options(rng):
    for name, value in [
        ("axis", 0),
        ("weight", [1.0, 2.0]),
        ("ignore_index", None),
        ("label_smoothing", 0.1),
        ("top_k", (1,)),
        ("bins", 10),
        ("per_class", True),
    ]:
        meter, other = CrossEntropyMeter(), CrossEntropyMeter(**{name: value})
        for a, b in ((meter, other), (other, meter)):
            with pytest.raises(ValueError, match=name):
                a.merge(b)
    with pytest.raises(TypeError, match="other must be a CrossEntropyMeter, not int"):
        meter.merge(3)
    same = CrossEntropyMeter(ignore_index=[-1, 3], top_k=[5, 1])
    same.merge(CrossEntropyMeter(ignore_index=(3, -1, 3)))
    words = CrossEntropyMeter().update_losses([1.0], group="a")
    with pytest.raises(ValueError, match="group"):
        words.merge(CrossEntropyMeter().update_losses([1.0], group=1))
    many = filled(np.zeros((1, 3)), [0], options={"per_class": True})
    with pytest.raises(ValueError, match=r"4 classes, but .* others had 3"):
        many.merge(filled(np.zeros((1, 4)), [0], options={"per_class": True}))


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": 1.5}, TypeError, "axis must be an int"),
        ({"axis": 1 << 70}, ValueError, "axis is 1180591620717411303424, but"),
        ({"axis": -65}, ValueError, "axis is -65, but"),
        ({"weight": [[1.0]]}, ValueError, "weight has shape"),
        ({"weight": [1.0, -2.0]}, ValueError, r"weight\[1\] is -2.0"),
        ({"weight": [math.nan]}, ValueError, r"weight\[0\] is nan"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing"),
        ({"ignore_index": 1.5}, TypeError, "ignore_index must be"),
        ({"top_k": 0}, ValueError, "top_k has 0"),
        ({"top_k": (1.5,)}, TypeError, "top_k must be"),
        ({"top_k": (1, 1 << 63)}, ValueError, "top_k has 9223372036854775808"),
        ({"bins": 0}, ValueError, "bins is 0"),
        ({"bins": (1 << 24) + 1}, ValueError, "bins is 16777217"),
        ({"bins": 1.0}, TypeError, "bins must be"),
        ({"per_class": 1}, TypeError, "per_class must be a bool"),
    ],
)
def test_options_that_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        CrossEntropyMeter(**options)


def refused_updates():
    x, t = np.zeros((4, 3)), np.array([0, 1, 2, 0])
    return [
        ((x, np.array([0, 1, 3, 0])), {}, IndexError, r"target\[2\] is 3"),
        ((x, np.array([0, -1, 2, 0])), {}, IndexError, r"target\[1\] is -1"),
        ((x, t[:3]), {}, ValueError, "target has shape"),
        ((x, (t[:, None], np.ones((4, 1)))), {}, TypeError, "CrossEntropyMeter takes no pair"),
        ((x, t + 0.5), {}, ValueError, r"target\[0\] is 0.5"),
        ((x.astype(int), t), {}, TypeError, "logits has dtype int64"),
        ((np.zeros((4, 0)), t), {}, ValueError, "no classes"),
        ((x, t), {"sample_weight": np.ones(3)}, ValueError, "sample_weight has shape"),
        ((x, t), {"sample_weight": [1, 1, -1, 1]}, ValueError, r"sample_weight\[2\] is -1,"),
        ((x, t), {"sample_weight": [1, 1, 1, math.nan]}, ValueError, r"sample_weight\[3\] is nan"),
        ((x, t), {"group": np.ones(4)}, TypeError, "group has dtype float64"),
        ((x, t), {"group": np.ones(3, int)}, ValueError, "group has shape"),
        ((x, t), {"group": "word"}, TypeError, "group has dtype"),
        ((x, t), {"reference_logits": x[:3]}, ValueError, "reference_logits has shape"),
        ((x, t), {"reference_logits": x.astype(int)}, TypeError, "reference_logits has dtype"),
        ((np.zeros((4, 5)), t), {}, ValueError, "weight has shape"),
    ]


@pytest.mark.parametrize(("arrays", "keywords", "error", "message"), refused_updates())
def test_a_refused_update_changes_nothing(arrays, keywords, error, message):
    x = np.array([[1.0, 2.0, 3.0]])
    meter = filled(
        x,
        [1],
        options={"weight": [1.0, 2.0, 1.0], "per_class": True},
        group=[4],
        reference_logits=x,
    )
    before = meter.to_state()
    with pytest.raises(error, match=message):
        meter.update(*arrays, **keywords)
    assert_same_state(meter.to_state(), before)


def test_refused_losses_change_nothing():
    meter = CrossEntropyMeter().update_losses([1.0])
    before = meter.to_state()
    for arguments, keywords, error, message in [
        (["a"], {}, TypeError, "losses has dtype"),
        ([1.0, 2.0], {"sample_weight": [1.0]}, ValueError, "sample_weight has shape"),
        ([1.0], {"sample_weight": [math.inf]}, ValueError, r"sample_weight\[0\] is inf"),
        ([1.0], {"group": [0.5]}, TypeError, "group has dtype"),
    ]:
        with pytest.raises(error, match=message):
            meter.update_losses(arguments, **keywords)
    assert_same_state(meter.to_state(), before)


def test_ignored_classes_and_probabilities():
    soft = np.full((2, 3), 1 / 3)
    with pytest.raises(ValueError, match="ignore_index is 1"):
        filled(np.zeros((2, 3)), soft, options={"ignore_index": [1, -100]})
    result = filled(np.zeros((3, 3)), [0, 1, 7], options={"ignore_index": [7, 1]}).compute()
    assert result.count == 1
    with pytest.raises(IndexError, match=r"or be one of ignore_index \(1, 7\)"):
        filled(np.zeros((1, 3)), [8], options={"ignore_index": [7, 1]})


def test_results_refuse_what_makes_no_sense():
    result = CrossEntropyMeter().update_losses([1.0]).compute()
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.loss = 2.0
    for q in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="q is"):
            result.quantile(q)
    for n in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="n_bytes is"):
            result.bits_per_byte(n)
    with pytest.raises(TypeError, match="n_bytes must be a number"):
        result.bits_per_byte("x")


# Memory


def test_memory_does_not_grow_with_the_samples(rng):
    def peak(samples):
        logits = np.broadcast_to(rng.normal(size=(1, 4)).astype(np.float32), (samples, 4))
        target = np.broadcast_to(np.int64(1), (samples,))
        meter = CrossEntropyMeter()
        meter.update(logits[:10], target[:10])
        tracemalloc.start()
        meter.update(logits, target, reference_logits=logits)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most, sum(array.nbytes for array in meter.to_state().values())

    # From three whole blocks of samples on.
    (small, small_state), (large, large_state) = peak(50_000), peak(400_000)
    assert large < 1.01 * small + 10_000
    assert large_state <= small_state + 1000


def test_arrays_that_are_converted_are_copied_in_blocks(rng):
    x = rng.normal(size=(4000, 3000)).astype(">f4")
    target = rng.integers(0, 3000, 4000)
    meter = CrossEntropyMeter()
    tracemalloc.start()
    meter.update(x, target)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < x.nbytes // 2
    plain = filled(x.astype(np.float32), target)
    assert meter.compute() == plain.compute()


@pytest.mark.parametrize("dtype", ["u1", "i1", "u8", ">i4"])
def test_class_indices_of_every_type(dtype, rng):
    x, target = draw(rng, 50, 100, np.float64)
    options = {"ignore_index": (-100, 255, 3), "weight": rng.random(100)}
    result = filled(x, target, options=options).compute()
    assert filled(x, target.astype(dtype), options=options).compute() == result
    assert filled(x, target.astype(np.float32), options=options).compute() == result


class Named(CrossEntropyMeter):
    def __init__(self, name):
        super().__init__()
        self.name = name


def test_a_subclass_is_pickled_and_copied_with_its_attributes():
    meter = Named("validation").update_losses([1.0, 2.0])
    for again in (pickle.loads(pickle.dumps(meter)), copy.copy(meter), copy.deepcopy(meter)):
        assert type(again) is Named
        assert again.name == "validation"
        again.update_losses([3.0])
        assert (again.compute().count, meter.compute().count) == (3, 2)


def test_the_state_grows_with_the_groups_alone(rng):
    losses = rng.random(100_000)
    few = CrossEntropyMeter().update_losses(losses, group=np.arange(100_000) % 10)
    many = CrossEntropyMeter().update_losses(losses, group=np.arange(100_000) % 1000)

    def size(meter):
        return sum(array.nbytes for array in meter.to_state().values())

    assert size(many) - size(few) < 990 * 200


@pytest.mark.parametrize("how", ["update", "merge"])
def test_a_group_more_copies_none_of_the_groups_before(how, rng):
    x, t = draw(rng, 4, 7, np.float64)

    def more(meter, group):
        meter.update(x, t, reference_logits=x[::-1], group=group)

    def peak(groups):
        meter = CrossEntropyMeter()
        meter.update_losses(np.ones(groups), group=np.arange(groups))
        for group in range(groups, groups + 3):  # the first may take new memory
            other = CrossEntropyMeter()
            more(other, group)
            tracemalloc.start()
            if how == "update":
                more(meter, group)
            else:
                meter.merge(other)
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return most

    assert peak(100_000) < peak(10) + 100_000


def test_tables_refuse_arrays_of_another_kind():
    """The Python layer makes none such; the compiled functions read and write memory as told."""

    def arrays(**changed):
        made = {
            "digits": np.zeros((2, 4), np.int64),
            "first": 34,
            "special": np.zeros((2, 3), np.int64),
            "rows": np.array([0, 1]),
            "values": np.array([1.0, 2.0]),
            "factors": np.array([1.0, 1.0]),
        }
        return (made | changed).values()

    assert _xentrs.exact_add(*arrays()) is None
    read_only, read_only_digits = np.zeros((2, 3), np.int64), np.zeros((2, 4), np.int64)
    read_only.flags.writeable = read_only_digits.flags.writeable = False
    for name, wrong in (
        ("digits", np.zeros((2, 4))),
        ("digits", np.zeros(8, np.int64)),
        ("digits", read_only_digits),
        ("special", np.zeros((2, 3), np.int32)),
        ("special", np.zeros((2, 2), np.int64)),
        ("special", read_only),
        ("rows", np.array([0, 1], np.int32)),
        ("rows", np.array([0])),
        ("values", np.array([1.0, 2.0], np.float32)),
        ("factors", np.array([1.0, 1.0], np.float32)),
        ("factors", np.array([1.0])),
    ):
        with pytest.raises(ValueError, match="an array of a wrong kind"):
            _xentrs.exact_add(*arrays(**{name: wrong}))
    for row in (-1, 2):
        with pytest.raises(IndexError, match="a row of no sum"):
            _xentrs.exact_add(*arrays(rows=np.array([0, row])))


def _interrupted_at(line, function):
    """Raise KeyboardInterrupt where the meter's sums run that line; return whether there is one."""
    seen = 0

    def trace(frame, event, _):
        nonlocal seen
        code = frame.f_code
        name = code.co_filename.replace("\\", "/")
        if not name.endswith(("_meter/sums.py", "_meter/histogram.py", "xentrs/_exact.py")):
            return None
        if code.co_name in (
            "undo",
            "_all_or_nothing",
        ):  # after the change, or while it is taken back
            return None
        if event == "line":
            seen += 1
            if seen == line:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


INTERRUPTED = {
    "plain": {},
    "weights": {"sample_weight": np.linspace(0.0, 2.0, 20)},
    "groups": {"group": np.arange(20) // 3},
    "new groups": {"group": np.arange(40, 60)},
    "groups by name": {"group": np.array(list("abcdefghijklmnopqrst"))},
    "reference": {"reference_logits": np.linspace(-3.0, 3.0, 20 * 7).reshape(20, 7)},
    "all": {
        "sample_weight": np.linspace(0.0, 2.0, 20),
        "group": np.arange(10, 30),
        "reference_logits": np.linspace(-3.0, 3.0, 20 * 7).reshape(20, 7),
    },
}


@pytest.mark.parametrize("how", ["update", "update_losses", "merge"])
@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("kind", INTERRUPTED)
def test_an_interrupted_change_changes_nothing(kind, per_class, how, rng):
    """Wherever Ctrl-C comes, also where a digit more is needed or sums are carried."""
    options = INTERRUPTED[kind]
    x, t = draw(rng, 20, 7, np.float64)
    x[3] *= 1e5  # large losses, for which the tables have no digits yet
    first = {key: a[::-1] if a.dtype.kind == "U" else a for key, a in options.items()}
    if "group" in first and first["group"].dtype.kind != "U":
        first["group"] = np.arange(20) // 2

    def made(x, options):
        return CrossEntropyMeter(per_class=per_class).update(x, t, **options)

    def change(meter):
        if how == "update":
            meter.update(x, t, **options)
        elif how == "merge":
            meter.merge(made(x, options))
        else:
            meter.update_losses(x[:, 0], **{k: a for k, a in options.items() if k in KEPT})

    for begin in (CrossEntropyMeter(per_class=per_class), made(x / 1e6, first)):
        start, before = pickle.dumps(begin), begin.to_state()
        change(begin)
        after, line, kept, interrupted = begin.to_state(), 1, 0, True
        while interrupted:
            meter = pickle.loads(start)
            interrupted = _interrupted_at(line, functools.partial(change, meter))
            state = meter.to_state()
            if not interrupted or same_state(state, after):  # at the last line the change is whole
                kept += 1
                assert_same_state(state, after)
            else:
                assert_same_state(state, before)
            line += 1 if line < 60 else 7
        assert line > 20
        assert kept <= 3


KEPT = ("sample_weight", "group")


@pytest.mark.parametrize("samples", [50, 20_000])
def test_threads_share_a_meter(samples, rng):
    """Updates of one block and of several, merges and results, all at once."""
    x, t = draw(rng, samples, 3, np.float32)
    part = filled(x[:20], t[:20], options={"per_class": True}, group=7)

    def made(run):
        meter = CrossEntropyMeter(per_class=True)

        def work(i):
            if i % 4 == 3:
                meter.merge(part)
                part.merge(CrossEntropyMeter(per_class=True))
            else:
                meter.update(x, t, group=i % 9, reference_logits=-x)
            meter.compute()
            meter.to_state()

        run(work, range(24))
        return meter

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            shared = made(lambda work, each: list(pool.map(work, each)))
    finally:
        sys.setswitchinterval(before)
    assert shared.compute() == made(lambda work, each: list(map(work, each))).compute()


def test_a_meter_merged_with_itself():
    meter = CrossEntropyMeter().update_losses([1.0, 2.0])
    assert meter.merge(meter).compute().count == 4


@pytest.mark.parametrize("kind", ["classes", "groups"])
def test_what_another_thread_adds_during_an_update(kind, monkeypatch, rng):
    """Numbers of classes and kinds of groups must agree, whoever comes first."""
    x, t = draw(rng, 20, 3, np.float32)
    wide = np.pad(x, [(0, 0), (0, 1)])
    meter, of_logits = CrossEntropyMeter(per_class=True), batches.of_logits
    others = filled(wide, t, options={"per_class": True}, group=7)

    def meanwhile(*arguments):
        monkeypatch.undo()
        meter.merge(others)
        return of_logits(*arguments)

    monkeypatch.setattr(batches, "of_logits", meanwhile)
    message = "3 classes.*others had 4" if kind == "classes" else "integers.*strings"
    with pytest.raises(ValueError, match=message):
        meter.update(x if kind == "classes" else wide, t, group="a" if kind == "groups" else None)
    assert meter.compute() == others.compute()


def test_states_in_fortran_order(rng):
    x, t = draw(rng, 40, 3, np.float32)
    meter = filled(x, t, group=np.arange(40) % 5)
    state = {name: np.asfortranarray(a) if a.ndim else a for name, a in meter.to_state().items()}
    there = CrossEntropyMeter.from_state(state)
    for one in (meter, there):
        one.update(-x, t, group=np.arange(40) % 7)
    assert there.compute() == meter.compute()
    for name, a in meter.to_state().items():
        np.testing.assert_array_equal(there.to_state()[name], a)
