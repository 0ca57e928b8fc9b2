"""Draw docs/bench.svg from measurements: ``make bench-pictures``.

The picture shows the README's table at one level of instructions: for each kind of work, how many
times as fast xentrs is as each library.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import drawing
import table
from environment import LEVELS
from results import RESULTS, duration, factor, load_levels

LEVEL = "avx2"  # what most processors have
BAR = 0.8  # the height of a group of bars; the rest is the gap between groups


def draw(level: str, results: Path, folder: Path) -> None:
    steps_at, torch_at = (load_levels(results / name) for name in ("steps.json", "torch.json"))
    rows = [row for row in table.readme_rows(level, steps_at, torch_at) if not math.isnan(row[1])]
    # The row of xentrs.torch compares with PyTorch alone, and belongs to the table.
    rows = [row for row in rows if "`" not in row[0]]
    figure, axes = drawing.figure(9, 1.4 + 0.95 * len(rows))
    places = []
    for place, (title, time, ratios) in enumerate(rows):
        places.append((place, f"{title.replace(': ', chr(10))}\n({duration(time)})"))
        bars = [(column, ratio) for column, ratio in enumerate(ratios) if not math.isnan(ratio)]
        for i, (column, ratio) in enumerate(bars):
            at = place + (i + 0.5) * BAR / len(bars) - BAR / 2
            colour, height = drawing.COLOURS[column], 0.85 * BAR / len(bars)
            axes.barh(at, ratio - 1, height, left=1, color=colour)
            left = ratio < 1
            axes.annotate(
                f"{factor(ratio)}x",
                (ratio, at),
                xytext=(-3 if left else 3, 0),
                textcoords="offset points",
                va="center",
                ha="right" if left else "left",
                fontsize=7.5,
            )
    for column, name in enumerate(table.COLUMNS):
        if any(not math.isnan(ratios[column]) for _, _, ratios in rows):
            axes.bar(math.nan, math.nan, color=drawing.COLOURS[column], label=name)
    axes.axvline(1, color=drawing.BLACK, linewidth=1.2)
    axes.set_xscale("log")
    largest = max((r for _, _, ratios in rows for r in ratios if not math.isnan(r)), default=1)
    smallest = min((r for _, _, ratios in rows for r in ratios if not math.isnan(r)), default=1)
    axes.set_xlim(min(0.8, smallest / 1.6), 1.6 * max(2, largest))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}x")
    axes.set_yticks(*zip(*places, strict=True), fontsize=8)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("times as fast as the library (left of 1x, xentrs is slower)")
    axes.set_title("How many times as fast xentrs computes the loss and its gradient")
    figure.legend(loc="outside upper right", ncols=5)
    report = steps_at[level]
    versions = ", ".join(
        f"{name} {version}" for name, version in report["versions"].items() if name != "Python"
    )
    where = f"{report['cpu']}, every library at {LEVELS[level]}, {report['threads']} threads"
    note = f"make bench-peers: {where}; xentrs's own time in brackets"
    drawing.write(figure, "bench.svg", [note, versions], folder)


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="a folder")
    parser.add_argument("--level", default=LEVEL, help="which of the file's levels")
    parser.add_argument("--folder", type=Path, default=drawing.DOCS, help="where it goes")
    options = parser.parse_args()
    draw(options.level, options.results, options.folder)


if __name__ == "__main__":
    main()
