"""Values of SciPy and scikit-learn, where the two compute the same function."""

import numpy as np
import pytest

import xentrs

scipy = pytest.importorskip("scipy", reason="SciPy is what the values are from")
metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is what the values are from")

from scipy import special, stats  # noqa: E402  (after the check that it is there)

RNG = np.random.default_rng(6)
N, C = 50, 6
X = 3 * RNG.normal(size=(N, C))
TEACHER = 3 * RNG.normal(size=(N, C))
Y = RNG.integers(0, C, N)
P = RNG.dirichlet(np.ones(C), N)
LABELS = RNG.integers(0, 2, N)
COUNTS = RNG.integers(0, 9, (N, C))
COUNTS[:, 0] += 1


def jensen_shannon(beta):
    """Return the generalised Jensen-Shannon divergence of Liger and trl, by SciPy's functions."""
    p, q = special.softmax(TEACHER, axis=-1), special.softmax(X, axis=-1)
    mixture = beta * p + (1 - beta) * q
    of_p, of_q = special.rel_entr(p, mixture), special.rel_entr(q, mixture)
    return (beta * of_p + (1 - beta) * of_q).sum(-1)


def softmax_entropy(x):
    return special.entr(special.softmax(x, axis=-1)).sum(-1)


def kl(p, q):
    return special.rel_entr(special.softmax(p, axis=-1), special.softmax(q, axis=-1)).sum(-1)


def none(function, *arguments, **options):
    return getattr(xentrs, function)(*arguments, reduction="none", **options)


ROWS = {
    "softmax": lambda: (special.softmax(X, axis=0), xentrs.softmax(X, axis=0)),
    "log_softmax": lambda: (special.log_softmax(X, axis=-1), xentrs.log_softmax(X)),
    "logsumexp": lambda: (
        special.logsumexp(X, axis=1, keepdims=True),
        xentrs.logsumexp(X, axis=1, keepdims=True),
    ),
    "entropy of counts": lambda: (
        stats.entropy(COUNTS, axis=-1, base=2),
        xentrs.entropy(COUNTS, base=2),
    ),
    "entropy of columns": lambda: (stats.entropy(P, axis=0), xentrs.entropy(P, axis=0)),
    "softmax_entropy": lambda: (softmax_entropy(X), none("softmax_entropy", X)),
    "kl_divergence": lambda: (kl(TEACHER, X), none("kl_divergence", X, TEACHER)),
    "kl_divergence, reverse": lambda: (
        kl(X / 3, TEACHER / 3),
        none("kl_divergence", X, TEACHER, direction="reverse", temperature=3),
    ),
    "js_divergence": lambda: (jensen_shannon(0.3), none("js_divergence", X, TEACHER, beta=0.3)),
    "nll_loss": lambda: (
        -special.log_softmax(X, axis=-1)[np.arange(N), Y],
        none("nll_loss", special.log_softmax(X, axis=-1), Y),
    ),
    "log_loss": lambda: (metrics.log_loss(Y, P, labels=range(C)), xentrs.log_loss(P, Y)),
    "binary_cross_entropy": lambda: (
        metrics.log_loss(LABELS, P[:, 0]),
        xentrs.binary_cross_entropy(P[:, 0], LABELS),
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_values(row):
    theirs, ours = ROWS[row]()
    assert np.shape(ours) == np.shape(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12, atol=1e-14)
