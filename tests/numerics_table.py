"""Measured errors of every loss, type and level, as the tables of docs/numerics.md.

| command | what it does |
|---|---|
| ``make numerics-table`` | measures all inputs of `test_accuracy.py`, and writes the tables |
| ``python tests/numerics_table.py --every 50`` | measures one of 50, and fails above the tables |

Each level has a process that computes what this one sends (`levels.py`), and the reference is
computed once for all of them.
"""

import argparse
import contextlib
import csv
import itertools
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np

import levels
import reference
from losses import DTYPES
from test_accuracy import FAMILIES, RESULTS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "numerics.md"
FUNCTIONS = Path(__file__).parent / "numerics.csv"
HALVES = [np.float16, ml_dtypes.bfloat16]
LEVEL_NAMES = {"avx512": "AVX-512", "avx2": "AVX2", "neon": "NEON", "portable": "portable"}
SEED = 7
FIGURES = (*RESULTS, "sum")
# A measured maximum is rounded to two digits behind the point in the tables.
ROUNDING = 0.005
# In ULP of the logits' type at the sum of the losses' sizes: the errors of the losses, and those of
# their sum, which is float64 and adds up to 1024 numbers in turn without compensation.
SUM_BOUND = 16
# Logits of half precision are other inputs than those that the bounds of losses were measured at.
OF_HALVES = 4


def rows():
    """Return the rows of the table of losses: a family of inputs and a type each."""
    of_losses = {}
    for family in FAMILIES:
        of_losses.setdefault(function_of(family), family)
    all_types = [(family, dtype) for family in FAMILIES for dtype in DTYPES]
    # Half precision is computed in float32 and rounded once: the first family of each loss.
    return all_types + [(family, half) for family in of_losses.values() for half in HALVES]


def function_of(family):
    """Return the loss that a family of inputs is for."""
    return next(iter(FAMILIES[family](np.float32, np.random.default_rng(0)))).function


def cases(family, dtype, every):
    """Draw the inputs of a row, or one of `every` of them."""
    half = dtype in HALVES
    drawn = FAMILIES[family](np.float32 if half else dtype, np.random.default_rng(SEED))
    for case in itertools.islice(drawn, 0, None, every):
        if half:
            most = float(reference.limits(dtype).max)
            x = case.scores
            inside = np.where(np.isfinite(x), np.clip(x, -most, most), x)
            case = replace(case, scores=inside.astype(dtype))
        yield case


def error_of_sum(total, losses, sizes, dtype):
    """Return the error of a sum of losses in ULP of their type, at the sum of their sizes."""

    def exact_sum(numbers):
        high = numbers.astype(float)
        return math.fsum([*high, *(numbers - high).astype(float)])

    losses, sizes = np.ravel(losses), np.ravel(abs(sizes))
    if not np.isfinite(losses).all():
        return 0.0
    size = exact_sum(sizes)
    # Below the normal numbers a sum has their absolute error.
    if not losses.size * np.finfo(dtype).tiny < size < np.finfo(dtype).max:
        return 0.0
    return abs(total - exact_sum(losses)) / (size * float(np.finfo(dtype).eps))


def measure(family, dtype, processes, every=1):
    """Return the largest errors of a row, a list for each level."""
    worst = {process.name: {} for process in processes}
    for case in cases(family, dtype, every):
        right = case.exact()
        known = []
        for process in processes:
            results, total = process.compute(case)
            errors = next((e for r, t, e in known if _same(r, results) and t == total), None)
            if errors is None:
                errors = case.errors(results, right)
                of_loss = np.float64 if dtype is np.float64 else np.float32
                sizes = case.sizes_of_losses(right)
                errors["sum"] = error_of_sum(total, right.loss, sizes, of_loss)
                known.append((results, total, errors))
            of_level = worst[process.name]
            for name, error in errors.items():
                bound = case.bound("loss" if name == "sum" else name)
                bound = max(bound, SUM_BOUND) if name == "sum" else bound
                if dtype in HALVES and name == "loss":
                    bound += OF_HALVES
                assert error <= bound, f"{name}: {error:.3g} ULP at {case}, {process.name}"
                of_level[name] = max(of_level.get(name, 0.0), error)
    return {
        level: [of_level[f] for f in FIGURES if f in of_level] for level, of_level in worst.items()
    }


def _same(a, b):
    return all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))


def cell(errors):
    """Spell the errors of a row at a level."""
    return " / ".join(f"{error:.2f}" for error in errors)


def table_of_losses(measured):
    """Return the lines of the table; `measured` has the errors of each level, for each row."""
    names = list(next(iter(measured.values())))
    cells = {row: {level: cell(of[level]) for level in names} for row, of in measured.items()}
    # Levels that give the same bits share a column.
    columns = []
    for level in names:
        same = (c for c in columns if all(of[level] == of[c[0]] for of in cells.values()))
        column = next(same, None)
        if column is None:
            columns.append([level])
        else:
            column.append(level)
    heads = [", ".join(LEVEL_NAMES[level] for level in column) for column in columns]
    lines = [f"| inputs | dtype | {' | '.join(heads)} |", "|---|---|" + "---|" * len(columns)]
    for (family, dtype), of in cells.items():
        figures = " | ".join(of[column[0]] for column in columns)
        lines.append(f"| {family} | {np.dtype(dtype).name} | {figures} |")
    return lines


def table_of_functions():
    """Return the lines of the table of functions of one float32, from the recorded maxima."""
    with FUNCTIONS.open(newline="") as file:
        recorded = list(csv.DictReader(file))
    lines = ["| function of float32 | level | largest error (ULP) | at |", "|---|---|---|---|"]
    of_functions = {}
    for row in recorded:
        of_functions.setdefault(row["function"], {}).setdefault((row["ulp"], row["argument"]), [])
        of_functions[row["function"]][row["ulp"], row["argument"]].append(row["level"])
    for function, maxima in of_functions.items():
        for (ulp, argument), at in maxima.items():
            names = ", ".join(LEVEL_NAMES[level] for level in at)
            lines.append(f"| {function} | {names} | {ulp} | {argument} |")
    return lines


def markers(name):
    """Return the marks around a table in the page."""
    return f"<!-- {name}: make numerics-table -->\n", f"\n<!-- end of {name} -->"


def written(name):
    """Return the lines of a table as the page has it."""
    start, end = map(re.escape, markers(name))
    found = re.search(f"{start}(.*?){end}", DOCS.read_text(), re.S)
    return found[1].strip().split("\n")


def write(name, lines):
    """Put a table into the page."""
    start, end = markers(name)
    pattern = f"({re.escape(start)}).*?({re.escape(end)})"
    text = DOCS.read_text()
    replaced = re.sub(
        pattern, lambda m: m[1] + "\n" + "\n".join(lines) + "\n" + m[2], text, flags=re.S
    )
    DOCS.write_text(replaced)


def documented():
    """Return the errors that the page's table has, by row and level."""
    lines = written("losses")
    heads = [head.strip() for head in lines[0].strip("|").split("|")][2:]
    names = {spelled: level for level, spelled in LEVEL_NAMES.items()}
    of_rows = {}
    for line in lines[2:]:
        family, dtype, *cells = (part.strip() for part in line.strip("|").split("|"))
        of_rows[family, dtype] = {
            names[level]: [float(error) for error in figures.split(" / ")]
            for head, figures in zip(heads, cells, strict=True)
            for level in head.split(", ")
        }
    return of_rows


def above(measured, most):
    """Return what was measured above the page's figures, as lines."""
    found = []
    for (family, dtype), of_levels in measured.items():
        for level, errors in of_levels.items():
            # The levels with fused multiply-add have the same bits: the page may lack one of them.
            of_row = most[family, np.dtype(dtype).name]
            known = of_row.get(level) or of_row["avx2"]
            for name, error, limit in zip(FIGURES, errors, known, strict=False):
                if error > limit + ROUNDING:
                    found.append(
                        f"{family}, {np.dtype(dtype).name}, {level}: {name} {error:.3f} > {limit}"
                    )
    return found


def measure_all(every=1, only=None):
    """Measure rows at each level of this machine."""
    measured = {}
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(levels.Level(name)) for name in levels.SIMD["available"]]
        for family, dtype in rows():
            if only is None or any(words in family for words in only):
                measured[family, dtype] = measure(family, dtype, processes, every)
                print(
                    f"{family}, {np.dtype(dtype).name}: {measured[family, dtype]}",
                    file=sys.stderr,
                    flush=True,
                )
    return measured


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "--every", type=int, help="measure one input of so many, and compare with the page"
    )
    given = parser.parse_args()
    if given.every:
        found = above(measure_all(given.every), documented())
        print("\n".join(found))
        return bool(found)
    write("functions", table_of_functions())
    write("losses", table_of_losses(measure_all()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
