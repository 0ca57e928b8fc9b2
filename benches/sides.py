"""The sides of a row that are ours, and the check of every side's answer.

The pytest-benchmark suite and all scripts share this module, so that they call the same code and
refuse the same wrong answers. How other libraries compute a row is in `peers.py`. It is not run by
itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import numpy as np

import xentrs
from environment import LEVELS, THREADS
from floors import Floors
from formulas import LOSSES
from peers import WHOLE, in_step, with_grad, without_grad
from rows import Case, StepCase
from timing import Side

# Names of sides
OURS = "xentrs"
NEW = "xentrs, new array"  # the gradient is returned in a new array, not written to `out=`
ONE_THREAD = "xentrs, one thread"
AGAINST = "xentrs, another build"
PLAIN = "xentrs, plain row"
TORCH = "xentrs.torch"
TORCH_COMPILED = "xentrs.torch compiled"

IN_CACHE = 2**23  # bytes of an array for which floors are measured on one thread too


def at_level(level: str) -> str:
    """Return the name of a second xentrs that runs at a level."""
    return f"xentrs, {LEVELS[level]}"


def xentrs_side(case: Case, name: str, module: ModuleType = xentrs, out: bool = True) -> Side:
    """Make a side of xentrs; the gradient goes to the case's array, or to a new one."""
    keywords = {key: key for key in case.keywords}
    if case.row.with_grad and out:
        keywords["out"] = "g"
    statement = "".join(f", {key}={name}" for key, name in keywords.items())
    target = case.t if case.pair is None else case.pair
    names = {"f": getattr(module, case.row.function), "x": case.x, "t": target, "g": case.grad}
    answer = with_grad if case.row.with_grad else without_grad
    names |= case.keywords
    arrays = "x, t" if LOSSES[case.row.loss].target else "x"
    return Side(name, f"f({arrays}{statement})", names, answer, **in_step(case, names))


def floor_sides(case: Case, floors: Floors) -> Iterator[Side]:
    x, g = case.x, case.grad
    if case.row.tiny:
        yield Side("np.exp", "exp(x, out=g)", {"exp": np.exp, "x": x, "g": g})
        return
    kinds = ["copy", "stream copy", "read"] if case.row.with_grad else ["read"]
    if any(factor and kind == "stream fill" for factor, kind in case.row.own_floor):
        kinds.append("stream fill")
    for kind in kinds:
        yield floors.side(kind, g, x, THREADS)
        # One thread can be done with an array in a cache before another has begun.
        if THREADS > 1 and x.nbytes < IN_CACHE:
            yield floors.side(kind, g, x, 1)


def check(case: Case, side: Side, tolerance: float | None = None) -> None:
    """Run a side once; if its answer is wrong, write into `trouble` how."""
    assert side.answer is not None
    expected_loss, expected = case.answer
    largest = case.largest if case.row.with_grad else 1.0
    if side.setting == WHOLE:
        assert isinstance(case, StepCase)
        expected_loss, expected = case.whole_answer
        largest = 1.0 if expected is None else float(np.abs(expected).max())
    case.grad.fill(-7)  # so that no side passes with the answer of the one before
    names = dict(side.names)
    try:
        exec(side.before, names)
        loss, grad = side.answer(eval(side.statement, names))
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        side.trouble = f"fails: {type(error).__name__}: {reason[:200]}"
        return
    # Errors are measured against the largest entry of the gradient. The limits of other libraries
    # find a wrong formula and no more: some of their entries are far less exact, and 2^26 float32
    # numbers that are added up one by one give a sum that is off by half a percent.
    ours = side.name.startswith("xentrs")
    limits = {"f32": (1e-6, 1e-2), "f64": (1e-13, 1e-9)}[case.row.dtype]
    if tolerance is None:
        tolerance = limits[0] if ours else limits[1]
    if not np.isclose(loss, expected_loss, rtol=tolerance, atol=0, equal_nan=True):
        side.trouble = f"wrong: the loss is {loss!r}, not {expected_loss!r}"
    if expected is None:
        return
    if grad.shape != expected.shape:
        side.trouble = f"wrong: the gradient has shape {grad.shape}"
        return
    worst = np.float64(0)
    step = max(1, 2**20 // expected[0].size)
    for start in range(0, len(expected), step):
        right = expected[start : start + step]
        off = grad[start : start + step] - right
        np.abs(off, out=off)
        if np.isnan(off.max()):
            off[np.isnan(grad[start : start + step]) & np.isnan(right)] = 0
        worst = np.maximum(worst, off.max())  # keeps a NaN
    if ours and case.row.of.teacher:
        # The gradient is a difference of terms, which may be many times as large as all entries.
        tolerance *= 10
    if not worst <= tolerance * largest:
        side.trouble = f"wrong: the gradient is off by {worst / largest:.1e} of its largest entry"
