"""Write the README's table and docs/benchmarks.md from measurements: ``make bench-pictures``.

``python benches/table.py`` prints the page made of ``benches/results``. With ``--readme`` the page
becomes ``docs/benchmarks.md``, and the README's table replaces the text between its two markers.
``--check`` compares both files with the measurements instead, and fails where one is stale. With
``--goals`` each row tells its goals, and those that are missed are listed. Scripts that measure
print their tables with the functions here.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from environment import LEVELS, describe
from floors import ONE_THREAD as FLOOR_ON_ONE_THREAD
from results import RESULTS, ROOT, duration, factor, load_levels
from sides import AGAINST, NEW, ONE_THREAD, OURS, PLAIN, TORCH, TORCH_COMPILED, at_level

FILES = ["compare.json", "steps.json", "torch.json"]
FLOORS = ["copy", "stream copy", "read", "stream fill", "np.exp"]
COMPILERS = ["PyTorch eager", "PyTorch compiled", "JAX", "TensorFlow XLA"]
PEERS = ["NumPy", "SciPy", *COMPILERS, "scikit-learn"]

IN_PLACE = "loop in place"  # the setting that goals of steps are relative to
WHOLE = "whole"

# The README's rows: a row of benches/rows.py, the setting, and what the row is called there
SHOWN = [
    ("loss+grad 65536 x 10 f32", "step", "digits, 65,536 x 10: in a training step"),
    ("loss+grad 65536 x 10 f32", WHOLE, "digits, 65,536 x 10: the whole step"),
    ("loss+grad 2048 x 32000 f32", "step", "language model, 2,048 x 32,000: in a training step"),
    ("loss 2048 x 32000 f32", "sleep", "language model, 2,048 x 32,000: loss alone"),
    ("loss+grad 16 x 21 x 16384 f32, axis=1", "sleep", "segmentation, 16 x 21 x 128 x 128"),
    (
        "binary loss+grad 8192 x 80 f32, bool targets",
        "step",
        "multi-label, 8,192 x 80: in a training step",
    ),
    ("loss+grad 1 x 10 f32", "sleep", "one sample, 1 x 10"),
    (
        "loss+grad 2048 x 32000 f32",
        TORCH,
        "language model, 2,048 x 32,000: the whole step of PyTorch with `xentrs.torch`",
    ),
]
COLUMNS = ["NumPy", "PyTorch eager", "PyTorch compiled", "JAX", "scikit-learn"]

START, END = "<!-- table: make bench-peers -->", "<!-- end of the table -->"
README_LEGEND = """\
Each number says how many times as fast xentrs is: 5.0 means that the library takes five times as
long; below 1, xentrs is slower. The first number is at AVX2, which most processors have, the second
at AVX-512. At AVX2 every library is held to AVX2, at AVX-512 each uses what it likes. In brackets
is xentrs's own time at AVX2. Float32, {threads} threads, loss and gradient unless the row says
otherwise.

In a training step, the logits come from a matrix product just before the call, and the call alone
is timed. *The whole step* is timed with its matrix products: NumPy's for digits, PyTorch's linear
layer, loss and backward pass in the last row. In the other rows, a pause of 3 ms comes before each
call. Compare ratios with another machine, not times; even ratios vary by a tenth from run to run.
[docs/benchmarks.md](docs/benchmarks.md) has all rows. Measured on {cpu}, with {versions}."""

PAGE = """\
<!-- Written by `make bench-pictures` from benches/results; change benches/table.py instead. -->

# Benchmarks

How fast xentrs is beside other libraries, beside what the machine can do, and beside itself.
`make bench-peers` measures all of this on your machine, and `make bench-pictures` writes this page.
`docs/speed.md` explains the goals that were missed in an earlier run.

## How to read this

**Rows.** `loss+grad 2048 x 32000 f32` is one call that returns loss and gradient, for logits of
2048 samples and 32000 classes in float32. `loss` is a call that returns the loss alone. The name of
a loss stands in front (nothing means cross-entropy), an option or a layout after the comma.
`benches/rows.py` lists the rows.

**Ratios.** Every answer is compared with float64 before anything is timed. Then all sides take
turns in one process, and medians over the turns are compared. Only ratios within one table mean
something: machines differ, and one machine differs from minute to minute. A ratio moves by a tenth
from run to run.

- *Times as fast* (other libraries): 5.0 means that the library takes five times as long as xentrs;
  below 1, xentrs is slower.
- *Times the time* (floors, plain rows): 1.2 means that xentrs takes 1.2 times as long.

**Settings.** A loss is called once a training step, between other work. So calls are timed among
other work first:

- *step*: a training step of NumPy. The logits come from a matrix product just before the call, and
  the gradient goes into another product right after it; the call alone is timed.
- *sleep*: 3 ms of sleep come before each call.
- *whole*: the whole step, both products and the loss. PyTorch and JAX run their own forward and
  backward, as their users write it.
- *product*: a product of two 512 x 512 matrices comes before each call.
- *loop*: nothing but calls. The memory that its arrays take is the only memory in use, which is
  kinder to every library than a training step is.
- *beside one*, *beside all*: a loop, while one process of the lowest priority keeps a CPU busy, or
  one keeps each CPU busy.
- *callers*: eight Python threads call at once.

**Instruction sets.** At AVX2 every library is held to AVX2, each in its own way
(`benches/environment.py`). At AVX-512 each uses what it likes.

![How many times as fast xentrs is, by kind of work](bench.svg)
"""

SECTIONS = {
    "Among other work, beside other libraries": """
How many times as fast xentrs is as each library, called as users call it.
""",
    "A training step of PyTorch": """
`xentrs.torch` in place of PyTorch's loss: a linear layer, the loss, backward. *step* is the loss
alone, its forward and backward; *whole* is all of it. How many times as fast `xentrs.torch` is.
""",
    "In a tight loop, beside other libraries": """
How many times as fast xentrs is where nothing but the call runs. The gradient is written to an
array that is kept (`out=`).
""",
    "In a tight loop, beside the machine": """
Times the time that moving arrays of the logits' size takes, on the same threads: *copy* with
ordinary stores, *stream copy* with non-temporal stores, *read*. For a single sample the floor is
`np.exp` of the same array. *own floor* is what the row must read and write, targets included. At
1.00 arithmetic costs nothing beside moving the bytes.
""",
    "What options, layouts and new arrays cost": """
*plain row*: times the time of plain cross-entropy of the same size. *AVX-512*: times the time at
AVX-512. *new array*: the time of a call that returns its gradient in a new array, over the time of
one that writes to `out=`. *AVX2*: the time at AVX2 over the time at AVX-512.
""",
    "What the second thread brings": """
Calls on all threads and on one thread, in each setting. A goal is the time on all threads over the
time of one thread in a tight loop.
""",
}

# Figures of `compare.py`


def median(row: dict[str, Any], name: str) -> float:
    """Return the seconds of a side, or of a figure made of several; NaN if there is none."""
    if name == "write":  # the caches decide which is faster
        return least([median(row, "copy"), median(row, "stream copy")])
    if name == "own floor":
        return float(sum(k * median(row, kind) for k, kind in row["own floor"] if k))
    if name == "fastest peer":
        return least([median(row, peer) for peer in COMPILERS])
    if name in FLOORS:
        return least([seconds(row, name), seconds(row, name + FLOOR_ON_ONE_THREAD)])
    return seconds(row, name)


def least(times: list[float]) -> float:
    return min((t for t in times if not math.isnan(t)), default=math.nan)


def seconds(row: dict[str, Any], name: str) -> float:
    return float(row["sides"].get(name, {}).get("median", math.nan))


# Sides of xentrs itself that a column shows, by the column's title
VARIANTS = {"new array": NEW, "AVX2": "xentrs, AVX2", "portable": "xentrs, portable"}
BASELINES = {"plain": PLAIN, "AVX-512": at_level("avx512")}
# What xentrs is expected to stay below: there a goal is a ceiling, and ratios are times the time.
CEILINGS = [*FLOORS, "own floor", *BASELINES, *VARIANTS]
HIDDEN = ["stream fill"]  # a part of other floors only
TITLES = {"plain": "plain row"}


def ratio(row: dict[str, Any], what: str) -> float:
    """Return xentrs's time over a floor's or a baseline's, or the others' time over xentrs's."""
    ours = median(row, OURS)
    if what in BASELINES:
        return ours / median(row, BASELINES[what])
    if what in CEILINGS and what not in VARIANTS:
        return ours / median(row, what)
    return median(row, VARIANTS.get(what, what)) / ours


def reached(row: dict[str, Any], what: str, limit: float) -> bool | None:
    """Tell whether a goal is reached; None if it was not measured."""
    value = ratio(row, what)
    if math.isnan(value):
        return None
    return value <= limit if what in CEILINGS else value >= limit


def cell(row: dict[str, Any], what: str) -> str:
    trouble = row["sides"].get(what, {}).get("trouble")
    return first_word(trouble) if trouble else factor(ratio(row, what))


def first_word(trouble: str) -> str:
    return trouble.split(":")[0]


def goal(row: dict[str, Any], what: str, limit: float) -> str:
    text = f"{what} {'≤' if what in CEILINGS else '≥'} {limit:g}"
    return f"**{text}**" if reached(row, what, limit) is False else text


def markdown(header: list[str], lines: Iterable[list[str]]) -> str:
    """Return a table, without the columns that are empty."""
    lines = list(lines)
    filled = [i for i in range(len(header)) if any(line[i] for line in lines)]
    every = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(line[i] for i in filled) + " |" for line in every)


def columns_table(report: dict[str, Any], columns: list[str], with_goals: bool = False) -> str:
    """Return a table of the columns' ratios, of the rows that have any (all rows, with goals)."""
    header = ["work", OURS, *(TITLES.get(what, what) for what in columns), "goals (missed in bold)"]
    lines = []
    for row in report["rows"]:
        trouble = row["sides"][OURS].get("trouble")
        cells = ["" if trouble else cell(row, what) for what in columns]
        goals = ", ".join(goal(row, *pair) for pair in row["goals"]) if with_goals else ""
        if any(cells) or with_goals or trouble:
            time = first_word(trouble) if trouble else duration(median(row, OURS))
            lines.append([row["name"], time, *cells, goals])
    return markdown(header, lines) if lines else ""


def floors_table(report: dict[str, Any], with_goals: bool = False) -> str:
    shown = [what for what in [*FLOORS, "own floor"] if what not in HIDDEN]
    return columns_table(report, shown, with_goals)


def peers_table(report: dict[str, Any]) -> str:
    return columns_table(report, PEERS)


def variants_table(report: dict[str, Any]) -> str:
    return columns_table(report, [*BASELINES, *VARIANTS])


def verdict(report: dict[str, Any]) -> str:
    """Count the goals that are reached, and list the others."""
    missed, count = [], 0
    for row in report["rows"]:
        for what, limit in row["goals"]:
            found = reached(row, what, limit)
            count += found is True
            if found is False:
                missed.append(f"  {row['name']}: {what} {factor(ratio(row, what))}, goal {limit:g}")
    return "\n".join([f"goals reached: {count} of {count + len(missed)}; missed:", *missed])


def loop_tables(report: dict[str, Any]) -> str:
    """Return all tables of calls in a tight loop, and the verdict on their goals."""
    tables = [floors_table(report, with_goals=True), variants_table(report), peers_table(report)]
    about = f"Measured on {describe(report)}"
    return "\n\n".join([*filter(None, tables), about, verdict(report)])


# Figures of `steps.py` and `torch_cpu.py --steps`


def took(row: dict[str, Any], setting: str, name: str) -> float:
    """Return the seconds of a side in a setting; NaN if there are none."""
    sides = row["settings"].get(setting, {})
    found = sides.get(name, {}).get("median", math.nan)
    if setting == WHOLE and name not in sides:
        found = row["settings"].get("step", {}).get(name, {}).get("whole", math.nan)
    return float(found)


def over_one_thread(row: dict[str, Any], setting: str) -> float:
    """Return the time over that of the same call on one thread in a tight loop."""
    loop = IN_PLACE if setting == "step" else "loop"
    return took(row, setting, OURS) / took(row, loop, ONE_THREAD)


def ours_of(report: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in report["rows"]:
        for setting, sides in row["settings"].items():
            if OURS in sides:
                yield f"{row['name']}, {setting}", sides[OURS]


def settings_of(report: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, float]]:
    """Yield each row with each of its settings, and xentrs's time there."""
    for row in report["rows"]:
        for setting in [*row["settings"], *[WHOLE] * (WHOLE not in row["settings"])]:
            ours = took(row, setting, row["ours"])
            if setting != IN_PLACE and not math.isnan(ours):
                yield row, setting, ours


def step_peers_table(report: dict[str, Any]) -> str:
    """Return how many times as fast xentrs is among other work, where peers were timed."""
    others = [AGAINST, TORCH_COMPILED, *PEERS]
    lines = []
    for row, setting, ours in settings_of(report):
        cells = [factor(took(row, setting, name) / ours) for name in others]
        if any(cells):
            lines.append([row["name"], setting, duration(ours), *cells])
    return markdown(["work", "setting", OURS, *others], lines) if lines else ""


def threads_table(report: dict[str, Any]) -> str:
    """Return the time on all threads beside the time on one."""
    header = ["work", "setting", OURS, "one thread", "times as fast as one thread"]
    header += ["over one thread in a loop", "goal (missed in bold)"]
    lines = []
    for row, setting, ours in settings_of(report):
        one = took(row, setting, ONE_THREAD)
        if math.isnan(one):
            continue
        limit = dict(row["goals"]).get(setting)
        found = over_one_thread(row, setting) if setting != WHOLE else math.nan
        told = "" if limit is None else f"≤ {limit:g}"
        if limit is not None and found > limit:
            told = f"**{told}**"
        line = [row["name"], setting, duration(ours), duration(one)]
        lines.append([*line, factor(one / ours), factor(found), told])
    return markdown(header, lines) if lines else ""


def steps_table(report: dict[str, Any]) -> str:
    """Return both tables of calls among other work."""
    tables = [step_peers_table(report), threads_table(report)]
    return "\n\n".join([*filter(None, tables), f"Measured on {describe(report)}"])


def steps_verdict(report: dict[str, Any]) -> str:
    """Say of each goal of a call among other work what was found, and whether it is met."""
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


# The README's table


def readme_rows(
    level: str, steps_at: dict[str, Any], torch_at: dict[str, Any]
) -> Iterator[tuple[str, float, list[float]]]:
    """Yield the README's rows at a level: the title, xentrs's time, and how many times as fast."""
    for name, setting, title in SHOWN:
        at, ours, key = steps_at, OURS, setting
        if setting == TORCH:
            at, ours, key = torch_at, TORCH, WHOLE
        rows = at.get(level, {"rows": []})["rows"]
        row: dict[str, Any] = next((r for r in rows if r["name"] == name), {"settings": {}})
        time = took(row, key, ours)
        yield title, time, [took(row, key, column) / time for column in COLUMNS]


def readme_table(steps_at: dict[str, Any], torch_at: dict[str, Any]) -> str:
    """Return the README's table: AVX2 first, AVX-512 beside; rows that were measured."""
    lines = []
    levels = [list(readme_rows(level, steps_at, torch_at)) for level in ("avx2", "avx512")]
    for (title, time, first), (_, other_time, second) in zip(*levels, strict=True):
        if math.isnan(time) and math.isnan(other_time):
            continue
        took = "" if math.isnan(time) else f" ({duration(time)})"
        cells = [
            " / ".join(filter(None, [factor(a) or ("-" if factor(b) else ""), factor(b)]))
            for a, b in zip(first, second, strict=True)
        ]
        lines.append([f"{title}{took}", *cells])
    report = steps_at.get("avx2") or next(iter(steps_at.values()))
    versions = ", ".join(f"{k} {v}" for k, v in report["versions"].items() if k != "xentrs")
    legend = README_LEGEND.format(threads=report["threads"], cpu=report["cpu"], versions=versions)
    return f"{markdown(['work', *COLUMNS], lines)}\n\n{legend}"


def between_markers(text: str, table: str) -> str:
    """Return a text with a table between its two markers."""
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise SystemExit(f"README.md must have one line {START!r} and, after it, one {END!r}")
    before, rest = text.split(START)
    after = rest.split(END)[1]
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


# docs/benchmarks.md


def section(title: str, text: str, tables: dict[str, str]) -> str:
    """Return a section: a text, and a table for each heading below it; nothing without a table."""
    parts = [f"### {heading}\n\n{table}" for heading, table in tables.items() if table]
    return "\n\n".join([f"## {title}", text.strip(), *parts]) if parts else ""


def at_levels(reports: dict[str, Any], table: Any) -> dict[str, str]:
    return {f"At {LEVELS[level]}": table(report) for level, report in reports.items()}


def page(folder: Path) -> str:
    """Return docs/benchmarks.md, made of the measurements in a folder."""
    compare_at, steps_at, torch_at = (load_levels(folder / name) for name in FILES)
    tables = [
        at_levels(steps_at, step_peers_table),
        at_levels(torch_at, step_peers_table),
        at_levels(compare_at, peers_table),
        at_levels(compare_at, floors_table),
        at_levels(compare_at, variants_table),
        at_levels(steps_at, threads_table),
    ]
    sections = [
        PAGE.strip(),
        *(section(*about, of) for about, of in zip(SECTIONS.items(), tables, strict=True)),
        growth(folder),
        instructions(folder),
        measured_on(compare_at, steps_at, torch_at),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def growth(folder: Path) -> str:
    """Return the section of the curves, with the slopes that were fitted."""
    path = folder / "curves.json"
    if not path.exists():
        return ""
    report = json.loads(path.read_text())
    slopes = [curve["slope"] for curve in report["sizes"].values()]
    return f"""\
## How time grows

`make bench-curves` measures and draws this. Time is linear in samples and in classes over six
decades: the slopes are {min(slopes):.2f} to {max(slopes):.2f}, where 1 is linear.

![Nanoseconds an element for every number of classes](curve-classes.svg)

![Time over samples, classes and threads](scaling.svg)

Measured on {describe(report["machine"])}"""


def instructions(folder: Path) -> str:
    """Return the section of the instructions that a call executes."""
    path = folder / "instructions.json"
    if not path.exists():
        return ""
    report = json.loads(path.read_text())
    counts, neon = report["instructions"], report["neon"]
    lines = [
        [name, f"{count:,}", f"{neon[name]:,}", factor(neon[name] / count)]
        for name, count in counts.items()
    ]
    return f"""\
## Instructions

Instructions of a call on one thread, the same at every run. At AVX2 valgrind counts them, at NEON
the plugin of an emulator (`make bench-neon`). A vector is two registers at AVX2 and
four at NEON, so about twice the instructions do the same work.

{markdown(["work", "AVX2", "NEON", "ratio"], lines)}"""


def measured_on(
    compare_at: dict[str, Any], steps_at: dict[str, Any], torch_at: dict[str, Any]
) -> str:
    """Return the section that says on which machine each file was measured."""
    reports = {
        "Among other work": steps_at,
        "A training step of PyTorch": torch_at,
        "In a tight loop": compare_at,
    }
    lines = [
        f"- *{what}*, {LEVELS[level]}: {describe(report)}"
        for what, at in reports.items()
        for level, report in at.items()
    ]
    return "\n".join(["## Measured on", "", *lines]) if lines else ""


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS, help="of measurements")
    parser.add_argument("--readme", action="store_true", help="write README and docs/benchmarks.md")
    parser.add_argument("--check", action="store_true", help="fail where one of the two is stale")
    parser.add_argument("--goals", action="store_true", help="tables with goals, and which missed")
    parser.add_argument("--into", type=Path, default=ROOT, help="where README.md and docs/ are")
    options = parser.parse_args()
    compare_at, steps_at, torch_at = (load_levels(options.folder / name) for name in FILES)
    if options.readme or options.check:
        readme = options.into / "README.md"
        texts = {options.into / "docs" / "benchmarks.md": page(options.folder)}
        if steps_at:
            texts[readme] = between_markers(readme.read_text(), readme_table(steps_at, torch_at))
        stale = [p for p, text in texts.items() if not p.exists() or p.read_text() != text]
        for path in stale:
            if options.check:
                print(f"{path} is not what benches/results gives: run `make bench-pictures`")
            else:
                path.write_text(texts[path])
        return int(options.check and bool(stale))
    if not options.goals:
        print(page(options.folder))
        return 0
    for level, report in steps_at.items():
        print(f"# Among other work, at {LEVELS[level]}\n\n{threads_table(report)}\n")
        print(f"{steps_verdict(report)}\n")
    for level, report in compare_at.items():
        print(f"# In a tight loop, at {LEVELS[level]}\n\n{loop_tables(report)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
