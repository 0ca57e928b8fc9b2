"""Score, then calibrate, a file of stored logits that is larger than the memory allowed.

A language model has left its logits in a file, padded sequences side by side. Two jobs follow, and
neither may hold more of the file, or of anything of its size, than a fixed budget of memory:

1. *Score*: loss a token and perplexity. Each batch gives a sum (``reduction="sum"``), padding is
   ignored, and one division at the end makes the mean.
2. *Calibrate*: find the temperature and the bias of each class under which the loss of the file is
   least (Guo et al. 2017, "On Calibration of Modern Neural Networks"), with SciPy's L-BFGS-B. Every
   evaluation goes through the file in micro-batches. Their numbers of real tokens differ, so the
   mean of the micro-batches' means is *not* the mean of the whole. ``denominator``, the number of
   tokens in the whole, makes losses and gradients of the parts add up to those of the whole.

Run it with ``python examples/stored_logits.py``; it writes its own file of made-up logits to a
temporary folder, 3 times as sharp as they should be and without the bias that some classes have.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

import xentrs

Logits = NDArray[np.float32]
Targets = NDArray[np.int64]

PADDING = -100  # the default of `ignore_index`
SHARPNESS = 3.0


@dataclass(frozen=True)
class Stored:
    """Logits of shape (sequences, length, classes), in a file, and targets, small, in memory."""

    file: Path
    target: Targets

    @property
    def tokens(self) -> int:
        """The number of targets that are not padding."""
        return int(np.count_nonzero(self.target != PADDING))

    def batches(self, budget: int) -> Iterator[tuple[Logits, Targets]]:
        """Map the file piece by piece, as many whole sequences at a time as fit into `budget`.

        The pieces are read-only views of the file: xentrs reads them where they are. Each is
        mapped anew, so that what was read before does not stay resident.
        """
        start = 0
        while start < len(self.target):
            mapped = np.load(self.file, mmap_mode="r")
            count = budget // mapped[0].nbytes
            if count == 0:
                raise ValueError(f"one sequence takes {mapped[0].nbytes} bytes, budget {budget}")
            yield mapped[start : start + count], self.target[start : start + count]
            start += count


def write(file: Path, sequences: int, length: int, classes: int, seed: int = 0) -> Stored:
    """Write made-up logits, a sequence at a time, with padded ends and in need of calibration."""
    rng = np.random.default_rng(seed)
    bias = rng.standard_normal(classes, dtype=np.float32)
    shape = (sequences, length, classes)
    logits = np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=shape)
    target = np.full(shape[:2], PADDING)
    for row in range(sequences):
        honest = 2.0 * rng.standard_normal((length, classes), dtype=np.float32)
        logits[row] = SHARPNESS * honest
        # The Gumbel-max trick: a draw from softmax(honest + bias).
        drawn = (honest + bias + rng.gumbel(size=honest.shape)).argmax(axis=-1)
        real = rng.integers(1, length + 1)
        target[row, :real] = drawn[:real]
    logits.flush()
    return Stored(file, target)


def score(stored: Stored, budget: int) -> float:
    """Return the mean loss of the file's tokens, in nats, reading `budget` bytes at a time."""
    total = math.fsum(
        xentrs.cross_entropy(logits, target, reduction="sum")
        for logits, target in stored.batches(budget)
    )
    return total / stored.tokens


class Calibration:
    """Loss of ``scale * logits + bias`` over the file, with its gradient in scale and bias.

    Calling it with the parameters, the scale first, gives what `scipy.optimize.minimize` wants with
    ``jac=True``. One buffer, reused, holds the calibrated logits of a micro-batch and then, in
    place, their gradient: half of the budget is for it, the other half for the piece of the file.
    """

    def __init__(self, stored: Stored, budget: int) -> None:
        self.stored = stored
        self.budget = budget
        largest, _ = next(stored.batches(budget // 2))  # later ones are as large or smaller
        self.buffer: Logits = np.empty(largest.shape, largest.dtype)

    def part(
        self, parameters: NDArray[np.float64], logits: Logits, target: Targets
    ) -> tuple[float, Logits]:
        """Return what a micro-batch adds to the mean loss of the file, and the gradient of that."""
        calibrated = self.buffer[: len(logits)]
        np.multiply(logits, np.float32(parameters[0]), out=calibrated)
        calibrated += parameters[1:].astype(np.float32)
        return xentrs.cross_entropy_with_grad(
            calibrated, target, denominator=self.stored.tokens, out=calibrated
        )

    def __call__(self, parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        total = 0.0
        grad_parameters = np.zeros_like(parameters)
        for logits, target in self.stored.batches(self.budget // 2):
            loss, grad = self.part(parameters, logits, target)
            total += loss
            # By the chain rule; float64 sums, which einsum and sum take without a copy.
            grad_parameters[0] += np.einsum("slc,slc->", grad, logits, dtype=np.float64)
            grad_parameters[1:] += grad.sum(axis=(0, 1), dtype=np.float64)
        return total, grad_parameters


def calibrate(stored: Stored, budget: int, iterations: int = 15) -> tuple[float, float]:
    """Return the temperature that was found, and the mean loss with it and the biases."""
    calibration = Calibration(stored, budget)
    as_stored = np.zeros(1 + calibration.buffer.shape[-1])
    as_stored[0] = 1.0
    result = minimize(
        calibration,
        as_stored,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations},
    )
    return 1.0 / float(result.x[0]), float(result.fun)


def memory(field: str) -> int:
    """Return this process's memory in bytes: VmRSS now, or VmHWM at its peak (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(field)


def forget_peak() -> int:
    """Let VmHWM start again from the memory that is in use now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--length", type=int, default=128, help="tokens a sequence")
    parser.add_argument("--classes", type=int, default=500)
    parser.add_argument("--budget", type=float, default=8.0, help="MiB")
    options = parser.parse_args(arguments)
    budget = int(options.budget * 2**20)

    with tempfile.TemporaryDirectory() as folder:
        stored = write(
            Path(folder) / "logits.npy", options.sequences, options.length, options.classes
        )
        size = stored.file.stat().st_size
        print(f"A file of {size / 2**20:.1f} MiB, {stored.tokens} tokens beside padding;")
        print(f"memory allowed for it: {options.budget:.1f} MiB\n")

        before = forget_peak()
        loss = score(stored, budget)
        print(f"As stored    {loss:.4f} nats a token, perplexity {math.exp(loss):.1f}")
        temperature, loss = calibrate(stored, budget)
        print(f"Calibrated   {loss:.4f} nats a token, perplexity {math.exp(loss):.1f}")
        print(f"             temperature {temperature:.3f} (made with {SHARPNESS})")
        grown = (memory("VmHWM") - before) / 2**20
        print(f"\nThe process grew by {grown:.1f} MiB at its peak, SciPy's optimiser included")


if __name__ == "__main__":
    main()
