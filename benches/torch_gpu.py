"""Time xentrs.torch on a GPU: ``make bench-torch-gpu``.

It reports GB/s, the share of the card's copy bandwidth, and peak memory, beside eager and compiled
PyTorch, and Liger where it is installed. The bytes are those that must be moved: every array of the
logits' size is read once, and the gradient is written once. What PyTorch has no function for is
composed of its functions. Answers are compared with these in float64 before anything is timed.
Every time is the median of CUDA events around one call, with the cache flushed. Results go to
standard output and, with ``--output``, to a JSON file.

Without a GPU it makes the same calls at small sizes in Triton's interpreter, and times nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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

CLASSES, TEACHER, LABELS = "classes", "teacher", "labels"


@dataclass(frozen=True)
class Row:
    """A loss, and the same by functions of PyTorch, of an input and a second tensor."""

    name: str
    ours: Loss
    pytorchs: Loss
    second: str = CLASSES
    of: Callable[[Tensor], Tensor] = lambda x: x  # what the input is made of random logits by

    @property
    def reads(self) -> int:
        """How many arrays of the logits' size are read."""
        return 1 if self.second == CLASSES else 2


def true_class(function: Callable[[Tensor], Tensor]) -> Loss:
    """Return the mean of a function of the true class's -log p."""
    return lambda x, y: function(F.cross_entropy(x, y, reduction="none")).mean()


def entropy(x: Tensor, _: Tensor) -> Tensor:
    """Return the mean entropy of a softmax."""
    log_p = x.log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean()


def kl(x: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher, model)."""
    log_p, log_q = x.log_softmax(1), teacher.log_softmax(1)
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


def js(x: Tensor, teacher: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence."""
    log_p, log_q = x.log_softmax(1), teacher.log_softmax(1)
    half = math.log(0.5)
    middle = torch.logaddexp(log_p + half, log_q + half)
    both = [F.kl_div(middle, z, log_target=True, reduction="batchmean") for z in (log_p, log_q)]
    return (both[0] + both[1]) / 2


def sigmoid_focal(x: Tensor, labels: Tensor) -> Tensor:
    """Return torchvision's loss."""
    p = x.sigmoid()
    p_t = p * labels + (1 - p) * (1 - labels)
    loss = F.binary_cross_entropy_with_logits(x, labels, reduction="none") * (1 - p_t) ** 2
    return ((0.25 * labels + 0.75 * (1 - labels)) * loss).mean()


OURS = xentrs.torch
ROWS = [
    Row("cross_entropy", OURS.cross_entropy, F.cross_entropy),
    Row(
        "cross_entropy, softcap and temperature",
        lambda x, y: OURS.cross_entropy(x, y, softcap=30.0, temperature=1.5),
        lambda x, y: F.cross_entropy(30.0 * (x / 30.0).tanh() / 1.5, y),
    ),
    Row("focal_loss", OURS.focal_loss, true_class(lambda nll: nll * torch.expm1(-nll) ** 2)),
    Row(
        "generalized_cross_entropy",
        OURS.generalized_cross_entropy,
        true_class(lambda nll: -torch.expm1(-0.7 * nll) / 0.7),
    ),
    Row("poly_loss", OURS.poly_loss, true_class(lambda nll: nll - torch.expm1(-nll))),
    Row("nll_loss", OURS.nll_loss, F.nll_loss, of=lambda x: x.log_softmax(1)),
    Row("softmax_entropy", lambda x, _: OURS.softmax_entropy(x), entropy),
    Row("kl_divergence", OURS.kl_divergence, kl, TEACHER),
    Row("js_divergence", OURS.js_divergence, js, TEACHER),
    Row(
        "binary_cross_entropy_with_logits",
        OURS.binary_cross_entropy_with_logits,
        F.binary_cross_entropy_with_logits,
        LABELS,
    ),
    Row(
        "binary_cross_entropy",
        OURS.binary_cross_entropy,
        F.binary_cross_entropy,
        LABELS,
        of=lambda x: x.sigmoid().clamp(0.05, 0.95),
    ),
    Row(
        "sigmoid_focal_loss",
        lambda x, y: OURS.sigmoid_focal_loss(x, y, alpha=0.25),
        sigmoid_focal,
        LABELS,
    ),
]


def arguments_of(row: Row, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return random arguments of a loss."""
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE, dtype=dtype)
    if row.second == TEACHER:
        return x, x + torch.randn_like(x)
    if row.second == LABELS:
        return row.of(x), (torch.rand_like(x) < 0.5).to(dtype)
    return row.of(x), torch.randint(0, shape[1], shape[:1], device=DEVICE)


def peers(row: Row) -> Iterator[tuple[str, Loss]]:
    """Yield what is compared, by name."""
    yield "xentrs", row.ours
    if row.name == "cross_entropy":
        yield "xentrs in place", lambda x, y: xentrs.torch.cross_entropy(x, y, inplace=True)
    yield "eager", row.pytorchs
    if ON_GPU:
        yield "compiled", torch.compile(row.pytorchs)
    if row.name != "cross_entropy":
        return
    try:
        from liger_kernel.transformers import LigerCrossEntropyLoss

        # It writes the gradient over the logits.
        yield "Liger (in place)", LigerCrossEntropyLoss()
    except ImportError:
        pass


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


def check(loss: Loss, right: Loss, x: Tensor, second: Tensor) -> None:
    """Compare loss and gradient of the first rows with float64."""
    few = slice(0, 64)
    a = x[few].detach().clone().requires_grad_()
    b = x[few].detach().double().requires_grad_()
    exact = second[few].double() if second.is_floating_point() else second[few]
    actual, expected = loss(AsOutput.apply(a), second[few]), right(b, exact)
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
    row: Row, name: str, loss: Loss, x: Tensor, second: Tensor, copy: float, flush: Tensor
) -> dict[str, object]:
    """Return the figures of one loss on one problem."""
    size = x.numel() * x.itemsize
    leaf = x.detach().requires_grad_()

    def both() -> None:
        leaf.grad = None
        # In place needs logits that are no leaf, as a layer's output is none.
        logits = AsOutput.apply(leaf) if "in place" in name else leaf
        loss(logits, second).backward()

    def alone() -> None:
        with torch.no_grad():
            loss(x, second)

    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    both()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    with_grad, without = median_time(both, flush), median_time(alone, flush)
    read = row.reads * size
    return {
        "loss": row.name,
        "name": name,
        "shape": tuple(x.shape),
        "dtype": str(x.dtype).removeprefix("torch."),
        "loss+grad GB/s": (read + size) / with_grad / 1e9,
        "of copy": (read + size) / with_grad / copy,
        "loss GB/s": read / without / 1e9,
        "loss of copy": read / without / copy,
        "peak / logits": peak / size,
    }


def main() -> None:
    """Check, time where there is a GPU, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="the losses with this text in their name")
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
        print("| loss | logits | | " + " | ".join(columns) + " |\n|---|---|---|" + "---|" * 5)
    problems = itertools.product(ROWS, SHAPES if ON_GPU else TOYS, DTYPES)
    for row, shape, dtype in problems:
        if arguments.rows not in row.name:
            continue
        label = f"{row.name} | {' x '.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
        for name, loss in peers(row):
            try:
                x, second = arguments_of(row, shape, dtype)
                # What PyTorch composes in half precision is no measure of what is right.
                if row.name == "cross_entropy" or "xentrs" in name:
                    check(loss, row.pytorchs, x, second)
                    if not ON_GPU:
                        print("the answers agree:", label, "|", name)
                if not ON_GPU:
                    continue
                result = measure(row, name, loss, x, second, copy, flush)
            except torch.OutOfMemoryError:
                print(f"| {label} | {name} | out of memory |")
                continue
            results.append(result)
            print(f"| {label} | {name} | " + " | ".join(f"{result[c]:.3g}" for c in columns) + " |")
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))
    if not ON_GPU:
        print("no GPU: nothing was timed")


if __name__ == "__main__":
    main()
