"""What holds for every loss of the list in `losses.py`: values, derivatives, tracers, modules."""

import inspect
import math
import pickle

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import xentrs.torch
from losses import CASES
from samples import DTYPES, each_backend_and_dtype, fast

REDUCTIONS = ("mean", "sum", "none")
# What is an argument of a module's call.
OF_THE_CALL = {"sample_weight", "denominator", "where"}

CALLS = [
    pytest.param(case, options, id=f"{case.name}-{i}")
    for case in CASES
    for i, options in enumerate(case.options)
]
each_call = pytest.mark.parametrize(("case", "options"), CALLS)
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def function(case):
    return getattr(xentrs.torch, case.name)


def upstream(loss, low=0.5):
    """Return an upstream gradient."""
    numbers = torch.linspace(low, 1.5, loss.numel(), dtype=torch.float64, device=loss.device)
    return numbers.reshape(loss.shape)


def three_samples(case, options, backend):
    """Return a small call in float64: input, other arguments, options."""
    (x, *others), options = case.drawn(options, torch.float64, backend)
    cut = lambda t: t[:3] if torch.is_tensor(t) and t.dim() and len(t) == 5 else t  # noqa: E731
    return x[:3], [cut(t) for t in others], {key: cut(t) for key, t in options.items()}


@each_call
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(case, options, dtype, backend, small_tiles):
    (x, *others), options = case.drawn(options, dtype, backend)
    eps = 16 * torch.finfo(dtype).eps
    for reduction in REDUCTIONS:
        ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        loss = function(case)(ours, *others, **options, reduction=reduction)
        expected = case.reference(exact, *others, **options, reduction=reduction)
        assert (loss.dtype, loss.shape) == (dtype, expected.shape)
        torch.testing.assert_close(loss.double(), expected, rtol=eps, atol=eps)
        up = upstream(loss).to(dtype)
        (grad,) = torch.autograd.grad(loss, ours, up)
        (true,) = torch.autograd.grad(expected, exact, up.double())
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), true, rtol=eps, atol=eps)
        with torch.no_grad():
            assert function(case)(ours, *others, **options, reduction=reduction).equal(loss)


@each_call
def test_negative_bit(case, options, backend):
    """A view whose numbers are minus those in memory: the imaginary part of a conjugate is one."""

    def minus(t):
        return torch._neg_view(-t) if torch.is_tensor(t) and t.is_floating_point() else t

    (x, *others), options = case.drawn(options, torch.float32, backend)
    plain, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    viewed = minus(other)
    assert viewed.is_neg()
    loss = function(case)(plain, *others, **options)
    options = {key: minus(value) for key, value in options.items()}
    found = function(case)(viewed, *map(minus, others), **options)
    assert found.equal(loss)
    loss.backward()
    found.backward()
    assert other.grad.equal(plain.grad)


@each_call
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_that_is_not_aligned(case, options, dtype):
    """As that of `torch.frombuffer` may be."""

    def moved(t):
        if not torch.is_tensor(t) or not t.dim():
            return t
        memory = bytearray(t.numel() * t.itemsize + 1)
        there = torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=1).view(t.shape)
        assert there.data_ptr() % 2 or t.itemsize == 1
        return there.copy_(t)

    (x, *others), options = case.drawn(options, dtype, "cpu")
    for i in range(2 + len(others)):
        leaf = x.clone().requires_grad_()
        loss = function(case)(leaf, *others, **options)
        loss.backward()
        # One argument after the other, and last all options.
        given = [moved(t) if i == j else t for j, t in enumerate((x, *others))]
        further = {key: moved(t) for key, t in options.items()} if i > len(others) else options
        there = given[0].detach().requires_grad_()
        found = function(case)(there, *given[1:], **further)
        found.backward()
        torch.testing.assert_close(found, loss)
        torch.testing.assert_close(there.grad, leaf.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_gradient_of_one_class_is_0(dtype, backend):
    for n in range(1, 40):
        x, y = torch.randn(n, 1, dtype=dtype, device=backend), torch.zeros(n, 1, device=backend)
        calls = {"target": y[:, 0].long(), "label_smoothing": 0.1}, {"target": y.to(dtype) + 0.7}
        for options in calls:
            leaf = x.clone().requires_grad_()
            loss = xentrs.torch.cross_entropy(leaf, **options)
            loss.backward()
            assert loss.item() == 0.0
            assert not leaf.grad.any()
        plain, other = x.clone().requires_grad_(), x.clone().requires_grad_()
        xentrs.torch.cross_entropy(plain, **calls[0], z_loss=0.1).backward()
        (0.1 * other.square()).mean().backward()
        torch.testing.assert_close(plain.grad, other.grad)


@each_case
def test_nothing_over_a_denominator_of_0(case, backend):
    """As the number of targets of a batch without any: its loss is 0, as its gradient is."""
    (x, *others), _ = case.drawn({}, torch.float32, backend)
    names = inspect.signature(function(case)).parameters
    if "where" in names:
        nothing = {"where": torch.zeros_like(x, dtype=torch.bool)}
    else:
        samples = x.shape[:1] + x.shape[2:]
        nothing = {"sample_weight": torch.zeros(samples, device=x.device)}
    for zero in (0.0, torch.tensor(0)):
        leaf = x.clone().requires_grad_()
        loss = function(case)(leaf, *others, **nothing, denominator=zero)
        loss.backward()
        assert loss.item() == 0.0
        assert not leaf.grad.any()


@each_call
def test_gradcheck(case, options, backend):
    """First derivatives by both modes, second derivatives by all combinations."""
    x, others, options = three_samples(case, options, backend)
    for reduction in ("mean", "none"):
        f = lambda x, r=reduction: function(case)(x, *others, **options, reduction=r)  # noqa: E731
        x = x.detach().requires_grad_()
        modes = {"check_forward_ad": True, "check_batched_grad": True}
        assert torch.autograd.gradcheck(f, x, **modes, **fast())
        modes = {"check_fwd_over_rev": True, "check_rev_over_rev": True}
        assert torch.autograd.gradgradcheck(f, x, **modes, **fast())


TRANSFORMS = {
    "grad": lambda f, x, xs: torch.func.grad(f)(x),
    "vmap of grad": lambda f, x, xs: torch.func.vmap(torch.func.grad(f))(xs),
    "grad of vmap": lambda f, x, xs: torch.func.grad(lambda a: torch.func.vmap(f)(a).sum())(xs),
    "jvp": lambda f, x, xs: torch.func.jvp(f, (x,), (x.cos(),)),
    "vmap of jvp": lambda f, x, xs: torch.func.vmap(lambda t: torch.func.jvp(f, (x,), (t,))[1])(xs),
    "jacfwd": lambda f, x, xs: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x, xs: torch.func.hessian(f)(x),
    "reverse over reverse": lambda f, x, xs: torch.func.jacrev(torch.func.jacrev(f))(x),
    "reverse over forward": lambda f, x, xs: torch.func.jacrev(torch.func.jacfwd(f))(x),
    "forward over forward": lambda f, x, xs: torch.func.jacfwd(torch.func.jacfwd(f))(x),
    "third": lambda f, x, xs: torch.func.grad(lambda a: torch.func.hessian(f)(a).sin().sum())(x),
}


@each_call
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(case, options, transform, backend):
    x, others, options = three_samples(case, options, backend)
    # Probabilities stay in [0, 1].
    xs = torch.stack([x, 0.5 * x, x * x] if case.bounded else [x, x + 1.0, 2.0 * x])
    ours, expected = (
        TRANSFORMS[transform](lambda x: f(x, *others, **options), x, xs)  # noqa: B023
        for f in (function(case), case.reference)
    )
    torch.testing.assert_close(ours, expected)


@each_call
def test_operator(case, options, backend):
    (x, *others), options = case.drawn(options, torch.float32, backend)
    operator = getattr(torch.ops.xentrs, case.name).default
    calls = []

    class Recorded(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is operator:
                calls.append(args)
            return func(*args, **(kwargs or {}))

    with Recorded():
        function(case)(x, *others, **options)
    (arguments,) = calls
    for with_grad in (False, True):
        for strided in (x.clone(), x.mT.contiguous().mT) if x.dim() > 1 else (x.clone(),):
            leaf = strided.requires_grad_(with_grad)
            torch.library.opcheck(operator, (leaf, *arguments[1:-1], with_grad))


@each_call
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_compile(case, options, dtype):
    torch._dynamo.reset()
    (x, *others), options = case.drawn(options, dtype, "cpu")
    scale = 0.5 if case.bounded else 2.0
    f = lambda x, r: function(case)(x * scale, *others, **options, reduction=r)  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for reduction in ("mean", "none"):
        results = []
        for g in (f, compiled):
            leaf = x.clone().requires_grad_()
            loss = g(leaf, reduction)
            up = upstream(loss).to(loss.dtype)
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf, up)))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("as_module", [False, True], ids=["function", "module"])
@each_call
def test_compile_with_dynamic_numbers(case, options, as_module):
    """Numbers that change from call to call, which `torch.compile` makes symbols of."""
    (x, *others), options = case.drawn(options, torch.float64, "cpu")
    numbers = {key: value for key, value in options.items() if isinstance(value, float)}

    def loss(x, options):
        if not as_module:
            return function(case)(x, *others, **options)
        of_call = {key: value for key, value in options.items() if key in OF_THE_CALL}
        own = {key: value for key, value in options.items() if key not in OF_THE_CALL}
        return getattr(xentrs.torch, case.module)(**own)(x, *others, **of_call)

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for factor in (1.0, 0.5, 0.25):
        given = options | {key: value * factor for key, value in numbers.items()}
        grads = []
        for f in (loss, compiled):
            leaf = x.clone().requires_grad_()
            grads += torch.autograd.grad(f(leaf, given), leaf)
        torch.testing.assert_close(*grads)


@each_call
@each_backend_and_dtype
def test_what_does_not_count(case, options, dtype, backend):
    """It adds nothing, whatever the input is there and whatever comes from upstream."""
    (x, *others), options = case.drawn(options, dtype, backend)
    losses = case.formula(x.double(), *others, **options)
    counts = case.weights(losses, x, *others, **options)[0] != 0
    if counts.all():
        return
    bad = x.clone()
    bad[~counts] = math.nan
    ours, clean = bad.requires_grad_(), x.clone().requires_grad_()
    for reduction in REDUCTIONS:
        results = []
        for leaf in (ours, clean):
            loss = function(case)(leaf, *others, **options, reduction=reduction)
            up = upstream(loss).to(loss.dtype)
            if leaf is ours and reduction == "none":
                up[~counts] = math.inf
            results.append((loss.detach(), *torch.autograd.grad(loss, leaf, up)))
        torch.testing.assert_close(*results)
        assert (results[0][1][~counts] == 0).all()
        up = torch.full_like(loss, math.nan)
        loss = function(case)(ours, *others, **options, reduction=reduction)
        assert (torch.autograd.grad(loss, ours, up)[0][~counts] == 0).all()
    f = lambda x: function(case)(x, *others, **options, reduction="none")  # noqa: E731
    tangent = torch.full_like(x, math.nan)
    assert (torch.func.jvp(f, (bad.detach(),), (tangent,))[1][~counts] == 0).all()


def double_backward(f, x):
    """Return the second derivative in one direction, by plain autograd."""
    leaf = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(f(leaf), leaf, create_graph=True)
    return torch.autograd.grad((grad * x.detach().nan_to_num().cos()).sum(), leaf)[0]


@each_call
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_second_derivatives_of_what_does_not_count(case, options, bad, backend):
    """They are 0, whatever is there in the input, the target, the teacher and the weights."""
    (x, *others), options = case.drawn(options, torch.float64, backend)
    weights = case.weights(case.formula(x, *others, **options), x, *others, **options)[0]
    counts = (weights != 0).view(*weights.shape, *[1] * (x.dim() - weights.dim())).expand_as(x)
    if counts.all():
        return
    if "pos_weight" in options:
        options["pos_weight"] = options["pos_weight"].expand_as(x)

    def with_bad(t):
        of_each = torch.is_tensor(t) and t.shape == x.shape and t.is_floating_point()
        return torch.where(counts, t, bad) if of_each else t

    others_bad = [with_bad(t) for t in others]
    options_bad = {key: t if key == "weight" else with_bad(t) for key, t in options.items()}
    clean = lambda x: function(case)(x, *others, **options)  # noqa: E731
    dirty = lambda x: function(case)(x, *others_bad, **options_bad)  # noqa: E731
    names = ("hessian", "reverse over reverse", "forward over forward", "third")
    ways = [lambda f, x, n=name: TRANSFORMS[n](f, x, None) for name in names]
    for way in (double_backward, *ways):
        expected, found = way(clean, x), way(dirty, with_bad(x))
        torch.testing.assert_close(found, expected)
        assert (found[~counts] == 0).all()


@each_case
def test_loss_scaling_of_float16(case, backend):
    """The gradient is multiplied by the loss scale before it is rounded."""
    (x, *others), options = case.drawn({}, torch.float32, backend)
    repeat = lambda t: t.repeat(400, *[1] * (t.dim() - 1))  # noqa: E731
    others = [repeat(t) for t in others]
    half = repeat(x).half().requires_grad_()
    exact = half.detach().double().requires_grad_()
    (function(case)(half, *others, **options).float() * 2.0**14).backward()
    (case.reference(exact, *others, **options) * 2.0**14).backward()
    assert (half.grad.double() - exact.grad).norm() / exact.grad.norm() < 1e-3


@each_case
def test_autocast(case, backend):
    (x, *others), options = case.drawn({}, torch.bfloat16, backend)
    with torch.autocast(backend, dtype=torch.bfloat16):
        loss = function(case)(x, *others, **options)
    assert loss.dtype == torch.float32
    expected = case.reference(x, *others, **options)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


with_loss_dtype = [
    case for case in CASES if "loss_dtype" in inspect.signature(function(case)).parameters
]


@pytest.mark.parametrize("case", with_loss_dtype, ids=lambda case: case.name)
@each_backend_and_dtype
def test_loss_dtype(case, dtype, backend):
    """A float32 loss of half-precision logits has the digits of float32."""
    (x, *others), options = case.drawn({}, dtype, backend)
    for loss_dtype in (torch.float32, torch.float64, torch.bfloat16):
        for reduction in REDUCTIONS:
            options = {"reduction": reduction, "loss_dtype": loss_dtype}
            leaf = x.clone().requires_grad_()
            loss = function(case)(leaf, *others, **options)
            assert loss.dtype == loss_dtype
            expected = case.reference(x, *others, reduction=reduction)
            wide = torch.promote_types(dtype, torch.float32)
            eps = 16 * max(torch.finfo(t).eps for t in (wide, loss_dtype))
            torch.testing.assert_close(loss.double(), expected, rtol=eps, atol=eps)
            (grad,) = torch.autograd.grad(loss.sum(), leaf)
            plain = function(case)(leaf, *others, reduction=reduction)
            assert grad.equal(torch.autograd.grad(plain.sum(), leaf)[0])
    for wrong in (torch.int64, "float32"):
        with pytest.raises(TypeError, match=r"loss_dtype must be a floating torch\.dtype"):
            function(case)(x, *others, loss_dtype=wrong)


@each_call
def test_module(case, options, backend):
    arguments, options = case.drawn(options, torch.float32, backend)
    expected = function(case)(*arguments, **options, reduction="sum")
    call = {key: value for key, value in options.items() if key in OF_THE_CALL}
    own = {key: value for key, value in options.items() if key not in OF_THE_CALL}
    module = getattr(xentrs.torch, case.module)(**own, reduction="sum")
    assert module(*arguments, **call) == expected
    copy = pickle.loads(pickle.dumps(module))
    assert copy(*arguments, **call) == expected
    assert ("weight" in module.state_dict()) == ("weight" in own)
    takes = set(inspect.signature(function(case)).parameters)
    given = set(inspect.signature(type(module)).parameters)
    assert given <= takes


def gradient_of_log_loss(call, options):
    """Return the gradient of each sample's loss, with its class weight."""
    y = torch.where(call.target == -100, 0, call.target).unsqueeze(1)
    t = torch.zeros_like(call.input).scatter(1, y, 1.0)
    return torch.where(t == 0.0, 0.0, -call.weight * t / call.input)


@pytest.fixture(scope="module")
def log_loss():
    """Make a loss of its parts, as docs/torch.md says: gradient and compiled function."""
    from functools import partial

    from xentrs.torch._arguments.softmax import SoftmaxArguments
    from xentrs.torch._cpu import softmax
    from xentrs.torch._operators.loss import Loss, products_of

    return Loss(
        "log_loss_of_tests",
        SoftmaxArguments,
        cpu=partial(softmax.evaluate, "log_loss"),
        gpu=lambda *_: pytest.fail("a tensor on the CPU went to the GPU"),
        product=products_of(gradient_of_log_loss),
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_loss_of_its_parts(log_loss, reduction):
    from xentrs.torch._arguments.options import Options
    from xentrs.torch._arguments.softmax import SoftmaxArguments

    x, y = CASES[0].draw(torch.Generator().manual_seed(0))
    x = x.softmax(1)
    weight, s = torch.linspace(0.5, 2.0, 7), torch.linspace(0.0, 1.0, 5)
    options = Options(reduction, (-100,))
    f = lambda x: log_loss.compute(SoftmaxArguments(x, y, weight, s, None), options)  # noqa: E731

    def exact(x):
        w = torch.where(y == -100, 0.0, weight[y.clamp(min=0)] * s)
        losses = w * -x.gather(1, y.clamp(min=0).unsqueeze(1)).squeeze(1).log()
        if reduction == "mean":
            return losses.sum() / w.sum()
        return losses if reduction == "none" else losses.sum()

    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(f, leaf, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaf, check_fwd_over_rev=True, check_rev_over_rev=True)
    xs = torch.stack([x, (x + 1.0) / 8.0])
    scalar = lambda g: lambda x: g(x).sin().sum()  # noqa: E731
    for transform in TRANSFORMS.values():
        results = [transform(scalar(g), x, xs) for g in (f, exact)]
        torch.testing.assert_close(*results)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for dtype in (torch.float32, torch.float64):
        low = x.to(dtype).requires_grad_()
        grads = [torch.autograd.grad(g(low).sum(), low)[0] for g in (f, compiled)]
        torch.testing.assert_close(*grads)


@each_call
def test_arguments_of_inference_mode(case, options, backend):
    """A teacher runs under `torch.inference_mode`; PyTorch's own losses refuse its tensors."""
    with torch.inference_mode():
        (x, *others), options = case.drawn(options, torch.float32, backend)
        others = [t.clone() if torch.is_tensor(t) else t for t in others]
        options = {k: t.clone() if torch.is_tensor(t) else t for k, t in options.items()}
    results = []
    for made in (lambda t: t, lambda t: t.clone() if torch.is_tensor(t) else t):
        given = x.clone().requires_grad_()
        arguments = [made(t) for t in others]
        loss = function(case)(given, *arguments, **{k: made(t) for k, t in options.items()})
        loss.sum().backward()
        results.append((loss.detach(), given.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@each_case
def test_name_of_the_autograd_function(case):
    """Profilers and anomaly mode show it."""
    (x, *others), options = case.drawn(case.options[0], torch.float32, "cpu")
    loss = function(case)(x.requires_grad_(), *others, **options)
    assert loss.grad_fn.name() == case.name.title().replace("_", "") + "Backward"
