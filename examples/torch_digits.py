"""A small transformer trained on scikit-learn's digits, with PyTorch's loss and with xentrs's.

The data are 1797 real images of handwritten digits, 8 x 8 pixels. A row of pixels is a token; two
layers of attention read the eight tokens, and a linear layer names the digit. The training runs
three times from the same start, on the same batches: with `torch.nn.functional.cross_entropy`, with
`xentrs.torch.cross_entropy` in its place, and with `xentrs.torch.linear_cross_entropy` in place of
the last layer and the loss. The losses of all steps agree. (In float64: training multiplies the
rounding of a step by thousands, so that in float32 no two programs stay together for long.)

Run it with ``make demo-torch``, or ``python examples/torch_digits.py --help``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

import xentrs.torch

CLASSES, SIDE, WIDTH, BATCH = 10, 8, 64, 64
AGREEMENT = 1e-6  # how far the losses may be apart

Loss = Callable[["Reader", Tensor, Tensor], Tensor]


class Reader(nn.Module):
    """Reads an image row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(SIDE, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(SIDE, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, nhead=4, dim_feedforward=2 * WIDTH, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, num_layers=2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        """Return what the last layer sees: the mean over the tokens."""
        return self.encoder(self.embed(images) + self.position).mean(1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.features(images))


def with_pytorch(model: Reader, images: Tensor, target: Tensor) -> Tensor:
    """Take PyTorch's own loss."""
    return F.cross_entropy(model(images), target)


def with_xentrs(model: Reader, images: Tensor, target: Tensor) -> Tensor:
    """Write the same line with another module."""
    return xentrs.torch.cross_entropy(model(images), target)


def fused(model: Reader, images: Tensor, target: Tensor) -> Tensor:
    """Compute the last layer and the loss together: the logits never exist as a whole."""
    head = model.head
    return xentrs.torch.linear_cross_entropy(
        model.features(images), head.weight, target, linear_bias=head.bias
    )


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Split the digits, the same way on every run."""
    pixels, target = load_digits(return_X_y=True)
    images = (pixels / 16.0).reshape(-1, SIDE, SIDE)
    parts = train_test_split(images, target, test_size=0.25, random_state=0, stratify=target)
    train, test, train_target, test_target = parts
    return (
        torch.tensor(train, dtype=torch.float64),
        torch.tensor(train_target),
        torch.tensor(test, dtype=torch.float64),
        torch.tensor(test_target),
    )


def train(loss: Loss, data: tuple[Tensor, ...], epochs: int) -> tuple[list[float], float, float]:
    """Return the loss of each step, the accuracy on the held-out images, and the seconds."""
    images, target, test, test_target = data
    torch.manual_seed(0)
    model = Reader().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    order = torch.Generator().manual_seed(0)
    curve = []
    start = time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=order).split(BATCH):
            optimizer.zero_grad()
            value = loss(model, images[batch], target[batch])
            value.backward()
            optimizer.step()
            curve.append(value.item())
    seconds = time.perf_counter() - start
    with torch.no_grad():
        accuracy = (model(test).argmax(1) == test_target).float().mean().item()
    return curve, accuracy, seconds


def main() -> None:
    """Train three times and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few epochs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # more only get into each other's way in a model this small
    data = load()
    epochs = 4 if arguments.quick else 10
    print(f"{len(data[0])} images to train on, {len(data[2])} held out, {epochs} epochs\n")
    runs = {
        "torch.nn.functional.cross_entropy": with_pytorch,
        "xentrs.torch.cross_entropy": with_xentrs,
        "xentrs.torch.linear_cross_entropy": fused,
    }
    curves = {}
    for name, loss in runs.items():
        curve, accuracy, seconds = train(loss, data, epochs)
        curves[name] = torch.tensor(curve, dtype=torch.float64)
        print(f"{name:36s} accuracy {accuracy:.4f}   {seconds:.1f} s")
    expected, *others = curves.values()
    print("\nstep   " + "   ".join(name.removesuffix("cross_entropy") + "..." for name in curves))
    for i in sorted({0, 1, 2, 5, 10, 20, 50, 100, 200, len(expected) - 1}):
        if i < len(expected):
            print(f"{i:4d}   " + "   ".join(f"{curve[i]:.9f}" for curve in curves.values()))
    apart = max((curve - expected).abs().max().item() for curve in others)
    print(f"\nlargest difference between the curves {apart:.1e}")
    if apart > AGREEMENT:
        raise SystemExit(f"the curves differ by more than {AGREEMENT}")


if __name__ == "__main__":
    main()
