"""A fixed set of calls, for `test_levels.py` to compare between processes.

``python tests/battery.py FILE`` writes every result, at the level of this process, to an .npz.
"""

import itertools
import sys

import numpy as np

import xentrs
from losses import CLASS_COUNTS, DTYPES, LOSSES, assert_same_bits

try:
    import ml_dtypes
except ImportError:
    HALVES = [np.float16]
else:
    HALVES = [np.float16, ml_dtypes.bfloat16]

SAMPLES = [1, 3, 16, 17, 103]
FULL = 40_000  # elements at most


def strange_rows(rng, dtype, classes):
    """Logits at the edges of every case that a kernel may treat separately."""
    base = rng.normal(size=classes)
    rows = [base * s + o for s in (0.1, 8, 100) for o in (0, 1e4, -1e5, 1e7)]
    rows += [np.full(classes, v) for v in (0.0, 88.7, -1e4, 1e30, -1e30)]
    for value in (-np.inf, np.inf, np.nan, -1e9, -1e30, 1e30, 1e4, 200.0, -104.0, -87.4, 1e-40):
        for place in {0, classes // 2, classes - 1}:
            row = base.copy()
            row[place] = value
            rows.append(row)
    for masked in (slice(None, -1), slice(1, None), slice(0, 64), slice(None, None, 2)):
        for value in (-np.inf, -1e9, -1e30):
            row = base.copy()
            row[masked] = value
            rows.append(row)
    rows.append(np.full(classes, -np.inf))
    rows += [base - 87.3 * (np.arange(classes) % 3 > 0), base - 708 * (np.arange(classes) % 2)]
    with np.errstate(over="ignore"):
        return np.array(rows).astype(dtype)


def laid_out(loss, rng, shape, dtype, options, lay, **fixed):
    """Return a case whose class axis is 1, or the last of another order, laid out by `lay`."""
    case = loss.case(rng, shape, dtype, options, **fixed)
    scores, target = case.scores, case.target
    if loss.class_axis and len(shape) > 2:
        scores = np.moveaxis(scores, -1, 1)
        target = np.moveaxis(target, -1, 1) if target.shape == shape else target
        case = case.but(axis=1)
    return case.but(scores=lay(scores), target=lay(target) if target.ndim > 1 else target)


# Tiles of few classes and of many, and the kernels in columns (more than 256 classes, lines of 64
# samples or more).
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "backwards": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}
LAID_OUT = [(33, 10), (70, 300), (130, 1000), (3, 20, 7), (2, 70, 129), (2, 70, 257), (1, 130, 600)]


def cases():
    """Yield names and cases."""
    for loss, dtype in itertools.product(LOSSES, DTYPES):
        seed = itertools.count()

        def rng(seed=seed):
            return np.random.default_rng(next(seed))

        name = f"{loss} {np.dtype(dtype)}"
        for classes, samples in itertools.product(CLASS_COUNTS, SAMPLES):
            shape = (samples, classes)
            if samples * classes <= FULL:
                yield f"{name} {shape}", loss.case(rng(), shape, dtype, reduction="none")
                options = rng().choice(sorted(loss.options), 3, replace=False).tolist()
                yield f"{name} {shape} {options}", loss.case(rng(), shape, dtype, options)
        for classes in (2, 3, 10, 16, 64, 65, 130, 1000, 2500):
            for options in (*loss.option_sets[:-1], ("weight",)):
                if loss.bounded or not set(options) <= set(loss.options):
                    continue
                rows = strange_rows(rng(), dtype, classes)
                case = loss.case(rng(), rows.shape, dtype, options, reduction="none")
                yield f"{name} strange {classes} {options}", case.but(scores=rows)
        for (how, lay), shape in itertools.product(LAYOUTS.items(), LAID_OUT):
            for options in ((), tuple(sorted(set(loss.options) - {"reduction"}))):
                case = laid_out(loss, rng(), shape, dtype, options, lay, reduction="none")
                yield f"{name} {shape} {how} {options}", case
        for shape in ((33, 10), (17, 70), (5, 300)):
            for key in sorted({"weight", "sample_weight", "pos_weight"} & set(loss.options)):
                case = loss.case(rng(), shape, dtype, [key], reduction="none")
                signs = rng().integers(-1, 2, case.options[key].shape)
                case = case.but(**{key: case.options[key] * signs.astype(dtype)})
                yield f"{name} {shape} {key} of any sign", case
        for shape in ((30_000, 10), (300, 1000), (3, 100_000)):
            yield (
                f"{name} {shape} {sorted(loss.options)}",
                loss.case(rng(), shape, dtype, loss.options),
            )


def half_cases():
    """Yield names and cases of logits of half precision, whose options are float32."""
    for loss, half in itertools.product(LOSSES, HALVES):
        name, rng = f"{loss} {np.dtype(half)}", np.random.default_rng(0)
        everything = tuple(sorted(set(loss.options) - {"reduction"}))
        for shape in ((3, 1), (103, 7), (17, 65), (5, 256), (7, 1031), (70, 300), (3, 5000)):
            for options in ((), everything):
                case = loss.case(rng, shape, np.float32, options, reduction="none")
                yield f"{name} {shape} {options}", case.but(scores=case.scores.astype(half))
        for classes in (3, 130, 1000):
            if not loss.bounded:
                rows = strange_rows(rng, np.float32, classes)
                case = loss.case(rng, rows.shape, np.float32, reduction="none")
                with np.errstate(over="ignore"):
                    yield f"{name} strange {classes}", case.but(scores=rows.astype(half))
        for (how, lay), shape in itertools.product(LAYOUTS.items(), LAID_OUT):
            case = laid_out(loss, rng, shape, np.float32, everything, lay, reduction="none")
            yield f"{name} {shape} {how}", case.but(scores=lay(case.scores.astype(half)))


def run():
    """Return every result of every case by name."""
    results = {}
    for name, case in itertools.chain(cases(), half_cases()):
        got = case.all()
        for kind, result in zip(("loss", "grad", "hess")[: len(got)], got, strict=True):
            result = np.asarray(result)
            if result.dtype in HALVES:  # a file of arrays has no bfloat16
                result = result.astype(np.float32)
            if kind != "loss":
                result = np.moveaxis(result, case.options.get("axis", -1), -1)
            results[f"{name} {kind}"] = result
        assert_same_bits(case.call(0), got[0], name)
        assert_same_bits(case.both(), got[:2], name)
    return results


if __name__ == "__main__":
    np.savez(sys.argv[1], **{f"{k}": v for k, v in run().items()})
    print(xentrs.show_config(mode="dicts")["simd"]["level"])
