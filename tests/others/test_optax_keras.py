"""Values of Optax and Keras, where the two compute the same function.

Each row holds a call of theirs and ours. The inputs are moderate: at others Optax and Keras lose
digits (`docs/numerics.md`) or clip.
"""

import os

import numpy as np
import pytest

import xentrs

os.environ.setdefault("KERAS_BACKEND", "jax")
jax = pytest.importorskip("jax", reason="runs where JAX is: make docs")
optax = pytest.importorskip("optax", reason="runs where Optax is: make docs")
keras = pytest.importorskip("keras", reason="runs where Keras is: make docs")

RNG = np.random.default_rng(5)
N, C = 64, 7
X = RNG.normal(size=(N, C)).astype(np.float32)
TEACHER = RNG.normal(size=(N, C)).astype(np.float32)
Y = RNG.integers(0, C, N)
Q = RNG.dirichlet(np.ones(C), N).astype(np.float32)
P = RNG.dirichlet(np.ones(C), N).astype(np.float32)
BITS = RNG.integers(0, 2, (N, C)).astype(np.float32)
SOFT = RNG.random((N, C)).astype(np.float32)
U = RNG.uniform(0.05, 0.95, (N, C)).astype(np.float32)


def log_softmax(x):
    return jax.nn.log_softmax(x, axis=-1)


def none(function, *arguments, **options):
    return getattr(xentrs, function)(*arguments, reduction="none", **options)


ROWS = {
    "optax softmax_cross_entropy": lambda: (
        optax.softmax_cross_entropy(X, Q),
        none("cross_entropy", X, Q),
    ),
    "optax softmax_cross_entropy_with_integer_labels": lambda: (
        optax.softmax_cross_entropy_with_integer_labels(X, Y),
        none("cross_entropy", X, Y),
    ),
    "optax smooth_labels": lambda: (
        optax.softmax_cross_entropy(X, optax.smooth_labels(jax.nn.one_hot(Y, C), 0.1)),
        none("cross_entropy", X, Y, label_smoothing=0.1),
    ),
    "optax poly_loss_cross_entropy": lambda: (
        optax.losses.poly_loss_cross_entropy(X, jax.nn.one_hot(Y, C), epsilon=1.5),
        none("poly_loss", X, Y, epsilon=1.5),
    ),
    "optax sigmoid_binary_cross_entropy": lambda: (
        optax.sigmoid_binary_cross_entropy(X, SOFT),
        none("binary_cross_entropy_with_logits", X, SOFT),
    ),
    "optax sigmoid_focal_loss": lambda: (
        optax.sigmoid_focal_loss(X, BITS, alpha=0.3, gamma=1.5),
        none("sigmoid_focal_loss", X, BITS, alpha=0.3, gamma=1.5),
    ),
    "optax kl_divergence_with_log_targets": lambda: (
        optax.losses.kl_divergence_with_log_targets(log_softmax(X), log_softmax(TEACHER)),
        none("kl_divergence", X, TEACHER),
    ),
    "optax kl_divergence_with_log_targets, reversed": lambda: (
        optax.losses.kl_divergence_with_log_targets(log_softmax(TEACHER / 2), log_softmax(X / 2)),
        none("kl_divergence", X, TEACHER, temperature=2, direction="reverse"),
    ),
    "jax softmax": lambda: (jax.nn.softmax(X, axis=0), xentrs.softmax(X, axis=0)),
    "jax log_softmax": lambda: (log_softmax(X), xentrs.log_softmax(X)),
    "jax logsumexp": lambda: (jax.nn.logsumexp(X, axis=-1), xentrs.logsumexp(X)),
    "keras SparseCategoricalCrossentropy": lambda: (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)(Y, X),
        none("cross_entropy", X, Y),
    ),
    "keras SparseCategoricalCrossentropy of probabilities": lambda: (
        keras.losses.SparseCategoricalCrossentropy(reduction=None)(Y, P),
        none("log_loss", P, Y),
    ),
    "keras CategoricalCrossentropy": lambda: (
        keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2, reduction=None)(
            Q, X
        ),
        none("cross_entropy", X, Q, label_smoothing=0.2),
    ),
    "keras CategoricalFocalCrossentropy": lambda: (
        keras.losses.CategoricalFocalCrossentropy(
            from_logits=True, alpha=1.0, gamma=2.0, reduction=None
        )(np.eye(C, dtype=np.float32)[Y], X),
        none("focal_loss", X, Y, gamma=2.0),
    ),
    "keras BinaryCrossentropy of probabilities": lambda: (
        keras.losses.BinaryCrossentropy(reduction=None)(BITS, U),
        none("binary_cross_entropy", U, BITS).mean(axis=-1),
    ),
    "keras BinaryFocalCrossentropy": lambda: (
        keras.losses.BinaryFocalCrossentropy(
            from_logits=True, gamma=2.0, apply_class_balancing=True, alpha=0.25, reduction=None
        )(BITS, X),
        none("sigmoid_focal_loss", X, BITS, alpha=0.25).mean(axis=-1),
    ),
    "keras KLDivergence": lambda: (
        keras.losses.KLDivergence(reduction=None)(
            jax.nn.softmax(TEACHER, axis=-1), jax.nn.softmax(X, axis=-1)
        ),
        none("kl_divergence", X, TEACHER),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_values(row):
    theirs, ours = ROWS[row]()
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, np.asarray(theirs), rtol=3e-5, atol=1e-6)


def test_gradients_of_optax():
    def of(loss, ours, *arguments, **options):
        right = jax.grad(lambda x: loss(x).sum())(X)
        grad = getattr(xentrs, f"{ours}_with_grad")(X, *arguments, reduction="sum", **options)[1]
        np.testing.assert_allclose(grad, np.asarray(right), rtol=1e-4, atol=2e-6)

    one_hot = jax.nn.one_hot(Y, C)
    of(lambda x: optax.softmax_cross_entropy(x, Q), "cross_entropy", Q)
    of(
        lambda x: optax.losses.poly_loss_cross_entropy(x, one_hot, epsilon=2.0),
        "poly_loss",
        Y,
        epsilon=2,
    )
    of(
        lambda x: optax.sigmoid_focal_loss(x, BITS, alpha=0.3, gamma=1.5),
        "sigmoid_focal_loss",
        BITS,
        alpha=0.3,
        gamma=1.5,
    )
    of(
        lambda x: optax.losses.kl_divergence_with_log_targets(log_softmax(x), log_softmax(TEACHER)),
        "kl_divergence",
        TEACHER,
    )
    of(
        lambda x: optax.losses.kl_divergence_with_log_targets(log_softmax(TEACHER), log_softmax(x)),
        "kl_divergence",
        TEACHER,
        direction="reverse",
    )
