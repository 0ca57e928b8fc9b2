"""Calls of every loss and function, for ``tools/sanitize.sh memcheck`` to run under valgrind.

Results are compared with those of contiguous arrays. ``--imports`` imports alone.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import xentrs
from losses import LOSSES

LAYOUTS = {
    "rows": lambda a: a.copy(),
    "columns": lambda a: np.asfortranarray(a),
    "steps": lambda a: np.repeat(a, 2, -1)[:, ::2],
}


def main() -> None:
    rng = np.random.default_rng(0)
    xentrs.set_num_threads(2)
    calls = 0
    for loss in LOSSES:
        for shape in ((1, 3), (37, 10), (9, 301), (70, 700)):
            for dtype in (np.float32, np.float64, np.float16):
                for options in (loss.option_sets[0], loss.option_sets[-1]):
                    case = loss.case(rng, shape, dtype, options, reduction="none")
                    right = case.all()
                    for layout in LAYOUTS.values():
                        got = case.but(scores=layout(case.scores)).all()
                        for a, b in zip(got, right, strict=True):
                            np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-4)
                        calls += 1
    for shape in ((1, 3), (37, 10), (9, 301), (70, 700)):
        x = rng.normal(size=shape).astype(np.float32)
        for axis in (0, 1):
            total = xentrs.softmax(x, axis).sum(axis)
            np.testing.assert_allclose(total, 1, rtol=1e-5)
            again = xentrs.logsumexp(xentrs.log_softmax(x, axis), axis)
            np.testing.assert_allclose(again, 0, atol=1e-5)
            xentrs.entropy(abs(x), axis)
            calls += 4
        target = rng.integers(0, shape[1], shape[0])
        linear = (rng.normal(size=(shape[1], 5)).astype(np.float32), target)
        xentrs.linear_cross_entropy_with_grad(x[:, :1].repeat(5, 1), *linear)
        meter = xentrs.CrossEntropyMeter(per_class=True)
        meter.update(x, target, reference_logits=x)
        meter.compute()
        first = xentrs.PartialCrossEntropy.of(x[:, :2].copy(), target, first_class=0)
        rest = xentrs.PartialCrossEntropy.of(x[:, 2:].copy(), target, first_class=2)
        loss = first.merge(rest).loss()
        np.testing.assert_allclose(loss, xentrs.cross_entropy(x, target), rtol=1e-5)
        calls += 4
    level = xentrs.show_config(mode="dicts")["simd"]["level"]
    print(f"{calls} calls at {level}")


if __name__ == "__main__" and "--imports" not in sys.argv:
    main()
