"""Time an update of `CrossEntropyMeter` over the loss alone: ``make bench-meter``.

The loss is `cross_entropy` of the same logits; with a reference, that of both arrays one after the
other, which is the time of reading both. `composed` makes the same statistics of calls: the loss,
the softmax and its entropy, argmax and the rank of the target, and with a reference the divergence
and the loss of the reference. Every statistic is compared with the composed one before anything is
timed. `memory` is the peak of what Python's allocators hold beyond the arrays of the call.
"""

from __future__ import annotations

import argparse
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xentrs
from environment import THREADS
from timing import Side, measure

# Samples, classes, dtype.
SIZES = [
    (2048, 32_000, "float32"),
    (512, 128_256, "float32"),
    (512, 128_256, "float64"),
    (8192, 1000, "float32"),
    (65_536, 10, "float32"),
]
Array = NDArray[Any]


def composed(x: Array, t: Array, r: Array | None) -> dict[str, float]:
    """Return statistics from functions of the arrays."""
    losses = xentrs.cross_entropy(x, t, reduction="none")
    p = xentrs.softmax(x)
    own = np.take_along_axis(x, t[:, None], 1)
    squares = (p**2).sum(1) - 2 * np.take_along_axis(p, t[:, None], 1)[:, 0] + 1
    found = {
        "loss": losses.mean(dtype=float),
        "stderr": losses.std(ddof=1, dtype=float) / len(x) ** 0.5,
        "accuracy": np.mean(x.argmax(1) == t),
        "top_5": np.mean((x > own).sum(1) < 5),
        "brier": squares.mean(dtype=float),
        "entropy": xentrs.softmax_entropy(x),
        "confidence": p.max(1).mean(dtype=float),
    }
    if r is not None:
        found["kl"] = xentrs.kl_divergence(x, r)
        found["delta_loss"] = found["loss"] - xentrs.cross_entropy(r, t)
        found["same_top"] = np.mean(x.argmax(1) == r.argmax(1))
    return {name: float(value) for name, value in found.items()}


def check(result: Any, right: dict[str, float]) -> None:
    """Compare a meter's result."""
    for name, value in right.items():
        if name == "top_5":
            actual = result.top_k[5]
        elif name == "confidence":
            bins = result.reliability
            filled = bins.count > 0
            actual = (bins.count * bins.confidence)[filled].sum() / result.count
        else:
            actual = getattr(result, name)
        assert abs(actual - value) < 1e-5 * max(abs(value), 0.1), f"{name}: {actual}, not {value}"


def peak(call: Callable[[], Any]) -> float:
    """Return the MiB that a call holds at most."""
    tracemalloc.start()
    call()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return held / 2**20


def compare(n: int, classes: int, dtype: str, seconds: float, turns: int) -> str:
    """Return a row of the table."""
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal((n, classes), np.float32)).astype(dtype)
    x[np.arange(n), (t := rng.integers(0, classes, n))] += 8
    r = x + (0.1 * rng.standard_normal((n, classes), np.float32)).astype(dtype)
    meter = xentrs.CrossEntropyMeter()
    check(xentrs.CrossEntropyMeter().update(x, t).compute(), composed(x, t, None))
    both = xentrs.CrossEntropyMeter().update(x, t, reference_logits=r)
    check(both.compute(), composed(x, t, r))
    calls: dict[str, Callable[[], Any]] = {
        "loss": lambda: xentrs.cross_entropy(x, t),
        "update": lambda: meter.update(x, t),
        "composed": lambda: composed(x, t, None),
        "both losses": lambda: (xentrs.cross_entropy(x, t), xentrs.cross_entropy(r, t)),
        "with reference": lambda: meter.update(x, t, reference_logits=r),
        "both composed": lambda: composed(x, t, r),
    }
    sides = [Side(name, "call()", {"call": call}) for name, call in calls.items()]
    measure(sides, seconds, turns, least=min(turns, 5))
    times = {side.name: side.median for side in sides}
    one, two = times["loss"], times["both losses"]
    ratios = [times["update"] / one, times["composed"] / one]
    ratios += [times["with reference"] / two, times["both composed"] / two]
    memory = f"{peak(calls['update']):.1f} / {peak(calls['composed']):.0f}"
    row = " | ".join(f"{ratio:.2f}" for ratio in ratios)
    return f"| {n} x {classes} {dtype} | {one * 1e3:.2f} ms | {row} | {memory} |"


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a test; the figures mean nothing")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row (default 10)")
    parser.add_argument("--rows", help="the row with this text in its sizes")
    options = parser.parse_args()
    xentrs.set_num_threads(THREADS)
    print("| samples x classes | loss | update | composed | with reference | composed | MiB |")
    print("|---|---|---|---|---|---|---|")
    for n, classes, dtype in SIZES:
        if options.rows and options.rows not in f"{n} x {classes} {dtype}":
            continue
        sizes = (64, max(classes // 100, 10)) if options.quick else (n, classes)
        limits = (0.0, 2) if options.quick else (options.seconds, 50)
        print(compare(*sizes, dtype, *limits), flush=True)


if __name__ == "__main__":
    main()
