"""Time `linear_cross_entropy` over its matrix products: ``make bench-linear``.

The floor is the three products alone, as NumPy does them best: in chunks of samples of 64 MiB of
logits, with ``out=``. Beside it the calls that make all logits at once, of NumPy with
`cross_entropy_with_grad` in place, and of PyTorch (``make bench-linear BENCH_VENV=.venv-peers``).
Loss and gradients are compared before anything is timed. The memory is the peak of what Python's
allocators hold beyond the results (of PyTorch it is not known here).
"""

from __future__ import annotations

import argparse
import importlib.util
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

import xentrs
from environment import THREADS
from timing import Side, measure

# Samples, features, classes.
SIZES = [(2048, 512, 32_000), (1024, 768, 32_000), (4096, 512, 8192), (512, 256, 128_256)]
Array = NDArray[Any]


def products(x: Array, w: Array) -> Array:
    """Multiply as any implementation must."""
    n, classes = len(x), len(w)
    rows = min(max((1 << 24) // classes, 1), n)
    z = np.random.default_rng(0).standard_normal((rows, classes), np.float32)
    grad_x, grad_w = np.empty_like(x), np.empty_like(w)
    part, step = np.empty((min(1024, classes), x.shape[1]), x.dtype), min(1024, classes)
    for i in range(0, n, rows):
        here = z[: len(x[i : i + rows])]
        np.matmul(x[i : i + rows], w.T, out=here)
        np.matmul(here, w, out=grad_x[i : i + rows])
        if i == 0:
            np.matmul(here.T, x[i : i + rows], out=grad_w)
            continue
        for j in range(0, classes, step):
            add = grad_w[j : j + step]
            add += np.matmul(here[:, j : j + step].T, x[i : i + rows], out=part[: len(add)])
    return grad_w


def unfused(x: Array, w: Array, t: Array) -> tuple[float, tuple[Array, Array, None]]:
    logits = x @ w.T
    loss, grad = xentrs.cross_entropy_with_grad(logits, t, out=logits)
    return loss, (grad @ w, grad.T @ x, None)


def torch_call(x: Array, w: Array, t: Array) -> Callable[[], Any] | None:
    """Return PyTorch's composition, if it is installed."""
    if importlib.util.find_spec("torch") is None:
        return None
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(THREADS)
    hidden, weight = (torch.from_numpy(a.copy()).requires_grad_() for a in (x, w))
    target = torch.from_numpy(t)

    def call() -> tuple[float, tuple[Any, Any, None]]:
        hidden.grad = weight.grad = None
        loss = torch.nn.functional.cross_entropy(hidden @ weight.T, target)
        loss.backward()
        assert hidden.grad is not None
        assert weight.grad is not None
        return loss.item(), (hidden.grad.numpy(), weight.grad.numpy(), None)

    return call


def peak(call: Callable[[], Any], results: int) -> float:
    """Return the MiB that a call holds at most beyond its results."""
    tracemalloc.start()
    call()
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return (held - results) / 2**20


def compare(n: int, width: int, classes: int, seconds: float, turns: int) -> str:
    """Return a row of the table."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, width), np.float32)
    w = rng.standard_normal((classes, width), np.float32) / np.float32(width**0.5)
    t = rng.integers(0, classes, n)
    calls: dict[str, Callable[[], Any]] = {
        "xentrs": lambda: xentrs.linear_cross_entropy_with_grad(x, w, t),
        "all logits at once": lambda: unfused(x, w, t),
    }
    if (torch := torch_call(x, w, t)) is not None:
        calls["PyTorch"] = torch
    loss, grads = calls["all logits at once"]()
    for name, call in calls.items():
        other, others = call()
        assert abs(other - loss) < 1e-4 * loss, name
        for a, b in zip(others[:2], grads[:2], strict=True):
            assert np.abs(a - b).max() < 1e-3 * np.abs(b).max(), name
    calls = {"products": lambda: products(x, w)} | calls
    sides = [Side(name, "call()", {"call": call}) for name, call in calls.items()]
    measure(sides, seconds, turns, least=min(turns, 5))
    times = {side.name: side.median for side in sides}
    floor = times.pop("products")
    ratios = " | ".join(f"{times[k] / floor:.2f}" if k in times else "" for k in NAMES)
    memory = [
        f"{peak(calls[k], x.nbytes + w.nbytes):.0f}" for k in ("xentrs", "all logits at once")
    ]
    return f"| {n} x {width} x {classes} | {floor * 1e3:.0f} ms | {ratios} | {' / '.join(memory)} |"


NAMES = ("xentrs", "all logits at once", "PyTorch")


def main() -> None:
    assert __doc__
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a test; the figures mean nothing")
    parser.add_argument("--seconds", type=float, default=15.0, help="for each row (default 15)")
    parser.add_argument("--rows", help="the row with this text in its sizes")
    options = parser.parse_args()
    xentrs.set_num_threads(THREADS)
    print(f"| samples x features x classes | products | {' | '.join(NAMES)} | MiB, ours / all |")
    print("|---|---|---|---|---|---|")
    for n, width, classes in SIZES:
        if options.rows and options.rows not in f"{n} x {width} x {classes}":
            continue
        sizes = (64, 16, classes // 100) if options.quick else (n, width, classes)
        limits = (0.0, 2) if options.quick else (options.seconds, 50)
        print(compare(*sizes, *limits), flush=True)


if __name__ == "__main__":
    main()
