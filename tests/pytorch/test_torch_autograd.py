"""Everything that traces, transforms or replays a loss: it works, or says why not."""

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import xentrs.torch
from samples import fast, operator_samples
from xentrs.torch._arguments.linear import LinearArguments
from xentrs.torch._arguments.options import SHARED, Options, flat
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._operators import gradients

cross_entropy = xentrs.torch.cross_entropy
bce = xentrs.torch.binary_cross_entropy_with_logits
linear = xentrs.torch.linear_cross_entropy


@pytest.fixture
def x(backend):
    torch.manual_seed(0)
    return torch.randn(4, 5, dtype=torch.float64, device=backend) * 2


@pytest.fixture
def y(backend):
    return torch.tensor([0, 3, -100, 4], device=backend)


@pytest.fixture
def w(backend):
    torch.manual_seed(1)
    return torch.randn(5, 3, dtype=torch.float64, device=backend)


def grad_of(f, x):
    x = x.detach().clone().requires_grad_()
    return torch.autograd.grad(f(x), x)[0]


# The gradient


OPTIONS = [
    {},
    {"label_smoothing": 0.1, "reduction": "sum"},
    {"reduction": "none"},
    {"z_loss": 0.1, "softcap": 3.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(x, y, options):
    x = x.requires_grad_()
    q = torch.rand_like(x)
    for target in (y, q):
        f = lambda x: cross_entropy(x, target, **options)  # noqa: B023, E731
        assert torch.autograd.gradcheck(f, x, **fast())
        assert torch.autograd.gradgradcheck(f, x, **fast())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_binary(x, reduction):
    x = x.requires_grad_()
    t, v, m = torch.rand_like(x), torch.rand_like(x[0]), x > -0.5
    f = lambda x: bce(x, t, pos_weight=v, weight=v, where=m, reduction=reduction)  # noqa: E731
    assert torch.autograd.gradcheck(f, x, **fast())
    assert torch.autograd.gradgradcheck(f, x, **fast())


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradcheck_linear(x, y, w, reduction):
    inputs = [t.detach().requires_grad_() for t in (x @ w, w, w.sum(1))]
    f = lambda x, w, b: linear(x, w, y, linear_bias=b, reduction=reduction)  # noqa: E731
    assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True, **fast())
    if reduction == "mean":
        modes = {"check_fwd_over_rev": True, "check_rev_over_rev": True}
        assert torch.autograd.gradgradcheck(f, inputs, **modes, **fast())


def test_gradients_in_targets_are_pytorchs(x):
    q = torch.rand_like(x)
    expected = grad_of(lambda q: F.cross_entropy(x, q), q)
    torch.testing.assert_close(grad_of(lambda q: cross_entropy(x, q), q), expected)
    expected = grad_of(lambda q: F.binary_cross_entropy_with_logits(x, q), q)
    torch.testing.assert_close(grad_of(lambda q: bce(x, q), q), expected)
    with pytest.raises(NotImplementedError, match="gradients in the target"):
        cross_entropy(x, q.requires_grad_(), z_loss=0.1)


def test_scaled_retained_and_accumulated(x, y):
    """The stored gradient is multiplied in place only if no other backward pass needs it."""
    for reduction in ("mean", "none"):
        a, b = (x.clone().requires_grad_() for _ in range(2))
        ours = cross_entropy(a * 1.0, y, reduction=reduction).sum() * 3
        theirs = F.cross_entropy(b * 1.0, y, reduction=reduction).sum() * 3
        for _ in range(2):
            ours.backward(retain_graph=True)
            theirs.backward(retain_graph=True)
        torch.testing.assert_close(a.grad, b.grad)
    loss = cross_entropy(a, y)
    first = torch.autograd.grad(loss, a, retain_graph=True)[0]
    first.zero_()
    assert torch.autograd.grad(loss, a)[0].any()
    for dtype in (torch.float16, torch.bfloat16):
        low = x.to(dtype)
        expected = grad_of(lambda x: F.cross_entropy(x, y) * 128, low)
        torch.testing.assert_close(grad_of(lambda x: cross_entropy(x, y) * 128, low), expected)


def test_memory_of_a_freed_gradient_is_used_again():
    """And of no other."""
    x, y = torch.randn(64, 10000), torch.zeros(64, dtype=torch.long)
    expected = grad_of(lambda x: F.cross_entropy(x, y), x)
    first = grad_of(lambda x: cross_entropy(x, y), x)
    second = grad_of(lambda x: cross_entropy(x, y), x)
    part = first[:1]
    memory = first.data_ptr()
    assert second.data_ptr() != memory
    del first  # a view is left
    third = grad_of(lambda x: cross_entropy(x, y), x)
    assert third.data_ptr() != memory
    del part
    fourth = grad_of(lambda x: cross_entropy(x, y), x)
    assert fourth.data_ptr() == memory
    for grad in (second, third, fourth):
        torch.testing.assert_close(grad, expected)


def test_logits_without_other_references_are_differentiated_twice(x, y):
    x.requires_grad_()
    grads = []
    for f in (cross_entropy, F.cross_entropy):
        (grad,) = torch.autograd.grad(f(x * 2.0, y), x, create_graph=True)
        grads.append(torch.autograd.grad(grad.square().sum(), x)[0])
    torch.testing.assert_close(*grads)


def test_freed_logits_cannot_be_differentiated_twice(x, y, monkeypatch):
    monkeypatch.setattr(gradients, "KEPT", 0)  # as if they were large
    x.requires_grad_()
    loss = cross_entropy(x * 1.0, y)
    with pytest.raises(RuntimeError, match=r"xentrs.torch.cross_entropy.*second derivative.*freed"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_target_that_was_changed_is_refused(x, y, w):
    x.requires_grad_()
    w = w.detach().requires_grad_()
    half = x.detach().half().requires_grad_()
    ones = torch.ones(4, 3, dtype=torch.float64, device=x.device)
    for f, leaf, create_graph in (
        (lambda y: cross_entropy(x, y), x, True),
        (lambda y: linear(ones, w, y), w, True),
        (lambda y: linear(ones, w, y, reduction="none").sum(), w, False),
        (lambda y: cross_entropy(half, y), half, False),
    ):
        target = y.clone()
        loss = f(target)
        target.fill_(0)
        with pytest.raises(RuntimeError, match=r"changed|modified by an inplace operation"):
            torch.autograd.grad(loss, leaf, create_graph=create_graph)


def test_many_gradients_at_once(x, y, w):
    """`is_grads_batched`, of which `jacobian` with `vectorize` is made."""
    x = x.requires_grad_()
    w = w.detach().requires_grad_()
    q = x.detach().sigmoid()
    ones = torch.ones(4, 3, dtype=torch.float64, device=x.device)
    for f, leaf in (
        (lambda m: m.cross_entropy(x, y, reduction="none"), x),
        (lambda m: m.cross_entropy(x, y).unsqueeze(0), x),
        (lambda m: m.binary_cross_entropy_with_logits(x, q, reduction="none"), x),
        (lambda m: m.linear_cross_entropy(ones, w, y, reduction="none"), w),
    ):
        grads = []
        for module in (xentrs.torch, F):
            loss = f(module)
            eye = torch.eye(loss.numel(), dtype=loss.dtype, device=loss.device)
            grad_outputs = eye.reshape(-1, *loss.shape)
            grads += torch.autograd.grad(loss, leaf, grad_outputs, is_grads_batched=True)
        torch.testing.assert_close(*grads)


def test_upstream_gradient_is_a_negative_view(x, y):
    x.requires_grad_()
    one = torch.complex(*torch.tensor([0.0, 1.0], dtype=torch.float64, device=x.device))
    minus = one.conj().imag
    assert minus.is_neg()
    (grad,) = torch.autograd.grad(cross_entropy(x, y), x, minus)
    torch.testing.assert_close(grad, -grad_of(lambda x: F.cross_entropy(x, y), x))


def test_vmap_over_nothing(x, y):
    xs, ys = x.new_zeros(0, 6, 5), y.new_zeros(0, 6)
    assert torch.func.vmap(lambda x, y: cross_entropy(x, y))(xs, ys).shape == (0,)


# Loss scaling: float16 has no numbers for most entries of a gradient until they are multiplied.


def losses_to_scale(device):
    """Yield losses as functions of a module and the leaf that is differentiated, and the leaf."""
    torch.manual_seed(0)
    n, classes = 64, 2000
    x = torch.randn(n, classes, device=device)
    y = torch.randint(0, classes, (n,), device=device)
    s = torch.rand(n, device=device) + 0.5
    x_in, w = torch.randn(n, 16, device=device), torch.randn(classes, 16, device=device)
    yield (lambda m, x: m.cross_entropy(x, y)), x
    yield (lambda m, x: m.cross_entropy(x, y, reduction="sum") / n), x
    yield (lambda m, x: (m.cross_entropy(x, y, reduction="none") * s.to(x.dtype)).mean()), x
    yield (lambda m, x: m.binary_cross_entropy_with_logits(x, x.detach().sigmoid() * 0.5)), x
    yield (lambda m, x: m.linear_cross_entropy(x, w.to(x.dtype), y)), x_in
    yield (lambda m, x: m.linear_cross_entropy(x_in.to(x.dtype), x, y)), w


def assert_scaled(f, x, run=lambda f: f):
    """Assert that a float16 gradient of the loss times 2^14 is about the one of float64."""
    half = x.half().requires_grad_()
    exact = half.detach().double().requires_grad_()
    (run(f)(xentrs.torch, half).float() * 2.0**14).backward()
    (f(F, exact) * 2.0**14).backward()
    error = (half.grad.double() - exact.grad).norm() / exact.grad.norm()
    assert error < 1e-3, error
    wanted = exact.grad.half() != 0
    assert (half.grad[wanted] == 0).double().mean() < 1e-3


def test_loss_scaling_of_float16(backend):
    for f, x in losses_to_scale(backend):
        assert_scaled(f, x)


def test_loss_scaling_of_float16_in_operators(backend):
    for f, x in losses_to_scale(backend):
        half = x.half()
        exact = half.double().requires_grad_()
        scaled = torch.func.grad(lambda x, f=f: f(xentrs.torch, x).float() * 2.0**14)(half)
        (f(F, exact) * 2.0**14).backward()
        assert (scaled.double() - exact.grad).norm() / exact.grad.norm() < 1e-3


def test_loss_scaling_in_place(x, y):
    logits = torch.randn(64, 500, device=x.device, dtype=torch.float16)
    target = torch.arange(64, device=x.device)
    a = logits.clone().requires_grad_()
    z = a * 1
    memory = z.data_ptr()
    loss = cross_entropy(z, target, inplace=True)
    with pytest.raises(RuntimeError):
        (loss.float() + z.float().sum()).backward(retain_graph=True)
    (loss.float() * 2.0**14).backward()
    assert z.data_ptr() == memory
    expected = grad_of(lambda x: F.cross_entropy(x, target) * 2.0**14, logits.double())
    torch.testing.assert_close(a.grad.double(), expected, rtol=2e-3, atol=1e-7)
    torch.testing.assert_close(z.detach(), a.grad)


# In place


def test_inplace(x, y):
    a = x.clone().requires_grad_()
    logits = a * 2
    memory = logits.data_ptr()
    loss = cross_entropy(logits, y, inplace=True)
    loss.backward()
    expected = grad_of(lambda x: F.cross_entropy(x * 2, y), x)
    assert logits.data_ptr() == memory
    torch.testing.assert_close(logits.detach() * 2, expected)
    torch.testing.assert_close(a.grad, expected)
    torch.testing.assert_close(
        grad_of(lambda x: cross_entropy(x * 2, y, inplace=True), x), expected
    )
    for dtype in (torch.float32, torch.bfloat16):
        expected = grad_of(lambda x: F.cross_entropy(x * 2, y), x.to(dtype))
        actual = grad_of(lambda x: cross_entropy(x * 2, y, inplace=True), x.to(dtype))
        torch.testing.assert_close(actual, expected)
    wide = torch.stack([x, x, x], 1).reshape(4, 3, 5).movedim(2, 1)[:, :, None].expand(4, 5, 2, 3)
    targets = y[:, None, None].expand(4, 2, 3)
    for dtype in (torch.float64, torch.float16):
        # Strides of which samples x classes x positions is no view.
        logits = wide.to(dtype).clone(memory_format=torch.contiguous_format).transpose(2, 3)
        expected = grad_of(lambda x: F.cross_entropy(x * 2, targets.mT), logits)
        a = logits.detach().requires_grad_()
        twice = a * 2
        assert twice.stride() == logits.stride()
        cross_entropy(twice, targets.mT, inplace=True).backward()
        torch.testing.assert_close(a.grad, expected)
    with pytest.raises(RuntimeError, match="no view of another tensor"):
        cross_entropy(a.sum(0, True).expand_as(a), targets.mT, inplace=True)
    before = x.clone()
    cross_entropy(x, y, inplace=True)  # no gradient is wanted, nothing is written
    assert (x == before).all()


def test_inplace_is_known_to_autograd(x, y):
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="leaf Variable"):
        cross_entropy(x, y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        cross_entropy(x.exp(), y, inplace=True).backward()  # exp needs its result
    logits = x * 2
    loss = cross_entropy(logits, y, inplace=True)
    with pytest.raises(RuntimeError, match="the logits are needed again"):
        (loss + logits.sum()).backward()
    logits = x * 2
    other = logits.square().sum()
    loss = cross_entropy(logits, y, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + other).backward()


# Operators, torch.compile, torch.func


def test_derivatives_where_a_softcap_is_flat():
    """There 1 - tanh^2 has lost its digits."""
    cap = 3.0
    x = cap * torch.tensor([[0.0, 0.5, -4.0, 6.0, -8.0], [5.0, -7.0, 9.0, 8.5, -0.1]])
    y, v = torch.tensor([2, 0]), torch.tensor([[0.3, 1.0, 0.7, 1.0, 2.0]] * 2)

    def loss(x):
        if x.dtype == torch.float64:
            return F.cross_entropy(cap * (x / cap).tanh(), y)
        return xentrs.torch.cross_entropy(x, y, softcap=cap)

    def logsumexp(x):
        if x.dtype == torch.float64:
            return (cap * (x / cap).tanh()).logsumexp(1)[0]
        return xentrs.torch.cross_entropy(x, y, softcap=cap, return_logsumexp=True)[1][0]

    def first(function, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x), x, create_graph=True)[0]

    def backward(x):
        return first(lambda x: (first(loss, x) * v.to(x.dtype)).sum(), x)

    def forward(x):
        return torch.func.jvp(torch.func.grad(loss), (x,), (v.to(x.dtype),))[1]

    def third(x):
        return first(lambda x: (backward(x) * v.to(x.dtype)).sum(), x)

    def compare(derivative, x):
        found, exact = derivative(x).detach(), derivative(x.double()).detach()
        torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=0.0)

    for derivative in (backward, forward, lambda x: first(logsumexp, x)):
        compare(derivative, x)
    compare(third, x.clamp(-cap, cap))  # 0 among them, where it is no corner


def test_opcheck(x, y, w, backend):
    x32, w32 = x.float().requires_grad_(), w.float().requires_grad_()
    ops = torch.ops.xentrs
    plain = flat(Options("mean", (-100,), label_smoothing=0.1), tuple(SHARED))
    call = SoftmaxArguments(x32, y, None, None, None)
    torch.library.opcheck(ops.cross_entropy.default, (*call, *plain, True))
    options = Options("none", (-100, -1), z_loss=0.1, softcap=3.0, temperature=2.0)
    none = flat(options, tuple(SHARED))
    call = call._replace(input=x32.detach())
    torch.library.opcheck(ops.cross_entropy.default, (*call, *none, False))
    name = ops.binary_cross_entropy_with_logits.default
    t = (x > 0).float()
    torch.library.opcheck(name, (x32, t, None, t[0] + 1, x > -1, None, "mean", 0.1, True))
    inputs = (x32.detach() @ w32.detach()).requires_grad_()
    call = LinearArguments(inputs, w32, None, y, None, None, None)
    arguments = (*call, *plain, 2, [True, True, False])
    torch.library.opcheck(ops.linear_cross_entropy.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compile(x, y, w, dtype):
    torch._dynamo.reset()
    x, w = x.to(dtype), w.to(dtype)
    t = (x > 0).to(dtype)

    def all_three(module, x):
        loss = module.cross_entropy(x * 2, y, label_smoothing=0.1)
        loss = loss + module.binary_cross_entropy_with_logits(x * 2, t, reduction="none").sum()
        return loss + module.linear_cross_entropy(x @ w, w, y)

    compiled = torch.compile(
        lambda x: all_three(xentrs.torch, x), fullgraph=True, backend="aot_eager"
    )
    x_ = x.clone().requires_grad_()
    loss = compiled(x_)
    loss.backward()
    near = {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(loss, all_three(F, x), **near)
    torch.testing.assert_close(x_.grad, grad_of(lambda x: all_three(F, x), x), **near)


def test_compile_with_options_of_ours(x, y, w):
    torch._dynamo.reset()
    y, where, s = y.clamp(min=0), x > -1, torch.rand(y.shape, dtype=x.dtype)

    def losses(x, number):
        more = {"sample_weight": s, "denominator": number, "label_smoothing": number / 10.0}
        more |= {"z_loss": number / 30.0, "softcap": number, "temperature": number}
        loss = xentrs.torch.cross_entropy(x * 2, y, ignore_index=None, **more)
        loss = loss + xentrs.torch.cross_entropy(x * 2, y, ignore_index=(1, -100), **more)
        loss = loss + xentrs.torch.linear_cross_entropy(x @ w, w, y, ignore_index=[-100, 1], **more)
        return loss + xentrs.torch.binary_cross_entropy_with_logits(
            x, x.sigmoid().detach(), where=where, label_smoothing=number / 10.0, denominator=number
        )

    compiled = torch.compile(losses, fullgraph=True, dynamic=True, backend="aot_eager")
    for number in (3.0, 4.0, 5):
        actual = grad_of(lambda x: compiled(x, number), x)  # noqa: B023
        torch.testing.assert_close(actual, grad_of(lambda x: losses(x, number), x))  # noqa: B023


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "BCEWithLogitsLoss"])
def test_compile_a_module_made_inside(x, y, name):
    torch._dynamo.reset()
    module = getattr(xentrs.torch, name)
    target = y.clamp(min=0) if name == "CrossEntropyLoss" else x.detach().sigmoid()
    compiled = torch.compile(lambda x: module()(x, target), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(grad_of(compiled, x), grad_of(lambda x: module()(x, target), x))


def test_compile_inductor(x, y):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, y: cross_entropy(x * 2, y), fullgraph=True, dynamic=True)
    for n in (4, 3):
        actual = grad_of(lambda x: compiled(x, y[:n]), x[:n])  # noqa: B023
        expected = grad_of(lambda x: F.cross_entropy(x * 2, y[:n]), x[:n])  # noqa: B023
        torch.testing.assert_close(actual, expected)


def test_func(x, y):
    func = torch.func
    xs, ys = torch.stack([x, x + 1, 2 * x]), torch.stack([y, y.roll(1), y.roll(2)])
    transforms = [
        lambda f: func.grad(lambda x: f(x, y))(x),
        lambda f: func.vmap(f)(xs, ys),
        lambda f: func.vmap(f, in_dims=(0, None))(xs, y),
        lambda f: func.vmap(func.grad(f))(xs, ys),
        lambda f: func.grad(lambda x: func.vmap(f)(x, ys).sum())(xs),
        lambda f: func.grad(lambda x: func.grad(lambda x: f(x, y))(x).square().sum())(x),
        lambda f: func.jacrev(func.jacrev(lambda x: f(x, y)))(x),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(cross_entropy), transform(F.cross_entropy))


def test_forward_mode(x, y):
    for transform in (torch.func.hessian, torch.func.jacfwd):
        for options in ({}, {"label_smoothing": 0.1, "reduction": "sum"}):
            ours, theirs = (
                transform(lambda x: f(x, y, **options))(x)  # noqa: B023
                for f in (cross_entropy, F.cross_entropy)
            )
            torch.testing.assert_close(ours, theirs)
    s = torch.ones(4, dtype=torch.float64, device=x.device)
    with pytest.raises(NotImplementedError, match=r"cross_entropy has a .* in its first argument"):
        torch.func.jacfwd(lambda s: cross_entropy(x, y, sample_weight=s))(s)


def test_compiled_forward_mode(x, y, w):
    torch._dynamo.reset()
    q = torch.rand_like(x)
    for f in (
        lambda x: cross_entropy(x * 2, y, label_smoothing=0.1),
        lambda x: bce(x * 2, q),
        lambda x: linear(x * 2, w.t(), y.clamp(max=2), reduction="sum"),
        lambda x: xentrs.torch.softmax_entropy(x * 2),
    ):
        for transform in (
            lambda f: lambda x: torch.func.jvp(f, (x,), (x.cos(),)),
            torch.func.hessian,
        ):
            run = transform(f)
            compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
            torch.testing.assert_close(compiled(x), run(x))


LINEAR_TRANSFORMS = {
    "jvp": lambda f, given: torch.func.jvp(f, given, tuple(t.cos() for t in given)),
    "jacfwd": lambda f, given: torch.func.jacfwd(f, (0, 1, 2))(*given),
    "vmap of jvp": lambda f, given: torch.func.vmap(
        lambda d: torch.func.jvp(lambda w: f(given[0], w, given[2]), (given[1],), (d,))
    )(torch.stack([given[1].cos(), given[1].sin()])),
    "hessian": lambda f, given: torch.func.hessian(f, (0, 1, 2))(*given),
    "reverse over forward": lambda f, given: torch.func.jacrev(
        torch.func.jacfwd(f, (0, 1)), (1, 2)
    )(*given),
    "forward over forward": lambda f, given: torch.func.jacfwd(
        torch.func.jacfwd(f, (0, 1)), (1, 2)
    )(*given),
}


@pytest.mark.parametrize("transform", LINEAR_TRANSFORMS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_forward_mode_of_a_linear_layer(reduction, transform, y, backend):
    """In input, weight and bias, alone and together; rows that do not count have no part."""
    torch.manual_seed(0)
    given = tuple(
        torch.randn(shape, dtype=torch.float64, device=backend) for shape in ((4, 3), (5, 3), (5,))
    )
    s = torch.tensor([1.0, 2.0, 1.0, 0.0], device=backend)
    options = {"sample_weight": s, "reduction": reduction, "z_loss": 0.1, "temperature": 2.0}
    ours = lambda x, w, b: linear(x, w, y, linear_bias=b, **options).sin()  # noqa: E731
    theirs = lambda x, w, b: cross_entropy(F.linear(x, w, b), y, **options).sin()  # noqa: E731
    run = LINEAR_TRANSFORMS[transform]
    torch.testing.assert_close(run(ours, given), run(theirs, given))


def test_dual_numbers_through_a_linear_layer(x, y, w):
    from torch.autograd import forward_ad

    tangent = x.cos()
    tangent[2] = float("nan")  # of an ignored row
    weight = w.t().detach().requires_grad_()
    for reduction in ("mean", "sum", "none"):
        for given in (w.t(), weight):  # without and with a gradient beside
            expected = torch.func.jvp(
                lambda x, r=reduction: cross_entropy(x @ w, y.clamp(max=2), reduction=r),
                (x,),
                (x.cos(),),
            )
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(x, tangent)
                loss = linear(dual, given, y.clamp(max=2), reduction=reduction)
                found = forward_ad.unpack_dual(loss)
            torch.testing.assert_close((found.primal, found.tangent), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_forward_mode_of_a_linear_layer_in_half_precision(dtype, y, backend):
    torch.manual_seed(0)
    x, w = torch.randn(4, 30, device=backend), torch.randn(5, 30, device=backend) / 5
    halves = tuple(t.to(dtype) for t in (x, w))
    exact = tuple(t.double() for t in halves)
    # So small that the gradient times it is 0 if it is rounded in between.
    small = tuple(1e-6 * t.cos() for t in exact)
    found = torch.func.jvp(
        lambda x, w: linear(x, w, y, loss_dtype=torch.float32),
        halves,
        tuple((2.0**20 * t).to(dtype) for t in small),
    )
    true = torch.func.jvp(
        lambda x, w: F.linear_cross_entropy(x, w, y), exact, tuple(2.0**20 * t for t in small)
    )
    for ours, theirs in zip(found, true, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0.02, atol=0.01)


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy_with_logits"])
def test_pytorchs_samples_in_all_modes(name):
    """PyTorch's sample inputs, as its own tests differentiate them; targets too."""
    count = 0
    for sample in operator_samples(name):
        tensors = [t for t in sample.arguments if torch.is_tensor(t) and t.is_floating_point()][:2]
        if not all(t.numel() for t in tensors):
            continue
        leaves = [t.detach().clone().requires_grad_() for t in tensors]

        def f(*given, sample=sample):
            arguments = list(sample.arguments)
            arguments[: len(given)] = given
            return getattr(xentrs.torch, name)(*arguments, **sample.options)

        for inputs in (leaves[:1], leaves):
            assert torch.autograd.gradcheck(f, inputs, check_forward_ad=True, fast_mode=True)
            modes = {"check_fwd_over_rev": True, "check_rev_over_rev": True, "fast_mode": True}
            assert torch.autograd.gradgradcheck(f, inputs, **modes)
        count += 1
    assert count > 10


def test_meta_and_fake(x, y):
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert cross_entropy(x.to("meta"), y.to("meta"), reduction="none").shape == y.shape
    with FakeTensorMode() as mode:
        logits = mode.from_tensor(x).requires_grad_()
        loss = cross_entropy(logits, mode.from_tensor(y))
        loss.backward()
        assert logits.grad.shape == x.shape


def test_checkpoint(x, y):
    expected = grad_of(lambda x: F.cross_entropy(x * 2, y), x)
    for reentrant in (False, True):
        a = x.clone().requires_grad_()
        loss = checkpoint(lambda x: cross_entropy(x * 2, y), a, use_reentrant=reentrant)
        loss.backward()
        torch.testing.assert_close(a.grad, expected)


def test_saved_tensor_hooks(x, y):
    with torch.autograd.graph.save_on_cpu():
        actual = grad_of(lambda x: cross_entropy(x, y) * 2, x)
    torch.testing.assert_close(actual, grad_of(lambda x: F.cross_entropy(x, y) * 2, x))


# What is left of PyTorch's machinery


def test_in_pytorchs_own_place(x, y, w, monkeypatch):
    """Put where PyTorch's functions are found, ours still reach those that were there."""
    names = ("cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy")
    modules = ("CrossEntropyLoss", "BCEWithLogitsLoss", "LinearCrossEntropyLoss")
    q = torch.rand_like(x).requires_grad_()
    v = torch.rand_like(x[0])

    def calls():
        yield lambda: F.cross_entropy(x, q)
        yield lambda: F.binary_cross_entropy_with_logits(x, q, v)
        yield lambda: F.linear_cross_entropy(x @ w, w, q)
        yield lambda: torch.nn.CrossEntropyLoss(label_smoothing=0.1)(x, q)
        yield lambda: torch.nn.BCEWithLogitsLoss(pos_weight=v)(x, q)
        torch.manual_seed(3)
        module = torch.nn.LinearCrossEntropyLoss(3, 5, device=x.device, dtype=x.dtype)
        yield lambda: module(x @ w, q)
        yield lambda: torch.nn.CrossEntropyLoss()(x, y)
        # What is wrong, PyTorch says.
        yield lambda: F.cross_entropy(x, y[:2])
        yield lambda: F.binary_cross_entropy_with_logits(x, q[:2])
        yield lambda: F.linear_cross_entropy(x, w, y)
        yield lambda: torch.nn.CrossEntropyLoss(reduction="median")(x, y)
        yield lambda: torch.nn.BCEWithLogitsLoss()(x, q[0])

    def results():
        for call in calls():
            try:
                loss = call()
                grads = torch.autograd.grad(loss, q) if loss.requires_grad else ()
                yield [loss.detach(), *grads]
            except RecursionError:
                raise
            except (RuntimeError, ValueError) as error:
                yield type(error), str(error)

    expected = list(results())
    assert sum(isinstance(found, tuple) for found in expected) == 5
    for functions, classes in ((names, ()), (names, modules), ((), modules)):
        with monkeypatch.context() as patch:
            for name in functions:
                patch.setattr(F, name, getattr(xentrs.torch, name))
            for name in classes:
                patch.setattr(torch.nn, name, getattr(xentrs.torch, name))
            for found, true in zip(results(), expected, strict=True):
                if isinstance(true, tuple):
                    assert found == true
                else:
                    torch.testing.assert_close(found, true)


def test_jit_trace_is_refused(x, y, w):
    """It would keep the example's loss as a constant."""
    t = x.sigmoid()
    for name, f in (
        ("cross_entropy", lambda x: cross_entropy(x, y)),
        ("cross_entropy", lambda x: cross_entropy(x, y, z_loss=0.1)),
        ("cross_entropy", lambda x: xentrs.torch.CrossEntropyLoss()(x.float(), y)),
        ("binary_cross_entropy_with_logits", lambda x: bce(x, t)),
        ("linear_cross_entropy", lambda x: linear(x @ w, w, y)),
    ):
        with pytest.raises(NotImplementedError, match=rf"xentrs.torch.{name} .*torch.jit.trace"):
            torch.jit.trace(f, (x,))
        assert f(x).isfinite()


def two(t, other=None):
    """Return a tensor of two parts, of which every operation is done twice."""
    from torch.testing._internal.two_tensor import TwoTensor

    if other is None:
        other = t * 2.0 if t.is_floating_point() else t.roll(1)
    return TwoTensor(t.detach().clone(), other.detach().clone())


def assert_same_kind(ours, theirs, **near):
    for our, their in zip(ours, theirs, strict=True):
        assert type(our) is type(their)
        if hasattr(their, "b"):
            torch.testing.assert_close(our.a, their.a, **near)
            torch.testing.assert_close(our.b, their.b, **near)
        else:
            torch.testing.assert_close(our, their, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_subclasses_beside_plain_logits(x, y, w, dtype):
    """A target, weight or weight of a layer of two parts: a loss and a gradient of two parts."""
    x, w = x.to(dtype), w.to(dtype)
    v, q = two(torch.rand_like(x[0])), two(torch.rand_like(x))
    t, y2, w2 = x.sigmoid(), two(y), two(w)
    near = {"rtol": 0.02, "atol": 0.02} if dtype.itemsize == 2 else {}
    for f in (
        lambda m, x, p: m.cross_entropy(x, p(y2)),
        lambda m, x, p: m.cross_entropy(x, p(y2), reduction="sum", label_smoothing=0.1),
        lambda m, x, p: m.cross_entropy(x, p(y2), reduction="none"),
        lambda m, x, p: m.cross_entropy(x, y, p(v)),
        lambda m, x, p: m.cross_entropy(x, p(q)),
        lambda m, x, p: m.binary_cross_entropy_with_logits(x, p(q)),
        lambda m, x, p: m.binary_cross_entropy_with_logits(x, t, p(v)),
        lambda m, x, p: m.binary_cross_entropy_with_logits(x, t, pos_weight=p(v)),
        lambda m, x, p: m.linear_cross_entropy(x @ w, w, p(y2)),
        lambda m, x, p: m.linear_cross_entropy(x @ w, p(w2), y),
        lambda m, x, p: m.linear_cross_entropy(x @ w, w, y, weight=p(v)),
    ):
        a = x.clone().requires_grad_()
        loss = f(xentrs.torch, a, lambda t: t)
        (grad,) = torch.autograd.grad(loss.sum(), a)
        for part in "ab":
            expected = f(F, a, lambda t, part=part: getattr(t, part))
            (true,) = torch.autograd.grad(expected.sum(), a)
            torch.testing.assert_close(getattr(loss, part), expected, **near)
            torch.testing.assert_close(getattr(grad, part), true, **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_upstream_gradients_of_two_parts(x, y, w, dtype, reduction):
    x, w = x.to(dtype), w.to(dtype)
    t, q = x.sigmoid(), x.softmax(1)
    near = {"rtol": 0.02, "atol": 0.02} if dtype.itemsize == 2 else {}
    for f in (
        lambda m, x: m.cross_entropy(x, y, reduction=reduction),
        lambda m, x: m.cross_entropy(x, q, reduction=reduction),
        lambda m, x: m.cross_entropy(
            x * 1, y, reduction=reduction, **({"inplace": True} if m is xentrs.torch else {})
        ),
        lambda m, x: m.binary_cross_entropy_with_logits(x, t, reduction=reduction),
        lambda m, x: m.linear_cross_entropy(x @ w, w, y, reduction=reduction),
    ):
        results = []
        for module in (xentrs.torch, F):
            a = x.clone().requires_grad_()
            loss = f(module, a)
            torch.manual_seed(2)
            up = torch.rand(loss.shape, device=loss.device, dtype=torch.float64).to(loss.dtype)
            # The first part alone would be 1, of which nothing is to be done.
            up = two(torch.ones_like(up), up)
            results.append(torch.autograd.grad(loss, a, up))
        assert_same_kind(*results, **near)


class Counting(torch.Tensor):
    """Sees every function that is called with it."""

    seen = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        Counting.seen = (*Counting.seen, func)
        return super().__torch_function__(func, types, args, kwargs or {})


def test_subclasses_that_see_functions(x, y):
    for arguments in ((x.as_subclass(Counting), y), (x, y.as_subclass(Counting))):
        Counting.seen = ()
        loss = cross_entropy(*arguments)
        assert torch.ops.xentrs.cross_entropy.default in Counting.seen
        assert type(loss) is Counting
        torch.testing.assert_close(loss.as_subclass(torch.Tensor), F.cross_entropy(x, y))
    t = x.sigmoid().as_subclass(Counting)
    assert type(bce(x, t)) is Counting


def test_modules_pickled_before_there_were_our_options(x, y):
    """They have the defaults; signatures show every argument."""
    import inspect
    import pickle

    losses = xentrs.torch
    for module, arguments in (
        (losses.CrossEntropyLoss(label_smoothing=0.1), (x.cpu(), y.cpu())),
        (losses.BCEWithLogitsLoss(), (x.cpu(), x.cpu().sigmoid())),
        (losses.LinearCrossEntropyLoss(5, 6, dtype=x.dtype), (x.cpu(), y.cpu())),
    ):
        own = set(inspect.signature(type(module)).parameters)
        own -= set(inspect.signature(type(module).__bases__[0]).parameters)
        assert own
        expected = module(*arguments)
        for name in own:
            del module.__dict__[name]
        old = pickle.loads(pickle.dumps(module))
        assert not own & set(old.__dict__)
        torch.testing.assert_close(old(*arguments), expected)
        kinds = {p.kind for p in inspect.signature(type(module)).parameters.values()}
        assert inspect.Parameter.VAR_KEYWORD not in kinds


# Linear


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_linear_chunks(x, y, w, rows):
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    for reduction in ("mean", "sum", "none"):
        ours = [t.detach().clone().requires_grad_() for t in (x @ w, w, w.sum(1))]
        theirs = [t.detach().clone().requires_grad_() for t in ours]
        loss = linear(
            *ours[:2], y, linear_bias=ours[2], reduction=reduction, options=options, z_loss=0.1
        )
        logits = F.linear(*theirs)
        expected = cross_entropy(logits, y, reduction=reduction, z_loss=0.1)
        torch.testing.assert_close(loss, expected)
        loss.sum().backward()
        expected.sum().backward()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_linear_computes_the_gradients_that_are_wanted(x, y, w):
    """A frozen head costs no gradient of its weight."""
    inputs = (x @ w).detach().requires_grad_()
    linear(inputs, w, y).backward()
    expected = grad_of(lambda x: F.cross_entropy(F.linear(x, w), y), inputs)
    torch.testing.assert_close(inputs.grad, expected)
    assert w.grad is None
    assert not linear(inputs.detach(), w, y).requires_grad
    assert linear(inputs[:0], w, y[:0]).isnan()
