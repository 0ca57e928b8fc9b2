"""The losses are PyTorch's, to PyTorch's own error or less, on every backend."""

import itertools
import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F

import xentrs.torch
from samples import (
    DTYPES,
    NAMES,
    Sample,
    assert_as_good,
    each_backend_and_dtype,
    operator_samples,
)
from xentrs.torch._arguments.options import SHARED, Options, flat
from xentrs.torch._arguments.softmax import SoftmaxArguments

cross_entropy = xentrs.torch.cross_entropy
HALVES = {torch.float16, torch.bfloat16}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_operator_samples(name, dtype, backend):
    """The sample inputs of PyTorch's operator database."""
    samples = list(operator_samples(name))
    assert len(samples) > 20
    linear = name == "linear_cross_entropy"
    for sample in samples[:: 12 if linear else 1]:
        assert_as_good(sample, dtype, backend, ulps=32.0 if linear else 4.0)


def draw(shape, target_shape, seed=0):
    torch.manual_seed(seed)
    classes = shape[1] if len(shape) > 1 else shape[0]
    return torch.randn(shape, dtype=torch.float64) * 4, torch.randint(0, classes, target_shape)


SHAPES = [
    ((5,), ()),
    ((3, 1), (3,)),
    ((4, 70), (4,)),
    ((2, 37, 3), (2, 3)),
    ((1, 5, 2, 3), (1, 2, 3)),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_tiles_and_chunks(shapes, reduction, dtype, backend, small_tiles):
    """Rows of many tiles, tensors of many chunks; every kind of target and weight."""
    x, y = draw(*shapes)
    classes = x.shape[1 if x.dim() > 1 else 0]
    weight = torch.rand(classes, dtype=torch.float64)
    q = torch.rand_like(x)
    options = {"reduction": reduction}
    for target in (y, q):
        assert_as_good(Sample("cross_entropy", [x, target], options), dtype, backend)
        more = options | {"weight": weight, "label_smoothing": 0.2}
        assert_as_good(Sample("cross_entropy", [x, target], more), dtype, backend)
    if classes > 1:
        more = options | {"ignore_index": 1}
        assert_as_good(Sample("cross_entropy", [x, y.clamp(max=1)], more), dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_z_loss_softcap_and_temperature(soft, dtype, backend, small_tiles):
    x, y = draw((5, 40), (5,))
    x = x.to(dtype).double()
    target = x.softmax(1).to(dtype).double() if soft else torch.where(y == 2, -100, y)
    s = torch.rand(5, dtype=torch.float64)
    for z, cap, temperature, reduction in (
        (0.1, None, 1.0, "mean"),
        (0.0, 3.0, 1.0, "sum"),
        (0.0, None, 0.7, "mean"),
        (0.02, 5.0, 2.5, "none"),
    ):
        expected_x, actual_x = (x.clone().requires_grad_() for _ in range(2))
        capped = expected_x if cap is None else cap * (expected_x / cap).tanh()
        capped = capped / temperature
        loss = F.cross_entropy(capped, target, reduction="none", label_smoothing=0.1)
        kept = torch.ones(5) if soft else target != -100
        loss = s * kept * (loss + z * capped.logsumexp(1) ** 2)
        if reduction == "mean":
            loss = loss.sum() / (s * kept).sum()
        loss = loss.sum() if reduction == "sum" else loss
        given = actual_x.to(dtype).to(backend)
        actual = cross_entropy(
            given,
            target.to(dtype if soft else None).to(backend),
            z_loss=z,
            softcap=cap,
            temperature=temperature,
            sample_weight=s.to(backend),
            reduction=reduction,
            label_smoothing=0.1,
        )
        assert actual.dtype == dtype
        torch.testing.assert_close(actual.cpu().double(), loss, **tolerance(dtype))
        weights = torch.rand_like(loss)
        loss.backward(weights)
        actual.backward(weights.to(dtype).to(backend))
        torch.testing.assert_close(actual_x.grad, expected_x.grad, **tolerance(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_temperature_keeps_the_digits_of_differences(dtype, backend, small_tiles):
    """Under a large offset, of which a division of the logits would lose them."""
    offset = 1e7 if dtype == torch.float32 else 1e15
    x = torch.tensor([[0.0, 1.0, 2.0, 4.0] * 6], dtype=torch.float64)
    y, t = torch.tensor([1]), 3.0
    a = (x + offset).to(dtype).to(backend).requires_grad_()
    assert a.detach().double().cpu().equal(x + offset)
    b = x.clone().requires_grad_()
    near = tolerance(dtype)
    for target in (y, F.one_hot(y, 24).double()):
        loss = cross_entropy(a, target.to(backend), temperature=t)
        expected = F.cross_entropy(b / t, target)
        torch.testing.assert_close(loss.cpu().double(), expected, **near)
        (grad,) = torch.autograd.grad(loss, a, create_graph=True)
        (true,) = torch.autograd.grad(expected, b, create_graph=True)
        torch.testing.assert_close(grad.cpu().double(), true, **near)
        (second,) = torch.autograd.grad(grad.sin().sum(), a)
        (exact,) = torch.autograd.grad(true.sin().sum(), b)
        torch.testing.assert_close(second.cpu().double(), exact, **near)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_temperature_of_a_linear_layer(dtype, backend):
    h, y = draw((6, 5), (6,))
    w, b = torch.randn(9, 5, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    given = [t.to(dtype).to(backend).requires_grad_() for t in (h, w, b)]
    exact = [t.detach().cpu().double().requires_grad_() for t in given]
    module = xentrs.torch.LinearCrossEntropyLoss(
        5, 9, bias=True, temperature=2.5, z_loss=0.1, dtype=dtype, device=backend
    )
    module.load_state_dict({"linear.weight": given[1].detach(), "linear.bias": given[2].detach()})
    for reduction in ("mean", "none"):
        options = {"temperature": 2.5, "z_loss": 0.1, "reduction": reduction}
        loss = xentrs.torch.linear_cross_entropy(
            given[0], given[1], y.to(backend), linear_bias=given[2], **options
        )
        expected = cross_entropy(F.linear(*exact), y, **options)
        near = tolerance(dtype) if dtype == torch.float64 else {"rtol": 0.01, "atol": 0.01}
        torch.testing.assert_close(loss.cpu().double(), expected, **near)
        grads = torch.autograd.grad(loss.sum(), given)
        true = torch.autograd.grad(expected.sum(), exact)
        for g, t in zip(grads, true, strict=True):
            torch.testing.assert_close(g.cpu().double(), t, **near)
    # The last loss's mean is the module's.
    result = module(given[0].detach(), y.to(backend))
    torch.testing.assert_close(result.cpu().double(), expected.mean().detach(), **near)


def tolerance(dtype):
    eps = torch.finfo(dtype).eps
    return {"rtol": 8 * eps, "atol": 8 * eps}


def z_reference(x, y, s, w, z, e, reduction, denominator=None):
    """Return the contract's loss: the part of z_loss has a divisor of its own."""
    kept = (y != -100) & (s != 0)
    if w is not None and not e:
        kept &= w[y.clamp(min=0)] != 0
    w_y = 1.0 if w is None else w[y.clamp(min=0)]
    loss = F.cross_entropy(x, y, w, label_smoothing=e, reduction="none")
    penalty = z * torch.where(kept, s * x.logsumexp(1) ** 2, 0.0)
    loss = torch.where(kept, s * loss, 0.0)
    if reduction == "none":
        return loss + penalty
    if reduction == "sum":
        return (loss + penalty).sum()
    if denominator is not None:
        return (loss + penalty).sum() / denominator
    return loss.sum() / (s * w_y * kept).sum() + penalty.sum() / (s * kept).sum()


@each_backend_and_dtype
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_z_loss_is_not_weighted(smoothing, dtype, backend, small_tiles):
    """Class weights and smoothing do not change it; a sample that does not count has none."""
    x, y = draw((7, 5), (7,))
    x, y = x.to(dtype), torch.tensor([0, 1, -100, 2, 4, 3, 0])
    s = torch.tensor([1.0, 2.0, 1.0, 0.5, 0.0, 1.5, 0.25], dtype=torch.float64)
    for w in (None, [0.5, 1.0, 2.0, 0.0, 3.0], [50.0, 100.0, 200.0, 0.0, 300.0], [-1.0] * 5):
        w = None if w is None else torch.tensor(w, dtype=torch.float64)
        for reduction, denominator in (
            ("mean", None),
            ("mean", 3.0),
            ("sum", None),
            ("none", None),
        ):
            options = {"reduction": reduction, "denominator": denominator}
            a = x.double().requires_grad_()
            expected = z_reference(a, y, s, w, 0.1, smoothing, **options)
            b = x.to(backend).detach().requires_grad_()
            eye = torch.eye(5, dtype=dtype, device=backend)
            options |= {"weight": None if w is None else w.to(backend), "z_loss": 0.1}
            options |= {"sample_weight": s.to(backend), "label_smoothing": smoothing}
            up = torch.linspace(0.5, 1.5, expected.numel(), dtype=torch.float64)
            up = up.reshape(expected.shape)
            (true,) = torch.autograd.grad(expected, a, up)
            bad = b.detach().clone()
            bad[2], bad[4] = math.nan, math.inf  # as they count for nothing
            for logits in (b, bad.requires_grad_()):
                actual = cross_entropy(logits, y.to(backend), **options)
                (grad,) = torch.autograd.grad(actual, logits, up.to(actual.dtype).to(backend))
                torch.testing.assert_close(actual.cpu().double(), expected, **tolerance(dtype))
                torch.testing.assert_close(grad.cpu().double(), true, **tolerance(dtype))
            of_layer = xentrs.torch.linear_cross_entropy(b, eye, y.to(backend), **options)
            torch.testing.assert_close(of_layer.cpu().double(), expected, **tolerance(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_means_of_negative_weights(soft, dtype, backend):
    """The sign of all weights cancels in the mean, in that of z_loss too."""
    x, y = draw((7, 5), (7,))
    x, y = x.to(dtype).to(backend), (x.softmax(1).to(dtype) if soft else y).to(backend)
    s = torch.linspace(0.5, 1.5, 7, device=backend)
    w = torch.linspace(1.0, 2.0, 5, device=backend).to(dtype)
    eye = torch.eye(5, dtype=dtype, device=backend)
    for f in (cross_entropy, lambda x, *y, **o: xentrs.torch.linear_cross_entropy(x, eye, *y, **o)):
        for options in ({}, {"z_loss": 0.1}, {"softcap": 5.0}, {"z_loss": 0.1, "softcap": 5.0}):
            results = []
            for sign in (1.0, -1.0):
                for more in (
                    {"sample_weight": sign * s},
                    {"sample_weight": sign * s, "weight": w},
                    *([] if soft else [{"sample_weight": s, "weight": sign * w}]),
                ):
                    leaf = x.clone().requires_grad_()
                    loss = f(leaf, y, label_smoothing=0.1, **options, **more)
                    results.append((loss, *torch.autograd.grad(loss, leaf)))
            half = len(results) // 2
            for positive, negative in zip(results[:half], results[half:], strict=True):
                torch.testing.assert_close(negative, positive, **tolerance(dtype))


def test_z_loss_of_one_class(backend):
    """It alone is left."""
    for dtype in DTYPES:
        x = torch.tensor([[3.0], [-2.0], [5.0]], dtype=dtype, device=backend, requires_grad=True)
        y = torch.tensor([0, 0, -100], device=backend)
        for w in (None, torch.tensor([7.0], dtype=dtype, device=backend)):
            loss = cross_entropy(x, y, w, z_loss=0.5)
            (grad,) = torch.autograd.grad(loss, x)
            assert loss.item() == pytest.approx(0.5 * (9 + 4) / 2)
            assert grad.flatten().tolist() == [1.5, -1.0, 0.0]


def test_second_derivatives_of_z_loss_with_class_weights(backend):
    x, y = draw((4, 5), (4,))
    y[1] = -100
    x, y, w = x.to(backend), y.to(backend), torch.rand(5, dtype=torch.float64, device=backend)
    x.requires_grad_()
    s = torch.rand(4, dtype=torch.float64, device=backend)
    for smoothing in (0.0, 0.2):
        f = lambda x, e=smoothing: cross_entropy(  # noqa: E731
            x, y, w, z_loss=0.1, sample_weight=s, label_smoothing=e
        )
        assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_infinite_logits_under_softcap(soft, dtype, backend, small_tiles):
    """-inf stays -inf; inf and NaN make their own sample NaN and no other."""
    inf = math.inf
    x = torch.randn(4, 20, dtype=torch.float64).to(dtype).double()
    x[1, 3:18], x[2, 5], x[3, 17] = -inf, inf, math.nan
    y = torch.tensor([0, 1, 2, 2])
    target = F.one_hot(y, 20).to(dtype) if soft else y
    capped = torch.where(x.isinf(), x, 3.0 * (x / 3.0).tanh()).requires_grad_()
    expected = F.cross_entropy(capped, y, reduction="none")
    (true,) = torch.autograd.grad(expected[:2].sum(), capped)
    true = true * (1.0 - (x / 3.0).tanh() ** 2)
    a = x.to(dtype).to(backend).requires_grad_()
    loss = cross_entropy(a, target.to(backend), softcap=3.0, reduction="none")
    loss.sum().backward()
    torch.testing.assert_close(loss[:2].cpu().double(), expected[:2], **tolerance(dtype))
    torch.testing.assert_close(a.grad[:2].cpu().double(), true[:2], **tolerance(dtype))
    assert (a.grad[1, 3:18] == 0).all()
    assert loss[2:].isnan().all()
    assert a.grad[2:].isnan().any(1).all()


@pytest.mark.parametrize("logits", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_wider_labels_and_weights_are_not_rounded(logits, backend):
    """`1 - t` of float64 labels, weights beyond float32."""
    bce = xentrs.torch.binary_cross_entropy_with_logits
    x = torch.tensor([20.0, 100.0, -30.0, 5.0], dtype=logits, device=backend, requires_grad=True)
    t = torch.tensor([0.999999, 1.0 - 1e-9, 1e-9, 0.25], dtype=torch.float64, device=backend)
    for options in (
        {},
        {"label_smoothing": 1e-6},
        {"pos_weight": torch.tensor(1e39, dtype=torch.float64, device=backend)},
        {"weight": torch.tensor([1e39, 1e39, 1e39, 1e-9], dtype=torch.float64, device=backend)},
        {"weight": torch.tensor(1e-46, dtype=torch.float64, device=backend)},
    ):
        e = options.get("label_smoothing", 0.0)
        z, u = x.detach().double(), (1.0 - e) * t + 0.5 * e
        v = options.get("pos_weight", torch.ones_like(t))
        w = options.get("weight", torch.ones_like(t))
        true = w * (
            (1.0 - u) * F.softplus(z, threshold=1e9) + v * u * F.softplus(-z, threshold=1e9)
        )
        slope = w * ((1.0 - u) * z.sigmoid() - v * u * (-z).sigmoid())
        loss = bce(x, t, reduction="none", **options)
        (grad,) = torch.autograd.grad(loss.sum(), x)
        assert loss.dtype == torch.float64
        near = {"rtol": 1e-6, "atol": 1e-45}
        torch.testing.assert_close(loss, true.float().double(), **near)
        near["rtol"] = max(near["rtol"], torch.finfo(logits).eps)
        near["atol"] = torch.finfo(logits).smallest_normal * torch.finfo(logits).eps
        torch.testing.assert_close(grad, slope.to(logits), **near)


def test_means_of_losses_whose_sum_exceeds_float32(backend):
    bce = xentrs.torch.binary_cross_entropy_with_logits
    huge = 3.0e38
    for options in ({}, {"z_loss": 0.0, "sample_weight": torch.ones(4000, device=backend)}):
        x = torch.tensor([[-huge, 0.0]], device=backend).repeat(4000, 1)
        y = torch.zeros(4000, dtype=torch.long, device=backend)
        for target in (y, F.one_hot(y, 2).float()):
            loss = cross_entropy(x, target, **options)
            assert loss.item() == pytest.approx(huge, rel=1e-6)
            assert cross_entropy(x, target, reduction="sum", **options) == math.inf
    x = torch.tensor([[-3.4e38, 3.4e38], [0.0, 0.0], [0.0, 1.0], [1.0, 1.0]], device=backend)
    y = torch.tensor([0, 1, 1, 0], device=backend)
    for target in (y, F.one_hot(y, 2).float()):
        assert cross_entropy(x, target).item() == pytest.approx(1.7e38, rel=1e-6)
        assert cross_entropy(x, target, label_smoothing=0.5).item() == pytest.approx(
            1.275e38, rel=1e-6
        )
        assert cross_entropy(x, target, denominator=1e9).item() == pytest.approx(6.8e29)
    flat = torch.full((5000,), huge, device=backend)
    zeros = torch.zeros_like(flat)
    assert bce(flat, zeros).item() == pytest.approx(huge, rel=1e-6)
    assert bce(flat, zeros, denominator=1e9).item() == pytest.approx(1.5e33, rel=1e-6)
    assert bce(flat, zeros, reduction="sum") == math.inf
    x = torch.full((4, 3), 1e19, device=backend)
    y = torch.zeros(4, dtype=torch.long, device=backend)
    assert cross_entropy(x, y, z_loss=0.9).item() == pytest.approx(0.9e38, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weight_0_counts_for_nothing(dtype, backend):
    """Also where logits, targets and losses are NaN or inf."""
    inf, nan = math.inf, math.nan
    bad = torch.tensor([[-inf, 0.0], [0.0, 0.0], [nan, 0.0], [inf, inf]], device=backend).to(dtype)
    q = torch.tensor([[1.0, 0.0], [1.0, 0.0], [nan, 0.0], [0.5, inf]], device=backend).to(dtype)
    y = torch.tensor([0, 0, 0, 0], device=backend)
    s = torch.tensor([0.0, 1.0, 0.0, 0.0], device=backend)
    two, w = torch.tensor([1, 0, 1, 1], device=backend), torch.tensor([1.0, 0.0], device=backend)
    calls = [
        (y, {"sample_weight": s}),
        (q, {"sample_weight": s}),
        (q, {"sample_weight": s, "label_smoothing": 0.1, "weight": w + 0.5}),
        (two, {"weight": w.to(dtype)}),
        (y, {"sample_weight": s, "softcap": 3.0, "z_loss": 0.1}),
        (q, {"sample_weight": s, "softcap": 3.0}),
    ]
    for target, options in calls:
        for reduction in ("mean", "sum", "none"):
            a = bad.clone().requires_grad_()
            loss = cross_entropy(a, target, reduction=reduction, **options)
            (grad,) = torch.autograd.grad(loss.sum(), a)
            one = {k: v[1:2] if k == "sample_weight" else v for k, v in options.items()}
            expected = cross_entropy(bad[1:2], target[1:2], reduction="sum", **one)
            torch.testing.assert_close(loss.sum(), expected, **tolerance(dtype))
            assert loss.dim() == 0 or (loss[[0, 2, 3]] == 0).all()
            assert (grad[[0, 2, 3]] == 0).all()
            assert grad[1].isfinite().all()
            assert grad[1].any()
            eye = torch.eye(2, dtype=dtype, device=backend)
            layer = xentrs.torch.linear_cross_entropy(bad, eye, target, reduction="sum", **options)
            torch.testing.assert_close(layer, expected, **tolerance(dtype))
    bce = xentrs.torch.binary_cross_entropy_with_logits
    weight = torch.tensor([[0.0], [1.0], [0.0], [0.0]], device=backend).to(dtype)
    for options in ({"weight": weight}, {"where": weight != 0}):
        for reduction in ("mean", "sum", "none"):
            a = bad.clone().requires_grad_()
            loss = bce(a, q, reduction=reduction, **options)
            (grad,) = torch.autograd.grad(loss.sum(), a)
            n = {"mean": 8 if "weight" in options else 2}.get(reduction, 1)
            torch.testing.assert_close(
                loss.sum().double().cpu(),
                torch.tensor(2 * math.log(2.0) / n, dtype=torch.float64),
                **tolerance(dtype),
            )
            assert (grad[[0, 2, 3]] == 0).all()
            torch.testing.assert_close(
                grad[1] * n, torch.tensor([-0.5, 0.5], device=backend).to(dtype)
            )


def test_digits_are_kept(backend):
    """What other libraries lose: small losses, and losses under an offset."""
    x = torch.tensor([[17.0, 0.0], [0.0, 0.0]], device=backend, requires_grad=True)
    loss = cross_entropy(x, torch.tensor([0, 1], device=backend), reduction="none")
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(math.log1p(math.exp(-17)), rel=1e-6)
    assert x.grad[0, 0].item() == pytest.approx(-1 / (1 + math.exp(17)), rel=1e-6)
    far = torch.tensor([0.0, 1.0, 2.0], device=backend) + 1e7
    assert cross_entropy(far, torch.tensor(1, device=backend)).item() == pytest.approx(1.40760596)
    far = torch.tensor([0.0, 90.0, -300.0], device=backend)
    assert cross_entropy(far, torch.tensor(2, device=backend)).item() == pytest.approx(390.0)


def test_nothing_counts(backend):
    x = torch.full((2, 3), math.nan, device=backend, requires_grad=True)
    y = torch.tensor([-100, -100], device=backend)
    for dtype in DTYPES:
        x_ = x.to(dtype)
        loss = cross_entropy(x_, y)
        (grad,) = torch.autograd.grad(loss, x)
        assert loss.isnan()
        assert (grad == 0).all()
        assert cross_entropy(x_, y, reduction="sum") == 0
    assert cross_entropy(x[:0], y[:0]).isnan()
    assert cross_entropy(x[:0], y[:0], reduction="none").shape == (0,)


def test_infinite_logits(backend):
    inf = math.inf
    rows = [
        [0.0, -inf, 0.0],
        [-inf, 0.0, 0.0],
        [inf, 0.0, 0.0],
        [-inf, -inf, -inf],
        [0.0, math.nan, 0.0],
    ]
    x = torch.tensor(rows, device=backend, requires_grad=True)
    loss = cross_entropy(x, torch.zeros(5, dtype=torch.long, device=backend), reduction="none")
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(math.log(2))
    assert loss[1].item() == inf
    assert loss[2:].isnan().all()
    torch.testing.assert_close(x.grad[0].cpu(), torch.tensor([-0.5, 0.0, 0.5]))
    torch.testing.assert_close(x.grad[1].cpu(), torch.tensor([-1.0, 0.5, 0.5]))
    assert x.grad[2:].isnan().all()


@pytest.mark.parametrize(
    "dtype", ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
)
def test_integer_targets_of_any_width(dtype, backend):
    x, y = draw((6, 5), (6,))
    expected = F.cross_entropy(x, y)
    y = y.to(getattr(torch, dtype))
    for inputs in (x, x.bfloat16()):
        actual = cross_entropy(inputs.to(backend), y.to(backend)).cpu()
        torch.testing.assert_close(actual.double(), expected, **tolerance(inputs.dtype))


def test_several_ignored_indices(backend):
    x, _ = draw((5, 4), (5,))
    y = torch.tensor([0, -1, 3, -100, 2])
    counts = torch.tensor([0, 4])
    expected = F.cross_entropy(x[counts], y[counts])
    for inputs in (x, x.half()):
        actual = cross_entropy(inputs.to(backend), y.to(backend), ignore_index=(-1, 3, -100))
        torch.testing.assert_close(actual.cpu().double(), expected, **tolerance(inputs.dtype))


def test_denominator(backend):
    x, y = draw((6, 5), (6,))
    whole = F.cross_entropy(x, y)
    for den in (6, 6.0, torch.tensor(6)):
        parts = [
            cross_entropy(x[i].to(backend), y[i].to(backend), denominator=den)
            for i in (slice(0, 2), slice(2, 6))
        ]
        torch.testing.assert_close((parts[0] + parts[1]).cpu(), whole)
    t = (x > 0).to(backend)
    bce = xentrs.torch.binary_cross_entropy_with_logits
    expected = F.binary_cross_entropy_with_logits(x, (x > 0).double(), reduction="sum") / 7
    torch.testing.assert_close(bce(x.to(backend), t, denominator=7).cpu(), expected)


def test_a_denominator_is_of_the_mean_alone(backend):
    x, y = draw((6, 5), (6,))
    x, y = x.to(backend), y.to(backend)
    for options in ({}, {"z_loss": 0.1}, {"z_loss": 0.1, "softcap": 5.0}):
        for reduction in ("sum", "none"):
            expected = cross_entropy(x, y, reduction=reduction, **options)
            for denominator in (0.0, 3.0):
                more = options | {"denominator": denominator}
                actual = cross_entropy(x, y, reduction=reduction, **more)
                torch.testing.assert_close(actual, expected, rtol=0.0, atol=0.0)


def test_binary_extras(backend):
    x, _ = draw((6, 5), (6,))
    bce = xentrs.torch.binary_cross_entropy_with_logits
    where = x > 0
    labels = torch.rand(6, 5) > 0.5
    for dtype in (torch.float64, torch.bfloat16):
        a = x.to(dtype).double().detach().requires_grad_()
        b = x.to(dtype).to(backend).detach().requires_grad_()
        expected = F.binary_cross_entropy_with_logits(a[where], 0.8 * labels[where].double() + 0.1)
        actual = bce(b, labels.to(backend), where=where.to(backend), label_smoothing=0.2)
        expected.backward()
        actual.backward()
        torch.testing.assert_close(actual.cpu().double(), expected, **tolerance(dtype))
        torch.testing.assert_close(b.grad.cpu().double(), a.grad, **tolerance(dtype))
    assert bce(x.to(backend), labels.to(backend), where=torch.tensor(False, device=backend)).isnan()


def test_numbers_for_all_elements(backend):
    """Weights of no dimension or of few elements, also in half precision and under autocast."""
    bce = xentrs.torch.binary_cross_entropy_with_logits
    for shape in ((), (5,), (6, 5), (2, 3, 5), (6, 1), (0, 5), (5, 0)):
        x = torch.randn(shape, device=backend)
        t = torch.rand(shape, device=backend)
        for size in {(), shape[-1:], (1,) * min(len(shape), 1), (1,) * len(shape), shape}:
            w = torch.rand(size, device=backend)
            for options in ({"pos_weight": w}, {"weight": w}, {"weight": w, "pos_weight": w + 1}):
                for dtype in DTYPES:
                    a = x.to(dtype).requires_grad_()
                    more = {k: v.to(dtype) for k, v in options.items()} | {"reduction": "none"}
                    wide = {k: v.double() for k, v in more.items() if k != "reduction"}
                    expected = F.binary_cross_entropy_with_logits(
                        a.double(), t.to(dtype).double(), **wide, reduction="none"
                    )
                    actual = bce(a, t.to(dtype), **more)
                    near = tolerance(dtype)
                    torch.testing.assert_close(actual.double(), expected, **near)
                    (grad,) = torch.autograd.grad(actual.sum(), a)
                    (true,) = torch.autograd.grad(expected.sum(), a)
                    torch.testing.assert_close(grad, true, **near)
                    with torch.autocast(backend, dtype=torch.bfloat16):
                        cast = bce(a, t.to(dtype), **more)
                        like = F.binary_cross_entropy_with_logits(a, t.to(dtype), **more)
                    assert (cast.dtype, cast.shape) == (like.dtype, like.shape)
                    torch.testing.assert_close(cast.double(), expected, **near)
            keep = torch.rand(size, device=backend) > 0.5
            actual = bce(x.half(), t.half(), where=keep, reduction="sum")
            expected = bce(x.half().double(), t.half().double(), where=keep, reduction="sum")
            torch.testing.assert_close(actual.double(), expected, **tolerance(torch.float16))


@pytest.mark.parametrize("other", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mixed_dtypes(dtype, other, backend):
    """Targets and weights of another dtype than the logits."""
    x, _ = draw((4, 5), (4,))
    q, w = torch.rand_like(x), torch.rand(5, dtype=torch.float64)
    x, q, w = x.to(backend), q.to(backend), w.to(backend)
    near, b = x.to(dtype), torch.eye(5, device=backend).to(dtype)
    name = "binary_cross_entropy_with_logits"
    calls = [
        ("cross_entropy", (near, q.to(other)), {}),
        ("cross_entropy", (near, q.to(other), w.to(other)), {"label_smoothing": 0.1}),
        ("cross_entropy", (near, q.to(dtype), w.to(other)), {}),
        ("linear_cross_entropy", (near, b, q.to(other)), {}),
        ("linear_cross_entropy", (near, b, q.to(dtype)), {"weight": w.to(other)}),
        (name, (near, q.to(other)), {}),
        (name, (near, q.to(dtype), w.to(other)), {}),
        (name, (near, q.to(dtype)), {"pos_weight": w.to(other)}),
        (name, (near, q.to(dtype)), {"pos_weight": w[0].to(other)}),
    ]
    for name, arguments, options in calls:
        for reduction in ("mean", "none"):
            more = options | {"reduction": reduction}
            leaf = near.detach().requires_grad_()
            actual = getattr(xentrs.torch, name)(leaf, *arguments[1:], **more)
            expected = getattr(F, name)(near, *arguments[1:], **more)
            assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
            wide = [a.double() for a in arguments]
            more |= {k: v.double() for k, v in more.items() if torch.is_tensor(v)}
            true = getattr(F, name)(*wide, **more)
            error = {"rtol": 0.02, "atol": 0.02} if {dtype, other} & HALVES else {"rtol": 1e-5}
            torch.testing.assert_close(actual.double(), true, **({"atol": 1e-5} | error))
            actual.sum().backward()
            assert leaf.grad.dtype == dtype
            if backend == "cpu":
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    cast = getattr(xentrs.torch, name)(*arguments, **options)
                    like = getattr(F, name)(*arguments, **options)
                assert cast.dtype == like.dtype


def test_class_weights_of_another_dtype(backend):
    """PyTorch refuses them."""
    x, y = draw((4, 5), (4,))
    w = torch.rand(5, dtype=torch.float64)
    expected = F.cross_entropy(x.float().double(), y, w)
    actual = cross_entropy(x.float().to(backend), y.to(backend), w.to(backend))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_in_probabilities():
    """PyTorch computes them, here too."""
    x, _ = draw((4, 5), (4,))
    q = torch.rand_like(x).requires_grad_()
    w = torch.eye(5, dtype=torch.float64)
    for ours, theirs in (
        (cross_entropy(x, q), F.cross_entropy(x, q)),
        (xentrs.torch.linear_cross_entropy(x, w, q), F.linear_cross_entropy(x, w, q)),
    ):
        torch.testing.assert_close(ours, theirs)
        (actual,), (expected,) = torch.autograd.grad(ours, q), torch.autograd.grad(theirs, q)
        torch.testing.assert_close(actual, expected)


def test_strides(backend):
    """Any strides; the gradient of channels-last logits is channels-last too."""
    x, y = draw((2, 6, 3, 4), (2, 3, 4))
    layouts = (
        x.to(memory_format=torch.channels_last),
        x.transpose(2, 3).contiguous().transpose(2, 3),
        x[:1].expand(2, 6, 3, 4),
        torch.cat([x, x], 1)[:, ::2],
    )
    for layout in layouts:
        for dtype in (torch.float64, torch.float16):
            a, b = (layout.to(dtype).to(backend).detach().requires_grad_() for _ in range(2))
            before = b.detach().clone()
            (expected,) = torch.autograd.grad(F.cross_entropy(a, y.to(backend)), a)
            (grad,) = torch.autograd.grad(cross_entropy(b, y.to(backend)), b)
            torch.testing.assert_close(grad, expected, **tolerance(dtype))
            if layout.stride(0) and layout.stride(0) < 144:  # without gaps
                assert grad.stride() == torch.empty_like(b).stride()
            assert b.detach().equal(before)


def test_autocast(backend):
    x, y = draw((4, 5), (4,))
    with torch.autocast(backend, dtype=torch.bfloat16):
        for dtype in DTYPES:
            inputs = x.to(dtype).to(backend)
            expected = F.cross_entropy(inputs, y.to(backend))
            actual = cross_entropy(inputs, y.to(backend))
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected)
            labels = (inputs > 0).to(inputs.dtype)
            expected = F.binary_cross_entropy_with_logits(inputs, labels)
            actual = xentrs.torch.binary_cross_entropy_with_logits(inputs, labels)
            assert actual.dtype == expected.dtype
            torch.testing.assert_close(actual, expected)
        w = torch.randn(7, 5, device=backend)
        expected = F.cross_entropy(F.linear(x.float().to(backend), w), y.to(backend))
        actual = xentrs.torch.linear_cross_entropy(x.float().to(backend), w, y.to(backend))
        assert actual.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_of_a_linear_layer(low, backend):
    """What autocast layers return is half precision, parameters are not: PyTorch casts all."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, device=backend)
    w, b = torch.randn(7, 5, device=backend), torch.randn(7, device=backend)
    y = torch.tensor([3, 0, -100, 6], device=backend)
    with torch.autocast(backend, dtype=low):
        for dtypes in itertools.product((low, torch.float32), repeat=3):
            input, weight, bias = (
                t.to(dtype).requires_grad_() for t, dtype in zip((x, w, b), dtypes, strict=True)
            )
            loss = xentrs.torch.linear_cross_entropy(input, weight, y, linear_bias=bias)
            assert type(loss.grad_fn).__name__ == "LinearCrossEntropyBackward"
            expected = F.cross_entropy(F.linear(input, weight, bias), y)
            assert loss.dtype == expected.dtype == torch.float32
            torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)
            found = torch.autograd.grad(loss, (input, weight, bias))
            right = torch.autograd.grad(expected, (input, weight, bias))
            for one, other in zip(found, right, strict=True):
                assert one.dtype == other.dtype
                torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)
            further = {"z_loss": 0.1, "denominator": 5.0}
            xentrs.torch.linear_cross_entropy(input, weight, y, linear_bias=bias, **further)
            single = xentrs.torch.linear_cross_entropy(input[0], weight, y[0], linear_bias=bias)
            torch.testing.assert_close(
                single,
                F.cross_entropy(F.linear(input[:1], weight, bias), y[:1]),
                rtol=0.02,
                atol=0.02,
            )


def test_modules_show_their_options():
    module = xentrs.torch.CrossEntropyLoss(z_loss=0.1, softcap=30.0)
    assert repr(module) == "CrossEntropyLoss(z_loss=0.1, softcap=30.0)"
    assert repr(xentrs.torch.CrossEntropyLoss()) == "CrossEntropyLoss()"
    assert repr(xentrs.torch.NLLLoss(label_smoothing=0.1)) == "NLLLoss(label_smoothing=0.1)"
    assert repr(xentrs.torch.BCELoss(label_smoothing=0.1)) == "BCELoss(label_smoothing=0.1)"
    of_logits = xentrs.torch.BCEWithLogitsLoss(loss_dtype=torch.float32)
    assert repr(of_logits) == "BCEWithLogitsLoss(loss_dtype=torch.float32)"
    linear = repr(xentrs.torch.LinearCrossEntropyLoss(3, 4, temperature=2.0))
    assert "in_features=3" in linear
    assert "temperature=2.0" in linear
    assert "softcap" not in linear


def test_modules(backend):
    torch.manual_seed(0)
    x, y = torch.randn(4, 5, device=backend), torch.tensor([0, 1, -100, 4], device=backend)
    w = torch.rand(5, device=backend)
    arguments = {"weight": w, "label_smoothing": 0.1, "reduction": "sum"}
    ours = xentrs.torch.CrossEntropyLoss(**arguments)
    assert isinstance(ours, torch.nn.CrossEntropyLoss)
    torch.testing.assert_close(ours(x, y), torch.nn.CrossEntropyLoss(**arguments)(x, y))
    capped = xentrs.torch.CrossEntropyLoss(z_loss=0.1, softcap=4.0, ignore_index=(-100, 1))
    expected = cross_entropy(x, y, z_loss=0.1, softcap=4.0, ignore_index=(-100, 1))
    torch.testing.assert_close(capped(x, y), expected)
    assert capped(x, y, denominator=1).item() == pytest.approx(2 * expected.item())

    labels = (x > 0).float()
    arguments = {"pos_weight": w, "weight": w}
    expected = torch.nn.BCEWithLogitsLoss(**arguments)(x, labels)
    torch.testing.assert_close(xentrs.torch.BCEWithLogitsLoss(**arguments)(x, labels), expected)

    ours = xentrs.torch.LinearCrossEntropyLoss(5, 6, bias=True, device=backend)
    theirs = torch.nn.LinearCrossEntropyLoss(5, 6, bias=True, device=backend)
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours(x, y), theirs(x, y))


def test_both_backends_agree(monkeypatch):
    """What the Rust kernels say of a larger problem, the Triton kernels say too."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    from xentrs.torch import _backend

    x, y = draw((3, 40000), (3,))
    x = x.float()
    results = []
    for forced in ("rust", "triton"):
        monkeypatch.setattr(_backend, "FORCED", forced)
        a = x.clone().requires_grad_()
        loss = cross_entropy(a, y, label_smoothing=0.1)
        loss.backward()
        results.append((loss.detach(), a.grad))
    torch.testing.assert_close(*[r[0] for r in results])
    torch.testing.assert_close(*[r[1] for r in results], rtol=1e-5, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_tiny_losses_of_probabilities(dtype, backend, small_tiles):
    """A loss of 4e-18 is no 0, wherever in the row the largest logit is; ties count twice."""
    x = torch.zeros(6, 40, dtype=dtype)
    for row, column in enumerate((0, 7, 16, 39)):
        x[row, column] = 40.0
    x[4, [3, 30]] = 9.0
    x[5, 0], x[5, 20:] = -math.inf, -math.inf
    q = F.one_hot(torch.tensor([0, 7, 16, 39, 30, 5]), 40).to(dtype)
    rest = 39 * math.exp(-40.0)
    expected = [rest] * 4 + [math.log(2.0 + 38 * math.exp(-9.0)), math.log(19.0)]
    actual = cross_entropy(x.to(backend), q.to(backend), reduction="none").cpu().double()
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual, expected, rtol=4 * torch.finfo(dtype).eps, atol=0.0)


# Class indices of narrow types, which cannot hold every ignore_index


@pytest.mark.parametrize(
    ("dtype", "ignore_index", "classes"),
    [(torch.uint8, -100, 200), (torch.uint8, 259, 200), (torch.int16, 65537, 3)],
)
def test_ignored_indices_that_the_targets_type_cannot_hold(dtype, ignore_index, classes, backend):
    torch.manual_seed(0)
    x = torch.randn(2, classes, dtype=torch.float64, device=backend)
    y = torch.tensor([min(156, classes - 1), 1], device=backend)
    w = torch.randn(classes, 5, dtype=torch.float64, device=backend)
    ours, narrow = xentrs.torch, y.to(dtype)
    options = {"ignore_index": ignore_index}
    for extra in ({}, {"z_loss": 1e-3}, {"softcap": 3.0}, {"reduction": "none", "z_loss": 0.1}):
        ones = [ours.cross_entropy(x, t, **options, **extra) for t in (narrow, y)]
        torch.testing.assert_close(*ones)
    if classes >= 5:
        linear = [ours.linear_cross_entropy(x[:, :5], w, t, **options) for t in (narrow, y)]
        torch.testing.assert_close(*linear)


def test_chunks_of_logits_that_are_not_contiguous(small_tiles):
    """Under `torch.compile` the strides of the gradient must be those that were announced."""
    torch.manual_seed(0)
    x, y = torch.randn(2, 6, 50), torch.randint(50, (2, 6))
    for options in ({"z_loss": 1e-3}, {"softcap": 3.0}):

        def f(x, y, options=options):
            return xentrs.torch.cross_entropy((x * 2).transpose(1, 2), y, **options)

        grads = []
        for run in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
            leaf = x.clone().requires_grad_()
            run(leaf, y).backward()
            grads.append(leaf.grad)
        torch.testing.assert_close(*grads)
    for x in (torch.randn(6, 5).t(), torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)):
        y = torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.int64)
        for dtype in (torch.float32, torch.bfloat16):
            call = SoftmaxArguments(x.to(dtype).requires_grad_(), y, None, None, None)
            options = flat(Options("mean", (-100,), z_loss=0.1), tuple(SHARED))
            torch.library.opcheck(torch.ops.xentrs.cross_entropy.default, (*call, *options, True))


def test_another_default_device():
    x, y, t = torch.randn(4, 5), torch.tensor([0, 1, 2, 0]), torch.rand(4, 5)
    eye, minus = torch.eye(5), -torch.ones(5)

    def losses():
        return [
            xentrs.torch.cross_entropy(x, y, z_loss=0.1),
            xentrs.torch.cross_entropy(x, y, minus),
            xentrs.torch.cross_entropy(x, y, minus, z_loss=0.1),
            xentrs.torch.cross_entropy(x.half(), t.half()),
            xentrs.torch.binary_cross_entropy_with_logits(x, t),
            xentrs.torch.binary_cross_entropy_with_logits(x.half(), t, reduction="none"),
            xentrs.torch.linear_cross_entropy(x, eye, y),
            xentrs.torch.linear_cross_entropy(x, eye, y, weight=minus),
        ]

    expected = losses()
    with torch.device("meta"):
        found = losses()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0)


def test_meta_tensors():
    x, y = torch.empty(4, 5, device="meta"), torch.empty(4, device="meta", dtype=torch.int64)
    w = torch.empty(7, 5, device="meta")
    for dtype in (torch.float32, torch.float16):
        for module in (xentrs.torch, F):
            assert module.cross_entropy(x.to(dtype), y).dtype == dtype
            assert module.linear_cross_entropy(x.to(dtype), w.to(dtype), y).shape == ()
