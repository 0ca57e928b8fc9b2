"""Timing of several sides in turns: a `Side` is one library's way of computing something.

Machines differ, and one machine differs from minute to minute, so only the ratios of times taken in
the same run mean something. `measure` lets all sides take turns in one process. A turn is a warm-up
and a batch of calls; the median over the turns counts. It is not run by itself.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass
class Side:
    """One library's way of computing something, and the times that it took.

    `statement` is timed, with `names` as its globals. `answer` turns the statement's value into a
    pair for the check: the loss, and the gradient or None. The code in `before` and `after` runs
    around each call and is not timed with it; in `after` the name `value` is the call's value.
    `times` are seconds of the call, `wholes` those of the call with the code around it.
    """

    name: str
    statement: str
    names: dict[str, Any]
    answer: Callable[[Any], tuple[float, Any]] | None = None
    before: str = ""
    after: str = ""
    setting: str = ""  # the work around the call: only sides of one setting are compared
    spins: bool = False  # it leaves threads behind that spin for SPIN
    calls: int = 1  # that the statement makes
    times: list[float] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    trouble: str = ""  # why it is not timed: it fails, or its answer is wrong

    def timer(self) -> timeit.Timer | CallTimer:
        if self.before or self.after:
            return CallTimer(self)
        return timeit.Timer(self.statement, globals=self.names)

    def function(self) -> Callable[[], Any]:
        """Return a function of no argument that makes the call."""
        call: Callable[[], Any] = eval(f"lambda: {self.statement}", dict(self.names))
        return call

    def put(self, setting: str, **changes: Any) -> Side:
        """Return the same side in a setting, not timed yet."""
        return replace(self, setting=setting, times=[], wholes=[], **changes)

    def turn(self, timer: timeit.Timer | CallTimer, count: int) -> None:
        """Time some calls, and keep the time of one."""
        taken = timer.timeit(count) / count
        if isinstance(timer, CallTimer):
            self.wholes.append(statistics.median(timer.wholes))
            taken = statistics.median(timer.inside)
        self.times.append(taken / self.calls)

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else math.nan

    def report(self) -> dict[str, Any]:
        """Return what a file keeps of the measurement: seconds a call."""
        if self.trouble:
            return {"trouble": self.trouble}
        if not self.times:
            return {"trouble": "not timed"}
        low, high = np.quantile(self.times, [0.25, 0.75])
        numbers = {"median": self.median, "quarter": low, "three quarters": high}
        if self.wholes:
            numbers["whole"] = statistics.median(self.wholes)
        return {k: float(f"{v:.4g}") for k, v in numbers.items()} | {"turns": len(self.times)}


CALL_TIMER = """\
def run(count, clock, inside, wholes):
    start = clock()
    for _ in range(count):
        first = clock()
        {before}
        began = clock()
        value = {statement}
        inside.append(clock() - began)
        {after}
        wholes.append(clock() - first)
    return clock() - start
"""


class CallTimer:
    """The timer of a call that has other work around it.

    `inside` has the times of the last calls alone, `wholes` those with the work around them.
    """

    def __init__(self, side: Side) -> None:
        names = dict(side.names)
        parts = {name: getattr(side, name) or "pass" for name in ("before", "statement", "after")}
        exec(CALL_TIMER.format(**parts), names)
        self.run = names["run"]
        self.inside: list[float] = []
        self.wholes: list[float] = []

    def timeit(self, count: int) -> float:
        self.inside, self.wholes = [], []
        return float(self.run(count, time.perf_counter, self.inside, self.wholes))


SPIN = 0.12  # seconds that OpenBLAS's threads spin after a product: 2^28 cycles of the counter

# A side this many times as slow as the fastest takes part in every fifth turn only.
SLOW = 6
SELDOM = 5


def seconds_a_call(timer: timeit.Timer | CallTimer, least: float = 1e-3) -> float:
    """Time as many calls as take about a millisecond, at least one."""
    count = 1
    while (taken := timer.timeit(count)) < least:
        count = int(1.2 * count * least / max(taken, least / 100)) + 1
    return taken / count


def measure(
    sides: list[Side], seconds: float, turns: int, turn_takes: float = 5e-3, least: int = 15
) -> None:
    """Let the sides take turns, in any order; collect the time of one call from each turn.

    A turn of a fast side begins with calls that are not timed, for some milliseconds. In that time
    the threads that another library left spinning go to sleep, and the side's own wake up. Sides
    that leave threads spinning for longer come last, and have at least three calls after the first.
    There are at least `least` turns, however long they take.
    """
    players = []  # a side, its timer, its calls a turn, and the seconds of one
    fastest: dict[str, float] = {}  # of each setting
    for side in sides:
        timer = side.timer()
        timer.timeit(1)
        taken = seconds_a_call(timer)
        count = max(3 if side.spins and turns > SELDOM else 1, int(turn_takes / taken))
        if isinstance(timer, CallTimer):  # the call decides who is slow, not the work around it
            taken = statistics.median(timer.inside)
        players.append((side, timer, count, taken))
        fastest[side.setting] = min(taken, fastest.get(side.setting, math.inf))
    least = min(turns, least)
    order, chance = list(enumerate(players)), random.Random(0)
    gc.collect()
    end = time.perf_counter() + seconds
    turn = 0
    spins = any(side.spins for side in sides)
    while turn < turns and (turn < least or time.perf_counter() < end):
        chance.shuffle(order)
        if spins:
            order.sort(key=lambda player: player[1][0].spins)
            time.sleep(SPIN)
        for i, (side, timer, count, taken) in order:
            slow = taken > SLOW * fastest[side.setting] and taken > 20e-3
            if slow and turns > SELDOM and (turn + i) % SELDOM:
                continue
            settled = time.perf_counter() + 3e-3
            while (taken < 50e-3 or side.spins) and time.perf_counter() < settled:
                timer.timeit(count // 4 + 1)
            side.turn(timer, count)
        turn += 1
