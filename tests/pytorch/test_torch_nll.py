"""The negative log-likelihood: PyTorch's values where it has them, probabilities as target.

What holds for every loss is in `test_torch_losses.py`.
"""

import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F

import xentrs.torch
from samples import DTYPES, fast

nll_loss = xentrs.torch.nll_loss
SHAPES = [(5,), (6, 5), (3, 300), (2, 37, 3), (3, 5, 2, 3)]


def draw(shape, dtype, device, seed=0):
    """Return log-probabilities, class indices, probabilities and class weights."""
    torch.manual_seed(seed)
    axis = 1 if len(shape) > 1 else 0
    samples = shape[:axis] + shape[axis + 1 :]
    x = (torch.randn(shape, dtype=torch.float64) * 3).log_softmax(axis)
    y = torch.randint(0, shape[axis], samples)
    if samples:
        y.view(-1)[1] = -100
    q, w = torch.rand(shape), torch.rand(shape[axis])
    return [t.to(dtype if t.is_floating_point() else None).to(device) for t in (x, y, q, w)]


def near(dtype):
    eps = 4 * torch.finfo(dtype).eps
    return {"rtol": eps, "atol": eps}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_class_indices_are_pytorchs(shape, dtype, backend, small_tiles):
    x, y, _, w = draw(shape, dtype, backend)
    for reduction in ("mean", "sum", "none"):
        for weight in (None, w):
            ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
            loss = nll_loss(ours, y, weight, reduction=reduction)
            wide = None if weight is None else weight.double()
            expected = F.nll_loss(exact, y, wide, reduction=reduction)
            assert (loss.dtype, loss.shape) == (dtype, expected.shape)
            torch.testing.assert_close(loss.double(), expected, **near(dtype))
            (grad,) = torch.autograd.grad(loss.sum(), ours)
            (true,) = torch.autograd.grad(expected.sum(), exact)
            torch.testing.assert_close(grad.double(), true, **near(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probabilities(shape, dtype, backend, small_tiles):
    """The cross-entropy of log-probabilities, which are their own log-softmax, is the same."""
    x, _, q, w = draw(shape, dtype, backend)
    axis = 1 if x.dim() > 1 else 0
    s = torch.rand(shape[:axis] + shape[axis + 1 :], device=backend)
    for options in (
        {},
        {"weight": w, "label_smoothing": 0.1, "reduction": "sum"},
        {"sample_weight": s, "reduction": "none"},
        {"sample_weight": s, "denominator": 3.0, "label_smoothing": 1.0},
    ):
        ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        loss = nll_loss(ours, q, **options)
        e = options.get("label_smoothing", 0.0)
        t = (1.0 - e) * q.double() + e / shape[axis]
        if "weight" in options:
            t = t * w.double().view(-1, *[1] * (x.dim() - axis - 1))
        expected = -(t * exact).sum(axis)
        if "sample_weight" in options:
            expected = expected * s.double()
        if options.get("reduction", "mean") == "mean":
            expected = expected.sum() / options.get("denominator", max(expected.numel(), 1))
        if options.get("reduction") == "sum":
            expected = expected.sum()
        torch.testing.assert_close(loss.double(), expected, **near(dtype))
        (grad,) = torch.autograd.grad(loss.sum(), ours)
        (true,) = torch.autograd.grad(expected.sum(), exact)
        torch.testing.assert_close(grad.double(), true, **near(dtype))


def test_derivatives_for_probabilities(backend):
    x, _, q, w = draw((4, 5), torch.float64, backend)
    x.requires_grad_()
    for reduction in ("mean", "none"):
        f = lambda x, r=reduction: nll_loss(x, q, w, reduction=r, label_smoothing=0.2)  # noqa: E731
        assert torch.autograd.gradcheck(f, x, check_forward_ad=True, **fast())
        assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, **fast())
    leaf = x.detach()
    g = lambda x: nll_loss(x, q).sin()  # noqa: E731
    h = lambda x: (-(q * x).sum(1).mean()).sin()  # noqa: E731
    torch.testing.assert_close(torch.func.hessian(g)(leaf), torch.func.hessian(h)(leaf))


def test_what_has_no_weight_is_not_looked_at(backend):
    """-inf and NaN cost nothing there; numbers above 0 are taken as they are."""
    inf, nan = math.inf, math.nan
    rows = [[-inf, -0.5, nan], [2.0, nan, inf], [nan, nan, nan]]
    y = torch.tensor([1, 0, -100], device=backend)
    q = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], device=backend)
    for target in (y, q):
        x = torch.tensor(rows, device=backend, requires_grad=True)
        loss = nll_loss(x, target, reduction="none")
        loss.sum().backward()
        assert loss.tolist() == [0.5, -2.0, 0.0]
        assert x.grad.tolist() == [[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    x = torch.tensor(rows[:2], device=backend)
    assert nll_loss(x, y[:2] * 0, reduction="none").tolist() == [inf, -2.0]
    one = torch.tensor([[3.0], [-2.0]], device=backend)
    assert nll_loss(one, torch.zeros(2, dtype=torch.long, device=backend)).item() == -0.5


def test_in_place(backend):
    """Over logits that no other gradient needs; `log_softmax` needs its result, and says so."""
    x, y, *_ = draw((6, 5), torch.float32, backend)
    leaf = x.clone().requires_grad_()
    logits = leaf * 1
    nll_loss(logits, y, inplace=True).backward()
    other = x.clone().requires_grad_()
    nll_loss(other, y).backward()
    assert leaf.grad.equal(other.grad)
    assert logits.detach().equal(leaf.grad)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll_loss(leaf.log_softmax(1), y, inplace=True).backward()


def test_module():
    x, y, _, w = draw((6, 5), torch.float32, "cpu")
    ours, theirs = xentrs.torch.NLLLoss(w, ignore_index=2), torch.nn.NLLLoss(w, ignore_index=2)
    assert isinstance(ours, torch.nn.NLLLoss)
    y = y.clamp(min=0)
    torch.testing.assert_close(ours(x, y), theirs(x, y))
    ours.load_state_dict(theirs.state_dict())
    several = xentrs.torch.NLLLoss(ignore_index=(1, 2), label_smoothing=0.1)
    assert several(x, y) == nll_loss(x, y, ignore_index=(1, 2), label_smoothing=0.1)


X, Y = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((X, Y[:3]), {}),
        ((X.int(), Y), {}),
        ((X.numpy(), Y), {}),
        ((X, [0, 1, 2, 3]), {}),
        ((X, Y), {"weight": torch.ones(3)}),
        ((X, Y), {"weight": torch.ones(5, requires_grad=True)}),
        ((X, Y), {"reduction": "average"}),
        ((X[0, 0], Y[0]), {}),
    ],
)
def test_pytorchs_own_outcome(arguments, options):
    outcomes = []
    for f in (F.nll_loss, nll_loss):
        try:
            outcomes.append(f(*arguments, **options).item())
        except Exception as error:
            outcomes.append((type(error), str(error)))
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X, Y + 4), {}, IndexError, r"target\[1\] is 5, but a class index must be in \[0, 5\)"),
        ((X, X), {"ignore_index": 1}, RuntimeError, "ignore_index is not supported"),
        ((X, X.clone().requires_grad_()), {}, NotImplementedError, r"target\.detach\(\)"),
        ((X, X[:, :3]), {}, (RuntimeError, ValueError), "."),
        ((X, Y), {"denominator": -2.0}, ValueError, r"denominator is -2\.0"),
        ((X, Y), {"sample_weight": torch.ones(3)}, ValueError, r"sample_weight has shape \(3,\)"),
        ((X, Y), {"label_smoothing": 2.0}, ValueError, "label_smoothing must be in"),
    ],
)
def test_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        nll_loss(*arguments, **options)
