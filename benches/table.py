"""Make the Markdown tables of what `compare.py`, `steps.py` and `torch_cpu.py` measured.

``python benches/table.py`` prints those of ``benches/results``, at each level. With ``--readme``
the README's table of calls as users make them replaces what stands between its two markers, and the
large tables what stands between those of ``docs/benchmarks.md``. With ``--goals`` each row tells
its goals, and those that are missed are listed.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import ALONE, RESULTS, ROOT, duration, load_levels, told

# Names of sides
OURS = "xentrs"
NEW = "xentrs, new array"
ONE = "xentrs, one thread"
AGAINST = "xentrs, another build"
TORCH = "xentrs.torch"
TORCH_COMPILED = "xentrs.torch compiled"
PLAIN = "xentrs, plain row"
LEVELS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable"}

FLOORS = ["copy", "stream copy", "read", "stream fill", "np.exp"]
COMPILERS = ["PyTorch eager", "PyTorch compiled", "JAX", "TensorFlow XLA"]
PEERS = ["NumPy", "SciPy", *COMPILERS, "scikit-learn"]

LEGEND = """\
The column xentrs is the time of a whole call, its gradient written to `out=`. Up to "plain row" it
is divided by the time of a floor, or of a plain row of the same size; a row's own floor is what it
must read and write. The column AVX-512 of a table at AVX2 divides it by the same call's time at
AVX-512. Then others are divided by it: a call that makes a new array, one at a lower instruction
set, and the peers. Medians of one run on"""

STEPS_LEGEND = """\
The columns xentrs and one thread are times of the call alone, in *whole* of the step. "Over one
thread in a loop" is what the second thread leaves of the time of one thread in a tight loop, which
is what the goals are about, and "over one thread here" of one thread in the same setting. Then
others are divided by xentrs. Medians of one run on"""

# What the README shows: rows of benches/rows.py, the setting, and what it is called there
SHOWN = [
    ("loss+grad 65536 x 10 f32", "step", "65536 x 10, in a step"),
    ("loss+grad 65536 x 10 f32", "sleep", "65536 x 10, after a pause"),
    ("loss+grad 8192 x 1000 f32", "step", "8192 x 1000, in a step"),
    ("loss+grad 2048 x 32000 f32", "step", "2048 x 32000, in a step"),
    ("loss 2048 x 32000 f32", "sleep", "2048 x 32000, loss alone, after a pause"),
    ("loss+grad 128 x 1000 f32", "step", "128 x 1000, in a step"),
    ("loss+grad 1 x 10 f32", "sleep", "1 x 10, after a pause"),
    ("loss+grad 65536 x 10 f32", "whole", "65536 x 10, the whole step"),
    ("loss+grad 2048 x 32000 f32", "whole", "2048 x 32000, the whole step"),
    ("loss+grad 2048 x 32000 f32", TORCH, "2048 x 32000, the whole step of PyTorch"),
]
COLUMNS = ["NumPy", "PyTorch eager", "PyTorch compiled", "JAX", "scikit-learn"]
README_LEGEND = """\
How to read it: the column xentrs is the time of its call, and the others say how many times as fast
it is as each library for the same; 5.0 means that the library takes five times as long. Every
library is held to AVX2, which is what most processors have; in brackets is the same at AVX-512.
Float32, loss and gradient unless it says otherwise, {threads} threads.

*In a step* the logits come from a matrix product just before the call, and the gradient goes into
another right after it; the call alone is timed. *After a pause* means 3 ms of sleep before each
call. *The whole step* is both products and the loss: those of NumPy, and for PyTorch and JAX their
own forward and backward. The last row is `xentrs.torch`.
[docs/benchmarks.md](docs/benchmarks.md) has the other rows and settings, a tight loop, and what
memory allows. Medians of one run on {machine}"""

PICTURE = "![Times of others over xentrs's, and the floors](bench.svg)"
DRAWN = "avx512"  # the level of the picture
FILES = ["compare.json", "steps.json", "torch.json"]
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


def at_level(level: str) -> str:
    """Return the name of a second xentrs that runs at a level."""
    return f"xentrs, {LEVELS[level]}"


def seconds(row: dict[str, Any], name: str) -> float:
    return float(row["sides"].get(name, {}).get("median", math.nan))


# How a column's number comes about: "a floor", "a peer" or "ours at a cost"
COSTS = {"new array": NEW, "AVX2": "xentrs, AVX2", "portable": "xentrs, portable"}
CEILINGS = [*FLOORS, "own floor", "plain", "AVX-512", *COSTS]
HIDDEN = ["stream fill"]  # which is a part of a floor


def ratio(row: dict[str, Any], what: str) -> float:
    """Return xentrs's time over a floor's; for a peer, its time over xentrs's."""
    ours = median(row, OURS)
    if what in ("plain", "AVX-512"):
        return ours / median(row, {"plain": PLAIN, "AVX-512": at_level("avx512")}[what])
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
    titles = {"plain": "plain row"}
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


# Calls among other work

IN_PLACE = "loop in place"  # the setting that steps are compared with


def took(row: dict[str, Any], setting: str, name: str) -> float:
    """Return the seconds of a side in a setting; NaN if there are none."""
    sides = row["settings"].get(setting, {})
    found = sides.get(name, {}).get("median", math.nan)
    if setting == "whole" and name not in sides:
        found = row["settings"].get("step", {}).get(name, {}).get("whole", math.nan)
    return float(found)


def over_one_thread(row: dict[str, Any], setting: str) -> float:
    """Return the time over that of the same call on one thread in a tight loop."""
    loop = IN_PLACE if setting == "step" else "loop"
    return took(row, setting, OURS) / took(row, loop, ONE)


def times(value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.2f}" if value < 2 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def ours_of(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in report["rows"]:
        for setting, sides in row["settings"].items():
            if OURS in sides:
                yield f"{row['name']}, {setting}", sides[OURS]


def steps(report: dict[str, Any]) -> str:
    """Return the table of calls among other work."""
    listed = []
    for row in report["rows"]:
        for setting in [*row["settings"], *["whole"] * ("whole" not in row["settings"])]:
            if setting != IN_PLACE and not math.isnan(took(row, setting, row["ours"])):
                listed.append((row, setting))
    others = [AGAINST, TORCH_COMPILED, *PEERS]
    shown = [n for n in others if any(not math.isnan(took(*key, n)) for key in listed)]
    header = ["work", "setting", OURS, "one thread", "over one thread in a loop"]
    header += ["over one thread here", "goal (missed in bold)", *shown]
    lines = [header, ["---"] * len(header)]
    for row, setting in listed:
        ours, one = took(row, setting, row["ours"]), took(row, setting, ONE)
        goal = dict(row["goals"]).get(setting)
        found = over_one_thread(row, setting) if setting != "whole" else math.nan
        told_goal = "" if goal is None else f"≤ {goal:g}"
        if goal is not None and found > goal:
            told_goal = f"**{told_goal}**"
        line = [row["name"], setting, duration(ours), "" if math.isnan(one) else duration(one)]
        line += [times(found), times(ours / one), told_goal]
        lines.append(line + [times(took(row, setting, name) / ours) for name in shown])
    filled = [i for i in range(len(header)) if any(line[i] for line in lines[2:])]
    lines = [[line[i] for i in filled] for line in lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{STEPS_LEGEND} {told(report)}"


def steps_verdict(report: dict[str, Any]) -> str:
    """Say of each goal what was found, and whether it is met."""
    lines = ["two threads over one thread of the same call in a tight loop:"]
    for row in report["rows"]:
        for setting, limit in row["goals"]:
            found = over_one_thread(row, setting)
            if not math.isnan(found):
                what = "met" if found <= limit else "MISSED"
                lines.append(f"  {row['name']}, {setting}: {found:.2f}, goal {limit:g}: {what}")
        loop = over_one_thread(row, "loop")
        if not math.isnan(loop):
            lines.append(f"  {row['name']}, in the loop itself: {loop:.2f}")
    return "\n".join(lines)


def as_called(steps_at: dict[str, Any], torch_at: dict[str, Any]) -> str:
    """Return the README's table, at AVX2 with AVX-512 in brackets."""

    def rows_at(level: str, name: str, setting: str) -> dict[str, Any] | None:
        reports = torch_at if setting == TORCH else steps_at
        rows = reports.get(level, {"rows": []})["rows"]
        return next((row for row in rows if row["name"] == name), None)

    lines = [["work", OURS, *COLUMNS], ["---"] * (2 + len(COLUMNS))]
    for name, setting, title in SHOWN:
        ours = TORCH if setting == TORCH else OURS
        key = "whole" if setting == TORCH else setting
        rows = [rows_at(level, name, setting) for level in ("avx2", "avx512")]
        line = [title]
        for column in [ours, *COLUMNS]:
            found = [math.nan if row is None else took(row, key, column) for row in rows]
            if column != ours:
                found = [
                    t if row is None else t / took(row, key, ours)
                    for t, row in zip(found, rows, strict=True)
                ]
            show = duration if column == ours else times
            cells = ["" if math.isnan(value) else show(value) for value in found]
            line.append(f"{cells[0] or '-'} ({cells[1]})" if cells[1] else cells[0])
        if line[1]:
            lines.append(line)
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    report = steps_at.get("avx2") or next(iter(steps_at.values()))
    return f"{text}\n\n" + README_LEGEND.format(threads=report["threads"], machine=told(report))


def large_tables(compare_at: dict[str, Any], *steps_at: dict[str, Any]) -> str:
    """Return all tables, for docs/benchmarks.md."""
    parts = []
    for reports in steps_at:
        for level, report in reports.items():
            parts.append(f"## Among other work, at {LEVELS[level]}\n\n{steps(report)}")
    for level, report in compare_at.items():
        picture = f"{PICTURE}\n\n" if level == DRAWN else ""
        parts.append(f"## In a tight loop, at {LEVELS[level]}\n\n{picture}{markdown(report)}")
    return "\n\n".join(parts)


def write(table: str, path: Path) -> None:
    """Put a text between the markers."""
    text = path.read_text()
    if text.count(START) != 1 or text.count(END) != 1:
        raise SystemExit(f"{path.name} must have one line {START!r} and, after it, one {END!r}")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    path.write_text(f"{before}{START}\n\n{table}\n\n{END}{after}")


def load(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """Return the reports of a file by their level, AVX2 first."""
    path = folder / name
    levels = load_levels(path) if path.exists() else {}
    return dict(sorted(levels.items(), key=lambda pair: pair[0] != "avx2"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="of measurements")
    parser.add_argument("--readme", action="store_true", help="write README and docs/benchmarks.md")
    parser.add_argument("--goals", action="store_true", help="a column of goals, and which missed")
    parser.add_argument("--into", type=Path, default=ROOT, help="where README.md and docs/ are")
    options = parser.parse_args()
    compare_at, steps_at, torch_at = (load(name, options.folder) for name in FILES)
    if options.readme:
        if steps_at:
            write(as_called(steps_at, torch_at), options.into / "README.md")
        tables = large_tables(compare_at, steps_at, torch_at)
        write(tables, options.into / "docs" / "benchmarks.md")
        return 0
    if not options.goals:
        print(large_tables(compare_at, steps_at, torch_at))
        return 0
    for level, report in steps_at.items():
        print(f"# Among other work, at {LEVELS[level]}\n\n{steps(report)}\n")
        print(f"{steps_verdict(report)}\n")
    for level, report in compare_at.items():
        print(f"# In a tight loop, at {LEVELS[level]}\n\n{markdown(report, True)}\n")
        print(f"{verdict(report)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
