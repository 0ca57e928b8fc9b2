"""Measure and draw how time grows with classes, samples and threads: ``make bench-curves``.

``docs/curve-classes.svg`` shows nanoseconds an element, loss and gradient, for every number of
classes from 1 to 2048, on one thread and arrays of about 2^20 numbers. ``docs/scaling.svg`` shows
time over samples and over classes in six decades, with the slope that fits (1 is linear); how many
times as fast more threads are, beside floors of the same bytes; and the time with ignored rows at
one end over the time with ignored rows spread.

Every figure is a median over passes. Each pass visits all points, in another order than the last: a
machine that changes during the run changes all points, not some.
"""

from __future__ import annotations

import argparse
import statistics
import timeit
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import drawing
import xentrs
from environment import THREADS, machine
from floors import Floors
from results import RESULTS, ROOT, save
from rows import DTYPES, IGNORED
from timing import Side, measure, seconds_a_call

RNG = np.random.default_rng(0)
NUMBERS = 2**20
MOST_CLASSES = 2048


@dataclass
class Sizes:
    """How much is measured."""

    passes: int
    step: int  # of the number of classes in the first curve
    most: int  # numbers of an array
    seconds: float  # for each set of sides
    turns: int


FULL = Sizes(passes=5, step=1, most=2048 * 32000, seconds=4, turns=100)
QUICK = Sizes(passes=1, step=397, most=2**17, seconds=0.0, turns=2)


class Arrays:
    """Logits and a gradient, of which calls of any shape take the first numbers."""

    def __init__(self, numbers: int, dtype: str) -> None:
        self.x = RNG.standard_normal(numbers, dtype=DTYPES[dtype])
        self.x *= 3
        self.g = np.zeros_like(self.x)

    def call(self, n: int, c: int, grad: bool = True) -> dict[str, Any]:
        """Return the names of a call on n samples of c classes."""
        x, g = (a[: n * c].reshape(n, c) for a in (self.x, self.g))
        target = RNG.integers(0, c, n)
        names: dict[str, Any] = {"x": x, "t": target, "g": g}
        if grad:
            return names | {"f": xentrs.cross_entropy_with_grad}
        return names | {"f": xentrs.cross_entropy}


GRAD, LOSS = "f(x, t, out=g)", "f(x, t)"


def visit(points: list[Any], passes: int, time: Callable[[Any], float]) -> list[float]:
    """Time all points in every pass; each one's median."""
    times: list[list[float]] = [[] for _ in points]
    for _ in range(passes):
        for i in RNG.permutation(len(points)):
            times[i].append(time(points[i]))
    return [float(f"{statistics.median(t):.4g}") for t in times]


def once(names: dict[str, Any]) -> float:
    """Return the seconds of one call, after one that warms up."""
    timer = timeit.Timer(GRAD, globals=names)
    timer.timeit(1)
    return seconds_a_call(timer)


# The parts


def classes_curve(sizes: Sizes) -> dict[str, Any]:
    xentrs.set_num_threads(1)
    numbers = min(NUMBERS, sizes.most)
    classes = [*range(1, 65, max(1, sizes.step // 16)), *range(65, MOST_CLASSES + 1, sizes.step)]
    curves: dict[str, Any] = {"classes": classes}
    for dtype in DTYPES:
        arrays = Arrays(numbers, dtype)

        def nanoseconds(c: int, arrays: Arrays = arrays) -> float:
            n = numbers // c
            return once(arrays.call(n, c)) / (n * c) * 1e9

        curves[dtype] = visit(classes, sizes.passes, nanoseconds)
    xentrs.set_num_threads(THREADS)
    return curves


def decades(most: int) -> list[int]:
    """Return 1, 2, 4, 10, 20, 40 and so on, to `most`."""
    found = [k * 10**e for e in range(7) for k in (1, 2, 4)]
    return [number for number in found if number <= most]


def slope(sizes: list[int], times: list[float]) -> float:
    """Fit the exponent of a power law, where a call takes ten times what the smallest one does."""
    x, y = np.log(sizes), np.log(times)
    large = y > y[0] + np.log(10)
    if large.sum() < 2:
        return float("nan")
    return round(float(np.polyfit(x[large], y[large], 1)[0]), 3)


def size_curves(sizes: Sizes) -> dict[str, Any]:
    arrays = Arrays(sizes.most, "f32")
    found = {}
    fixed = 64
    for name in (f"samples of {fixed} classes", f"classes of {fixed} samples"):
        points = decades(min(10**6, sizes.most // fixed))
        for threads in sorted({1, THREADS}):
            xentrs.set_num_threads(threads)

            def time(size: int, name: str = name) -> float:
                n, c = (size, fixed) if name.startswith("samples") else (fixed, size)
                return once(arrays.call(n, c))

            seconds = visit(points, sizes.passes, time)
            found[f"{name}, {threads} thread{'s' * (threads > 1)}"] = {
                "size": points,
                "seconds": seconds,
                "slope": slope(points, seconds),
            }
    xentrs.set_num_threads(THREADS)
    return found


SHAPES = [(2048, 32000), (8192, 1000), (65536, 10)]


def threads_curves(sizes: Sizes) -> dict[str, Any]:
    """Time shapes and floors for each number of threads; all of a shape in turns."""
    floors, found = Floors(), {}
    for n, c in SHAPES:
        n = max(1, min(n, sizes.most // c))
        arrays = Arrays(n * c, "f32")
        sides = []
        for threads in range(1, THREADS + 1):
            # It is set in each call: it costs nothing beside what is timed.
            for grad, call in ((True, GRAD), (False, LOSS)):
                names = arrays.call(n, c, grad) | {"set": xentrs.set_num_threads}
                work = "loss+grad" if grad else "loss"
                sides.append(Side(f"{work}/{threads}", f"set({threads}); {call}", names))
            for kind in ("stream copy", "read"):
                side = floors.side(kind, arrays.g, arrays.x, threads)
                sides.append(replace(side, name=f"{kind}/{threads}"))
        measure(sides, sizes.seconds, sizes.turns)
        times: dict[str, list[float]] = {}
        for side in sides:
            times.setdefault(side.name.split("/")[0], []).append(float(f"{side.median:.4g}"))
        found[f"{n} x {c}"] = times
    xentrs.set_num_threads(THREADS)
    return found


def imbalance(sizes: Sizes) -> dict[str, Any]:
    """Time batches of which a half is ignored: spread, or all of it at one end."""
    n, c = 2048, 32000
    n = max(8, min(n, sizes.most // c))
    arrays = Arrays(n * c, "f32")
    found: dict[str, Any] = {}
    for grad, call in ((True, GRAD), (False, LOSS)):
        spread = np.arange(n) % 2 == 0
        first = np.arange(n) < n // 2
        places = {"spread": spread, "at the beginning": first, "at the end": ~first}
        sides = []
        for place, ignored in places.items():
            names = arrays.call(n, c, grad)
            names["t"][ignored] = IGNORED
            sides.append(Side(place, call, names))
        measure(sides, sizes.seconds, sizes.turns)
        work = "loss+grad" if grad else "loss"
        found[work] = {side.name: float(f"{side.median:.4g}") for side in sides}
    return found


# The pictures


def draw_classes(report: dict[str, Any], notes: list[str], folder: Path) -> None:
    curves = report["classes"]
    figure, axes = drawing.figure(9, 3.8)
    for dtype in DTYPES:
        axes.plot(curves["classes"], curves[dtype], label=f"loss+grad, {dtype}", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_ylim(0, 1.1 * max(np.quantile(curves[dtype], 0.995) for dtype in DTYPES))
    axes.set(xlabel="classes", ylabel="ns an element")
    axes.set_title(
        "Nanoseconds an element for every number of classes (one thread, about 2^20 numbers)"
    )
    axes.legend()
    drawing.write(figure, "curve-classes.svg", notes, folder)


def draw_scaling(report: dict[str, Any], notes: list[str], folder: Path) -> None:
    figure, grid = drawing.figure(9, 7.2, 2, 2)
    for axes, what in zip(grid[0], ("samples", "classes"), strict=True):
        for (name, curve), marker in zip(
            ((k, v) for k, v in report["sizes"].items() if k.startswith(what)), "os", strict=False
        ):
            label = f"{name.split(', ')[1]}: slope {curve['slope']:.3f}"
            axes.loglog(curve["size"], curve["seconds"], marker=marker, ms=3, label=label)
            axes.set_title(f"Time over {name.split(',')[0]}, f32")
        axes.set(xlabel=what, ylabel="seconds a call (loss+grad)")
        axes.legend()

    axes = grid[1][0]
    for (shape, times), colour in zip(report["threads"].items(), drawing.COLOURS, strict=False):
        for (work, seconds), style in zip(times.items(), ("o-", "s--", ".:", ".-."), strict=True):
            speed = seconds[0] / np.array(seconds)
            floor = work in ("stream copy", "read")
            axes.plot(
                range(1, len(speed) + 1),
                speed,
                style,
                ms=5,
                color=drawing.GREY if floor else colour,
                label=None if floor else f"{work} {shape}",
                zorder=1 if floor else 2,
            )
    axes.plot([], [], ".:", color=drawing.GREY, label="copies and reads of the same bytes")
    axes.set(xlabel="threads", ylabel="times as fast as one")
    axes.set_xticks(range(1, report["machine"]["threads"] + 1))
    axes.set_title("Threads")
    axes.set_ylim(0, 1.6 * report["machine"]["threads"])
    axes.legend(fontsize=7, loc="upper left")

    axes = grid[1][1]
    for i, (work, times) in enumerate(report["imbalance"].items()):
        places = [place for place in times if place != "spread"]
        at = np.arange(len(places)) + (i - 0.5) * 0.35
        over = [times[place] / times["spread"] for place in places]
        axes.bar(at, over, 0.32, label=work, color=drawing.COLOURS[i])
        axes.set_xticks(range(len(places)), places)
    axes.axhline(1, color=drawing.BLACK, linewidth=1)
    axes.set_ylabel("time over that of ignored rows spread")
    axes.set_ylim(0, 1.5)
    axes.set_title("Half of the rows ignored")
    axes.legend(loc="upper left")
    drawing.write(figure, "scaling.svg", notes, folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a test: few points, small arrays")
    parser.add_argument("--json", type=Path, help="where measurements go")
    parser.add_argument("--folder", type=Path, help="where pictures go")
    options = parser.parse_args()
    scratch = ROOT / "target" / "curves"  # what a test measures replaces nothing
    file = options.json or (scratch if options.quick else RESULTS) / "curves.json"
    folder = options.folder or (scratch if options.quick else drawing.DOCS)
    sizes = QUICK if options.quick else FULL
    report: dict[str, Any] = {"machine": machine()}
    report["classes"] = classes_curve(sizes)
    report["sizes"] = size_curves(sizes)
    report["threads"] = threads_curves(sizes)
    report["imbalance"] = imbalance(sizes)
    save(report, file)
    told = report["machine"]
    notes = [f"make bench-curves: {told['cpu']}, {told['level']}, xentrs {xentrs.__version__}"]
    draw_classes(report, notes, folder)
    draw_scaling(report, notes, folder)


if __name__ == "__main__":
    main()
