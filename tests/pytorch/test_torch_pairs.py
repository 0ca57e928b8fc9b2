"""A pair (indices, probabilities) as target, and what a call returns beside the loss."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch
from samples import DTYPES
from xentrs.torch._cpu import softmax as cpu

cross_entropy = xentrs.torch.cross_entropy
SHAPES = [(11,), (5, 11), (3, 300), (4, 40, 7), (2, 400, 3, 2)]
OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.02, "reduction": "none"},
    {"softcap": 5.0},
    {"reduction": "sum", "softcap": 4.0, "z_loss": 0.01, "temperature": 2.5},
]
# A row's gradient is a difference of terms, and at the entries of half precision rounded twice.
TOLERANCES = {
    torch.float64: 1e-14,
    torch.float32: 2e-6,
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
}


def axis_of(x):
    return 1 if x.dim() > 1 else 0


def draw(shape, entries=6, seed=0):
    torch.manual_seed(seed)
    x = torch.randn(shape, dtype=torch.float64) * 3
    samples = shape[:1] + shape[2:] if len(shape) > 1 else ()
    classes = shape[axis_of(x)]
    y = torch.randint(0, classes, (*samples, entries))
    q = torch.rand(*samples, entries, dtype=torch.float64)
    y[..., 2] = y[..., 1]  # named twice
    empty = torch.rand(y.shape) < 0.2
    return x, (torch.where(empty, -100, y), torch.where(empty, torch.nan, q))


def dense(pair, x):
    """Return the probabilities of all classes."""
    y, q = pair
    axis = axis_of(x)
    y, q = torch.where(y == -100, 0, y), torch.where(y == -100, 0.0, q.double())
    zeros = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    return zeros.scatter_add(axis, y.movedim(-1, axis), q.movedim(-1, axis))


def capped(x, options):
    cap = options.get("softcap")
    x = cap * (x / cap).tanh() if cap else x
    return x / options.get("temperature", 1.0)


def expected(x, target, options):
    """Return the loss by functions of PyTorch, in float64."""
    axis, e = axis_of(x), options.get("label_smoothing", 0.0)
    z = capped(x, options)
    t = (1 - e) * target + e / x.shape[axis]
    weight, s = options.get("weight"), options.get("sample_weight")
    if weight is not None:
        t = t * weight.double().view(-1, *[1] * (x.dim() - axis - 1))
    loss = -(t * z.log_softmax(axis)).sum(axis)
    loss = loss + options.get("z_loss", 0.0) * z.logsumexp(axis) ** 2
    count = max(loss.numel(), 1)
    if s is not None:
        loss, count = loss * s, s.double().sum()
    reduction = options.get("reduction", "mean")
    return loss if reduction == "none" else loss.sum() / (1 if reduction == "sum" else count)


def assert_near(actual, right, tolerance, size=None):
    size = right.abs().max() if size is None else size
    assert ((actual.double() - right).abs().max() <= tolerance * size + 1e-30).item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_pair_is_the_dense_target(options, shape, dtype, backend, small_tiles):
    x, pair = draw(shape)
    x = x.to(dtype).double()
    samples, classes = pair[0].shape[:-1], shape[axis_of(x)]
    for weighted in (False, True):
        given = dict(options)
        if weighted:
            given["weight"] = torch.rand(classes, dtype=torch.float32, device=backend) + 0.5
            if samples:
                weights = (torch.rand(samples) > 0.3).float()
                weights.view(-1)[0] = 2.0
                given["sample_weight"] = weights.to(backend)
        actual_x = x.to(backend, dtype).requires_grad_()
        exact_x = x.to(backend).requires_grad_()
        on_device = tuple(t.to(backend) for t in pair)
        if dtype != torch.float64:
            on_device = on_device[0].int(), on_device[1].float()
        loss = cross_entropy(actual_x, on_device, **given)
        right = expected(exact_x, dense(on_device, exact_x), given)
        assert_near(loss, right, TOLERANCES[dtype])
        weights = torch.linspace(0.5, 1.5, max(loss.numel(), 1), device=backend)
        weights = weights.reshape(loss.shape)
        (grad,) = torch.autograd.grad(loss, actual_x, weights.to(loss.dtype))
        (exact,) = torch.autograd.grad(right, exact_x, weights.double())
        # The larger of the two terms whose difference the gradient is.
        target, p = dense(on_device, exact_x), capped(exact_x.detach(), given).softmax(axis_of(x))
        terms = torch.maximum(target, target.sum(axis_of(x), keepdim=True) * p).max()
        count = 1 if given.get("reduction", "mean") != "mean" else max(samples.numel(), 1)
        size = torch.maximum(exact.abs().max(), terms / count)
        assert_near(grad, exact, TOLERANCES[dtype], size)


def test_one_entry_is_a_class_index(backend):
    x = torch.tensor([[17.0, 0.0], [0.0, 1.0]], device=backend).requires_grad_()
    pair = torch.tensor([[0], [1]], device=backend), torch.ones(2, 1, device=backend)
    loss = cross_entropy(x, pair, reduction="none")
    assert loss[0].item() == pytest.approx(4.1399e-8, rel=1e-4)
    loss.sum().backward()
    assert x.grad[0, 0].item() == pytest.approx(-4.1399e-8, rel=1e-4)


def test_rows_of_empty_entries_count_in_the_mean(backend):
    x = torch.randn(4, 30, device=backend).requires_grad_()
    y, q = torch.full((4, 2), -100, device=backend), torch.full((4, 2), 0.5, device=backend)
    y[1] = torch.tensor([3, 4])
    loss = cross_entropy(x, (y, q))
    alone = cross_entropy(x[1:2], (y[1:2], q[1:2]))
    assert loss.item() == pytest.approx(alone.item() / 4, rel=1e-6)
    loss.backward()
    assert (x.grad[[0, 2, 3]] == 0).all()


def test_rows_without_a_sum_are_nan(backend):
    """Of NaN, of an infinite logit, all of -inf: with entries, without any, with such of 0."""
    inf, nan = torch.inf, torch.nan
    rows = [[1.0, 2.0, nan, 0.0], [inf, 1.0, 2.0, 3.0], [-inf] * 4, [-inf, 1.0, 2.0, 3.0]]
    x = torch.tensor(rows, device=backend)
    empty, one = [-100, -100], [1, -100]
    for entries, q in ((empty, 0.5), (one, 0.5), ([0, 0], 0.0)):
        pair = torch.tensor([entries] * 4), torch.full((4, 2), q)
        given = tuple(t.to(backend) for t in pair)
        for options in ({}, {"z_loss": 0.1}, {"softcap": 3.0}, {"temperature": 2.0}):
            leaf = x.clone().requires_grad_()
            loss = cross_entropy(leaf, given, reduction="none", **options)
            loss.sum().backward()
            expected, grad = xentrs.cross_entropy_with_grad(
                np.array(rows, np.float32),
                tuple(t.numpy() for t in pair),
                reduction="none",
                **options,
            )
            assert np.isnan(expected).tolist() == [True, True, True, False]
            near = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
            torch.testing.assert_close(loss.detach().cpu(), torch.from_numpy(expected), **near)
            torch.testing.assert_close(leaf.grad.cpu(), torch.from_numpy(grad), **near)
            out = torch.tensor([0.0, 1.0, 1.0, 1.0], device=backend)
            left = cross_entropy(x[[0, 3, 3, 3]], given, sample_weight=out, **options)
            assert left.isfinite()


def test_second_derivatives(backend):
    x, pair = draw((3, 9))
    pair = tuple(t.to(backend) for t in pair)
    x = x.to(backend).requires_grad_()
    for options in OPTIONS:
        given = {"weight": torch.rand(9, dtype=torch.float64, device=backend), **options}
        (grad,) = torch.autograd.grad(cross_entropy(x, pair, **given).sum(), x, create_graph=True)
        (exact,) = torch.autograd.grad(
            expected(x, dense(pair, x), given).sum(), x, create_graph=True
        )
        v = torch.randn_like(x)
        assert_near(
            torch.autograd.grad(grad, x, v, retain_graph=True)[0],
            torch.autograd.grad(exact, x, v, retain_graph=True)[0],
            1e-12,
        )


def test_transforms():
    x, pair = draw((4, 20))
    loss = lambda x: cross_entropy(x, pair, label_smoothing=0.1)  # noqa: E731
    right = lambda x: expected(x, dense(pair, x), {"label_smoothing": 0.1})  # noqa: E731
    assert_near(torch.func.grad(loss)(x), torch.func.grad(right)(x), 1e-13)
    v = torch.randn_like(x)
    for a, b in zip(
        torch.func.jvp(loss, (x,), (v,)), torch.func.jvp(right, (x,), (v,)), strict=True
    ):
        assert_near(a, b, 1e-13)


def test_compiled(backend):
    x, pair = draw((4, 20))
    x, *pair = (t.to(backend) for t in (x, *pair))
    x.requires_grad_()

    def step(x, y, q):
        loss, logsumexp, *_ = cross_entropy(x * 1.0, (y, q), return_logsumexp=True)
        return loss + (logsumexp**2).sum()

    if backend == "cpu":
        compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
        right = expected(x, dense(pair, x), {}) + (x.logsumexp(1) ** 2).sum()
        actual = compiled(x, *pair)
        assert_near(actual, right, 1e-13)
        assert_near(torch.autograd.grad(actual, x)[0], torch.autograd.grad(right, x)[0], 1e-13)


def test_module(backend):
    x, pair = draw((4, 20))
    pair = tuple(t.to(backend) for t in pair)
    module = xentrs.torch.CrossEntropyLoss(label_smoothing=0.1)
    x = x.to(backend)
    assert module(x, pair) == cross_entropy(x, pair, label_smoothing=0.1)


X, Y, Q = torch.zeros(4, 5), torch.zeros(4, 2, dtype=torch.long), torch.full((4, 2), 0.5)


@pytest.mark.parametrize(
    ("pair", "options", "error", "message"),
    [
        ((Y,), {}, ValueError, "tuple of length 1"),
        ((Y, Q, Q), {}, ValueError, "tuple of length 3"),
        ((Y[:3], Q[:3]), {}, ValueError, r"target\[0\] has shape \(3, 2\).*shape \(4, k\)"),
        ((Y, Q[:, :1]), {}, ValueError, r"target\[1\] has shape \(4, 1\).*\(4, 2\)"),
        ((Q, Y), {}, TypeError, r"target\[0\] has dtype torch.float32"),
        ((Y, Y), {}, TypeError, r"target\[1\] has dtype torch.int64"),
        ((Y.tolist(), Q), {}, TypeError, r"target\[0\] must be a Tensor, not list"),
        ((Y + 5, Q), {}, IndexError, r"target\[0\]\[0, 0\] is 5, but .* in \[0, 5\)"),
        ((Y - 1, Q), {"softcap": 3.0}, IndexError, r"target\[0\]\[0, 0\] is -1"),
        ((Y, Q.clone().requires_grad_()), {}, NotImplementedError, r"target\[1\] requires a grad"),
        ((Y, Q), {"reduction": "nome"}, ValueError, "nome"),
        ((Y, Q), {"label_smoothing": 2.0}, ValueError, "label_smoothing"),
        ((Y, Q), {"weight": torch.ones(4)}, ValueError, r"weight has shape \(4,\)"),
        ((Y, Q), {"return_accuracy": True}, TypeError, "class indices"),
    ],
)
def test_errors(pair, options, error, message):
    with pytest.raises(error, match=message):
        cross_entropy(X, pair, **options)


# What is returned beside the loss


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", ["indices", "probabilities", "pair"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logsumexp(options, kind, dtype, backend, small_tiles):
    for shape in SHAPES:
        x, pair = draw(shape)
        x = x.to(dtype).double()
        target = tuple(t.to(backend) for t in pair)
        if kind == "probabilities":
            target = dense(target, x.to(backend))
        elif kind == "indices":
            target = target[0][..., 0]  # some are ignored
        axis = axis_of(x)
        actual_x = x.to(backend, dtype).requires_grad_()
        exact_x = x.to(backend).requires_grad_()
        plain = cross_entropy(actual_x, target, **options)
        loss, logsumexp = cross_entropy(actual_x, target, **options, return_logsumexp=True)
        assert torch.equal(loss, plain) or loss.isnan().all()
        assert logsumexp.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        right = capped(exact_x, options).logsumexp(axis)
        tolerance = 1e-14 if dtype == torch.float64 else 1e-6
        assert_near(logsumexp, right, tolerance)
        # Its gradient, alone and with that of the loss.
        v = torch.rand_like(right)
        (grad,) = torch.autograd.grad(logsumexp, actual_x, v.to(logsumexp.dtype), retain_graph=True)
        (exact,) = torch.autograd.grad(right, exact_x, v)
        assert_near(grad, exact, TOLERANCES[dtype])
        (of_loss,) = torch.autograd.grad(plain.sum(), actual_x)
        (both,) = torch.autograd.grad(loss.sum() + (v * logsumexp).sum(), actual_x)
        size = exact.abs().max() + of_loss.double().abs().max()
        if not of_loss.isnan().any():
            assert_near(both, of_loss.double() + exact, TOLERANCES[dtype], size)
        with torch.no_grad():
            again = cross_entropy(actual_x, target, **options, return_logsumexp=True)
            assert torch.equal(again[1], logsumexp) or dtype == torch.float16


def test_logsumexp_has_a_second_derivative(backend):
    x, pair = draw((3, 9))
    x, target = x.to(backend).requires_grad_(), pair[0][:, 0].to(backend)
    for options in ({}, {"softcap": 3.0}):
        assert torch.autograd.gradgradcheck(
            lambda x, options=options: cross_entropy(x, target, **options, return_logsumexp=True)[
                1
            ],
            (x,),
        )


def test_accuracy(backend, small_tiles):
    torch.manual_seed(1)
    x = torch.randn(40, 9, 2).round()  # many ties
    y = torch.where(torch.rand(40, 2) < 0.2, -100, torch.randint(0, 9, (40, 2)))
    y = torch.where(torch.rand(40, 2) < 0.5, x.argmax(1), y)
    kept = y != -100
    right = (x.argmax(1) == y)[kept].float().mean()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        given, target = x.to(backend, dtype).requires_grad_(), y.to(backend)
        for options in ({}, {"label_smoothing": 0.1}, {"softcap": 30.0}, {"softcap": 0.1}):
            loss, accuracy = cross_entropy(given, target, return_accuracy=True, **options)
            assert loss == cross_entropy(given, target, **options)
            assert accuracy.item() == pytest.approx(right.item())
            assert not accuracy.requires_grad
        loss, logsumexp, hits = cross_entropy(
            given, target, reduction="none", return_logsumexp=True, return_accuracy=True
        )
        assert loss.shape == logsumexp.shape == hits.shape
        assert torch.equal(hits.cpu(), ((x.argmax(1) == y) & kept).float())
    ignored = torch.full((40, 2), -100, device=backend)
    assert cross_entropy(x.to(backend), ignored, return_accuracy=True)[1].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_summaries_leave_the_kernel_as_it_is(dtype, monkeypatch):
    torch.manual_seed(2)
    x = (torch.randn(40, 300) * 4).to(dtype)
    y = torch.randint(0, 300, (40,))
    alone = cross_entropy(x, y, softcap=20.0, temperature=2.0)
    passes = []
    own = cpu.fill_logsumexp
    monkeypatch.setattr(cpu, "fill_logsumexp", lambda *a: passes.append("logsumexp") or own(*a))
    options = {"softcap": 20.0, "temperature": 2.0, "return_accuracy": True}
    loss, accuracy = cross_entropy(x, y, **options)
    assert torch.equal(loss, alone)
    assert accuracy == (x.argmax(1) == y).float().mean()
    assert passes == []
    loss, logsumexp, accuracy = cross_entropy(x, y, return_logsumexp=True, **options)
    assert torch.equal(loss, alone)
    assert passes == ["logsumexp"] * (dtype != torch.float32)
    assert logsumexp.dtype == torch.float32
    exact = (20.0 * (x.double() / 20.0).tanh() / 2.0).logsumexp(1)
    torch.testing.assert_close(logsumexp.double(), exact, rtol=1e-6, atol=1e-6)


def test_with_inplace(backend):
    x, pair = draw((6, 20))
    y = pair[0][:, 0].to(backend)
    leaf = x.float().to(backend).requires_grad_()
    expected = cross_entropy(leaf, y, return_logsumexp=True, return_accuracy=True)
    logits = leaf * 1.0
    actual = cross_entropy(logits, y, inplace=True, return_logsumexp=True, return_accuracy=True)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    (grad,) = torch.autograd.grad(expected[0], leaf)
    (other,) = torch.autograd.grad(actual[0], leaf)
    torch.testing.assert_close(other, grad)


def test_left_to_pytorch():
    soft = torch.full((4, 5), 0.2, requires_grad=True)
    for name in ("return_logsumexp", "return_accuracy"):
        with pytest.raises(ValueError, match=f"{name} cannot be combined with gradients"):
            cross_entropy(X, soft, **{name: True})


def test_linear_cross_entropy_takes_no_pair():
    _, pair = draw((5, 11))
    with pytest.raises(TypeError, match=r"target is a tuple.*linear_cross_entropy takes no pair"):
        xentrs.torch.linear_cross_entropy(torch.randn(5, 3).double(), torch.randn(11, 3), pair)
