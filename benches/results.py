"""Files of measurements, and how a figure is written in a table. It is not run by itself."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benches" / "results"


def save(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def save_level(report: dict[str, Any], path: Path) -> None:
    """Put a report beside the reports of other levels in the same file."""
    save({"levels": load_levels(path) | {report["level"]: report}}, path)


def load_levels(path: Path) -> dict[str, Any]:
    """Return the reports of a file by their level, AVX2 first; none if there is no such file."""
    if not path.exists():
        return {}
    levels: dict[str, Any] = json.loads(path.read_text())["levels"]
    return dict(sorted(levels.items(), key=lambda pair: pair[0] != "avx2"))


def duration(seconds: float) -> str:
    """Write a time with three digits and its unit."""
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


def factor(value: float) -> str:
    """Write a ratio with two or three digits, whatever its size; nothing for NaN."""
    if math.isnan(value):
        return ""
    if value < 0.1:
        return f"{value:.2g}"
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
