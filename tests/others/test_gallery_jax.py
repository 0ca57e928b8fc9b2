"""The gallery's loss for JAX: its entry, and its values under JAX's transformations."""

import importlib.util

import numpy as np
import pytest

import xentrs
from gallery import SCRIPTS, assert_page, rows, run

jax = pytest.importorskip("jax", reason="runs where JAX is: make docs")

pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="a checkout without examples/")


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("jax_loss", SCRIPTS / "jax_loss.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_jax_loss(tmp_path):
    printed, picture = run("jax_loss", tmp_path)
    assert_page("jax_loss", printed, picture)
    scores = rows("\n".join(printed.splitlines()[:4]))
    assert scores["xentrs"][1] < 0.2
    assert scores["xentrs"] == pytest.approx(scores["JAX"], abs=0.01)
    confident = rows("\n".join(printed.splitlines()[4:]))
    assert confident["xentrs"] == pytest.approx([4.1399e-08, -4.1399e-08], rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 5), (2, 3, 5), (5,)])
def test_transformations(script, shape):
    """`jit`, `grad` and `vmap` give the loss and the gradient of the call itself."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=shape).astype(np.float32)
    target = rng.integers(0, 5, shape[:-1])
    upstream = rng.normal(size=shape[:-1]).astype(np.float32)
    losses, grad = xentrs.cross_entropy_with_grad(logits, target, reduction="none")

    def weighted(x):
        return (upstream * script.cross_entropy(x, target)).sum()

    np.testing.assert_array_equal(jax.jit(script.cross_entropy)(logits, target), losses)
    for function in (jax.grad(weighted), jax.jit(jax.grad(weighted))):
        np.testing.assert_array_equal(function(logits), upstream[..., None] * grad)
    if len(shape) > 1:
        mapped = jax.vmap(script.cross_entropy)
        np.testing.assert_array_equal(mapped(logits, target), losses)
        np.testing.assert_array_equal(
            jax.vmap(jax.grad(lambda x, y, u: (u * script.cross_entropy(x, y)).sum()))(
                logits, target, upstream
            ),
            upstream[..., None] * grad,
        )
