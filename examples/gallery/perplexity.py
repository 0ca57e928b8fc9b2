"""Perplexity and KL divergence of stored logits: a language model and its quantised copy.

The script trains a small language model of characters on the help texts that come with Python, and
rounds a copy of its weights to 4 bits. Both predict the end of the text, which they have not seen.
Their logits are stored as float16. From here on only the two files are needed: `CrossEntropyMeter`
reads them once, in batches, and has the perplexity of both and how far apart they are.

Run it: ``python examples/gallery/perplexity.py``.
"""

from __future__ import annotations

import argparse
import pydoc_data.topics
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

import xentrs

Array = NDArray[np.float32]
Targets = NDArray[np.int64]

CONTEXT, HIDDEN, BATCH, HELD_OUT = 8, 128, 256, 40_000
CONFIDENT = (0.5, 0.9, 0.99, 0.999)


class Text:
    """Python's help texts as indices of characters; the rarest characters share one."""

    def __init__(self) -> None:
        topics = pydoc_data.topics.topics
        text = "\n".join(topics[name] for name in sorted(topics))
        characters = np.array(list(re.sub(r"[^\n -~]", "?", re.sub(" +", " ", text))))
        self.alphabet, indices = np.unique(characters, return_inverse=True)
        self.train, self.test = indices[:-HELD_OUT], indices[-HELD_OUT:]


def inputs(text: Targets, positions: Targets, classes: int) -> Array:
    """Return the characters before some positions, one-hot side by side."""
    before = text[positions[:, None] + np.arange(-CONTEXT, 0)]
    rows = np.zeros((len(positions), CONTEXT * classes), np.float32)
    np.put_along_axis(rows, before + classes * np.arange(CONTEXT), 1, axis=1)
    return rows


def predict(weights: list[Array], rows: Array) -> tuple[Array, Array]:
    """Return the hidden layer and the logits."""
    hidden = np.maximum(rows @ weights[0], 0)
    return hidden, hidden @ weights[1]


def train(text: Text, steps: int) -> list[Array]:
    """Train two layers by Adam."""
    classes, rng = len(text.alphabet), np.random.default_rng(0)
    shapes = (CONTEXT * classes, HIDDEN), (HIDDEN, classes)
    weights = [rng.normal(scale=n**-0.5, size=(n, m)).astype(np.float32) for n, m in shapes]
    weights[0] *= classes**0.5 / 2  # of each character's inputs one is 1
    first, second = ([np.zeros_like(one) for one in weights] for _ in range(2))
    for step in range(1, steps + 1):
        positions = rng.integers(CONTEXT, len(text.train), BATCH)
        rows = inputs(text.train, positions, classes)
        hidden, logits = predict(weights, rows)
        _, grad = xentrs.cross_entropy_with_grad(logits, text.train[positions], out=logits)
        upstream = (grad @ weights[1].T) * (hidden > 0)
        rate = 4e-3 * (1 - step / (steps + 1))
        for value, gradient, m, v in zip(
            weights, (rows.T @ upstream, hidden.T @ grad), first, second, strict=True
        ):
            m += 0.1 * (gradient - m)
            v += 0.01 * (np.square(gradient) - v)
            scale = (1 - 0.99**step) ** 0.5 / (1 - 0.9**step)
            value -= rate * scale * m / (np.sqrt(v) + 1e-8)
    return weights


def quantised(weights: list[Array], bits: int) -> list[Array]:
    """Round weights to steps of their column's largest one, as many as fit into some bits."""
    steps = 2 ** (bits - 1) - 1
    scales = [np.abs(one).max(axis=0) / steps for one in weights]
    return [np.rint(one / scale) * scale for one, scale in zip(weights, scales, strict=True)]


def store(weights: list[Array], text: Text, file: Path) -> None:
    """Write the logits of the text held out, as float16."""
    positions = np.arange(CONTEXT, len(text.test))
    shape = (len(positions), len(text.alphabet))
    stored = np.lib.format.open_memmap(file, "w+", np.float16, shape)
    for start in range(0, len(positions), 4096):
        batch = slice(start, start + 4096)
        rows = inputs(text.test, positions[batch], len(text.alphabet))
        stored[batch] = predict(weights, rows)[1]
    stored.flush()


def evaluate(
    file: Path, target: Targets, reference: Path | None = None, rows: int = 4096
) -> xentrs.CrossEntropyMeter:
    """Read a file of logits once, and the file of the reference model beside it."""
    logits = np.load(file, mmap_mode="r")
    other = None if reference is None else np.load(reference, mmap_mode="r")
    meter = xentrs.CrossEntropyMeter()
    for start in range(0, len(target), rows):
        batch = slice(start, start + rows)
        meter.update(
            logits[batch],
            target[batch],
            reference_logits=None if other is None else other[batch],
        )
    return meter


def draw(results: dict[str, Any], file: Path) -> None:
    import drawing

    figure, (left, right) = drawing.figure(7, 3, columns=2)
    share = np.linspace(0.001, 0.999, 300)
    for name, result in results.items():
        left.plot(100 * share, result.quantile(share), label=name)
    left.set(xlabel="share of the characters (%)", ylabel="loss at most (nats)", yscale="log")
    left.legend()
    right.plot(100 * share, result.kl_quantile(share), color="#009e73")
    right.set(xlabel="share of the characters (%)", ylabel="KL at most (nats)", yscale="log")
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500, help="of the training")
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/perplexity.svg"))
    options = parser.parse_args(arguments)

    text = Text()
    print(f"Training on {len(text.train)} characters of Python's help, {options.steps} steps")
    weights = train(text, options.steps)
    target = text.test[CONTEXT:]
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.npy" for name in ("float32", "4 bits")}
        store(weights, text, files["float32"])
        store(quantised(weights, 4), text, files["4 bits"])
        size = files["float32"].stat().st_size
        results = {
            name: evaluate(file, target, files["float32"]).compute() for name, file in files.items()
        }
    print(f"Two files of {size / 1e6:.1f} MB with logits of {len(target)} characters\n")

    print("weights   loss (nats)   +-      perplexity   bits per byte   accuracy")
    for name, result in results.items():
        print(
            f"{name:7}   {result.loss:11.4f}   {result.stderr:.4f}   {result.perplexity:9.3f}"
            f"   {result.bits_per_byte(len(target)):13.4f}   {result.accuracy:8.3f}"
        )
    result = results["4 bits"]
    print("\nThe model of 4 bits beside the other")
    print(f"  loss        {result.delta_loss:+.4f} +- {result.delta_stderr:.4f}")
    print(f"  KL          {result.kl:.4f}, median {result.kl_quantile(0.5):.4f}")
    print(
        f"              99 % {result.kl_quantile(0.99):.3f}, 99.9 % {result.kl_quantile(0.999):.2f}"
    )
    print(f"  same top    {result.same_top:.3f}")
    draw(results, options.picture)


if __name__ == "__main__":
    # The matrices are small: more threads of BLAS only wait for each other.
    with threadpool_limits(limits=1, user_api="blas"):
        main()
