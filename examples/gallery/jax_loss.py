"""A loss for JAX: `jax.custom_vjp` around `xentrs.cross_entropy_with_grad`.

`jax.pure_callback` calls Python from compiled code. Loss and gradient come from that one call, in
the forward pass; the backward pass multiplies the stored gradient. The function works under
`jax.jit` and `jax.grad`. What is gained are the digits: JAX's own loss of a confident sample is
0.

Run it: ``python examples/gallery/jax_loss.py``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import xentrs


def on_host(logits: Any, target: Any) -> tuple[Any, Any]:
    loss, grad = xentrs.cross_entropy_with_grad(
        np.asarray(logits), np.asarray(target), reduction="none"
    )
    return np.asarray(loss), grad


@jax.custom_vjp
def cross_entropy(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Return the loss of each sample: logits (..., classes), class indices (...)."""
    return forward(logits, target)[0]


def forward(logits: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    shapes = (
        jax.ShapeDtypeStruct(target.shape, logits.dtype),
        jax.ShapeDtypeStruct(logits.shape, logits.dtype),
    )
    # Of a batch that `jax.vmap` adds, one call takes all.
    return jax.pure_callback(on_host, shapes, logits, target, vmap_method="broadcast_all")


def backward(grad: jax.Array, upstream: jax.Array) -> tuple[jax.Array, None]:
    return upstream[..., None] * grad, None


cross_entropy.defvjp(forward, backward)


def of_jax(logits: jax.Array, target: jax.Array) -> jax.Array:
    """Compute the same with JAX alone."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), target[..., None], axis=-1)
    return -picked[..., 0]


def train(loss: Callable[..., Any], data: Any, steps: int) -> tuple[Any, list[float]]:
    """Train a network of one hidden layer by gradient descent; return it and its losses."""
    images, target = data
    keys = jax.random.split(jax.random.key(0))
    weights = [
        jax.random.normal(keys[0], (64, 32)) / 8,
        jax.random.normal(keys[1], (32, 10)) / jnp.sqrt(32),
    ]

    def mean_loss(weights: Any) -> Any:
        logits = jnp.tanh(images @ weights[0]) @ weights[1]
        return loss(logits, target).mean()

    @jax.jit
    def step(weights: Any) -> Any:
        value, grads = jax.value_and_grad(mean_loss)(weights)
        return value, [w - 1.0 * g for w, g in zip(weights, grads, strict=True)]

    losses = []
    for _ in range(steps):
        value, weights = step(weights)
        losses.append(float(value))
    return weights, losses


def draw(curves: dict[str, list[float]], margins: Any, file: Path) -> None:
    import drawing

    figure, (left, right) = drawing.figure(7, 3, columns=2)
    for (name, losses), style in zip(curves.items(), ("-", "--"), strict=True):
        left.plot(losses, style, label=name)
    left.set(title="training on digits", xlabel="step", ylabel="loss (nats)", ylim=(0, None))
    logits = jnp.stack([margins, jnp.zeros_like(margins)], axis=1)
    target = jnp.zeros(len(margins), dtype=int)
    right.semilogy(margins, cross_entropy(logits, target), "-", label="xentrs")
    right.semilogy(margins, of_jax(logits, target), "--", label="JAX")
    right.set(title="one sample, float32", xlabel="margin of the right class")
    left.legend()
    right.legend()
    drawing.save(figure, file)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--picture", type=Path, default=Path("build/gallery/jax_loss.svg"))
    options = parser.parse_args(arguments)

    pixels, target = load_digits(return_X_y=True)
    images, test, target, test_target = train_test_split(
        (pixels / 16).astype(np.float32), target, test_size=0.25, random_state=0, stratify=target
    )
    curves = {}
    print("loss     first    last     held-out accuracy")
    for name, loss in (("xentrs", cross_entropy), ("JAX", of_jax)):
        weights, curves[name] = train(loss, (images, target), options.steps)
        largest = (jnp.tanh(test @ weights[0]) @ weights[1]).argmax(axis=1)
        accuracy = float((largest == test_target).mean())
        print(f"{name:6}   {curves[name][0]:.4f}   {curves[name][-1]:.4f}   {accuracy:.3f}")
    distance = max(abs(a - b) for a, b in zip(*curves.values(), strict=True))
    print(f"\nLargest distance of the two curves: {distance:.0e}")

    confident = jnp.array([[17.0, 0.0]]), jnp.array([0])
    print("\nThe loss of the logits [17, 0], class 0, and its derivative in the first:")
    for name, loss in (("xentrs", cross_entropy), ("JAX", of_jax)):
        value, grad = jax.value_and_grad(lambda x, f=loss: f(x, confident[1]).sum())(confident[0])
        print(f"{name:6}   {float(value) + 0.0:.4e}   {float(grad[0, 0]):.4e}")
    draw(curves, jnp.linspace(0, 30, 61), options.picture)


if __name__ == "__main__":
    main()
