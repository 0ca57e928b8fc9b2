"""A language model's held-out loss, document by document, in a plain loop.

A bigram model is fitted to one part of the paragraphs of a text, and evaluated on the rest with
`xentrs.CrossEntropyMeter`: perplexity, bits per byte, the standard error with the paragraphs as
groups, and how far a model with rounded logits is from the original. Several meters take a part of
the paragraphs each, as processes would. One of them merges the others.

``python examples/evaluation_loop.py --help``. It needs NumPy alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import xentrs

Tokens = NDArray[np.int64]


def documents(text: str) -> tuple[list[Tokens], list[int], int]:
    """Return the paragraphs of a text as tokens, their bytes, and the number of classes."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if len(part.split()) > 5]
    words = [re.findall(r"\w+|[^\w\s]", part.lower()) for part in paragraphs]
    names, counts = np.unique([word for part in words for word in part], return_counts=True)
    known = {str(name): i + 1 for i, name in enumerate(names[counts > 1])}  # 0: all others
    tokens = [np.array([known.get(word, 0) for word in part]) for part in words]
    return tokens, [len(part.encode()) for part in paragraphs], len(known) + 1


def bigrams(parts: list[Tokens], classes: int) -> NDArray[np.float32]:
    """Return the logits of the next token after each token: counts, smoothed by single ones."""
    pairs, single = np.zeros((classes, classes)), np.zeros(classes)
    for part in parts:
        np.add.at(pairs, (part[:-1], part[1:]), 1)
        np.add.at(single, part, 1)
    shares = (single + 0.5) / (single + 0.5).sum()
    logits: NDArray[np.float32] = np.log(pairs + 5 * shares).astype(np.float32)
    return logits


def batches(part: Tokens, size: int) -> Iterator[tuple[Tokens, Tokens]]:
    """Yield tokens of a document, and the token after each."""
    for at in range(0, len(part) - 1, size):
        now = part[at : at + size + 1]
        yield now[:-1], now[1:]


def main() -> None:
    """Evaluate, and print what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).parents[1] / "docs" / "numerics.md"
    parser.add_argument("--text", type=Path, default=default, help="a text of paragraphs")
    parser.add_argument("--parts", type=int, default=3, help="meters that are merged")
    options = parser.parse_args()
    tokens, sizes, classes = documents(options.text.read_text())
    held_out = range(0, len(tokens), 4)
    model = bigrams([part for i, part in enumerate(tokens) if i not in held_out], classes)
    rounded = model.astype(np.float16)

    meters = [xentrs.CrossEntropyMeter(top_k=(1, 5, 20)) for _ in range(options.parts)]
    for i in held_out:
        for token, target in batches(tokens[i], 64):
            meter = meters[i // 4 % options.parts]
            meter.update(rounded[token], target, group=i, reference_logits=model[token])
    total = meters[0]
    for other in meters[1:]:
        total.merge(other)

    result = total.compute()
    n_bytes = sum(sizes[i] for i in held_out)
    print(f"tokens         {result.count} in {len(held_out)} documents, {classes} classes")
    print(f"loss           {result.loss:.4f} +- {result.stderr:.4f} nats")
    print(f"perplexity     {result.perplexity:.2f}")
    print(f"bits per byte  {result.bits_per_byte(n_bytes):.4f}")
    print("top k          " + ", ".join(f"{k}: {x:.3f}" for k, x in result.top_k.items()))
    print(f"median loss    {result.quantile(0.5):.3f}, 99th percentile {result.quantile(0.99):.3f}")
    print(f"calibration    {result.calibration_error:.4f}")
    print("\nlogits rounded to float16, against the original")
    print(f"divergence     {result.kl:.3e}, 99.9th percentile {result.kl_quantile(0.999):.3e}")
    print(f"same top       {result.same_top:.4f}")
    print(f"loss           {result.delta_loss:+.2e} +- {result.delta_stderr:.1e}")


if __name__ == "__main__":
    main()
