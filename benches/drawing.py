"""The style that the pictures share. It is not run by itself.

The background is opaque and light, so that pictures look the same on a dark page.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler

from results import ROOT

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = ROOT / "docs"

# The palette of Okabe and Ito, which the colour-blind can tell apart
BLACK, GREY = "#1b1f24", "#8c959f"
COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6e4b9e"]
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]

plt.rcParams.update(
    {
        "axes.edgecolor": GREY,
        "axes.grid": True,
        "axes.prop_cycle": cycler(color=COLOURS),
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": 11,
        "figure.facecolor": "white",
        "font.family": "sans-serif",
        "font.size": 9,
        "grid.alpha": 0.35,
        "legend.frameon": False,
        "lines.linewidth": 1.4,
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "xentrs",  # the same figures give the same file
        "text.color": BLACK,
    }
)


def figure(width: float, height: float, *grid: int) -> tuple[Any, Any]:
    """Make a figure of axes, a grid of them if told."""
    return plt.subplots(*grid, figsize=(width, height), layout="constrained")


def write(drawn: Any, name: str, notes: Sequence[str], folder: Path = DOCS) -> None:
    """Write a picture, with a line below that says what it was measured on."""
    drawn.supxlabel("\n".join(notes), fontsize=7, color=GREY, x=0.01, ha="left")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    drawn.savefig(path, metadata={"Date": None})
    plt.close(drawn)
    print(f"wrote {path}", file=sys.stderr)
