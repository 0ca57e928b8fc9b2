"""Random arguments, right and wrong; run by `test_fuzz.py` in a process of its own.

``python tests/fuzz.py FIRST CASES`` runs CASES cases from seed FIRST on. The number of each stands
on stderr before it runs, so a crash tells which it was.
"""

import sys
import warnings

import numpy as np

import xentrs

ALLOWED = (TypeError, ValueError, IndexError)
NAMES = ["cross_entropy", "log_loss", "binary_cross_entropy_with_logits"]
SUFFIXES = ["", "_with_grad", "_with_grad_hess"]
FLOATS = ["f4", "f8", ">f4", ">f8"]
DTYPES = [*FLOATS, "f2", "g", "c8", "?", "O", "S3", "U2", "M8[s]", "V8", *"bBhHiIqQ", ">i4", ">u2"]
NUMBERS = [0, 1, -1, 0.5, 2, 1e-300, 1e308, np.nan, np.inf, -np.inf, -100, 1 << 70, True, None]
NUMBERS += ["x", b"x", [], {}, object(), 1j, np.float32(0.1), np.array(0.1), np.array([0.1, 0.2])]


class Liar:
    """An object whose protocols misbehave."""

    def __init__(self, rng):
        self.how = rng.integers(5)

    def __array__(self, dtype=None, copy=None):
        if self.how == 0:
            raise ValueError("no array today")
        if self.how == 1:
            return "not an array"
        return np.zeros((2, 3), "f4")

    def __len__(self):
        return 3 if self.how == 2 else 1

    def __getitem__(self, index):
        raise IndexError(index)

    def __float__(self):
        if self.how == 3:
            raise TypeError("no float")
        return 0.25

    def __index__(self):
        if self.how == 4:
            raise TypeError("no index")
        return 1


def shape_of(rng):
    ndim = rng.choice([0, 1, 2, 2, 2, 3, 4])
    sizes = [0, 1, 2, 3, 5, 8, 9, 16, 17, 64, 65, 130]
    shape = tuple(int(n) for n in rng.choice(sizes, ndim))
    return shape if np.prod(shape) < 20_000 else shape[:2]


def lay_out(rng, array):
    """Return the same elements with other strides, sometimes read-only or misaligned."""
    how = rng.integers(9)
    if array.ndim == 0 or array.dtype.hasobject:
        return array
    if how == 0:
        return np.asfortranarray(array)
    if how == 1:
        return np.ascontiguousarray(array[..., ::-1])[..., ::-1]
    if how == 2:
        wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1] + 1), array.dtype)
        wide[..., 1::2] = array
        return wide[..., 1::2]
    if how == 3:
        raw = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
        raw[...] = array
        return raw
    if how == 4:
        array = array.copy()
        array.flags.writeable = False
    if how == 5:
        return np.broadcast_to(array[:1], array.shape)
    return array


def array_of(rng, shape, dtype):
    dtype = np.dtype(dtype)
    with np.errstate(all="ignore"):
        values = rng.normal(size=shape) * rng.choice([0.2, 1, 50, 1e5, 1e30])
        if rng.random() < 0.4:
            values = rng.random(shape)
        if rng.random() < 0.2:
            values = np.where(
                rng.random(shape) < 0.1, rng.choice([np.nan, np.inf, -np.inf]), values
            )
        if dtype.kind in "iu":
            small = rng.integers(-1 if rng.random() < 0.1 else 0, 4, shape)
            return lay_out(rng, np.asarray(small).astype(dtype))
        if dtype.kind in "fc?":
            return lay_out(rng, np.asarray(values).astype(dtype))
        return lay_out(rng, np.zeros(shape, dtype))


def anything(rng, shape):
    """Return an argument that is most likely wrong."""
    how = rng.integers(8)
    if how == 0:
        return NUMBERS[rng.integers(len(NUMBERS))]
    if how == 1:
        return Liar(rng)
    if how == 2:
        return np.zeros(shape).tolist()
    if how == 3:
        return np.ma.masked_array(np.zeros(shape), False)
    return array_of(rng, shape_of(rng) if how < 6 else shape, DTYPES[rng.integers(len(DTYPES))])


def arguments(rng, name, suffix):
    """Return logits, target and options, mostly right."""
    shape = shape_of(rng)
    dtype = FLOATS[rng.integers(2) if rng.random() < 0.8 else rng.integers(4)]
    axis = int(rng.integers(-len(shape), len(shape))) if shape and rng.random() < 0.3 else -1
    x = array_of(rng, shape, dtype)
    if name == "log_loss" and rng.random() < 0.8:
        x = lay_out(rng, rng.random(shape).astype(dtype)) if shape else np.array(0.5, dtype)
    samples = tuple(np.delete(shape, axis).tolist()) if shape else ()
    classes = shape[axis] if shape else 1
    binary = name.startswith("binary")
    if binary or rng.random() < 0.4:
        t = array_of(rng, shape, dtype if rng.random() < 0.7 else "i8")
    else:
        kind = "bBhHiIqQ"[rng.integers(8)]
        t = rng.integers(0, max(1, classes), samples)
        t = lay_out(rng, np.asarray(t).astype(kind)) if classes < 128 else t
    options = {}

    def option(key, value, chance=0.2):
        if rng.random() < chance:
            options[key] = value() if rng.random() < 0.9 else anything(rng, shape)

    if not binary:
        option("axis", lambda: axis, 1.0 if axis != -1 else 0.1)
        option("sample_weight", lambda: array_of(rng, samples, dtype))
        option("ignore_index", lambda: [None, 1, -100, (0, -1), [2], 1 << 65][rng.integers(6)])
        option("weight", lambda: array_of(rng, (classes,), dtype))
    else:
        option("weight", lambda: array_of(rng, shape[rng.integers(len(shape) + 1) :], dtype))
        option("pos_weight", lambda: array_of(rng, shape[-1:], dtype))
        option("where", lambda: array_of(rng, shape, "?"))
    option("label_smoothing", lambda: [0, 0.1, 1.0, 2, -0.1, np.nan][rng.integers(6)])
    option("reduction", lambda: ["mean", "sum", "none", "nome"][rng.integers(4)], 0.6)
    option("denominator", lambda: NUMBERS[rng.integers(len(NUMBERS))])
    option("base", lambda: NUMBERS[rng.integers(len(NUMBERS))])
    for key in ("out", "hess_out")[: SUFFIXES.index(suffix)]:
        option(key, lambda: output(rng, x, t, options), 0.5)
    if rng.random() < 0.06:
        x = anything(rng, shape)
    if rng.random() < 0.06:
        t = anything(rng, shape)
    return x, t, options


def output(rng, x, t, options):
    """Return a place for a derivative: fresh, in place, or overlapping something."""
    how = rng.integers(7)
    if how == 0:
        return x
    if how == 1:
        return t
    if how == 2 and x.ndim:
        return x[::-1]
    if how == 3 and x.size > 1 and x.flags.c_contiguous and x.base is None:
        owner = x.reshape(-1)[1:]
        return np.resize(owner, x.shape) if rng.random() < 0.5 else owner
    if how == 4:
        weight = options.get("weight")
        return weight if isinstance(weight, np.ndarray) else np.empty_like(x)
    return lay_out(rng, np.full(x.shape, 7, x.dtype))


def run(seed):
    """Run one case; return whether it was accepted."""
    rng = np.random.default_rng(seed)
    name, suffix = NAMES[rng.integers(3)], SUFFIXES[rng.integers(3)]
    x, t, options = arguments(rng, name, suffix)
    if rng.random() < 0.02:
        xentrs.set_num_threads(int(rng.integers(1, 5)))
    arrays = [a for a in (x, t, *options.values()) if isinstance(a, np.ndarray)]
    arrays = [a for a in arrays if not a.dtype.hasobject]
    before = [a.tobytes() for a in arrays]
    outs = [options[key] for key in ("out", "hess_out") if options.get(key) is not None]
    error = None
    error = None
    try:
        results = getattr(xentrs, name + suffix)(x, t, **options)
    except ALLOWED as raised:  # anything else ends the process
        error = raised
    if error is not None:
        assert type(error) in ALLOWED, f"{error!r} is of a class of its own"
        assert str(error), "an error without words"
        for array, copy in zip(arrays, before, strict=True):
            assert array.tobytes() == copy, f"written to before {error!r}"
        return False
    for array, copy in zip(arrays, before, strict=True):
        if not any(np.shares_memory(array, out) for out in outs):
            assert array.tobytes() == copy, "an input was written to"
    results = results if isinstance(results, tuple) else (results,)
    assert len(results) == 1 + SUFFIXES.index(suffix)
    assert type(results[0]) is (np.ndarray if options.get("reduction") == "none" else float)
    for derivative in results[1:]:
        assert derivative.shape == np.shape(x)
        assert np.dtype(derivative.dtype).newbyteorder("=") in (np.float32, np.float64)
    return True


if __name__ == "__main__":
    warnings.simplefilter("error")
    first, count = int(sys.argv[1]), int(sys.argv[2])
    accepted = 0
    for seed in range(first, first + count):
        print(seed, file=sys.stderr)
        accepted += run(seed)
    print(accepted)
