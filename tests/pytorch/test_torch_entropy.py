"""The entropy of a softmax: digits, limits, errors.

What holds for every loss is in `test_torch_losses.py`.
"""

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch
from samples import DTYPES

entropy = xentrs.torch.softmax_entropy
# Relative errors, as the contract of `xentrs.softmax_entropy` has them; halves are rounded.
TOLERANCES = {
    torch.float64: 1e-13,
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-8,
    torch.float16: 2.0**-10,
}


def reference(x, axis=1):
    log_p = x.log_softmax(axis)
    return -torch.where(x == -math.inf, 0.0, log_p.exp() * log_p).sum(axis)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7,), (6, 5), (3, 300), (2, 37, 3), (3, 5, 2, 3)], ids=str)
def test_values(shape, dtype, backend, small_tiles):
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 3).to(dtype).to(backend)
    axis = 1 if x.dim() > 1 else 0
    for reduction in ("mean", "none"):
        ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        loss = entropy(ours, reduction=reduction)
        expected = reference(exact, axis)
        expected = expected.mean() if reduction == "mean" else expected
        assert (loss.dtype, loss.shape) == (dtype, expected.shape)
        torch.testing.assert_close(loss.double(), expected, rtol=TOLERANCES[dtype], atol=0.0)
        (grad,) = torch.autograd.grad(loss.sum(), ours)
        (true,) = torch.autograd.grad(expected.sum(), exact)
        size = true.abs().max().item()
        near = {"rtol": TOLERANCES[dtype], "atol": TOLERANCES[dtype] * size}
        torch.testing.assert_close(grad.double(), true, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_digits_of_confident_models(dtype, backend, small_tiles):
    """An entropy of 1e-16 is no 0, wherever in the row the largest logit is, at any offset."""
    x = torch.zeros(4, 40, dtype=torch.float64)
    for row, column in enumerate((0, 7, 16, 39)):
        x[row, column] = 40.0
    offset = torch.tensor([0.0, 1e6, -1e6, 3.0])[:, None]
    a = (x + offset).to(dtype).to(backend).requires_grad_()
    others = 39.0 * math.exp(-40.0)
    expected = math.log1p(others) + 40.0 * others / (1.0 + others)
    loss = entropy(a, reduction="none")
    eps = TOLERANCES[dtype]
    torch.testing.assert_close(
        loss.double().cpu(), torch.full((4,), expected, dtype=torch.float64), rtol=eps, atol=0.0
    )
    (grad,) = torch.autograd.grad(loss.sum(), a)
    mean = 40.0 * others
    torch.testing.assert_close(
        grad[0, [0, 1]].double().cpu(),
        torch.tensor([-mean, math.exp(-40.0) * (40.0 - mean)], dtype=torch.float64),
        rtol=4 * eps,
        atol=0.0,
    )


def test_limits_are_those_of_numpy(backend, small_tiles):
    inf, nan = math.inf, math.nan
    rows = [
        [0.0, 0.0, 0.0, 0.0],
        [-inf, -inf, 2.0, 2.0],
        [-inf, 5.0, -inf, -inf],
        [3e38, -3e38, 0.0, 1.0],
        [-3e38, 0.0, 1.0, 3e38],
        [-inf] * 4,
        [inf, 1.0, 2.0, 3.0],
        [nan, 2.0, 3.0, -inf],
    ]
    x = np.array([row * 5 for row in rows], np.float32)
    expected, grad = xentrs.softmax_entropy_with_grad(x, reduction="none")
    assert np.isnan(expected).tolist() == [False] * 5 + [True] * 3
    leaf = torch.from_numpy(x).to(backend).requires_grad_()
    loss = entropy(leaf, reduction="none")
    loss.sum().backward()
    near = {"rtol": 2e-6, "atol": 1e-7, "equal_nan": True}
    torch.testing.assert_close(loss.detach().cpu(), torch.from_numpy(expected), **near)
    torch.testing.assert_close(leaf.grad.cpu(), torch.from_numpy(grad), **near)
    one = torch.tensor([[3.0], [-2.0]], device=backend, requires_grad=True)
    entropy(one).backward()
    assert one.grad.tolist() == [[0.0], [0.0]]
    empty = torch.zeros(0, 4, device=backend)
    assert entropy(empty).isnan()
    assert entropy(empty, reduction="sum") == 0


def test_a_bonus_beside_cross_entropy(backend):
    """Two losses of the same logits add up."""
    torch.manual_seed(0)
    x = torch.randn(6, 9, dtype=torch.float64, device=backend, requires_grad=True)
    y = torch.arange(6, device=backend)
    loss = xentrs.torch.cross_entropy(x, y) - 0.1 * entropy(x)
    expected = torch.nn.functional.cross_entropy(x, y) - 0.1 * reference(x).mean()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, x), torch.autograd.grad(expected, x))


X = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (X.int(), {}, TypeError, r"input has dtype torch.int32, but must be float16"),
        (X.tolist(), {}, TypeError, "input must be a Tensor, not list"),
        (X[:, :0], {}, ValueError, r"input of shape \(4, 0\) has no classes"),
        (X[0, 0], {}, ValueError, r"input of shape \(\) has no classes"),
        (X, {"reduction": "average"}, ValueError, "reduction must be 'mean', 'sum' or 'none'"),
        (X, {"denominator": -1.0}, ValueError, r"denominator is -1\.0"),
        (X, {"sample_weight": torch.ones(3)}, ValueError, r"sample_weight has shape \(3,\)"),
        (X, {"target": X}, TypeError, "target"),
    ],
)
def test_errors(x, options, error, message):
    with pytest.raises(error, match=message):
        entropy(x, **options)
