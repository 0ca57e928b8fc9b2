"""How the benches draw, in the style of docs/pictures.mplstyle. It is not run by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from results import ROOT

matplotlib.use("svg")
import matplotlib.pyplot as plt

DOCS = ROOT / "docs"

BLACK, GREY = "#1b1f24", "#8c959f"
MARKERS = ["o", "s", "D", "^", "v", "P", "X"]

plt.style.use(DOCS / "pictures.mplstyle")
COLOURS = plt.rcParams["axes.prop_cycle"].by_key()["color"]


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
