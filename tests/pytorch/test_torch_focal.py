"""The focal loss: its values and digits, its limits, errors.

What holds for every loss is in `test_torch_losses.py`.
"""

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F

import xentrs.torch
from samples import DTYPES, fast

focal_loss, cross_entropy = xentrs.torch.focal_loss, xentrs.torch.cross_entropy
GAMMAS = [0.5, 1.0, 2.0, 3.5]


def reference(x, y, gamma, weight=None, sample_weight=None, reduction="mean", ignored=(-100,)):
    """Return the loss by functions of PyTorch, in float64, with the digits of 1 - p."""
    x = x.double()
    kept = torch.ones_like(y, dtype=torch.bool)
    for index in ignored:
        kept &= y != index
    y = torch.where(kept, y, 0)
    others = x.scatter(1, y.unsqueeze(1), -math.inf).logsumexp(1)
    d = others - x.gather(1, y.unsqueeze(1)).squeeze(1)
    loss = d.sigmoid() ** gamma * F.softplus(d, threshold=1e9)
    s = torch.ones_like(loss) if sample_weight is None else sample_weight.double()
    s = torch.where(kept, s, 0.0)
    w = s if weight is None else s * weight.double()[y]
    loss = torch.where(kept, w * loss, 0.0)
    if reduction == "mean":
        return loss.sum() / w.sum()
    return loss.sum() if reduction == "sum" else loss


def draw(shape, dtype, device):
    torch.manual_seed(0)
    x = (torch.randn(shape, dtype=torch.float64) * 4).to(dtype).to(device)
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]), device=device)
    y.view(-1)[1] = -100
    return x, y


def near(dtype, gamma):
    """Return tolerances: a power multiplies errors, in float64 those of the reference too."""
    eps = (8.0 + 4.0 * gamma) * torch.finfo(dtype).eps
    return {"rtol": eps, "atol": eps}


SHAPES = [(6, 5), (4, 70), (2, 37, 3), (3, 5, 2, 3)]
# Each shape with each dtype, with one gamma or another.
VALUES = [
    pytest.param(shape, dtype, GAMMAS[(i + j) % 4], id=f"{shape}-{dtype}-{GAMMAS[(i + j) % 4]}")
    for i, shape in enumerate(SHAPES)
    for j, dtype in enumerate(DTYPES)
]


@pytest.mark.parametrize(("shape", "dtype", "gamma"), VALUES)
def test_values(shape, dtype, gamma, backend, small_tiles):
    x, y = draw(shape, dtype, backend)
    weight = torch.rand(shape[1], dtype=torch.float64, device=backend)
    s = torch.rand(y.shape, dtype=torch.float64, device=backend) + 0.5
    for more in ({}, {"weight": weight}, {"sample_weight": s, "weight": weight}):
        for reduction in ("mean", "sum", "none"):
            ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
            loss = focal_loss(ours, y, gamma=gamma, reduction=reduction, **more)
            expected = reference(exact, y, gamma, reduction=reduction, **more)
            assert (loss.dtype, loss.shape) == (dtype, expected.shape)
            torch.testing.assert_close(loss.double(), expected, **near(dtype, gamma))
            up = torch.linspace(0.5, 1.5, expected.numel(), device=backend, dtype=torch.float64)
            up = up.reshape(expected.shape)
            (grad,) = torch.autograd.grad(loss, ours, up.to(dtype))
            (true,) = torch.autograd.grad(expected, exact, up.to(dtype).double())
            torch.testing.assert_close(grad.double(), true, **near(dtype, gamma))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gamma_0_is_cross_entropy(dtype, backend):
    x, y = draw((6, 70), dtype, backend)
    s = torch.rand(6, device=backend)
    for more in (
        {},
        {"sample_weight": s, "reduction": "none"},
        {"weight": torch.ones(70, device=backend)},
    ):
        results = []
        for f in (lambda x, y, **o: focal_loss(x, y, gamma=0, **o), cross_entropy):
            leaf = x.clone().requires_grad_()
            loss = f(leaf, y, **more)
            results.append((loss.detach(), *torch.autograd.grad(loss.sum(), leaf)))
        torch.testing.assert_close(*results, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_digits_of_easy_samples(dtype, gamma, backend):
    """Where p rounds to 1 the loss is no 0; where 1 - p is 0 too, gradients are 0 and finite."""
    logits = torch.tensor([17.0, 40.0, 2000.0], dtype=torch.float64)
    x = torch.zeros(3, 4, dtype=dtype)
    x[:, 0] = logits
    x = x.to(backend).requires_grad_()
    loss = focal_loss(
        x, torch.zeros(3, dtype=torch.long).to(backend), gamma=gamma, reduction="none"
    )
    (grad,) = torch.autograd.grad(loss.sum(), x)
    other = (-logits).exp()
    u, nll = 3.0 * other / (1.0 + 3.0 * other), (3.0 * other).log1p()
    ratio = torch.where(u == 0.0, 1.0, (1.0 - u) * nll / u)
    slope = u**gamma * (1.0 + gamma * ratio)
    others = slope * other / (1.0 + 3.0 * other)
    expected = torch.stack([-slope * u, others, others, others], 1)
    small = near(dtype, gamma) | {"atol": 2 * torch.finfo(dtype).tiny}
    torch.testing.assert_close(loss.double().cpu(), u**gamma * nll, **small)
    torch.testing.assert_close(grad.double().cpu(), expected, **small)
    assert loss[2] == 0
    assert (grad[2] == 0).all()


def test_infinite_logits(backend):
    inf = math.inf
    rows = [[0.0, -inf, 0.0], [-inf, 0.0, 0.0], [inf, 0.0, 0.0], [-inf] * 3, [0.0, math.nan, 0.0]]
    x = torch.tensor(rows, device=backend, requires_grad=True)
    loss = focal_loss(x, torch.zeros(5, dtype=torch.long, device=backend), reduction="none")
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(0.25 * math.log(2))
    assert loss[1].item() == inf
    assert loss[2:].isnan().all()
    slope = 0.5 * (0.5 + 2.0 * 0.5 * math.log(2))
    torch.testing.assert_close(x.grad[0].cpu(), slope * torch.tensor([-0.5, 0.0, 0.5]))
    torch.testing.assert_close(x.grad[1].cpu(), torch.tensor([-1.0, 0.5, 0.5]))
    assert x.grad[2:].isnan().all()
    one = torch.tensor([[3.0], [-2.0]], device=backend, requires_grad=True)
    loss = focal_loss(one, torch.zeros(2, dtype=torch.long, device=backend), gamma=0.5)
    (grad,) = torch.autograd.grad(loss, one)
    assert loss == 0
    assert (grad == 0).all()


def test_second_derivatives_of_gamma_1(backend):
    """Where 1 - p has the exponent gamma - 1 = 0."""
    x, y = draw((4, 5), torch.float64, backend)
    x.requires_grad_()
    for reduction in ("mean", "none"):
        f = lambda x, r=reduction: focal_loss(x, y, gamma=1.0, reduction=r)  # noqa: E731
        assert torch.autograd.gradcheck(f, x, **fast())
        assert torch.autograd.gradgradcheck(f, x, **fast())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_in_place(dtype, backend):
    x, y = draw((6, 5), dtype, backend)
    leaf = x.clone().requires_grad_()
    logits = leaf * 1
    focal_loss(logits, y, inplace=True).backward()
    other = x.clone().requires_grad_()
    focal_loss(other, y).backward()
    assert leaf.grad.equal(other.grad)
    assert logits.detach().equal(leaf.grad)
    with pytest.raises(RuntimeError, match=r"xentrs.torch.focal_loss: inplace=True needs logits"):
        focal_loss((leaf * 1)[1:], y[1:], inplace=True)


def test_second_derivatives_of_freed_logits_name_the_loss(backend, monkeypatch):
    from xentrs.torch._operators import gradients

    monkeypatch.setattr(gradients, "KEPT", 0)
    x, y = draw((4, 5), torch.float32, backend)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match=r"xentrs.torch.focal_loss: a second .* freed"):
        torch.autograd.grad(focal_loss(x * 1.0, y), x, create_graph=True)


def test_module(backend):
    import pickle

    x, y = draw((6, 5), torch.float32, backend)
    w, s = torch.rand(5, device=backend), torch.rand(6, device=backend)
    options = {"weight": w, "ignore_index": (-100, 2), "reduction": "sum"}
    module = xentrs.torch.FocalLoss(1.5, **options)
    expected = focal_loss(x, y, gamma=1.5, **options, sample_weight=s, denominator=None)
    assert module(x, y, sample_weight=s) == expected
    assert repr(module) == "FocalLoss(gamma=1.5, reduction='sum')"
    assert "weight" in module.state_dict()
    assert pickle.loads(pickle.dumps(module))(x, y, sample_weight=s) == expected
    assert xentrs.torch.FocalLoss()(x, y, denominator=4) == focal_loss(x, y, denominator=4)


X, Y = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, X), {}, TypeError, r"target has dtype torch.float32, but focal_loss takes class ind"),
        ((X, Y.double()), {}, TypeError, "defined by the probability of one class"),
        ((X, Y), {"gamma": -1.0}, ValueError, "gamma is -1.0, but must be finite and not negative"),
        ((X, Y), {"gamma": math.nan}, ValueError, "gamma is nan"),
        ((X, Y), {"gamma": math.inf}, ValueError, "gamma is inf"),
        ((X, Y), {"gamma": "a"}, TypeError, r"gamma must be a number, not 'a' \(str\)"),
        ((X, Y), {"label_smoothing": 0.1}, TypeError, "label_smoothing"),
        ((X, Y), {"denominator": -2.0}, ValueError, "denominator is -2.0"),
        ((X, Y), {"sample_weight": torch.ones(3)}, ValueError, r"sample_weight has shape \(3,\)"),
        ((X, Y), {"ignore_index": 1.5}, TypeError, "ignore_index must be"),
        ((X, Y), {"weight": torch.ones(5, requires_grad=True)}, NotImplementedError, "weight.det"),
        ((X, Y + 4), {}, IndexError, r"target\[1\] is 5, but a class index must be in \[0, 5\)"),
    ],
)
def test_errors(arguments, options, error, message, monkeypatch):
    pytest.importorskip("triton")
    with pytest.raises(error, match=message):
        focal_loss(*arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((X, Y[:3]), {}),
        ((X.int(), Y), {}),
        ((X.numpy(), Y), {}),
        ((X, [0, 1, 2, 3]), {}),
        ((X, Y), {"weight": torch.ones(3)}),
        ((X, Y), {"reduction": "average"}),
        ((X[:, :0], Y), {}),
    ],
)
def test_pytorchs_errors(arguments, options):
    with pytest.raises(Exception) as expected:  # noqa: PT011 (whatever PyTorch raises)
        F.cross_entropy(*arguments, **options)
    with pytest.raises(type(expected.value)) as found:
        focal_loss(*arguments, **options)
    assert str(found.value) == str(expected.value)
