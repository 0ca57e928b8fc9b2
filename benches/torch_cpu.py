"""Time xentrs.torch against PyTorch, eager and compiled, on the CPU: ``make bench-torch``.

Forward and backward are timed, with the gradient in a fresh tensor as in training. Answers are
compared before anything is timed. The sides take turns in one process, as in ``make bench-peers``,
and medians are compared. ``ARGS="--quick"`` takes a tenth of the time, ``ARGS="--peak"`` measures
memory. Only the ratios mean something on another machine.

``--steps`` times a step of PyTorch instead, as `steps.py` times one of NumPy: a linear layer, the
loss, backward. *step* is the loss alone (its forward and backward, between the products), *whole*
is all of it. ``--level avx2`` restricts every library to AVX2, ``--json`` keeps the steps.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# before PyTorch: it fixes the number of threads
from environment import THREADS, machine, restart_at

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

import table
import xentrs
import xentrs.torch
from peers import torch_steps, unchanged
from results import duration, save_level
from rows import ROWS, StepCase
from sides import TORCH, TORCH_COMPILED, check
from timing import Side, measure


@dataclass
class Case:
    """Logits of a shape, and the goal for eager PyTorch's time over ours."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    goal: float | None = None


CASES = [
    Case((2048, 32000), goal=8.0),
    Case((512, 128256)),
    Case((65536, 10), goal=20.0),
    Case((8192, 1000), goal=4.0),
    Case((128, 1000), goal=2.0),
    Case((1, 10), goal=1.0),
    Case((512, 128256), torch.float64),
    Case((2048, 32000), torch.bfloat16),
    Case((8192, 1000), torch.bfloat16),
    Case((16, 21, 128, 128)),
]
LINEAR = [(2048, 768, 32000), (4096, 512, 8192)]
STEPS = [  # rows of rows.py
    "loss+grad 65536 x 10 f32",
    "loss+grad 8192 x 1000 f32",
    "loss+grad 2048 x 32000 f32",
    "loss+grad 128 x 1000 f32",
]
PEAKS = [(1024, 512, 32000), (2048, 256, 32000)]

Step = Callable[[], Tensor]


def step(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Step:
    """Return a function that takes the loss and its gradient, and returns the gradient."""

    def run() -> Tensor:
        x.grad = None
        loss(x, y).backward()
        assert x.grad is not None
        return x.grad

    return run


def medians(steps: dict[str, Step], seconds: float, turns: int) -> dict[str, float]:
    """Return the median time of each, taken in turns."""
    sides = [Side(name, "run()", {"run": run}) for name, run in steps.items()]
    measure(sides, seconds, turns)
    return {side.name: side.median for side in sides}


def compare_losses(case: Case, seconds: float) -> str:
    """Return a row of the table."""
    torch.manual_seed(0)
    x = (torch.randn(case.shape) * 3).to(case.dtype)
    y = torch.randint(0, case.shape[1], case.shape[:1] + case.shape[2:])
    torch._dynamo.reset()
    losses = {
        "xentrs": xentrs.torch.cross_entropy,
        "eager": F.cross_entropy,
        "compiled": torch.compile(F.cross_entropy),
    }
    # A leaf tensor for each, so that each frees its own gradient.
    steps = {name: step(f, x.detach().requires_grad_(), y) for name, f in losses.items()}
    expected = steps["eager"]().double()
    for run in steps.values():
        error = (run().double() - expected).abs().max().item()
        largest = expected.abs().max().item()
        assert error <= 256 * torch.finfo(case.dtype).eps * largest, error  # mostly PyTorch's
    t = medians(steps, seconds, turns=200)
    ours = t["xentrs"]
    goal = "" if case.goal is None else f"{case.goal:g}"
    name = f"{' x '.join(map(str, case.shape))} {str(case.dtype).removeprefix('torch.')}"
    ratios = " | ".join(f"{t[k] / ours:.2f}" for k in ("eager", "compiled"))
    return f"| {name} | {duration(ours)} | {ratios} | {goal} |"


def compare_linear(n: int, width: int, classes: int, seconds: float) -> str:
    """Return a row: the time of loss and gradients over that of the three matrix products."""
    torch.manual_seed(0)
    x = torch.randn(n, width).requires_grad_()
    w = (torch.randn(classes, width) / width**0.5).requires_grad_()
    y = torch.randint(0, classes, (n,))
    options = torch.nn.LinearCrossEntropyOptions()

    def products() -> Tensor:
        """Multiply as any implementation must, in chunks so large that it takes no longer."""
        rows = max((1 << 24) // classes, 128)
        with torch.no_grad():
            grad_x, grad_w = torch.empty_like(x), torch.zeros_like(w)
            z = torch.empty(min(rows, n), classes)
            for i in range(0, n, rows):
                here = slice(i, i + rows)
                part = z[: len(x[here])]
                torch.mm(x[here], w.t(), out=part)
                torch.mm(part, w, out=grad_x[here])
                grad_w.addmm_(part.t(), x[here])
        return grad_x

    def fused(loss: Callable[..., Tensor], **arguments: object) -> Step:
        def run() -> Tensor:
            x.grad = w.grad = None
            loss(x, w, y, **arguments).backward()
            assert x.grad is not None
            return x.grad

        return run

    steps = {
        "products": products,
        "xentrs": fused(xentrs.torch.linear_cross_entropy),
        "plain": fused(F.linear_cross_entropy),
        "chunked": fused(F.linear_cross_entropy, options=options),
    }
    expected = steps["plain"]()
    for name in ("xentrs", "chunked"):
        torch.testing.assert_close(steps[name](), expected, rtol=1e-3, atol=1e-7)
    t = medians(steps, seconds, turns=5)
    ratios = " | ".join(f"{t[k] / t['products']:.2f}" for k in ("xentrs", "plain", "chunked"))
    return f"| {n} x {width} x {classes} | {duration(t['products'])} | {ratios} |"


def peak_memory(which: str, n: int, width: int, classes: int) -> None:
    """Print by how many MiB the peak of this process's memory rose over inputs and gradients."""
    loss, arguments = F.linear_cross_entropy, {}
    if which == "xentrs.torch":
        loss = xentrs.torch.linear_cross_entropy
    if which == "PyTorch chunked":
        arguments = {"options": torch.nn.LinearCrossEntropyOptions()}

    def status(field: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))

    def run(n: int, classes: int) -> float:
        torch.manual_seed(0)
        x = torch.randn(n, width).requires_grad_()
        w = (torch.randn(classes, width) / width**0.5).requires_grad_()
        y = torch.randint(0, classes, (n,))
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
        before = status("VmRSS")
        loss(x, w, y, **arguments).backward()
        return (status("VmHWM") - before) / 2**10 - 4 * (x.numel() + w.numel()) / 2**20

    run(256, 256)  # threads and libraries take their memory
    print(f"{run(n, classes):.0f}")


def compare_peaks(n: int, width: int, classes: int) -> str:
    """Return a row: the memory beyond inputs and gradients, each measured in its own process."""
    cells = []
    for which in ("xentrs.torch", "PyTorch plain", "PyTorch chunked"):
        command = [sys.executable, __file__, "--peak-of", which, *map(str, (n, width, classes))]
        cells.append(subprocess.check_output(command, text=True).strip())
    logits = 4 * n * classes / 2**20
    return f"| {n} x {width} x {classes} | {logits:.0f} | {' | '.join(cells)} |"


def time_steps(text: str, seconds: float, quick: bool) -> dict[str, Any]:
    """Time steps of PyTorch with each loss; return what `table.steps_table` shows."""
    rows = [row for row in ROWS if row.name in STEPS and text in row.name]
    report = machine("torch") | {"rows": []}
    for row in rows:
        torch._dynamo.reset()
        case = StepCase(row.small(2**17) if quick else row)
        compiled = torch.compile(F.cross_entropy)
        losses = {
            TORCH: (xentrs.torch.cross_entropy, unchanged),
            TORCH_COMPILED: (xentrs.torch.cross_entropy, torch.compile),
            "PyTorch eager": (F.cross_entropy, unchanged),
            "PyTorch compiled": (compiled, torch.compile),
        }
        found: dict[str, dict[str, Any]] = {}
        sides = [side.put(side.setting or "step") for side in torch_steps(torch, case, losses)]
        for side in sides:
            check(case, side, 1e-3)  # of products that are PyTorch's
            if side.trouble:
                print(f"{row.name}, {side.name}: {side.trouble}", file=sys.stderr)
        case.__dict__.pop("answer", None)  # it is large
        measure([side for side in sides if not side.trouble], seconds, 2 if quick else 100)
        for side in sides:
            found.setdefault(side.setting, {})[side.name] = side.report()
        kept = {"name": case.row.name, "ours": TORCH, "goals": [], "settings": found}
        report["rows"].append(kept)
    return report


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the time")
    parser.add_argument("--rows", default="", help="only shapes that contain this text")
    parser.add_argument("--steps", action="store_true", help="a step: linear layer, loss, backward")
    parser.add_argument("--level", choices=["avx512", "avx2"], help="restrict every library to it")
    parser.add_argument("--json", type=Path, help="write the steps to this file")
    parser.add_argument("--peak", action="store_true", help="memory instead of times (Linux)")
    parser.add_argument("--peak-of", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak_of:
        which, *sizes = arguments.peak_of
        peak_memory(which, *map(int, sizes))
        return
    if arguments.peak:
        print("linear_cross_entropy: peak memory beyond inputs and gradients, in MiB\n")
        print("| N x in x C | all logits | xentrs.torch | PyTorch plain | PyTorch chunked |")
        print("|---|---|---|---|---|")
        for sizes in PEAKS:
            print(compare_peaks(*sizes), flush=True)
        return
    seconds = 1.0 if arguments.quick else 10.0
    restart_at(arguments.level)
    threads = xentrs.get_num_threads()
    torch.set_num_threads(threads)
    if arguments.steps:
        xentrs.set_num_threads(THREADS)
        torch.set_num_threads(THREADS)
        report = time_steps(arguments.rows, 0.0 if arguments.quick else 6.0, arguments.quick)
        print(table.steps_table(report))
        if arguments.json:
            save_level(report, arguments.json)
        return
    level = xentrs.show_config(mode="dicts")["simd"]["level"]
    print(f"PyTorch {torch.__version__}, xentrs {xentrs.__version__} ({level}), {threads} threads")
    print(f"{platform.machine()}; loss and gradient; PyTorch's time over that of xentrs.torch\n")
    print("| logits | xentrs.torch | eager | compiled | goal (eager) |\n|---|---|---|---|---|")
    for case in CASES:
        if arguments.rows in " x ".join(map(str, case.shape)):
            print(compare_losses(case, seconds), flush=True)
    print("\nlinear_cross_entropy: time over that of its matrix products alone\n")
    print("| N x in x C | products | xentrs.torch | PyTorch plain | PyTorch chunked |")
    print("|---|---|---|---|---|")
    for sizes in LINEAR:
        if arguments.rows in " x ".join(map(str, sizes)):
            print(compare_linear(*sizes, seconds), flush=True)


if __name__ == "__main__":
    main()
