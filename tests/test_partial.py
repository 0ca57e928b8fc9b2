"""`PartialCrossEntropy`: classes in slices, merged in any order."""

import copy
import itertools
import pickle
import re
import threading
import tracemalloc

import numpy as np
import pytest

import reference
import xentrs
from xentrs import PartialCrossEntropy

TYPES = (np.float32, np.float64)
every_type = pytest.mark.parametrize("dtype", TYPES)

# The largest error in ULP of single losses and of gradients: what the docstring says.
BOUND = 4.0


def cut(classes, parts, rng):
    """Return the bounds of slices of random sizes."""
    inner = rng.choice(np.arange(1, classes), parts - 1, replace=False)
    return [range(a, b) for a, b in itertools.pairwise([0, *sorted(inner.tolist()), classes])]


def reduced(logits, target, slices, **options):
    weight = options.pop("weight", None)
    return [
        PartialCrossEntropy.of(
            logits[:, part.start : part.stop],
            target,
            first_class=part.start,
            weight=None if weight is None else weight[part.start : part.stop],
            **options,
        )
        for part in slices
    ]


def merged(parts, rng):
    """Merge copies of all parts by a random tree."""
    parts = [copy.deepcopy(part) for part in parts]
    while len(parts) > 1:
        i, j = rng.choice(len(parts), 2, replace=False)
        result = parts[i].merge(parts[j])
        assert result is parts[i]
        del parts[j]
    return parts[0]


def gradient(total, logits, slices, **options):
    parts = [
        total.grad(logits[:, part.start : part.stop], part.start, **options) for part in slices
    ]
    return np.concatenate(parts, 1)


def logits_of(kind, samples, classes, dtype, rng):
    spread, offset, peak = {
        "plain": (3, 0, 0),
        "confident": (3, 0, 60),
        "certain": (1, 0, 300),
        "spread": (100, 0, 0),
        "offset": (3, 1e5, 0),
        "beyond": (3, 3e5, 0),  # float32 then has other units
        "far": (30, 1e13, 0),  # and so has float64
        "around": (20, 131072.0, 0),  # some slices of float32 have the one, some the other
        "negative": (8, -9e4, 0),
    }[kind]
    x = rng.standard_normal((samples, classes)) * spread + offset
    target = rng.integers(0, classes, samples)
    x[np.arange(samples), target] += peak
    return x.astype(dtype), target


KINDS = (
    *("plain", "confident", "certain", "spread"),
    *("offset", "beyond", "far", "around", "negative"),
)


def worst(actual, exact):
    errors = reference.ulp_error(actual, exact)[reference.significant(exact, actual.dtype)]
    return errors.max(initial=0.0)


@every_type
@pytest.mark.parametrize("kind", KINDS)
def test_every_order_of_merging_is_exact(kind, dtype, rng):
    logits, target = logits_of(kind, 24, 400, dtype, rng)
    exact = reference.cross_entropy(logits, target, reduction="none")
    for parts in (2, 16):
        slices = cut(400, parts, rng)
        pieces = reduced(logits, target, slices)
        for _ in range(4):
            total = merged(pieces, rng)
            loss = total.loss("none")
            assert loss.dtype == dtype
            assert worst(loss, exact.loss) <= BOUND
            grad = gradient(total, logits, slices, reduction="none")
            assert grad.dtype == dtype
            assert worst(grad, exact.grad) <= BOUND


@every_type
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["smoothing", "weight", "sample_weight", "both"])
def test_options_are_exact(name, kind, dtype, rng):
    """A gradient that is a difference is exact in units of the larger term."""
    logits, target = logits_of(kind, 24, 400, dtype, rng)
    options = {
        "smoothing": {"label_smoothing": 0.1},
        "weight": {"weight": rng.uniform(0, 2, 400)},
        "sample_weight": {"sample_weight": rng.uniform(0, 2, 24)},
        "both": {"weight": rng.uniform(0, 2, 400), "label_smoothing": 0.3},
    }[name]
    exact = reference.cross_entropy(logits, target, reduction="none", **options)
    slices = cut(400, 9, rng)
    total = merged(reduced(logits, target, slices, **options), rng)
    assert worst(total.loss("none"), exact.loss) <= BOUND
    grad = gradient(total, logits, slices, reduction="none")
    errors = reference.ulp_error(grad, exact.grad, exact.grad_terms)
    assert errors[reference.significant(exact.grad, dtype)].max(initial=0.0) <= BOUND


@every_type
def test_a_million_classes_in_sixteen_slices(dtype, rng):
    classes, samples = 1_000_000, 3
    logits = (rng.standard_normal((samples, classes)) * 4).astype(dtype)
    target = np.array([3, 500_000, 999_999])
    logits[1, target[1]] = 60.0  # a loss near 1e-18
    logits[2, target[2]] = -40.0
    exact = reference.cross_entropy(logits, target, reduction="none")
    assert exact.loss[1] < 1e-16
    slices = cut(classes, 16, rng)
    pieces = reduced(logits, target, slices)
    for _ in range(2):
        total = merged(pieces, rng)
        assert worst(total.loss("none"), exact.loss) <= BOUND
        assert worst(gradient(total, logits, slices, reduction="none"), exact.grad) <= BOUND
    assert total.loss("sum") == pytest.approx(float(exact.loss.sum()), rel=1e-6)


OPTIONS = {
    "smoothing": {"label_smoothing": 0.1},
    "smoothed whole": {"label_smoothing": 1.0},
    "weight": {"weight": True},
    "sample_weight": {"sample_weight": True},
    "ignore_index": {"ignore_index": (3, -100)},
    "all": {"label_smoothing": 0.2, "weight": True, "sample_weight": True, "ignore_index": 3},
}


@every_type
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_options(name, reduction, dtype, rng):
    samples, classes = 40, 90
    logits, target = logits_of("plain", samples, classes, dtype, rng)
    logits[:20] += np.asarray(7000.0, dtype)
    target[:3] = 3
    options = dict(OPTIONS[name])
    if "weight" in options:
        options["weight"] = np.round(rng.uniform(0, 3, classes))
        options["weight"][:2] = 0.0
    if "sample_weight" in options:
        options["sample_weight"] = rng.uniform(-0.5, 2, samples)
        options["sample_weight"][5] = 0.0
        logits[5] = np.nan
    slices = cut(classes, 5, rng)
    total = merged(reduced(logits, target, slices, **options), rng)
    for more in ({}, {"base": 2.0}, {"denominator": 7.0}, {"denominator": 0.5, "base": 10.0}):
        expected = reference.cross_entropy(logits, target, reduction=reduction, **options, **more)
        near = 1e-5 if dtype == np.float32 else 1e-13
        loss = total.loss(reduction, **more)
        assert type(loss) is float or reduction == "none"

        np.testing.assert_allclose(loss, np.asarray(expected.loss, float), near, near)
        grad = gradient(total, logits, slices, reduction=reduction, **more)
        largest = float(abs(np.asarray(expected.grad, float)).max())
        np.testing.assert_allclose(grad, np.asarray(expected.grad, float), near, near * largest)


@every_type
def test_agrees_with_the_loss_of_all_classes(dtype, rng):
    logits, target = logits_of("confident", 50, 77, dtype, rng)
    target[4] = -100
    loss, grad = xentrs.cross_entropy_with_grad(logits, target)
    slices = cut(77, 6, rng)
    total = merged(reduced(logits, target, slices), rng)
    assert total.loss() == pytest.approx(loss, rel=1e-6 if dtype == np.float32 else 1e-14)
    ours = gradient(total, logits, slices)
    assert (ours[4] == 0).all()
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(ours, grad, 8 * eps, np.finfo(dtype).tiny)


@every_type
def test_infinite_and_nan_logits(dtype):
    inf, nan = np.inf, np.nan
    rows = np.array(
        [
            [1.0, -inf, 2.0, 0.5],  # a class that is ruled out
            [1.0, 3.0, -inf, -inf],  # a whole slice
            [-inf, -inf, -inf, 5.0],  # all but the true class
            [1.0, 2.0, 0.0, -inf],  # the true class
            [-inf, -inf, -inf, -inf],
            [1.0, inf, 0.0, 2.0],
            [1.0, nan, 0.0, 2.0],
            [1.0, 0.0, 0.0, nan],  # at the true class
            [1.0, 0.0, 0.0, inf],
        ],
        dtype,
    )
    target = np.array([0, 0, 3, 3, 3, 3, 3, 3, 3])
    for options in ({}, {"label_smoothing": 0.1}, {"weight": np.array([1.0, 0.0, 2.0, 0.5])}):
        loss, grad = xentrs.cross_entropy_with_grad(rows, target, reduction="none", **options)
        for slices in ([range(2), range(2, 4)], [range(i, i + 1) for i in range(4)]):
            parts = reduced(rows, target, slices, **options)
            for order in itertools.permutations(parts):
                total = copy.deepcopy(order[0])
                for part in order[1:]:
                    total.merge(part)
                np.testing.assert_allclose(total.loss("none"), loss, 1e-6)
                ours = gradient(total, rows, slices, reduction="none")
                np.testing.assert_allclose(ours, grad, 1e-6)
                assert not np.signbit(ours[ours == 0]).any() or options


def test_samples_that_do_not_count():
    logits = np.array([[1.0, np.nan], [np.inf, 0.0], [0.0, 1.0], [np.nan, np.nan]])
    target = np.array([-100, 1, 1, 0])
    weight = np.array([0.0, 1.0])
    sample_weight = np.array([1.0, 0.0, 2.0, 1.0])
    parts = [
        PartialCrossEntropy.of(
            logits[:, i : i + 1],
            target,
            first_class=i,
            weight=weight,
            sample_weight=sample_weight,
        )
        for i in range(2)
    ]
    total = parts[0].merge(parts[1])
    expected = np.log1p(np.exp(-1.0))
    np.testing.assert_allclose(total.loss("none"), [0, 0, 2 * expected, 0])
    assert total.loss() == pytest.approx(expected)
    for i in range(2):
        grad = total.grad(logits[:, i : i + 1], i)
        assert (grad[[0, 1, 3]] == 0).all()
        assert not np.signbit(grad[[0, 1, 3]]).any()


def test_nothing_counts():
    part = PartialCrossEntropy.of(np.zeros((2, 3)), [-100, -100], first_class=0)
    assert np.isnan(part.loss())
    assert part.loss("sum") == 0.0
    assert part.loss(denominator=4.0) == 0.0
    assert part.loss(denominator=0.0) == 0.0
    assert (part.grad(np.zeros((2, 3)), 0) == 0).all()
    empty = PartialCrossEntropy.of(np.zeros((0, 3)), np.zeros(0, int), first_class=0)
    assert np.isnan(empty.loss())
    assert empty.loss("none").shape == (0,)
    assert empty.grad(np.zeros((0, 3)), 0).shape == (0, 3)


def test_one_class():
    for smoothing in (0.0, 0.3):
        part = PartialCrossEntropy.of(
            [[5.0], [-3e8]], [0, 0], first_class=0, label_smoothing=smoothing
        )
        assert part.loss("none").tolist() == [0.0, 0.0]
        assert part.grad([[5.0], [-3e8]], 0).tolist() == [[0.0], [0.0]]


@every_type
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_layouts(dtype, smoothing, rng):
    """The class axis anywhere, strides, byte order, a large array read in blocks: the same bits."""
    plain = rng.standard_normal((9, 50, 700)).astype(dtype)
    target = rng.integers(0, 700, (9, 50))
    options = {"first_class": 0, "label_smoothing": smoothing}
    first = PartialCrossEntropy.of(plain, target, **options)
    loss, grad = first.loss("none"), first.grad(plain, 0)
    assert loss.shape == (9, 50)
    columns = np.ascontiguousarray(np.moveaxis(plain, -1, 1))
    swapped = plain.astype(plain.dtype.newbyteorder())
    strided = np.repeat(plain, 2, -1)[..., ::2]
    for x, axis in ((columns, 1), (swapped, -1), (strided, -1)):
        part = PartialCrossEntropy.of(x, target, axis=axis, **options)
        assert (part.loss("none") == loss).all()
        assert (np.moveaxis(part.grad(x, 0), axis, -1) == grad).all()
        out = np.empty(x.shape, dtype)
        if x.dtype.isnative:
            assert part.grad(x, 0, out=out) is out
            assert (np.moveaxis(out, axis, -1) == grad).all()
            assert part.grad(x, 0, out=x) is x
            assert (np.moveaxis(x, axis, -1) == grad).all()
    assert first.grad(np.moveaxis(plain, -1, 0), 0, axis=0).shape == (700, 9, 50)
    one = PartialCrossEntropy.of(plain[0, 0], target[0, 0], **options)
    assert one.loss() == pytest.approx(float(loss[0, 0]), rel=1e-6)
    assert one.loss("none").shape == ()


def test_memory():
    """An array of any strides is read in blocks."""
    logits = np.zeros((1000, 8000), np.float32)[:, ::2]
    target = np.zeros(1000, int)
    out = np.empty((4000, 1000), np.float32).T
    tracemalloc.start()
    try:
        part = PartialCrossEntropy.of(logits, target, first_class=0)
        part.grad(logits, 0, out=out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < logits.nbytes / 4


def test_out_in_place_is_the_same(rng):
    logits = rng.standard_normal((5, 3000)).astype(np.float32)
    part = PartialCrossEntropy.of(logits, [0, 1, 2, 3, 2999], first_class=0)
    grad = part.grad(logits, 0)
    assert part.grad(logits, 0, out=logits) is logits
    assert (logits == grad).all()


def test_part_of_the_merged_classes(rng):
    """The gradient of classes that several slices have between them."""
    logits = rng.standard_normal((4, 30))
    weight = rng.uniform(0, 1, 30)
    options = {"weight": weight, "label_smoothing": 0.1}
    total = merged(reduced(logits, [0, 9, 20, 29], [range(10), range(10, 30)], **options), rng)
    whole = total.grad(logits, 0)
    assert (total.grad(logits[:, 7:15], 7) == whole[:, 7:15]).all()


def test_weights_of_all_classes_or_of_the_slice(rng):
    logits, weight = rng.standard_normal((4, 12)), rng.uniform(0, 1, 12)
    target = [0, 5, 7, 11]
    for part in (range(6), range(6, 12)):
        x = logits[:, part.start : part.stop]
        one, other = (
            PartialCrossEntropy.of(x, target, first_class=part.start, weight=w)
            for w in (weight, weight[part.start : part.stop])
        )
        assert (one._states == other._states).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_misaligned_logits(dtype, rng):
    """As they lie in a file, or come from another process."""
    x, t = rng.normal(size=(5, 8)).astype(dtype), rng.integers(0, 8, 5)
    y = np.frombuffer(b" " + x.tobytes(), dtype, offset=1).reshape(x.shape)
    assert not y.flags.aligned
    right = xentrs.PartialCrossEntropy.of(x, t, first_class=0)
    found = xentrs.PartialCrossEntropy.of(y, t, first_class=0)
    np.testing.assert_array_equal(found.loss("none"), right.loss("none"))
    np.testing.assert_array_equal(right.grad(y, 0), right.grad(x, 0))


@pytest.mark.parametrize("shift", [0, 1])
def test_pickle_of_buffers(shift, rng):
    """Dask and Ray hand out read-only arrays, at any address."""
    x, t = rng.normal(size=(50, 6)), rng.integers(0, 6, 50)
    s, w = rng.uniform(size=50), rng.uniform(size=6)

    def part(first):
        return xentrs.PartialCrossEntropy.of(
            x[:, first : first + 3], t, first_class=first, weight=w, sample_weight=s
        )

    def sent(one):
        buffers = []
        stored = pickle.dumps(one, 5, buffer_callback=buffers.append)
        assert len(buffers) > 3
        moved = [memoryview(bytes(shift) + bytes(b.raw()))[shift:] for b in buffers]
        return pickle.loads(stored, buffers=moved)

    right = part(0).merge(part(3))
    found = sent(sent(part(3)).merge(sent(part(0))))
    np.testing.assert_array_equal(found.loss("none"), right.loss("none"))
    np.testing.assert_array_equal(found.grad(x, 0), right.grad(x, 0))


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle(protocol, rng):
    logits = rng.standard_normal((6, 8)).astype(np.float32)
    options = {"weight": np.arange(8.0), "sample_weight": np.arange(6.0), "label_smoothing": 0.1}
    target = [0, 1, 5, 6, 7, -100]
    left, right = reduced(logits, target, [range(3), range(3, 8)], **options)
    left, right = (pickle.loads(pickle.dumps(part, protocol)) for part in (left, right))
    assert left.slices == (range(3),)
    total = pickle.loads(pickle.dumps(left.merge(right), protocol))
    assert total.slices == (range(3), range(3, 8))
    expected = xentrs.cross_entropy(logits, target, **options)
    assert total.loss() == pytest.approx(expected, rel=1e-6)
    assert total.grad(logits[:, 3:], 3).shape == (6, 5)


def test_merging_changes_only_the_first(rng):
    logits = rng.standard_normal((3, 8))
    left, right = reduced(logits, [0, 3, 7], [range(4), range(4, 8)])
    before = right._states.copy()
    left.merge(right)
    assert (right._states == before).all()
    assert right.slices == (range(4, 8),)


def test_arrays_of_the_caller_are_not_kept():
    logits, target = np.zeros((2, 3)), np.array([0, 1])
    weight, sample_weight = np.ones(3), np.ones(2)
    part = PartialCrossEntropy.of(
        logits, target, first_class=0, weight=weight, sample_weight=sample_weight
    )
    loss = part.loss()
    target[:], weight[:], sample_weight[:] = 2, 7.0, 3.0
    assert part.loss() == loss
    assert (part.grad(logits, 0)[0] < 0).tolist() == [True, False, False]


def test_threads_change_no_bit(threads, rng):
    logits = rng.standard_normal((67, 20_000)).astype(np.float32)
    target = rng.integers(0, 20_000, 67)
    results = []
    for n in (1, 2, 5):
        threads(n)
        total = merged(reduced(logits, target, [range(9000), range(9000, 20_000)]), rng)
        results.append((total.loss(), gradient(total, logits, [range(20_000)]).tobytes()))
    assert len(set(results)) == 1


def test_several_threads_at_once(rng):
    logits = rng.standard_normal((40, 5000)).astype(np.float32)
    target = rng.integers(0, 5000, 40)
    slices = cut(5000, 8, rng)
    parts = [None] * 8

    def reduce(i):
        parts[i] = reduced(logits, target, [slices[i]])[0]

    workers = [threading.Thread(target=reduce, args=(i,)) for i in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    expected = xentrs.cross_entropy(logits, target)
    assert merged(parts, rng).loss() == pytest.approx(expected, rel=1e-6)


# ---------------------------------------------------------------------------------------- errors


def two(**options):
    """Return logits, target, and both halves of their classes."""
    logits = np.arange(12.0).reshape(2, 6)
    return logits, *reduced(logits, [1, 4], [range(3), range(3, 6)], **options)


def test_a_target_that_no_slice_has():
    logits, left, _ = two()
    with pytest.raises(IndexError, match=r"target\[1\] is 4, which is in none .*\[0, 3\)"):
        left.loss()
    with pytest.raises(IndexError, match=r"target\[1\] is 4"):
        left.grad(logits[:, :3], 0)
    for wrong in ([0, -1], [0, 6], [0, 10**9], np.array([0, 2**63], np.uint64)):
        part = PartialCrossEntropy.of(logits, wrong, first_class=0)
        with pytest.raises(IndexError, match=r"target\[1\] is"):
            part.loss()


def test_classes_that_are_missing():
    logits = np.arange(12.0).reshape(2, 6)
    parts = reduced(logits, [0, 5], [range(2), range(4, 6)])
    total = parts[0].merge(parts[1])
    with pytest.raises(ValueError, match=re.escape("classes [2, 4) are missing")):
        total.loss()
    late = PartialCrossEntropy.of(logits, [7, 8], first_class=5)
    with pytest.raises(ValueError, match=re.escape("classes [0, 5) are missing")):
        late.loss()


def test_the_last_classes_are_missing():
    """Only a weight of all classes tells so."""
    logits, weight = np.arange(12.0).reshape(2, 6), np.arange(1.0, 7.0)
    of = PartialCrossEntropy.of

    def parts(of_all):
        return [
            of(
                logits[:, a : a + 2],
                [0, 3],
                first_class=a,
                weight=weight if all_ else weight[a : a + 2],
            )
            for a, all_ in zip((0, 2, 4), of_all, strict=True)
        ]

    for of_all in ((True, False, False), (False, True, False)):
        first, second, third = parts(of_all)
        total = pickle.loads(pickle.dumps(first.merge(second)))
        for call in (total.loss, lambda of=total: of.grad(logits[:, :2], 0)):
            with pytest.raises(ValueError, match=re.escape("classes [4, 6) are missing: no slice")):
                call()
        right = xentrs.cross_entropy(logits, [0, 3], weight=weight)
        assert total.merge(third).loss() == pytest.approx(right, rel=1e-14)
    first, second, _ = parts((False, False, True))
    right = xentrs.cross_entropy(logits[:, :4], [0, 3], weight=weight[:4])
    assert first.merge(second).loss() == pytest.approx(right, rel=1e-14)
    first, second, _ = parts((True, False, False))
    other = of(logits[:, 2:4], [0, 3], first_class=2, weight=weight[:5])
    message = "the number of all classes, that of weight, is 6 here, but 5 in other"
    with pytest.raises(ValueError, match=f"^{message}$"):
        first.merge(other)


def test_classes_that_overlap():
    logits, left, right = two()
    other = PartialCrossEntropy.of(logits[:, 2:4], [1, 4], first_class=2)
    with pytest.raises(ValueError, match=r"classes 2 to 2 are in both.*\[0, 3\) and \[2, 4\)"):
        left.merge(other)
    with pytest.raises(ValueError, match=r"classes 0 to 2 are in both"):
        left.merge(left)
    assert left.slices == (range(3),)
    assert left.merge(right).loss() > 0


def test_parts_of_different_calls():
    logits, left, _ = two()

    def other(logits=logits[:, 3:], target=(1, 4), **options):
        return PartialCrossEntropy.of(logits, target, first_class=3, **options)

    for part, message in (
        (other(label_smoothing=0.1), r"label_smoothing is 0.0 here, but 0.1 in other"),
        (other(logits[:1, 3:], (1,)), r"shape of the samples is \(2,\) here, but \(1,\)"),
        (other(logits[:, 3:].astype(np.float32)), "dtype of logits_slice is float64 here"),
        (other(target=(1, 5)), r"target\[1\] is 4 here, but 5 in other"),
        (other(sample_weight=[1, 2]), "sample_weight differs"),
        (other(ignore_index=4), "ignore_index differs"),
        (other(weight=[1, 2, 3]), "weight was given for one"),
    ):
        with pytest.raises(ValueError, match=message):
            left.merge(part)
    with pytest.raises(TypeError, match="must be a PartialCrossEntropy, not int"):
        left.merge(3)
    with pytest.raises(TypeError, match=r"PartialCrossEntropy\.of"):
        PartialCrossEntropy()


def test_arguments_of_of():
    logits = np.zeros((2, 3))

    def refused(error, message, logits=logits, target=(0, 1), **options):
        with pytest.raises(error, match=message):
            PartialCrossEntropy.of(logits, target, **{"first_class": 0} | options)

    refused(TypeError, "first_class must be an int, not float", first_class=1.0)
    refused(ValueError, "first_class is -1, but must be at least 0", first_class=-1)
    refused(ValueError, f"first_class is {1 << 70}, but class", first_class=1 << 70)
    refused(TypeError, "logits_slice has dtype int64", np.zeros((2, 3), int))
    refused(ValueError, r"logits_slice must have a class axis", np.float64(1.0), 0)
    refused(ValueError, r"has no classes on axis 1", np.zeros((2, 0)))
    refused(ValueError, r"axis is 2, but logits_slice of shape \(2, 3\)", axis=2)
    refused(ValueError, r"target has shape \(3,\).*pass axis=0", target=(0, 1, 2))
    refused(TypeError, "class indices.*no probabilities", target=np.full((2, 3), 0.3))
    pair = np.zeros((2, 1), int), np.ones((2, 1))
    refused(TypeError, "^target is a pair .*class indices.*no probabilities", target=pair)
    refused(ValueError, r"target\[1\] is 0.5", target=[0, 0.5])
    refused(ValueError, r"weight has shape \(2,\).*\(3,\)", weight=[1, 2])
    refused(ValueError, r"weight has shape \(4,\).*\(5,\)", weight=[1, 2, 3, 4], first_class=2)
    refused(ValueError, r"sample_weight has shape \(3,\)", sample_weight=[1, 2, 3])
    refused(ValueError, "label_smoothing must be in", label_smoothing=1.5)
    refused(TypeError, "ignore_index must be", ignore_index=0.5)


def test_arguments_of_loss_and_grad():
    logits, left, right = two()
    left.merge(right)
    for options, message in (
        ({"reduction": "max"}, "reduction must be"),
        ({"denominator": -1.0}, "denominator must be"),
        ({"base": 1.0}, "base must be"),
    ):
        with pytest.raises(ValueError, match=message):
            left.loss(**options)
        with pytest.raises(ValueError, match=message):
            left.grad(logits[:, :3], 0, **options)
    with pytest.raises(ValueError, match=r"class 6 is in no merged slice"):
        left.grad(logits[:, 3:], 4)
    with pytest.raises(ValueError, match=r"class -1 is in no merged slice"):
        left.grad(logits[:, 3:], -1)
    with pytest.raises(ValueError, match=r"samples of shape \(1,\), but .* shape \(2,\)"):
        left.grad(logits[:1, :3], 0)
    with pytest.raises(TypeError, match="dtype float32, but what was merged had float64"):
        left.grad(logits[:, :3].astype(np.float32), 0)
    with pytest.raises(ValueError, match=r"out has shape \(2, 4\)"):
        left.grad(logits[:, :3], 0, out=np.empty((2, 4)))
    with pytest.raises(TypeError, match="out has dtype float32"):
        left.grad(logits[:, :3], 0, out=np.empty((2, 3), np.float32))
    read_only = np.empty((2, 3))
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        left.grad(logits[:, :3], 0, out=read_only)
    with pytest.raises(ValueError, match="overlaps logits_slice"):
        left.grad(logits[:, :3], 0, out=logits[:, 1:4])


def test_repr():
    _, left, right = two()
    assert repr(left.merge(right)) == (
        "<PartialCrossEntropy of classes [0, 3), [3, 6), samples of shape (2,)>"
    )
