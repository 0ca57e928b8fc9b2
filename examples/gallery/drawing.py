"""How the gallery draws: SVG in the style of the documentation. It is not run by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[2]
GREY = "#8c959f"

plt.style.use(ROOT / "docs" / "pictures.mplstyle")


def figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """Make a figure of one row of axes."""
    return plt.subplots(1, columns, figsize=(width, height), layout="constrained")


def save(drawn: Any, path: Path) -> None:
    """Write a picture, the same bytes for the same figures, and say where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, metadata={"Date": None})
    plt.close(drawn)
    print(f"\nThe picture: {path}")
