"""Draw what `compare.py` measured: docs/bench.svg from benches/results/compare.json.

Each line is a row of the table. A peer's mark stands at its time over xentrs's, which is 1; the
grey bar is the row's own floor, what reading and writing the same bytes takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import drawing
import table
from common import RESULTS


def draw(report: dict[str, Any], folder: Path) -> None:
    rows = [row for row in report["rows"] if "trouble" not in row["sides"][table.OURS]]
    figure, axes = drawing.figure(9, 1.6 + 0.24 * len(rows))
    height = list(range(len(rows)))[::-1]
    axes.axvline(1, color=drawing.BLACK, linewidth=1.4, label="xentrs")
    floors = [1 / table.ratio(row, "own floor") for row in rows]
    axes.plot(floors, height, "|", color=drawing.GREY, markersize=11, mew=3, label="its floor")
    for peer, colour, marker in zip(table.PEERS, drawing.COLOURS, drawing.MARKERS, strict=True):
        ratios = [table.ratio(row, peer) for row in rows]
        if any(ratio == ratio for ratio in ratios):  # not all are NaN
            axes.plot(ratios, height, marker, color=colour, markersize=5.5, label=peer)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(height, [row["name"] for row in rows])
    axes.set_ylim(-0.8, len(rows) - 0.2)
    axes.set_xlabel("times as long as xentrs takes (logarithmic; right is slower)")
    figure.legend(loc="outside upper center", ncols=5)
    versions = ", ".join(
        f"{name} {version}" for name, version in report["versions"].items() if name != "Python"
    )
    where = f"{report['cpu']}, {report['level']}, {report['threads']} threads"
    drawing.write(figure, "bench.svg", [f"make bench-peers: {where}", versions], folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS, help="a folder")
    parser.add_argument("--level", default=table.DRAWN, help="which of the file's levels")
    parser.add_argument("--folder", type=Path, default=drawing.DOCS, help="where it goes")
    options = parser.parse_args()
    draw(table.load("compare.json", options.results)[options.level], options.folder)


if __name__ == "__main__":
    main()
