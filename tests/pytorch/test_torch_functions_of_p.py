"""Generalized cross-entropy and the poly loss: limits, digits, infinite logits, errors.

What holds for every loss is in `test_torch_losses.py`.
"""

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch
from samples import DTYPES

generalized, poly = xentrs.torch.generalized_cross_entropy, xentrs.torch.poly_loss
LOSSES = [pytest.param(f, id=f.__name__) for f in (generalized, poly)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_epsilon_0_is_cross_entropy(dtype, backend):
    x = (torch.randn(6, 70, generator=torch.Generator().manual_seed(0)) * 4).to(dtype).to(backend)
    y = torch.arange(6, device=backend)
    results = []
    for f in (lambda *a: poly(*a, epsilon=0), xentrs.torch.cross_entropy):
        leaf = x.clone().requires_grad_()
        loss = f(leaf, y)
        results.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*results, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_digits_of_easy_samples(dtype, backend):
    """Where p rounds to 1 the loss keeps its digits, down to a loss of 0."""
    logits = torch.tensor([17.0, 40.0, 2000.0], dtype=torch.float64)
    x = torch.zeros(3, 4, dtype=dtype)
    x[:, 0] = logits
    y = torch.zeros(3, dtype=torch.long, device=backend)
    other = (-logits).exp()
    u, nll = 3.0 * other / (1.0 + 3.0 * other), (3.0 * other).log1p()
    eps = 8.0 * torch.finfo(dtype).eps
    for f, options, expected, slope in (
        (generalized, {"q": 0.3}, -torch.expm1(-0.3 * nll) / 0.3, (-0.3 * nll).exp()),
        (generalized, {"q": 1.0}, u, (-nll).exp()),
        (poly, {"epsilon": 2.0}, nll + 2.0 * u, 1.0 + 2.0 * (-nll).exp()),
    ):
        leaf = x.to(backend).requires_grad_()
        loss = f(leaf, y, **options, reduction="none")
        (grad,) = torch.autograd.grad(loss.sum(), leaf)
        others = slope * other / (1.0 + 3.0 * other)
        true = torch.stack([-slope * u, others, others, others], 1)
        torch.testing.assert_close(loss.double().cpu(), expected, rtol=eps, atol=0.0)
        torch.testing.assert_close(grad.double().cpu(), true, rtol=eps, atol=0.0)
        assert (loss[2], *grad[2]) == (0.0, 0.0, 0.0, 0.0, 0.0)


def test_infinite_logits(backend):
    inf = math.inf
    rows = [[-inf, 0.0, 0.0], [0.0, -inf, 0.0], [inf, 0.0, 0.0], [-inf] * 3, [0.0, math.nan, 0.0]]
    y = torch.zeros(5, dtype=torch.long, device=backend)
    half = math.log(2.0)
    for f, options, losses, grads in (
        (generalized, {"q": 0.5}, (2.0, 2.0 - 2.0**0.5), ([0.0] * 3, [-(0.125**0.5), 0.0])),
        (poly, {"epsilon": 2.0}, (inf, half + 1.0), ([-1.0, 0.5, 0.5], [-1.0, 0.0])),
    ):
        x = torch.tensor(rows, device=backend, requires_grad=True)
        loss = f(x, y, **options, reduction="none")
        loss.sum().backward()
        assert loss[:2].tolist() == pytest.approx(list(losses))
        assert x.grad[0].tolist() == pytest.approx(grads[0])
        assert x.grad[1].tolist() == pytest.approx([*grads[1], -grads[1][0]])
        assert loss[2:].isnan().all()
        assert x.grad[2:].isnan().all()


X, Y = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize("f", LOSSES)
def test_errors_of_both(f):
    name = f.__name__
    with pytest.raises(TypeError, match=rf"target has dtype torch.float32, but {name} takes class"):
        f(X, X)
    with pytest.raises(IndexError, match=r"target\[1\] is 5, but a class index must be in \[0, 5"):
        f(X, Y + 4)
    with pytest.raises(NotImplementedError, match=r"weight\.detach"):
        f(X, Y, weight=torch.ones(5, requires_grad=True))
    with pytest.raises(ValueError, match=r"denominator is -2\.0"):
        f(X, Y, denominator=-2.0)
    with pytest.raises(ValueError, match=r"Expected input batch_size \(4\)"):
        f(X, Y[:3])


@pytest.mark.parametrize(
    ("f", "module", "option", "value", "error", "message"),
    [
        *(
            (generalized, "GeneralizedCrossEntropyLoss", "q", value, ValueError, "above 0 and at")
            for value in (-1.0, 0.0, 1.5, math.nan, math.inf)
        ),
        (generalized, "GeneralizedCrossEntropyLoss", "q", "a", TypeError, "q must be a number"),
        (poly, "PolyLoss", "epsilon", math.nan, ValueError, "epsilon must be finite, not nan"),
        (poly, "PolyLoss", "epsilon", -math.inf, ValueError, "epsilon must be finite, not -inf"),
        (poly, "PolyLoss", "epsilon", "a", TypeError, "epsilon must be a number"),
    ],
)
def test_errors_of_options(f, module, option, value, error, message):
    for call in (lambda **o: f(X, Y, **o), getattr(xentrs.torch, module)):
        with pytest.raises(error, match=message):
            call(**{option: value})
