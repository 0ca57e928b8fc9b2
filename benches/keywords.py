"""Time each keyword of each loss beside the call without it: ``make bench-keywords``.

A keyword may send a call down another path, and a path that is slow for no good reason shows here.
The ratios are those of a call with and without the keyword, on the same arrays, in turns. Those
above ``--limit`` are printed, the largest first. Some keywords compute more, a softcap for
instance, and have their price.

Losses and keywords come from the list of losses. A keyword that is not in `VALUES` is an error.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xentrs
from environment import machine
from rows import DTYPES as WIDE
from timing import Side, measure
from xentrs import _xentrs

Array = NDArray[Any]
Loss = Any  # an entry of the list of losses
DTYPES = {"f16": np.float16} | WIDE
SHAPES = [(4096, 10), (512, 100), (64, 1000)]
SUFFIXES = ["", "_with_grad", "_with_grad_hess"]
RNG = np.random.default_rng(0)


def weights(*shape: int) -> dict[str, Array]:
    """Return weights that float32 does not hold, and those rounded to it."""
    wide = RNG.uniform(0.5, 2, shape)
    return {"64": wide, "32": wide.astype(np.float32)}


# Values of each keyword, with a name to print. Outputs and the axis are those of the arrays.
VALUES: dict[str, Callable[[int, int], dict[str, Any]]] = {
    "weight": lambda _, classes: weights(classes),
    "pos_weight": lambda _, classes: weights(classes),
    "sample_weight": lambda samples, _: weights(samples),
    "where": lambda samples, classes: {"": RNG.random((samples, classes)) < 0.8},
    "ignore_index": lambda *_: {"": 0, "of 3": (0, 1, 2)},
    "label_smoothing": lambda *_: {"": 0.1},
    "z_loss": lambda *_: {"": 1e-4},
    "softcap": lambda *_: {"": 30.0},
    "temperature": lambda *_: {"": 2.0},
    "gamma": lambda *_: {"0.5": 0.5, "3": 3.0},
    "alpha": lambda *_: {"": 0.3},
    "q": lambda *_: {"0.3": 0.3},
    "epsilon": lambda *_: {"3": 3.0},
    "beta": lambda *_: {"0.3": 0.3},
    "direction": lambda *_: {"reverse": "reverse"},
    "reduction": lambda *_: {"none": "none"},
    "denominator": lambda *_: {"": 77.0},
    "base": lambda *_: {"": 2.0},
}
SKIPPED = {"axis", "logsumexp_out", "argmax_out"}
# Two keywords at once where they meet in a kernel.
PAIRS = [
    ("label_smoothing", "weight"),
    ("label_smoothing", "sample_weight"),
    ("label_smoothing", "temperature"),
    ("label_smoothing", "ignore_index"),
    ("weight", "sample_weight"),
    ("weight", "softcap"),
    ("weight", "z_loss"),
]


def targets(loss: Loss, x: Array, *, soft: bool) -> tuple[Array, ...]:
    """Return what follows the first argument of a call."""
    samples, classes = x.shape
    if loss["second"] is None:
        return ()
    if loss["second"] == "teacher_logits":
        return ((x + RNG.normal(size=x.shape)).astype(x.dtype),)
    if not loss["axis"]:
        return (RNG.random(x.shape).astype(x.dtype) if soft else RNG.random(x.shape) < 0.5,)
    if not soft:
        return (np.asarray(RNG.integers(0, classes, samples)),)
    q = RNG.random(x.shape)
    return ((q / q.sum(-1, keepdims=True)).astype(x.dtype),)


def arrays(loss: Loss, shape: tuple[int, int], dtype: Any) -> Array:
    """Return logits, probabilities or log-probabilities."""
    x = 3 * RNG.normal(size=shape)
    if loss["input"] != "logits":
        x = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    if loss["input"] == "log_probabilities":
        x = np.log(x)
    return np.asarray(x, dtype)


def keywords(loss: Loss, shape: tuple[int, int]) -> dict[str, dict[str, Any]]:
    """Return what calls are timed with, by names to print; the first has no keyword."""
    of_each = {
        name: {
            f"{name} {label}".strip(): {name: value}
            for label, value in VALUES[name](*shape).items()
        }
        for name in loss["options"]
        if name not in SKIPPED
    }
    found: dict[str, dict[str, Any]] = {"": {}}
    for choices in of_each.values():
        found |= choices
    for one, other in PAIRS:
        for (a, first), (b, second) in itertools.product(
            of_each.get(one, {}).items(), of_each.get(other, {}).items()
        ):
            found[f"{a}, {b}"] = first | second
    return found


def sides(name: str, x: Array, target: tuple[Array, ...], order: int) -> Iterator[Side]:
    """Yield a side for each set of keywords that the loss takes with this target."""
    loss = _xentrs.LOSSES[name]
    outputs = {key: np.empty_like(x) for key in ["out", "hess_out"][:order]}
    function = getattr(xentrs, name + SUFFIXES[order])
    for label, given in keywords(loss, x.shape).items():
        names = {"f": function, "x": (x, *target), "given": given | outputs}
        try:
            function(x, *target, **given, **outputs)
        except (TypeError, ValueError):
            continue
        yield Side(label, "f(*x, **given)", names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=2.5, help="print ratios above this")
    parser.add_argument("--losses", nargs="*", default=list(_xentrs.LOSSES))
    parser.add_argument("--dtypes", nargs="*", default=["f16", "f32", "f64"], choices=DTYPES)
    parser.add_argument("--seconds", type=float, default=0.5, help="for the calls of one line")
    parser.add_argument("--quick", action="store_true", help="two turns, a small array")
    options = parser.parse_args()
    print(machine())
    shapes, turns = ([(16, 10)], 2) if options.quick else (SHAPES, 100)
    seconds = 0.0 if options.quick else options.seconds
    xentrs.set_num_threads(1)
    found = []
    cases = itertools.product(options.losses, options.dtypes, shapes, (False, True))
    for name, dtype, shape, soft in cases:
        loss = _xentrs.LOSSES[name]
        if soft and loss["second"] != "target":
            continue
        x = arrays(loss, shape, DTYPES[dtype])
        target = targets(loss, x, soft=soft)
        for order in range(loss["derivatives"] + 1):
            players = list(sides(name, x, target, order))
            if not players:  # it takes no probabilities as target
                continue
            measure(players, seconds, turns, turn_takes=1e-3, least=5)
            plain, *others = players
            kind = "" if loss["second"] != "target" else ", soft" if soft else ", hard"
            of = f"{name}{SUFFIXES[order]} {shape[0]} x {shape[1]} {dtype}{kind}"
            for side in others:
                ratio = side.median / plain.median
                found.append((ratio, f"{of}: {side.name}", side.median / x.size * 1e9))
    found.sort(reverse=True)
    print(f"{len(found)} ratios, those above {options.limit}:")
    for ratio, what, nanoseconds in found:
        if ratio > options.limit:
            print(f"{ratio:5.1f}  {what}  ({nanoseconds:.1f} ns an element)")


if __name__ == "__main__":
    main()
