"""Samples and elements that do not count: ignored, of weight 0, outside `where`.

Their gradient is 0, also where their logits or the upstream gradient are NaN or inf.
"""

import math
from functools import partial

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F
from torch import func

import xentrs.torch
from samples import each_backend_and_dtype

xt = xentrs.torch
NAN, INF = math.nan, math.inf
NAMES = (
    "ignored",
    "several ignored",
    "one sample",
    "sample weight",
    "class weight",
    "negative class weights",
    "smoothing",
    "z_loss",
    "softcap",
    "focal",
    "all options",
    "probabilities",
    "four axes",
    "channels last",
    "narrow target",
    "where",
    "where of a row",
    "element weight",
    "element weight of a row",
    "linear",
    "linear with weights",
    "linear of positions",
)


def case(name, dtype, device, *, with_nan):
    """Return a loss as a function of logits and reduction, logits, and what of them counts.

    `with_nan` puts NaN and inf in the place of logits that do not count.
    """
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    y = torch.tensor([1, -100, 2, 0, 5], device=device)
    ignored = y == -100
    counts = ~ignored[:, None].expand(5, 6)
    options = {}
    function = xt.cross_entropy
    if name == "several ignored":
        options["ignore_index"] = (-100, 0)
        counts = ~(ignored | (y == 0))[:, None].expand(5, 6)
    elif name == "one sample":
        x, y, counts = x[0], y[1], counts[1]
    elif name in ("sample weight", "probabilities"):
        options["sample_weight"] = torch.tensor([1.0, 0.0, 2.0, 0.0, -1.5], device=device)
        y = torch.rand(5, 6, device=device) if name == "probabilities" else y.clamp(min=0)
        counts = (options["sample_weight"] != 0)[:, None].expand(5, 6)
        y = y.to(dtype) if name == "probabilities" else y
    elif name in ("class weight", "negative class weights"):
        w = torch.tensor([0.5, 1.0, 0.0, 2.0, 3.0, 0.1], device=device)
        options["weight"] = w if name == "class weight" else -w
        counts = ~(ignored | (y == 2))[:, None].expand(5, 6)
    elif name == "smoothing":
        options["label_smoothing"] = 0.2
        options["weight"] = torch.rand(6, device=device)
    elif name == "z_loss":
        options["z_loss"] = 0.1
    elif name == "softcap":
        options["softcap"] = 3.0
    elif name == "focal":
        function = xt.focal_loss
    elif name == "all options":
        options = {"z_loss": 0.1, "softcap": 3.0, "label_smoothing": 0.1}
        options["sample_weight"] = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.5], device=device)
        options["weight"] = torch.rand(6, device=device)
        counts = ~(ignored | (options["sample_weight"] == 0))[:, None].expand(5, 6)
    elif name in ("four axes", "channels last"):
        x = torch.randn(5, 6, 2, 3)
        y = y[:, None, None].expand(5, 2, 3).clone()
        y[0, 1, 2], y[3, 0] = -100, -100
        counts = (y != -100)[:, None].expand(5, 6, 2, 3)
        if name == "channels last":
            x = x.to(memory_format=torch.channels_last)
    elif name == "narrow target":
        y, options = y.clamp(min=0).to(torch.uint8), {"ignore_index": 0}
        counts = (y != 0)[:, None].expand(5, 6)
    elif name in ("where", "where of a row", "element weight", "element weight of a row"):
        function, y = xt.binary_cross_entropy_with_logits, torch.rand(5, 6, device=device).to(dtype)
        mask = torch.rand(6 if "row" in name else (5, 6), device=device) > 0.4
        assert 0 < mask.sum() < mask.numel()
        options = {"where": mask} if "where" in name else {"weight": mask.to(dtype)}
        counts = mask.expand(5, 6)
    elif name.startswith("linear"):
        classes = (7, 2) if "positions" in name else (7,)
        linear_weight = torch.randn(*classes, 6).to(dtype).to(device)
        if "weights" in name:
            options["weight"] = torch.rand(7, device=device).to(dtype)
            options["sample_weight"] = torch.tensor([1.0, 1.0, 0.0, 2.0, 0.5], device=device)
            counts = ~(ignored | (options["sample_weight"] == 0))[:, None].expand(5, 6)
        if "positions" in name:
            y = torch.stack([y, y.roll(1)], 1)
            y[0] = -100
            counts = (y != -100).any(1)[:, None].expand(5, 6)
        function = partial(xt.linear_cross_entropy, linear_weight=linear_weight)
    x = x.to(dtype).to(device)
    x = put_nan(x, counts) if with_nan else x

    def run(x, reduction, **more):
        return function(x, target=y, reduction=reduction, **options, **more)

    return run, x, counts


def put_nan(x, counts):
    bad = torch.tensor([NAN, INF, -INF], dtype=x.dtype, device=x.device)
    bad = bad.repeat(x.numel())[: x.numel()].view(x.shape)
    return x.clone().copy_(torch.where(counts, x, bad))


def upstream(loss, counts, value):
    """Return an upstream gradient with this value at losses that do not count, and one without."""
    ones = torch.linspace(0.5, 1.5, max(loss.numel(), 1), device=loss.device)
    ones = ones[: loss.numel()].reshape(loss.shape)
    if loss.dim() < counts.dim():
        counts = counts.any(min(1, counts.dim() - 1))
    elif loss.shape != counts.shape:  # positions of a linear layer
        counts = counts.any(1, keepdim=True)
    return torch.where(counts, ones, value).to(loss.dtype), ones.to(loss.dtype)


WAYS = {
    "backward": lambda f, x, up: torch.autograd.grad(f(x), x, up),
    "kept graph": lambda f, x, up: torch.autograd.grad(f(x), x, up, retain_graph=True),
    "create_graph": lambda f, x, up: torch.autograd.grad(f(x), x, up, create_graph=True),
    "vjp": lambda f, x, up: func.vjp(f, x.detach())[1](up),
    "many": lambda f, x, up: [
        torch.autograd.grad(f(x), x, torch.stack([up, up]), is_grads_batched=True)[0][1]
    ],
}


@each_backend_and_dtype
@pytest.mark.parametrize("name", NAMES)
def test_any_upstream_gradient_of_losses(name, dtype, backend):
    for with_nan in (False, True):
        f, x, counts = case(name, dtype, backend, with_nan=with_nan)
        f, x = (lambda x, f=f: f(x, "none")), x.requires_grad_()
        loss = f(x).detach()
        for way, run in WAYS.items():
            if way == "create_graph" and "linear" in name:
                continue
            (expected,) = run(f, x, upstream(loss, counts, NAN)[1])
            for value in (NAN, INF, -INF):
                (grad,) = run(f, x, upstream(loss, counts, value)[0])
                assert grad.isfinite().all(), (way, with_nan, value, grad)
                assert (grad[~counts] == 0).all(), (way, with_nan, value, grad)
                torch.testing.assert_close(grad, torch.where(counts, expected, 0.0))


@each_backend_and_dtype
@pytest.mark.parametrize("name", NAMES)
def test_any_upstream_gradient_of_a_sum(name, dtype, backend):
    """The gradients of samples that count are NaN then."""
    f, x, counts = case(name, dtype, backend, with_nan=True)
    x = x.requires_grad_()
    for reduction in ("mean", "sum"):
        g = lambda x, r=reduction: f(x, r)  # noqa: E731
        loss = g(x).detach()
        if counts.any():
            assert loss.isfinite()
        for value in (NAN, INF):
            up = torch.full_like(loss, value)
            for way, run in WAYS.items():
                (grad,) = run(g, x, up)
                assert (grad[~counts] == 0).all(), (reduction, value, way, grad)
                assert not grad[counts].isfinite().any(), (reduction, value, way, grad)


@each_backend_and_dtype
def test_nothing_counts_and_the_upstream_gradient_is_nan(dtype, backend):
    x = torch.randn(3, 4, device=backend, dtype=dtype, requires_grad=True)
    w = torch.randn(5, 4, device=backend, dtype=dtype, requires_grad=True)
    y = torch.full((3,), -100, device=backend)
    b = torch.zeros(5, device=backend, dtype=dtype, requires_grad=True)
    for reduction in ("mean", "sum"):
        for loss, leaves in (
            (xt.cross_entropy(x, y, reduction=reduction), [x]),
            (
                xt.binary_cross_entropy_with_logits(
                    x, x.detach().sigmoid(), where=x > NAN, reduction=reduction
                ),
                [x],
            ),
            (xt.linear_cross_entropy(x, w, y, linear_bias=b, reduction=reduction), [x, w, b]),
        ):
            assert loss.isnan() if reduction == "mean" else loss == 0
            for grad in torch.autograd.grad(loss, leaves, torch.full_like(loss, NAN)):
                assert (grad == 0).all(), grad


@each_backend_and_dtype
def test_in_place(dtype, backend):
    names = (
        "ignored",
        "sample weight",
        "z_loss",
        "focal",
        "all options",
        "four axes",
        "channels last",
    )
    for name in names:
        for reduction in ("none", "mean"):
            f, x, counts = case(name, dtype, backend, with_nan=False)
            grads = []
            for inplace in (False, True):
                a = x.detach().clone().requires_grad_()
                loss = f(a * 1, reduction, inplace=inplace)
                up = upstream(loss, counts, NAN)[0] if reduction == "none" else loss * NAN
                grads += torch.autograd.grad(loss, a, up.detach())
            assert (grads[1][~counts] == 0).all(), grads
            torch.testing.assert_close(*grads, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_second_derivatives(name, backend):
    """Upstream gradients of gradients that do not count add nothing, in any transform."""
    for reduction in ("none", "mean"):
        if name.startswith("linear") and reduction == "none":
            continue  # refused
        results = []
        for value in (1.0, NAN):
            f, x, counts = case(name, torch.float64, backend, with_nan=math.isnan(value))
            x = x.requires_grad_()
            f = partial(f, reduction=reduction)
            up, _ = upstream(f(x), counts, value) if reduction == "none" else (x.new_ones(()), 0)
            up.requires_grad_()
            (grad,) = torch.autograd.grad(f(x), x, up, create_graph=True)
            direction = torch.where(counts, torch.ones_like(x), value)
            found = torch.autograd.grad(grad, (x, up), direction)
            twice = func.grad(lambda x, f=f, c=counts: (
                torch.where(c, func.grad(lambda x: f(x).sum())(x), 0.0) ** 2
            ).sum())(x.detach())  # fmt: skip
            assert (found[0][~counts] == 0).all(), found[0]
            assert (twice[~counts] == 0).all(), twice
            results.append((found[0][counts], found[1], twice[counts]))
        torch.testing.assert_close(*results)
        assert all(r.isfinite().all() for r in results[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_compiled(dtype):
    """Traced, and by compiled autograd of an eager loss, of which the graphs are used again."""
    import torch._dynamo.compiled_autograd as compiled_autograd

    for name in ("several ignored", "all options", "probabilities", "element weight", "linear"):
        torch._dynamo.reset()
        f, x, counts = case(name, dtype, "cpu", with_nan=True)

        def loss(x, reduction, f=f):
            return f(x * 1, reduction)

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        for reduction in ("none", "mean"):
            x = x.detach().requires_grad_()
            up, ones = upstream(loss(x, reduction), counts, NAN)
            if reduction == "mean":
                up = ones = ones.flatten()[0].detach()
            (expected,) = torch.autograd.grad(loss(x, reduction), x, ones)
            (grad,) = torch.autograd.grad(compiled(x, reduction), x, up)
            near = {"rtol": 0.02, "atol": 0.01} if dtype.itemsize == 2 else {}
            torch.testing.assert_close(grad[counts], expected[counts], **near)
            assert (grad[~counts] == 0).all()
            for _ in range(2):
                total = loss(x, reduction)
                with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
                    x.grad = None
                    total.backward(up)
                torch.testing.assert_close(x.grad[counts], expected[counts], **near)
                assert (x.grad[~counts] == 0).all()


def test_compiled_autograd_sees_each_target(backend):
    """It keeps the graph of a backward pass, not its tensors."""
    import torch._dynamo.compiled_autograd as compiled_autograd

    torch._dynamo.reset()
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.randn(4, 5, device=backend, requires_grad=True)
        y = torch.randint(0, 5, (4,), device=backend)
        y[seed] = -100
        up = torch.ones(4, device=backend)
        up[seed] = NAN
        with compiled_autograd._enable(torch.compile(backend="aot_eager", fullgraph=True)):
            xt.cross_entropy(x, y, reduction="none").backward(up)
        (expected,) = torch.autograd.grad(F.cross_entropy(x, y, reduction="none"), x, up)
        torch.testing.assert_close(x.grad, expected)


def test_means_of_sequences(backend):
    """Losses divided by the counts of their tokens, one sequence all padding, which is left out."""
    torch.manual_seed(0)
    x = torch.randn(3, 7, 5, device=backend)
    y = torch.randint(0, 7, (3, 5), device=backend)
    y[1] = -100
    y[2, 3:] = -100
    grads = []
    for loss in (F.cross_entropy, xt.cross_entropy):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            a = x.to(dtype).detach().requires_grad_()
            tokens = (y != -100).sum(1)
            means = loss(a, y, reduction="none").sum(1) / tokens
            torch.where(tokens > 0, means, 0.0).mean().backward()
            grads.append(a.grad)
    for ours, theirs in zip(grads[3:], grads[:3], strict=True):
        assert ours.isfinite().all()
        torch.testing.assert_close(ours, theirs)


def test_a_target_changed_before_the_backward_pass(backend):
    """It is read only where the upstream gradient is not finite; then an error says so."""
    x = torch.randn(3, 5, device=backend, requires_grad=True)
    for make in (lambda y: xt.cross_entropy(x, y), lambda y: xt.cross_entropy(x, y, z_loss=0.1)):
        y = torch.tensor([0, -100, 2], device=backend)
        loss = make(y)
        y.zero_()
        (grad,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert (grad[1] == 0).all()
        with pytest.raises(RuntimeError, match="cross_entropy: the gradient needs the inputs"):
            torch.autograd.grad(loss, x, torch.tensor(NAN, device=backend))


def test_linear_rows_that_do_not_count_add_nothing(backend):
    """0 times NaN is no 0 in the products of matrices."""
    torch.manual_seed(0)
    h = torch.randn(4, 3, dtype=torch.float64, device=backend)
    w = torch.randn(6, 3, dtype=torch.float64, device=backend)
    y = torch.tensor([0, -100, 5, 2], device=backend)
    s = torch.tensor([1.0, 2.0, 0.0, 0.5], device=backend)
    kept = [0, 3]
    for run in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)):
        for reduction in ("mean", "sum", "none"):
            torch._dynamo.reset()
            f = run(partial(xt.linear_cross_entropy, reduction=reduction, z_loss=0.1))
            theirs = [t.clone().requires_grad_() for t in (h[kept], w)]
            expected = f(*theirs, y[kept], sample_weight=s[kept])
            wanted = torch.autograd.grad(expected.sum(), theirs)
            for bad in (NAN, INF):
                bad_h = h.clone()
                bad_h[1], bad_h[2, 1] = bad, bad
                ours = [t.clone().requires_grad_() for t in (bad_h, w)]
                loss = f(*ours, y, sample_weight=s)
                up = torch.full_like(loss, bad)
                up[kept if reduction == "none" else ()] = 1.0
                torch.testing.assert_close(loss.sum(), expected.sum())
                grads = torch.autograd.grad(loss, ours, up)
                torch.testing.assert_close(grads[0][kept], wanted[0])
                assert (grads[0][1:3] == 0).all()
                torch.testing.assert_close(grads[1], wanted[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_factors_of_rows_have_the_bits_of_one_product(dtype):
    """Whatever the dtype of the upstream gradient is, and whether it is one number."""
    torch.manual_seed(3)
    x = torch.randn(9, 300).to(dtype).requires_grad_()
    y = torch.randint(300, (9,))
    for loss_dtype in {torch.promote_types(dtype, torch.float32), dtype}:
        loss = lambda d=loss_dtype: xt.cross_entropy(x, y, reduction="none", loss_dtype=d)  # noqa: E731
        (plain,) = torch.autograd.grad(loss().sum(), x)
        fine = torch.rand(9, dtype=torch.float64).to(loss_dtype)
        number = torch.tensor(0.3, dtype=loss_dtype)
        for up in (fine, fine.to(dtype).to(loss_dtype), number.expand(9), number.expand(9).clone()):
            (grad,) = torch.autograd.grad(loss(), x, up)
            exact = plain.double() * up.double()[:, None]
            assert torch.equal(grad, exact.to(dtype))
