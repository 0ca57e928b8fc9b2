"""What the benchmarks share: threads, levels, floors, turns, and what is told of the machine.

Import this before any peer: it fixes the number of threads for all libraries, two unless
``XENTRS_NUM_THREADS`` says otherwise, and the CPUs that they may use.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.metadata
import importlib.util
import json
import math
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xentrs

# JAX takes as many threads as there are CPUs in the affinity mask.
THREADS = int(os.environ.get("XENTRS_NUM_THREADS", min(2, len(os.sched_getaffinity(0)))))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
os.environ["OMP_NUM_THREADS"] = str(THREADS)
# PyTorch's cache of compiled code does not tell levels apart: code generated for vectors of 8 and
# compiled for vectors of 16 writes beyond its arrays.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(
    Path(tempfile.gettempdir()) / f"xentrs-inductor-{os.environ.get('XENTRS_BENCH_LEVEL', 'own')}"
)

# Forces each library to AVX2, in its own way. NumPy's names are added where NumPy is at hand.
AVX2 = {
    "XENTRS_SIMD": "avx2",
    "ATEN_CPU_CAPABILITY": "avx2",  # PyTorch
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",  # the products of a step of NumPy
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",  # JAX, TensorFlow
}

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results"

# Levels


def everybody_at(level: str | None) -> None:
    """Start this script again with every library forced to a level; return if it is so already.

    Libraries choose once a process, most of them while they are imported.
    """
    if level is None:
        return
    wanted = {"XENTRS_SIMD": level}
    if level == "avx2":
        beyond = [name for name in numpy_features() if name.startswith(("AVX512", "X86_V4"))]
        wanted = AVX2 | ({"NPY_DISABLE_CPU_FEATURES": " ".join(beyond)} if beyond else {})
    if os.environ.get("XENTRS_BENCH_LEVEL") == level:
        found = xentrs.show_config(mode="dicts")["simd"]["level"]
        if found != level:
            raise SystemExit(f"this machine runs xentrs at {found}, not at {level}")
        return
    environment = os.environ | wanted | {"XENTRS_BENCH_LEVEL": level}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def numpy_features() -> list[str]:
    """Return what NumPy chooses by at run time and this machine has."""
    module = importlib.import_module("numpy._core._multiarray_umath")
    return [name for name in module.__cpu_dispatch__ if module.__cpu_features__.get(name)]


# Floors

KINDS = ["copy", "stream copy", "stream fill", "read"]
ALONE = ", one thread"  # after a floor's name


class Floors:
    """The floors of `floors.rs`, which is compiled when first wanted."""

    def __init__(self) -> None:
        source, library = HERE / "floors.rs", ROOT / "target" / "floors" / "libfloors.so"
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            library.parent.mkdir(parents=True, exist_ok=True)
            command = ["rustc", "--edition", "2024", "-O", "--crate-type", "cdylib"]
            subprocess.run([*command, "-o", str(library), str(source)], check=True)
        self.floor = ctypes.CDLL(str(library)).floor
        self.floor.restype = None
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        self.floor.argtypes = [size, pointer, pointer, size, size]

    def side(self, kind: str, to: NDArray[Any], source: NDArray[Any], threads: int) -> Side:
        names = {
            "floor": self.floor,
            "kind": KINDS.index(kind),
            "to": ctypes.c_void_p(to.ctypes.data),
            "source": ctypes.c_void_p(source.ctypes.data),
            "bytes": source.nbytes,
            "threads": threads,
            "arrays": (to, source),  # which must live as long
        }
        name = f"{kind}{ALONE}" if threads == 1 else kind
        return Side(name, "floor(kind, to, source, bytes, threads)", names)


# Sides that take turns


@dataclass
class Side:
    """Somebody's way of computing something.

    `statement` is what is timed, with `names` as its globals. `answer` makes of its value the
    pair of the loss and the gradient (None if there is none) for the check. What stands in `before`
    and `after` is run around each call and not timed with it: there `value` is the call's value.
    `wholes` has the times of all three together. Sides of one `setting` are compared.
    """

    name: str
    statement: str
    names: dict[str, Any]
    answer: Callable[[Any], tuple[float, Any]] | None = None
    before: str = ""
    after: str = ""
    setting: str = ""
    spins: bool = False  # it leaves threads behind that spin for LONG
    calls: int = 1  # that the statement makes
    times: list[float] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    trouble: str = ""

    def timer(self) -> timeit.Timer | Among:
        if self.before or self.after:
            return Among(self)
        return timeit.Timer(self.statement, globals=self.names)

    def put(self, setting: str, **changes: Any) -> Side:
        """Return the same side in a setting, not timed yet."""
        return replace(self, setting=setting, times=[], wholes=[], **changes)

    def turn(self, timer: timeit.Timer | Among, count: int) -> None:
        """Time some calls, and keep the time of one."""
        taken = timer.timeit(count) / count
        if isinstance(timer, Among):
            self.wholes.append(statistics.median(timer.wholes))
            taken = statistics.median(timer.inside)
        self.times.append(taken / self.calls)

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else math.nan

    def report(self) -> dict[str, Any]:
        """Return what is kept of the measurement: seconds a call."""
        if self.trouble:
            return {"trouble": self.trouble}
        if not self.times:
            return {"trouble": "not timed"}
        low, high = np.quantile(self.times, [0.25, 0.75])
        numbers = {"median": self.median, "quarter": low, "three quarters": high}
        if self.wholes:
            numbers["whole"] = statistics.median(self.wholes)
        return {k: float(f"{v:.4g}") for k, v in numbers.items()} | {"turns": len(self.times)}


AMONG = """\
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


class Among:
    """The timer of a call among other work.

    `inside` has the times of the last calls alone, `wholes` those with the work around them.
    """

    def __init__(self, side: Side) -> None:
        names = dict(side.names)
        parts = {name: getattr(side, name) or "pass" for name in ("before", "statement", "after")}
        exec(AMONG.format(**parts), names)
        self.run = names["run"]
        self.inside: list[float] = []
        self.wholes: list[float] = []

    def timeit(self, count: int) -> float:
        self.inside, self.wholes = [], []
        return float(self.run(count, time.perf_counter, self.inside, self.wholes))


LONG = 0.12  # seconds that OpenBLAS's threads spin after a product: 2^28 cycles of the counter

# A side this many times as slow as the fastest takes part in every fifth turn only.
SLOW = 6
SELDOM = 5


def seconds_a_call(timer: timeit.Timer | Among, least: float = 1e-3) -> float:
    """Time as many calls as take about a millisecond, at least one."""
    count = 1
    while (taken := timer.timeit(count)) < least:
        count = int(1.2 * count * least / max(taken, least / 100)) + 1
    return taken / count


def measure(
    sides: list[Side], seconds: float, turns: int, turn_takes: float = 5e-3, least: int = 15
) -> None:
    """Let the sides take turns, in any order; collect the time of one call from each turn.

    A turn of a fast side begins with calls that are not timed, for some milliseconds: threads that
    another library left spinning go to sleep, and the side's own wake up. Those that leave threads
    spinning for longer come last, and have at least three calls after the first. There are at least
    `least` turns, however long they take.
    """
    players = []  # a side, its timer, its calls a turn, and their time
    fastest: dict[str, float] = {}  # of each setting
    for side in sides:
        timer = side.timer()
        timer.timeit(1)
        taken = seconds_a_call(timer)
        count = max(3 if side.spins and turns > SELDOM else 1, int(turn_takes / taken))
        if isinstance(timer, Among):  # slow is whose call is, not the work around it
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
            time.sleep(LONG)
        for i, (side, timer, count, taken) in order:
            slow = taken > SLOW * fastest[side.setting] and taken > 20e-3
            if slow and turns > SELDOM and (turn + i) % SELDOM:
                continue
            settled = time.perf_counter() + 3e-3
            while (taken < 50e-3 or side.spins) and time.perf_counter() < settled:
                timer.timeit(count // 4 + 1)
            side.turn(timer, count)
        turn += 1


# A second xentrs


def another(
    level: str | None = None, threads: int = THREADS, folder: Path | None = None
) -> ModuleType:
    """Return a second xentrs in this process, of its own level and number of threads.

    The level is chosen once a process. A copy of the package is another library to the system, so
    it chooses again. `folder` holds another build of the package.
    """
    copied = tempfile.mkdtemp()  # it must stay while its library is loaded
    package = Path(xentrs.__file__).parent if folder is None else folder / "xentrs"
    shutil.copytree(package, Path(copied) / "xentrs")
    ours = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_xentrs(name)}
    before = os.environ.get("XENTRS_SIMD")
    level = level or ours["xentrs"].show_config(mode="dicts")["simd"]["level"]
    os.environ["XENTRS_SIMD"] = level
    sys.path.insert(0, copied)
    try:
        other = importlib.import_module("xentrs")
        chosen = other.show_config(mode="dicts")["simd"]["level"]
        if chosen != level:
            raise RuntimeError(f"a second xentrs runs at {chosen}, not at {level}")
        other.set_num_threads(threads)
        # What it would import later must come from its folder too.
        for file in sorted((Path(copied) / "xentrs").glob("_*.py")):
            importlib.import_module(f"xentrs.{file.stem}")
        return other
    finally:
        sys.path.remove(copied)
        if before is None:
            del os.environ["XENTRS_SIMD"]
        else:
            os.environ["XENTRS_SIMD"] = before
        for name in [name for name in sys.modules if _is_xentrs(name)]:
            del sys.modules[name]
        sys.modules.update(ours)
        shutil.rmtree(copied)  # what is loaded stays


def _is_xentrs(name: str) -> bool:
    return name == "xentrs" or name.startswith("xentrs.")


# The machine, and files


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine(*packages: str) -> dict[str, Any]:
    """Return what must stand beside figures: CPU, caches, level, threads, load, versions."""
    config = xentrs.show_config(mode="dicts")
    versions = {"Python": platform.python_version(), "xentrs": xentrs.__version__}
    for package in ("numpy", *packages):
        if importlib.util.find_spec(package.replace("scikit-learn", "sklearn")):
            versions[package] = importlib.metadata.version(package)
    return {
        "cpu": cpu_model(),
        "caches": caches(),
        "level": config["simd"]["level"],
        "levels": config["simd"]["available"],
        "threads": THREADS,
        "load": round(os.getloadavg()[0], 2),
        "versions": versions,
    }


def caches() -> dict[str, str]:
    """Return the sizes of the first CPU's caches, as Linux tells them."""
    found = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (
            (folder / name).read_text().strip() for name in ("type", "level", "size")
        )
        if kind != "Instruction":
            found[f"L{level}"] = size
    return found


def told(machine: dict[str, Any]) -> str:
    """Say in a sentence what the figures were measured on."""
    sizes = ", ".join(f"{name} {size}" for name, size in machine["caches"].items())
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cpu']} ({sizes}), level {machine['level']}, {machine['threads']} threads, "
        f"load {machine['load']} before the run; {versions}."
    )


def save(report: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}", file=sys.stderr)


def save_level(report: dict[str, Any], path: Path) -> None:
    """Put a report beside those of other levels in the same file."""
    levels = load_levels(path) if path.exists() else {}
    save({"levels": levels | {report["level"]: report}}, path)


def load_levels(path: Path) -> dict[str, Any]:
    """Return the reports of a file by their level; one of an older form is its only one."""
    saved = json.loads(path.read_text())
    levels: dict[str, Any] = saved.get("levels", {})
    return levels if isinstance(levels, dict) else {saved["level"]: saved}


def duration(seconds: float) -> str:
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"
