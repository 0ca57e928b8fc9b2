"""Time xentrs.torch on a GPU: ``make bench-torch-gpu``.

It reports GB/s, the share of the card's copy bandwidth, and peak memory, beside eager and compiled
PyTorch, and Liger where it is installed. Answers are compared before anything is timed. Every time
is the median of CUDA events around one call, with the cache flushed. Results go to standard output
and, with ``--output``, to a JSON file.

Without a GPU it makes the same calls at small sizes in Triton's interpreter, and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ["XENTRS_TORCH_BACKEND"] = "triton"

import xentrs.torch  # noqa: E402

SHAPES = [(32768, 256), (32768, 4096), (32768, 32768), (8192, 131072), (8192, 262144)]
TOYS = [(64, 256), (4, 4096), (2, 40000)]
DTYPES = [torch.bfloat16, torch.float32]
DEVICE = "cuda" if ON_GPU else "cpu"

Loss = Callable[[Tensor, Tensor], Tensor]


def peers() -> dict[str, Loss]:
    """Return what is compared, by name."""
    found: dict[str, Loss] = {
        "xentrs": xentrs.torch.cross_entropy,
        "xentrs in place": lambda x, y: xentrs.torch.cross_entropy(x, y, inplace=True),
        "eager": F.cross_entropy,
        "compiled": torch.compile(F.cross_entropy),
    }
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        # It writes the gradient over the logits.
        found["Liger (in place)"] = LigerCrossEntropyLoss()
    except ImportError:
        pass
    if not ON_GPU:
        del found["compiled"]
    return found


def median_time(run: Callable[[], object], flush: Tensor, repeats: int = 30) -> float:
    """Return the median time in seconds."""
    times = []
    for i in range(repeats + 3):
        flush.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def check(loss: Loss, x: Tensor, y: Tensor) -> None:
    """Compare loss and gradient of the first rows with float64."""
    few = slice(0, 64)
    a = x[few].detach().clone().requires_grad_()
    b = x[few].detach().double().requires_grad_()
    actual, expected = loss(AsOutput.apply(a), y[few]), F.cross_entropy(b, y[few])
    actual.backward()
    expected.backward()
    assert a.grad is not None
    assert b.grad is not None
    eps = torch.finfo(x.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=8 * eps, atol=8 * eps)
    largest = b.grad.abs().max().item()
    torch.testing.assert_close(a.grad.double(), b.grad, rtol=64 * eps, atol=4 * eps * largest)


class AsOutput(torch.autograd.Function):
    """Returns the same memory as the output of something."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Leave out a copy."""
        return x.data

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        """Pass on the gradient."""
        return grad


def measure(
    name: str, loss: Loss, x: Tensor, y: Tensor, copy: float, flush: Tensor
) -> dict[str, object]:
    """Return the figures of one loss on one problem."""
    size = x.numel() * x.itemsize
    leaf = x.detach().requires_grad_()

    def both() -> None:
        leaf.grad = None
        # In place needs logits that are no leaf, as a layer's output is none.
        logits = AsOutput.apply(leaf) if "in place" in name else leaf
        loss(logits, y).backward()

    def alone() -> None:
        with torch.no_grad():
            loss(x, y)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    with_grad, without = median_time(both, flush), median_time(alone, flush)
    return {
        "name": name,
        "shape": tuple(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "loss+grad GB/s": 2 * size / with_grad / 1e9,
        "of copy": 2 * size / with_grad / copy,
        "loss GB/s": size / without / 1e9,
        "loss of copy": size / without / copy,
        "peak / logits": peak / size,
    }


def main() -> None:
    """Check, time where there is a GPU, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="a JSON file for the raw results")
    arguments = parser.parse_args()
    results = []
    if ON_GPU:
        print(torch.cuda.get_device_name(), f"PyTorch {torch.__version__}")
        flush = torch.empty(1 << 28, dtype=torch.uint8, device=DEVICE)
        a = torch.empty(1 << 30, dtype=torch.uint8, device=DEVICE)
        b = torch.empty_like(a)
        copy = 2 * a.numel() / median_time(lambda: b.copy_(a), flush)
        del a, b
        print(f"copy {copy / 1e9:.0f} GB/s\n")
        columns = ("loss+grad GB/s", "of copy", "loss GB/s", "loss of copy", "peak / logits")
        print("| logits | | " + " | ".join(columns) + " |\n|---|---|" + "---|" * len(columns))
    for shape in SHAPES if ON_GPU else TOYS:
        for dtype in DTYPES:
            torch.manual_seed(0)
            x = torch.randn(shape, device=DEVICE, dtype=dtype)
            y = torch.randint(0, shape[1], shape[:1], device=DEVICE)
            for name, loss in peers().items():
                try:
                    check(loss, x, y)
                    if not ON_GPU:
                        print("the answers agree:", shape, dtype, name)
                        continue
                    result = measure(name, loss, x, y, copy, flush)
                except torch.OutOfMemoryError:
                    print(f"| {shape} {dtype} | {name} | out of memory |")
                    continue
                results.append(result)
                label = f"{' x '.join(map(str, shape))} {result['dtype']}"
                print(f"| {label} | {name} | " + " | ".join(f"{result[c]:.3g}" for c in columns))
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))
    if not ON_GPU:
        print("no GPU: nothing was timed")


if __name__ == "__main__":
    main()
