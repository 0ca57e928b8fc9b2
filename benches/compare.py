"""Time whole Python calls of xentrs against the ways people compute the same today.

Peers: NumPy and SciPy by hand always; PyTorch eager (with ``--compile`` compiled too), JAX with
optax, and scikit-learn's private loss where they are installed. Floors are measured beside them, in
the same run with the same number of threads: a copy of the logits (``torch.Tensor.copy_`` where
there is PyTorch, else `numpy.copyto` with the halves on threads; neither asks for non-temporal
stores, though the C library behind NumPy may use them) and the sum of the logits.

Before a row is timed every answer is compared with a float64 reference; a side that is wrong is
shown as such and not timed. Then the sides take turns, each turn a warm-up and a batch of calls,
and the medians over the turns are compared. Only the ratios mean something: machines differ, and
one machine differs from minute to minute.

``make bench`` runs this, ``make bench PEERS="torch jax optax"`` installs these peers first, and
``make bench ARGS="--quick --rows 65536"`` passes options.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import itertools
import json
import math
import os
import platform
import statistics
import sys
import time
import timeit
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

# Before anything starts threads: JAX takes as many as there are CPUs in the affinity mask.
THREADS = int(os.environ.get("XENTRS_NUM_THREADS", min(2, len(os.sched_getaffinity(0)))))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
os.environ["OMP_NUM_THREADS"] = str(THREADS)

import numpy as np  # noqa: E402
import scipy.special  # noqa: E402

import xentrs  # noqa: E402

SMOOTHING = 0.1

# The rows, and what stands in them


@dataclass(frozen=True)
class Row:
    """One line of the table: what is computed, of which shape, in which dtype."""

    work: str  # "loss+grad" or "loss"
    n: int
    c: int
    dtype: str = "f32"
    option: str = ""  # "", "soft targets", "label smoothing" or "class weights"

    @property
    def name(self) -> str:
        option = f", {self.option}" if self.option else ""
        return f"{self.work} {self.n} x {self.c} {self.dtype}{option}"

    @property
    def with_grad(self) -> bool:
        return self.work == "loss+grad"


LLM = [(2048, 32000), (512, 128256)]
ROWS = [
    *(Row("loss+grad", *shape) for shape in LLM),
    *(Row("loss", *shape) for shape in LLM),
    Row("loss+grad", 512, 128256, "f64"),
    Row("loss+grad", 8192, 1000),
    Row("loss+grad", 128, 1000),
    Row("loss+grad", 65536, 10),
    Row("loss+grad", 65536, 10, "f64"),
    Row("loss+grad", 1, 10),
    Row("loss+grad", 2048, 32000, option="soft targets"),
    Row("loss+grad", 2048, 32000, option="label smoothing"),
    Row("loss+grad", 2048, 32000, option="class weights"),
]


class Case:
    """The arrays of one row: made once, given to all sides."""

    def __init__(self, row: Row) -> None:
        self.row = row
        rng = np.random.default_rng(0)
        dtype = np.dtype({"f32": np.float32, "f64": np.float64}[row.dtype])
        self.logits = rng.standard_normal((row.n, row.c), dtype=dtype.type)
        self.logits *= 3
        self.target = rng.integers(0, row.c, row.n)
        self.soft = None
        self.weight = None
        if row.option == "soft targets":
            self.soft = rng.random((row.n, row.c), dtype=dtype.type)
            self.soft /= self.soft.sum(axis=1, keepdims=True)
        if row.option == "class weights":
            self.weight = rng.random(row.c, dtype=dtype.type) + dtype.type(0.5)
        self.smoothing = SMOOTHING if row.option == "label smoothing" else 0.0
        self.grad = np.empty_like(self.logits)  # where those who can put their gradient

    @property
    def plain(self) -> bool:
        return not self.row.option

    @property
    def keywords(self) -> dict[str, Any]:
        """The options as xentrs and PyTorch call them."""
        options: dict[str, Any] = {}
        if self.weight is not None:
            options["weight"] = self.weight
        if self.smoothing:
            options["label_smoothing"] = self.smoothing
        return options

    def by_rows(self) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Yield rows a few at a time, with loss (before the division) and gradient in float64."""
        step = max(1, 2**21 // self.row.c)
        divisor = float(self.row.n if self.weight is None else self.weight[self.target].sum())
        for start in range(0, self.row.n, step):
            rows = slice(start, start + step)
            log_p = scipy.special.log_softmax(np.float64(self.logits[rows]), axis=1)
            if self.soft is None:
                wanted = np.zeros_like(log_p)
                wanted[np.arange(len(log_p)), self.target[rows]] = 1.0
            else:
                wanted = np.float64(self.soft[rows])
            wanted = (1 - self.smoothing) * wanted + self.smoothing / self.row.c
            if self.weight is not None:
                wanted *= self.weight
            grad = np.exp(log_p) * wanted.sum(axis=1, keepdims=True) - wanted
            yield rows, -(wanted * log_p).sum(axis=1) / divisor, grad / divisor


@dataclass
class Side:
    """Somebody's way of computing a row.

    `statement` is what is timed, with `names` as its globals. `answer` makes of its value the
    pair of the loss and the gradient (None if there is none) for the check.
    """

    name: str
    statement: str
    names: dict[str, Any]
    answer: Callable[[Any], tuple[float, Any]] | None = None
    times: list[float] = field(default_factory=list)
    trouble: str = ""

    def timer(self) -> timeit.Timer:
        return timeit.Timer(self.statement, globals=self.names)

    @property
    def median(self) -> float:
        return statistics.median(self.times) if self.times else math.nan


def optional(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


# The sides


def with_grad(value: Any) -> tuple[float, np.ndarray]:
    loss, grad = value
    return float(loss), np.asarray(grad)


def without_grad(value: Any) -> tuple[float, None]:
    return float(value), None


def xentrs_sides(case: Case) -> Iterator[Side]:
    names = {
        "f": xentrs.cross_entropy_with_grad if case.row.with_grad else xentrs.cross_entropy,
        "x": case.logits,
        "t": case.target if case.soft is None else case.soft,
        "g": case.grad,
        **case.keywords,
    }
    keywords = "".join(f", {name}={name}" for name in case.keywords)
    if not case.row.with_grad:
        yield Side("xentrs", f"f(x, t{keywords})", names, without_grad)
        return
    yield Side("xentrs", f"f(x, t{keywords}, out=g)", names, with_grad)
    yield Side("xentrs, new gradient", f"f(x, t{keywords})", names, with_grad)


def floor_sides(case: Case, pool: ThreadPoolExecutor, torch: ModuleType | None) -> Iterator[Side]:
    x, g = case.logits, case.grad
    if case.row.n == 1:
        yield Side("np.exp", "exp(x, out=g)", {"exp": np.exp, "x": x, "g": g})
        return
    if torch is not None:
        names = {"x": torch.from_numpy(x), "g": torch.from_numpy(g)}
        if case.row.with_grad:
            yield Side("copy", "g.copy_(x)", names)
        else:
            yield Side("read", "x.sum()", names)
        return

    cuts = np.linspace(0, len(x), THREADS + 1, dtype=int)
    parts = [(x[a:b], g[a:b]) for a, b in itertools.pairwise(cuts)]

    def on_threads(work: Callable[[np.ndarray, np.ndarray], Any]) -> None:
        others = [pool.submit(work, *part) for part in parts[1:]]
        work(*parts[0])
        for other in others:
            other.result()

    def copy(source: np.ndarray, sink: np.ndarray) -> None:
        np.copyto(sink, source)

    def read(source: np.ndarray, _: np.ndarray) -> None:
        source.sum()

    # What fits into a cache is done sooner than another thread wakes up.
    alone = x.nbytes < 2**22
    if case.row.with_grad:
        statement = "copyto(g, x)" if alone else "on_threads(copy)"
        names = {"copyto": np.copyto, "on_threads": on_threads, "copy": copy, "x": x, "g": g}
        yield Side("copy", statement, names)
    else:
        statement = "x.sum()" if alone else "on_threads(read)"
        yield Side("read", statement, {"on_threads": on_threads, "read": read, "x": x})


def numpy_side(case: Case) -> Iterator[Side]:
    """Stable and vectorised, one buffer, in place: what a careful person writes."""
    x, t, q, weight, smoothing = case.logits, case.target, case.soft, case.weight, case.smoothing
    buffer = case.grad
    rows = np.arange(case.row.n)
    c = case.row.c
    each = None if weight is None else weight[t]
    divisor = case.row.n if each is None else each.sum()

    def call() -> Any:
        np.subtract(x, x.max(axis=1, keepdims=True), out=buffer)
        picked = buffer[rows, t] if q is None else np.einsum("nc,nc->n", buffer, q)
        average = buffer.mean(axis=1) if smoothing else 0.0
        np.exp(buffer, out=buffer)
        total = buffer.sum(axis=1)
        log_total = np.log(total)
        if smoothing:
            losses = log_total - (1 - smoothing) * picked - smoothing * average
        else:
            losses = log_total - picked
        if each is not None:
            losses *= each
        loss = losses.sum() / divisor
        if not case.row.with_grad:
            return loss
        factor = 1 / divisor if each is None else each / divisor
        np.multiply(buffer, (factor / total)[:, None], out=buffer)
        if q is not None:
            np.subtract(buffer, q * buffer.dtype.type(factor), out=buffer)
            return loss, buffer
        if smoothing:
            np.subtract(buffer, buffer.dtype.type(smoothing / c * factor), out=buffer)
        buffer[rows, t] -= (1 - smoothing) * factor
        return loss, buffer

    yield Side("NumPy", "call()", {"call": call}, with_grad if case.row.with_grad else without_grad)


def scipy_side(case: Case) -> Iterator[Side]:
    """Let `scipy.special` do it, in two lines."""
    if not case.plain:
        return
    x, t, n = case.logits, case.target, case.row.n
    rows = np.arange(n)

    def call() -> Any:
        log_p = scipy.special.log_softmax(x, axis=1)
        loss = -log_p[rows, t].mean()
        if not case.row.with_grad:
            return loss
        grad = np.exp(log_p, out=log_p)
        grad[rows, t] -= 1
        grad /= n
        return loss, grad

    yield Side("SciPy", "call()", {"call": call}, with_grad if case.row.with_grad else without_grad)


def torch_sides(case: Case, torch: ModuleType, compiled: bool) -> Iterator[Side]:
    cross_entropy = torch.nn.functional.cross_entropy
    x = torch.from_numpy(case.logits)
    t = torch.from_numpy(case.target if case.soft is None else case.soft)
    keywords = dict(case.keywords)
    if case.weight is not None:
        keywords["weight"] = torch.from_numpy(case.weight)

    def forward(x: Any, t: Any) -> Any:
        return cross_entropy(x, t, **keywords)

    functions = {"PyTorch eager": forward}
    if compiled:
        torch._dynamo.reset()
        functions["PyTorch compiled"] = torch.compile(forward)
    for name, function in functions.items():
        if case.row.with_grad:
            leaf = x.detach().requires_grad_()

            def both(function: Any = function, leaf: Any = leaf) -> Any:
                leaf.grad = None
                loss = function(leaf, t)
                loss.backward()
                return loss.item(), leaf.grad

            yield Side(name, "call()", {"call": both}, with_grad)
        else:

            def alone(function: Any = function) -> Any:
                with torch.no_grad():
                    return function(x, t).item()

            yield Side(name, "call()", {"call": alone}, without_grad)


def jax_side(case: Case, jax: ModuleType, optax: ModuleType) -> Iterator[Side]:
    jnp = jax.numpy
    x = jnp.asarray(case.logits)
    t = jnp.asarray(case.target if case.soft is None else case.soft)
    weight = None if case.weight is None else jnp.asarray(case.weight)
    smoothing = case.smoothing

    def forward(x: Any, t: Any) -> Any:
        if case.soft is not None:
            return optax.softmax_cross_entropy(x, t).mean()
        losses = optax.softmax_cross_entropy_with_integer_labels(x, t)
        if smoothing:
            average = (jax.nn.logsumexp(x, axis=-1) - x.mean(axis=-1)).mean()
            return (1 - smoothing) * losses.mean() + smoothing * average
        if weight is not None:
            return (weight[t] * losses).sum() / weight[t].sum()
        return losses.mean()

    function = jax.jit(jax.value_and_grad(forward) if case.row.with_grad else forward)
    names = {"f": function, "x": x, "t": t, "wait": jax.block_until_ready}
    answer = with_grad if case.row.with_grad else without_grad
    yield Side("JAX", "wait(f(x, t))", names, answer)


def sklearn_side(case: Case, module: ModuleType) -> Iterator[Side]:
    if not case.plain or case.row.c < 3:
        return
    n = case.row.n
    loss = module.HalfMultinomialLoss(n_classes=case.row.c)
    names = {
        "f": loss.closs.loss_gradient if case.row.with_grad else loss.closs.loss,
        "t": case.target.astype(case.logits.dtype),
        "x": case.logits,
        "losses": np.empty(n, case.logits.dtype),
        "g": case.grad,
        "threads": THREADS if case.logits.size > 10_000 else 1,
    }
    start = "f(y_true=t, raw_prediction=x, sample_weight=None, loss_out=losses, "
    # It returns each sample's loss, and gradients that are not divided by their number.
    if case.row.with_grad:
        statement = start + "gradient_out=g, n_threads=threads)"
        yield Side(
            "scikit-learn",
            statement,
            names,
            lambda _: (float(names["losses"].mean(dtype=np.float64)), case.grad / n),
        )
    else:
        statement = start + "n_threads=threads)"
        yield Side(
            "scikit-learn",
            statement,
            names,
            lambda _: (float(names["losses"].mean(dtype=np.float64)), None),
        )


# Checking and timing


def check(case: Case, side: Side) -> None:
    """Run a side once and write into `trouble` how its answer is wrong, if it is."""
    assert side.answer is not None
    case.grad.fill(np.nan)  # nobody gets an answer that another one left here
    try:
        names = dict(side.names)
        loss, grad = side.answer(eval(side.statement, names))
    except Exception as error:
        side.trouble = f"{type(error).__name__}: {error}"
        return
    # Errors are measured against the largest entry of the gradient. The peers' limits find a wrong
    # formula and no more: their single entries can be far less exact, and that is not the subject.
    ours = side.name.startswith("xentrs")
    limits = {"f32": (1e-6, 1e-3), "f64": (1e-13, 1e-9)}[case.row.dtype]
    tolerance = limits[0] if ours else limits[1]
    expected_loss = worst = largest = 0.0
    for rows, losses, expected in case.by_rows():
        expected_loss += losses.sum()
        if grad is not None:
            largest = max(largest, np.abs(expected).max())
            worst = np.maximum(worst, np.abs(grad[rows] - expected).max())  # keeps a NaN
    if not worst <= tolerance * largest:
        side.trouble = f"the gradient is off by {worst / largest:.1e} of its largest entry"
    if not abs(loss - expected_loss) <= tolerance * abs(expected_loss):
        side.trouble = f"the loss is {loss!r}, not {expected_loss!r}"


def measure(sides: list[Side], seconds: float, turns: int) -> None:
    """Let the sides take turns; collect the time of one call from each turn.

    A turn of a fast side begins with calls that are not timed, for some milliseconds: threads that
    another library left spinning go to sleep, and the side's own wake up.
    """
    timers = [side.timer() for side in sides]
    counts = []  # calls a turn: some 5 ms
    for timer in timers:
        timer.timeit(1)
        taken = timer.timeit(1)
        if taken < 2e-3:
            number, taken = timer.autorange()
            taken /= number
        counts.append(max(1, int(5e-3 / taken)))
    gc.collect()
    end = time.perf_counter() + seconds
    turn = 0
    while turn < turns and (turn < min(5, turns) or time.perf_counter() < end):
        order = list(zip(sides, timers, counts, strict=True))
        for side, timer, count in order if turn % 2 == 0 else reversed(order):
            settled = time.perf_counter() + 3e-3
            fast = not side.times or side.times[-1] < 50e-3
            while fast and time.perf_counter() < settled:
                timer.timeit(count // 4 + 1)
            side.times.append(timer.timeit(count) / count)
        turn += 1


# The report


def cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def duration(seconds: float) -> str:
    for unit, scale in (("us", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s"


FLOORS = ["copy", "read", "np.exp"]


def table_line(row: Row, sides: list[Side], peers: list[str]) -> str:
    by_name = {side.name: side for side in sides}
    ours = by_name["xentrs"]
    if ours.trouble:
        return f"| {row.name} | wrong |"
    floor = next(by_name[name] for name in FLOORS if name in by_name)
    cells = [row.name, duration(ours.median), f"{ours.median / floor.median:.2f} x {floor.name}"]
    fresh = by_name.get("xentrs, new gradient")
    cells.append(f"{fresh.median / ours.median:.2f}" if fresh else "")
    for peer in peers:
        side = by_name.get(peer)
        if side is None:
            cells.append("")
        elif side.trouble:
            cells.append("wrong")
        else:
            cells.append(f"{side.median / ours.median:.1f}")
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", action="append", help="only rows with this in their name")
    parser.add_argument("--quick", action="store_true", help="a look: few turns")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each row")
    parser.add_argument("--turns", type=int, default=101, help="at most, for each row")
    parser.add_argument("--peers", default="", help="only these, with commas between their names")
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--json", type=Path, help="write every measurement to this file")
    options = parser.parse_args()
    seconds, turns = (0.5, 3) if options.quick else (options.seconds, options.turns)
    rows = [r for r in ROWS if not options.rows or any(part in r.name for part in options.rows)]
    if not rows:
        parser.error(
            "no row has that in its name; the rows are: " + "; ".join(r.name for r in ROWS)
        )
    asked = [name.strip() for name in options.peers.lower().split(",") if name.strip()]

    load = os.getloadavg()[0]
    xentrs.set_num_threads(THREADS)
    versions = {"Python": platform.python_version(), "xentrs": xentrs.__version__}
    versions |= {"NumPy": np.__version__, "SciPy": scipy.__version__}
    torch, jax, optax = optional("torch"), optional("jax"), optional("optax")
    sklearn_loss = optional("sklearn._loss")
    if torch is not None:
        torch.set_num_threads(THREADS)
        versions["PyTorch"] = torch.__version__
    if jax is not None and optax is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_enable_x64", True)
        versions |= {"JAX": jax.__version__, "optax": optax.__version__}
    if sklearn_loss is not None:
        versions["scikit-learn"] = importlib.import_module("sklearn").__version__
    pool = ThreadPoolExecutor(THREADS)

    def sides_of(case: Case) -> Iterator[Side]:
        yield from xentrs_sides(case)
        yield from floor_sides(case, pool, torch)
        peers = [*numpy_side(case), *scipy_side(case)]
        if torch is not None:
            peers += torch_sides(case, torch, options.compile)
        if jax is not None and optax is not None:
            peers += jax_side(case, jax, optax)
        if sklearn_loss is not None:
            peers += sklearn_side(case, sklearn_loss)
        for side in peers:
            if not asked or any(side.name.lower().startswith(name) for name in asked):
                yield side

    measured: list[tuple[Row, list[Side]]] = []
    for row in rows:
        print(f"{row.name} ...", file=sys.stderr, flush=True)
        case = Case(row)
        sides = list(sides_of(case))
        for side in sides:
            if side.answer is not None:
                check(case, side)
                if side.trouble:
                    print(f"  {side.name}: {side.trouble}", file=sys.stderr)
        measure([side for side in sides if not side.trouble], seconds, turns)
        for side in sides:
            side.names, side.answer = {}, None  # with them go the arrays
        measured.append((row, sides))

    config = xentrs.show_config(mode="dicts")
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    print(
        f"{cpu_model()}; level {config['simd']['level']}; {THREADS} threads; load before the run"
        f" {load:.1f}; {told}.\n"
    )
    peers = list(
        dict.fromkeys(
            side.name
            for _, sides in measured
            for side in sides
            if side.name not in FLOORS and not side.name.startswith("xentrs")
        )
    )
    print("xentrs's time, then how many times as long the others take (medians of one run);")
    print("`out=` is reused, the column after the floor says what a new gradient array costs.\n")
    header = ["work", "xentrs", "against the floor", "new array", *peers]
    print("| " + " | ".join(header) + " |")
    print("|" + "---|" * len(header))
    for row, sides in measured:
        print(table_line(row, sides, peers))

    if options.json:
        report = {
            "cpu": cpu_model(),
            "config": config,
            "threads": THREADS,
            "load": load,
            "versions": versions,
            "rows": {
                row.name: {side.name: side.trouble or sorted(side.times) for side in sides}
                for row, sides in measured
            },
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return int(any(side.trouble and side.name == "xentrs" for _, s in measured for side in s))


if __name__ == "__main__":
    sys.exit(main())
