"""Make the Markdown table of what `compare.py` measured, and write it into the README.

``python benches/table.py`` prints the table of ``benches/results/compare.json``. With ``--readme``
the picture and the table replace what stands between the README's two markers; with ``--goals``
each row tells its goals, and those that are missed are listed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from common import ALONE, RESULTS, ROOT, duration, told

# Names of sides
OURS = "xentrs"
NEW = "xentrs, new array"
OTHER = "xentrs, second level"
PLAIN = "xentrs, plain row"

FLOORS = ["copy", "stream copy", "read", "stream fill", "np.exp"]
COMPILERS = ["PyTorch eager", "PyTorch compiled", "JAX", "TensorFlow XLA"]
PEERS = ["NumPy", "SciPy", *COMPILERS, "scikit-learn"]

LEGEND = """\
The column xentrs is the time of a whole call, its gradient written to `out=`. Up to "plain row" it
is divided by the time of a floor, or of a plain row of the same size; a row's own floor is what it
must read and write. Then others are divided by it: a call that makes a new array, one at a lower
instruction set, and the peers. Medians of one run on"""

PICTURE = "![Times of others over xentrs's, and the floors](docs/bench.svg)"
START, END = "<!-- table: make bench-peers -->", "<!-- end of the table -->"


def median(row: dict[str, Any], name: str) -> float:
    """Return the seconds of a side, or of what sides make together; NaN if there are none."""
    if name == "write":  # whichever is faster: the caches decide
        return least([median(row, "copy"), median(row, "stream copy")])
    if name == "own floor":
        return float(sum(k * median(row, kind) for k, kind in row["own floor"] if k))
    if name == "fastest peer":
        times = [median(row, peer) for peer in COMPILERS]
        return least(times)
    if name in FLOORS:
        return least([seconds(row, name), seconds(row, name + ALONE)])
    return seconds(row, name)


def least(times: list[float]) -> float:
    return min((t for t in times if not math.isnan(t)), default=math.nan)


def seconds(row: dict[str, Any], name: str) -> float:
    return float(row["sides"].get(name, {}).get("median", math.nan))


# How a column's number comes about: "a floor", "a peer" or "ours at a cost"
COSTS = {"new array": NEW, "AVX2": OTHER}
CEILINGS = [*FLOORS, "own floor", "plain", *COSTS]
HIDDEN = ["stream fill"]  # which is a part of a floor


def ratio(row: dict[str, Any], what: str) -> float:
    """Return xentrs's time over a floor's; for a peer, its time over xentrs's."""
    ours = median(row, OURS)
    if what == "plain":
        return ours / median(row, PLAIN)
    if what in CEILINGS and what not in COSTS:
        return ours / median(row, what)
    return median(row, COSTS.get(what, what)) / ours


def reached(row: dict[str, Any], what: str, limit: float) -> bool | None:
    """Tell whether a goal is reached; None if it was not measured."""
    value = ratio(row, what)
    if math.isnan(value):
        return None
    return value <= limit if what in CEILINGS else value >= limit


def cell(row: dict[str, Any], what: str) -> str:
    side = row["sides"].get(what, {})
    if "trouble" in side:
        return str(side["trouble"]).split(":")[0]
    value = ratio(row, what)
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if what in CEILINGS else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def goal(row: dict[str, Any], what: str, limit: float) -> str:
    text = f"{what} {'≤' if what in CEILINGS else '≥'} {limit:g}"
    return f"**{text}**" if reached(row, what, limit) is False else text


def markdown(report: dict[str, Any], with_goals: bool = False) -> str:
    rows = report["rows"]
    shown = [
        what
        for what in [*CEILINGS, *PEERS]
        if what not in HIDDEN
        and any(cell(row, what) for row in rows if "trouble" not in row["sides"][OURS])
    ]
    titles = {"AVX2": report["second level"].upper() or "AVX2", "plain": "plain row"}
    header = ["work", OURS, *(titles.get(what, what) for what in shown)]
    lines = [header + ["goals (missed in bold)"] * with_goals, ["---"] * (len(header) + with_goals)]
    for row in rows:
        trouble = row["sides"][OURS].get("trouble")
        line = [row["name"], str(trouble).split(":")[0] if trouble else duration(median(row, OURS))]
        line += ["" if trouble else cell(row, what) for what in shown]
        if with_goals:
            line.append(", ".join(goal(row, *pair) for pair in row["goals"]))
        lines.append(line)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{LEGEND} {told(report)}"


def verdict(report: dict[str, Any]) -> str:
    """Count the goals that are reached, and list the others."""
    missed, count = [], 0
    for row in report["rows"]:
        for what, limit in row["goals"]:
            found = reached(row, what, limit)
            count += found is True
            if found is False:
                missed.append(f"  {row['name']}: {what} {ratio(row, what):.2f}, goal {limit:g}")
    return "\n".join([f"goals reached: {count} of {count + len(missed)}; missed:", *missed])


def write_readme(table: str, path: Path = ROOT / "README.md") -> None:
    """Put the picture and the table between the markers."""
    text = path.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise SystemExit(f"{path.name} must have one line {START!r} and, after it, one {END!r}")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{PICTURE}\n\n{table}\n\n{END}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("json", nargs="?", type=Path, default=RESULTS / "compare.json")
    parser.add_argument("--readme", action="store_true", help="write it into the README")
    parser.add_argument("--goals", action="store_true", help="a column of goals, and which missed")
    options = parser.parse_args()
    report = json.loads(options.json.read_text())
    if options.readme:
        write_readme(markdown(report))
        return 0
    print(markdown(report, options.goals))
    if options.goals:
        print(f"\n{verdict(report)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
