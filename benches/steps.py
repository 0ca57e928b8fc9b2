"""Time calls among other work, as users make them: ``make bench-steps``.

A loss is called once a training step. The work around it leaves caches, threads and processors in
another state than a tight loop of calls does. Each row is timed in several settings:

- *loop*: nothing but the call, as `compare.py` times it;
- *sleep*: 3 ms of sleep before each call;
- *product*: a NumPy product of two 512 x 512 matrices before each call;
- *step*: a training step of NumPy, `matmul(H, W, out=Z)`, the loss with its gradient in place
  (`out=Z`), `matmul(H.T, Z, out=G)`; with the loss alone, the first product and the loss. H has 16
  features a sample, so few that the products do not dwarf the loss: they take 2 to 3 times as long;
- *whole*: that step in one piece; PyTorch and JAX as their users write it, forward and backward;
- *beside one*, *beside all*: in a loop, while one process of the lowest priority (`nice -n 19`)
  keeps a CPU busy, or one keeps each CPU busy;
- *callers*: eight Python threads call at once.

Only the call is timed, except in *whole*: of a peer, forward and backward of the loss, not the
products around them, which are the same library's. xentrs runs on two threads, and a second copy of
it on one. A goal is the time on two threads in a setting over the time on one thread in a tight
loop. With ``--against DIR`` another build of the package (DIR/xentrs) takes turns in the same
process.

``make bench-steps`` prints the table and the goals that are met, and keeps the measurements only
where ``--json`` says so; ``make bench-peers`` includes it, at both levels.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import table
import xentrs
from environment import PACKAGES, THREADS, machine, restart_at, second_copy
from options import parser_of, select_peers, select_rows
from peers import peer_sides
from results import save_level
from rows import STEP_ROWS, Case, Row, StepCase
from sides import AGAINST, ONE_THREAD, OURS, check, xentrs_side
from timing import SPIN, Side, measure

SLEEP = 3e-3
SIDE = 512  # of the matrices of a product before the call
CALLERS = 8
EACH = 3  # calls of each caller in a statement
MANY = 2**24  # numbers above which eight callers would need too much memory
BUSY = "import os, sys; os.sched_setaffinity(0, eval(sys.argv[1]))\nwhile True: pass"
SETTINGS = ["loop", "sleep", "product", "step", "beside one", "beside all", "callers"]


class Builds:
    """Copies of xentrs: on all threads, on one thread, and another build on all threads."""

    def __init__(self, against: Path | None) -> None:
        self.modules = {OURS: xentrs, ONE_THREAD: second_copy(threads=1)}
        if against is not None:
            self.modules[AGAINST] = second_copy(folder=against)

    def sides(self, case: Case) -> Iterator[Side]:
        for name, module in self.modules.items():
            yield xentrs_side(case, name, module)


def settings_of(
    case: Case, builds: Builds, peers: list[str], settings: list[str]
) -> Iterator[tuple[Case, Side]]:
    """Yield the sides of the settings without other processes or callers, with their arrays."""
    ours = list(builds.sides(case))
    if "loop" in settings:
        yield from ((case, side.put("loop")) for side in ours)
    if "sleep" in settings:
        for side in [*ours, *peer_sides(case, peers)]:
            names = {"sleep": time.sleep} | side.names
            yield case, side.put("sleep", names=names, before=f"sleep({SLEEP})")
    if "product" in settings:
        matrices = {name: np.ones((SIDE, SIDE), case.dtype) for name in ("A", "B", "C")}
        for side in ours:
            names = {"matmul": np.matmul} | matrices | side.names
            before = "matmul(A, B, out=C)"
            yield case, side.put("product", names=names, before=before, spins=True)
    if "step" in settings and case.row.has_step:
        step = StepCase(case.row)
        for side in [*builds.sides(step), *peer_sides(step, peers)]:
            yield step, side.put(side.setting or "step")
        # A step computes the loss in place, so its goals are relative to a loop in place. There
        # the gradient of one call is the logits of the next; it cannot be probabilities.
        if not case.row.of.probabilities:
            alone = xentrs_side(step, ONE_THREAD, builds.modules[ONE_THREAD])
            yield step, alone.put(table.IN_PLACE, before="", after="", spins=False)


def callers(case: Case, builds: Builds, pool: ThreadPoolExecutor) -> Iterator[Side]:
    """Yield a side for each build: eight Python threads that call it at once."""
    cases = [case, *(Case(case.row) for _ in range(CALLERS - 1))]
    for name, module in builds.modules.items():
        # The call is in a function, as in a user's code.
        tasks = []
        for each in cases:
            side = xentrs_side(each, name, module)
            names = dict(side.names)
            exec(f"def task():\n for _ in range({EACH}): {side.statement}", names)
            tasks.append(names["task"])

        def together(tasks: list[Any] = tasks) -> None:
            for done in [pool.submit(task) for task in tasks]:
                done.result()

        yield Side(name, "f()", {"f": together}, setting="callers", calls=CALLERS * EACH)


@contextlib.contextmanager
def beside(sets: list[set[int]]) -> Iterator[None]:
    """Keep busy processes of the lowest priority, each on a set of CPUs."""
    command = ["nice", "-n", "19", sys.executable, "-c", BUSY]
    processes = [subprocess.Popen([*command, repr(cpus)]) for cpus in sets]
    try:
        time.sleep(0.3)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def run(
    row: Row, seconds: float, turns: int, builds: Builds, peers: list[str], settings: list[str]
) -> dict[str, Any]:
    """Check and time one row in all settings; return what a file keeps of it."""
    print(f"{row.name} ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    case = Case(row)
    sides, cases = [], {}
    for of, side in settings_of(case, builds, peers, settings):
        if side.setting != table.IN_PLACE:  # its first call overwrites the logits
            check(of, side)
        if side.trouble:
            print(f"  {side.setting}, {side.name}: {side.trouble}", file=sys.stderr)
        sides.append(side)
        cases[id(of)] = of
    for each in cases.values():
        each.__dict__.pop("answer", None)  # it is large
    measure(
        [side for side in sides if not side.trouble], seconds, turns, turn_takes=15e-3, least=10
    )
    time.sleep(SPIN)

    cpus = os.sched_getaffinity(0)
    few = seconds / 8
    for setting, sets in (("beside one", [cpus]), ("beside all", [{cpu} for cpu in cpus])):
        if setting in settings:
            more = [side.put(setting) for side in builds.sides(case)]
            with beside(sets):
                measure(more, few, turns, turn_takes=30e-3)
            sides += more
    if "callers" in settings and case.x.size <= MANY:
        with ThreadPoolExecutor(CALLERS) as pool:
            more = list(callers(case, builds, pool))
            measure(more, few, turns)
        sides += more
    found: dict[str, dict[str, Any]] = {}
    for side in sides:
        found.setdefault(side.setting, {})[side.name] = side.report()
    print(f"  {time.perf_counter() - started:.0f} s", file=sys.stderr)
    return {"name": row.name, "ours": OURS, "goals": row.steps, "settings": found}


def main() -> int:
    assert __doc__
    parser = parser_of(__doc__, seconds=8.0)
    parser.add_argument("--settings", help=f"only these of {', '.join(SETTINGS)}")
    parser.add_argument("--against", type=Path, help="another build: a folder that has xentrs/")
    options = parser.parse_args()
    settings = [part.strip() for part in (options.settings or ",".join(SETTINGS)).split(",")]
    if unknown := sorted({*settings} - {*SETTINGS}):
        parser.error(f"no setting is called {unknown[0]!r}; there are {', '.join(SETTINGS)}")
    restart_at(options.level)
    rows = select_rows(options.rows, STEP_ROWS, options.quick, parser.error)
    peers = select_peers(options.peers, parser.error)

    xentrs.set_num_threads(THREADS)
    report = machine(*PACKAGES)
    builds = Builds(options.against)
    seconds, turns = (0.0, 2) if options.quick else (options.seconds, options.turns)
    report["rows"] = [run(row, seconds, turns, builds, peers, settings) for row in rows]
    print(table.steps_table(report))
    print()
    print(table.steps_verdict(report))
    if options.json:
        save_level(report, options.json)
    return int(any("trouble" in side for _, side in table.ours_of(report)))


if __name__ == "__main__":
    sys.exit(main())
