"""What raises an error: PyTorch's own, or one of xentrs for arguments that PyTorch lacks."""

import inspect
import itertools
import math
import re
import subprocess
import sys
import textwrap

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

import torch.nn.functional as F

import xentrs
import xentrs.torch
from losses import CASES

X = torch.zeros(4, 5)
Y = torch.tensor([0, 1, 2, 3])
Q = torch.zeros(4, 5)

SHARED = [
    ("cross_entropy", (X, Y[:3]), {}),
    ("cross_entropy", (X, Y[:, None]), {}),
    ("cross_entropy", (X, Y.float()), {}),
    ("cross_entropy", (X, Q[:, :3]), {}),
    ("cross_entropy", (X, Q), {"ignore_index": 1}),
    ("cross_entropy", (X.int(), Y), {}),
    ("cross_entropy", (torch.tensor(1.0), Y), {}),
    ("cross_entropy", (X, Y), {"weight": torch.ones(3)}),
    ("cross_entropy", (X, Y), {"label_smoothing": 2.0}),
    ("cross_entropy", (X, Y), {"reduction": "average"}),
    ("cross_entropy", (X, Y + 4), {}),
    ("cross_entropy", (X, Y - 1), {}),
    ("cross_entropy", (X.half(), Y + 4), {}),
    ("cross_entropy", (X[:, :0], Y), {}),
    ("binary_cross_entropy_with_logits", (X, Q[:2]), {}),
    ("binary_cross_entropy_with_logits", (X, Q), {"weight": torch.ones(3)}),
    ("binary_cross_entropy_with_logits", (X, Q), {"reduction": "average"}),
    ("binary_cross_entropy_with_logits", (X.int(), Q), {}),
    ("linear_cross_entropy", (X, torch.zeros(3, 4), Y), {}),
    ("linear_cross_entropy", (X, torch.zeros(5, 5), Y[:2]), {}),
    ("linear_cross_entropy", (X, torch.zeros(5, 5).double(), Y), {}),
]


# What is no tensor or no number; the message is PyTorch's own.
W = torch.zeros(5, 5)
BAD = ([[0.0] * 5] * 4, np.zeros((4, 5)), None, 1.0)
SAME = [
    *[("cross_entropy", (bad, Y), {}) for bad in BAD],
    *[("cross_entropy", (X, bad), {}) for bad in BAD],
    *[("cross_entropy", (X, Y, bad), {}) for bad in BAD if bad is not None],
    *[("binary_cross_entropy_with_logits", (bad, Q), {}) for bad in BAD],
    *[("binary_cross_entropy_with_logits", (X, bad), {}) for bad in BAD],
    *[("linear_cross_entropy", (bad, W, Y), {}) for bad in BAD],
    *[("linear_cross_entropy", (X, bad, Y), {}) for bad in BAD],
    *[("linear_cross_entropy", (X, W, bad), {}) for bad in BAD],
    *[
        ("binary_cross_entropy_with_logits", (X, Q), {name: bad})
        for bad in BAD
        for name in ("weight", "pos_weight")
        if bad is not None
    ],
    *[
        ("linear_cross_entropy", (X, W, Y), {name: bad})
        for bad in BAD
        for name in ("weight", "linear_bias")
        if bad is not None
    ],
    ("cross_entropy", (X, Y), {"label_smoothing": "a"}),
    ("cross_entropy", (X, Y), {"label_smoothing": None}),
    ("cross_entropy", (X, Y), {"reduction": ["mean"]}),
    ("linear_cross_entropy", (X, W, Y), {"label_smoothing": "a"}),
]
# The same type, but it is said what we take.
INDICES = [
    (name, arguments, {"ignore_index": bad})
    for name, arguments in (("cross_entropy", (X, Y)), ("linear_cross_entropy", (X, W, Y)))
    for bad in (1.0, "a", "12", True, torch.tensor(1.0), [1, 2.0], 2**63, -(2**63) - 1, 2**70)
]


def error_of(module, name, arguments, options):
    try:
        getattr(module, name)(*arguments, **options)
    except Exception as error:
        return error


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("name", "arguments", "options"), SHARED + INDICES)
def test_pytorchs_errors(name, arguments, options, reduction):
    options = {"reduction": reduction} | options
    expected = error_of(F, name, arguments, options)
    assert expected is not None
    assert type(error_of(xentrs.torch, name, arguments, options)) is type(expected)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("name", "arguments", "options"), SAME)
def test_pytorchs_messages(name, arguments, options, reduction):
    options = {"reduction": reduction} | options
    expected = error_of(F, name, arguments, options)
    assert expected is not None
    assert repr(error_of(xentrs.torch, name, arguments, options)) == repr(expected)


# A wrong value for any argument.
WRONG = [
    *("?", None, -math.inf, -1.0, 7.5, 1 + 2j, [0.0], np.ones(3)),
    *(torch.ones(3), torch.full((5, 7), 3.0), torch.full((5, 7), math.nan)),
    *(torch.full((5,), 2**40), torch.full((7,), -1), torch.zeros(5, 7, device="meta")),
    torch.zeros((), dtype=torch.complex64),
]
# How a message names an argument.
NAMED = re.compile(r"(?:^|but )([a-z_]+)(?:\[[^]]*\])* (?:is|has|must|cannot|requires)\b")


def right_calls():
    """Yield the function, the module or None, and a right call's tensors, of each loss."""
    for case in CASES:
        arguments, _ = case.drawn({}, torch.float32, "cpu")
        function, module = (getattr(xentrs.torch, name) for name in (case.name, case.module))
        yield pytest.param(function, module, arguments, id=case.name)
    y = torch.randint(0, 7, (5,))
    linear = [torch.randn(5, 4), torch.randn(7, 4), y]
    yield pytest.param(xentrs.torch.linear_cross_entropy, None, linear, id="linear_cross_entropy")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("function", "module", "arguments"), list(right_calls()))
def test_messages_name_arguments_that_the_caller_has(function, module, arguments, dtype):
    signature = inspect.signature(function)
    right = signature.bind(*arguments).arguments
    right = {k: t.to(dtype) if t.is_floating_point() else t for k, t in right.items()}
    of_module = set(inspect.signature(module).parameters) if module else set()

    def message(call, options, arguments):
        try:
            call(**options)(**arguments) if call is module else call(**arguments)
        except Exception as error:
            return str(error)
        return ""

    for name, wrong in itertools.product(signature.parameters, WRONG):
        messages = [message(function, {}, right | {name: wrong})]
        if name in of_module:
            messages.append(message(module, {name: wrong}, right))
        elif module is not None:
            messages.append(message(module, {}, right | {name: wrong}))
        named = {found for text in messages for found in NAMED.findall(text)}
        assert named <= set(signature.parameters), (name, wrong, messages)


def test_options_that_are_complex():
    number = torch.zeros((), dtype=torch.complex64)
    for name, call in CALLS.items():
        option = name.split(",")[0]
        with pytest.raises(TypeError, match=f"{option} must be a number, not tensor"):
            call(number)


def test_ignore_index():
    for value in (3, np.int64(3), torch.tensor(3), [3], torch.tensor([3])):
        loss = xentrs.torch.cross_entropy(X, Y, ignore_index=value, reduction="sum")
        assert loss.item() == pytest.approx(3 * math.log(5))
    for value in (2**63 - 1, -(2**63)):
        assert xentrs.torch.cross_entropy(X, Y, ignore_index=value).item() > 0.0
    with pytest.raises(TypeError, match=r"ignore_index must be .* several ints, not float"):
        xentrs.torch.cross_entropy(X, Y, ignore_index=(1, 2.0))
    with pytest.raises(ValueError, match="ignore_index is 9223372036854775808"):
        xentrs.torch.cross_entropy(X, Y, ignore_index=2**63)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight has shape \(3,\).*\(4,\)"),
        ({"sample_weight": Y}, TypeError, "sample_weight has dtype torch.int64"),
        ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
        ({"z_loss": float("nan")}, ValueError, "z_loss is nan"),
        ({"z_loss": -0.1}, ValueError, "z_loss is -0.1, but must be finite and not negative"),
        ({"denominator": -2.0}, ValueError, "denominator is -2.0"),
        ({"denominator": torch.ones(2)}, ValueError, r"denominator has shape \(2,\)"),
        ({"denominator": "a"}, TypeError, r"denominator must be a number, not 'a' \(str\)"),
        ({"denominator": np.ones(2)}, TypeError, r"denominator must be a number.*ndarray"),
        ({"z_loss": "a"}, TypeError, r"z_loss must be a number, not 'a' \(str\)"),
        ({"softcap": "a"}, TypeError, r"softcap must be a number, not 'a' \(str\)"),
        ({"z_loss": torch.ones(2)}, TypeError, r"z_loss must be a number, not a tensor"),
        ({"z_loss": np.ones(2)}, TypeError, r"z_loss must be a number, not array"),
        ({"softcap": torch.ones(2)}, TypeError, r"softcap must be a number, not a tensor"),
        ({"temperature": torch.ones(2)}, TypeError, r"temperature must be a number, not a tensor"),
        ({"temperature": np.ones(2)}, TypeError, r"temperature must be a number, not array"),
        ({"sample_weight": [1.0] * 4}, TypeError, "sample_weight must be a Tensor, not list"),
        ({"sample_weight": np.ones(4)}, TypeError, "sample_weight must be a Tensor, not ndarray"),
    ],
)
def test_our_errors(options, error, message):
    with pytest.raises(error, match=message):
        xentrs.torch.cross_entropy(X, Y, **options)
    with pytest.raises(error, match=message):
        xentrs.torch.linear_cross_entropy(X, W, Y, **options)


def test_binary_errors():
    bce = xentrs.torch.binary_cross_entropy_with_logits
    with pytest.raises(TypeError, match="where has dtype"):
        bce(X, Q, where=Y)
    with pytest.raises(ValueError, match="where has shape"):
        bce(X, Q, where=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="label_smoothing is 3"):
        bce(X, Q, label_smoothing=3)
    with pytest.raises(TypeError, match="label_smoothing must be a number, not 'a'"):
        bce(X, Q, label_smoothing="a")
    with pytest.raises(TypeError, match="where must be a Tensor, not list"):
        bce(X, Q, where=[True] * 5)
    with pytest.raises(TypeError, match="denominator must be a number, not 'a'"):
        bce(X, Q, denominator="a")


def test_vocabulary_parallel_errors():
    loss = xentrs.torch.vocab_parallel_cross_entropy
    with pytest.raises(TypeError, match="input must be a Tensor, not ndarray"):
        loss(X.numpy(), Y)
    with pytest.raises(TypeError, match="target must be a Tensor, not list"):
        loss(X, [0, 1, 2, 3])
    with pytest.raises(ValueError, match=r"softcap is -1\.0, but must be positive"):
        loss(X, Y, softcap=-1.0)
    with pytest.raises(ValueError, match=r"temperature must be finite and above 0, not 0"):
        loss(X, Y, temperature=0)


def test_an_index_out_of_range_says_where():
    with pytest.raises(
        IndexError, match=r"target\[1\] is 5, but a class index must be in \[0, 5\)"
    ):
        xentrs.torch.cross_entropy(X, Y + 4)


def test_tensors_that_numpy_cannot_read():
    """The functions for arrays name the argument, and where tensors may go."""
    leaf = X.clone().requires_grad_()
    for x in (leaf, torch.nn.Parameter(X.clone())):
        with pytest.raises(TypeError, match=r"^logits cannot .* xentrs.torch takes PyTorch's tens"):
            xentrs.cross_entropy(x, Y)
        with pytest.raises(TypeError, match=r"^target cannot .* xentrs.torch takes PyTorch's tens"):
            xentrs.binary_cross_entropy_with_logits(X, x)
    with pytest.raises(TypeError, match=r"^weight cannot .* xentrs.torch takes PyTorch's tensors"):
        xentrs.cross_entropy(X, Y, weight=torch.ones(5, requires_grad=True))
    assert xentrs.cross_entropy(X, Y) == pytest.approx(math.log(5))


def test_tensors_of_bfloat16_as_arrays(monkeypatch):
    """With ml_dtypes they are read where they lie."""
    ml_dtypes = pytest.importorskip("ml_dtypes")
    x = torch.randn(5, 4).bfloat16().T
    array = x.float().numpy().astype(ml_dtypes.bfloat16)
    loss, grad = xentrs.cross_entropy_with_grad(x, Y)
    expected, expected_grad = xentrs.cross_entropy_with_grad(array, Y)
    assert loss == expected
    assert grad.dtype == ml_dtypes.bfloat16
    assert grad.tobytes() == expected_grad.tobytes()
    assert xentrs.cross_entropy(x, torch.Size(Y)) == loss  # another sequence of PyTorch's
    meter = xentrs.CrossEntropyMeter()
    meter.update(x, Y)
    assert meter.compute().loss == pytest.approx(loss, rel=1e-6)
    with pytest.raises(TypeError, match=r"^logits cannot .*grad.* xentrs.torch takes"):
        xentrs.cross_entropy(x.detach().requires_grad_(), Y)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(TypeError, match="NumPy has bfloat16 only with the package ml_dtypes"):
        xentrs.cross_entropy(x, Y)


def test_class_index_out_of_range_in_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the assertion would end this process's use of the GPU")
    from xentrs.torch import _backend

    monkeypatch.setattr(_backend, "FORCED", "triton")
    with pytest.raises(IndexError, match=r"target\[\d+\] is \d+, but a class index must be in"):
        xentrs.torch.cross_entropy(X, Y + 4)


def test_triton_on_the_cpu_without_its_interpreter(monkeypatch):
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(xentrs.torch._backend, "FORCED", "triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    with pytest.raises(RuntimeError, match="only in Triton's interpreter: set TRITON_INTERPRET=1"):
        xentrs.torch.cross_entropy(X, Y)


def test_other_devices():
    with pytest.raises(NotImplementedError, match="'mps'"):
        xentrs.torch._backend.uses_triton(_OnDevice("mps"))


class _OnDevice:
    def __init__(self, name):
        self.device = torch.device(name)
        self.is_cpu = name == "cpu"


def test_deprecated_arguments():
    with pytest.warns(UserWarning, match="reduction='sum'"):
        loss = xentrs.torch.cross_entropy(X, Y, size_average=False)
    assert loss.item() == pytest.approx(F.cross_entropy(X, Y, reduction="sum").item())


def python(script, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_are_lazy():
    """`xentrs` needs no PyTorch, `xentrs.torch` no Triton; what is missing is named."""
    done = python(
        """
        import sys
        import xentrs
        assert "torch" not in sys.modules
        sys.modules["torch"] = None
        try:
            import xentrs.torch
        except ImportError as error:
            print(error)
        del sys.modules["torch"]
        sys.modules["triton"] = None
        import torch
        import xentrs.torch
        loss = xentrs.torch.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
        xentrs.torch._backend.FORCED = "triton"
        try:
            xentrs.torch.cross_entropy(torch.zeros(2, 3), torch.tensor([0, 1]))
        except ImportError as error:
            print(error)
        """
    )
    assert done.returncode == 0, done.stderr
    assert "xentrs.torch needs PyTorch: pip install xentrs[torch]" in done.stdout
    assert "xentrs.torch needs Triton" in done.stdout


def test_unknown_backend():
    done = python("import xentrs.torch", XENTRS_TORCH_BACKEND="cuda")
    assert "XENTRS_TORCH_BACKEND is 'cuda', but must be 'rust' or 'triton'" in done.stderr


def test_gradients_that_are_not_computed_are_refused():
    s, d = torch.ones(4, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    w = torch.randn(5, 3)
    for call in (
        lambda: xentrs.torch.cross_entropy(X, Y, sample_weight=s),
        lambda: xentrs.torch.cross_entropy(X, Y, denominator=d),
        lambda: xentrs.torch.linear_cross_entropy(X[:, :3], w, Y, sample_weight=s),
        lambda: xentrs.torch.binary_cross_entropy_with_logits(X, Q, denominator=d),
        lambda: torch.func.grad(lambda s: xentrs.torch.cross_entropy(X, Y, sample_weight=s))(
            torch.ones(4)
        ),
    ):
        with pytest.raises(NotImplementedError, match=r"(sample_weight|denominator) requires a"):
            call()
    with torch.no_grad():
        xentrs.torch.cross_entropy(X, Y, sample_weight=s, denominator=d)


@pytest.mark.parametrize("value", [-2.0, torch.tensor(-2.0)])
def test_negative_denominators(value):
    for call in (
        lambda: xentrs.torch.cross_entropy(X, Y, denominator=value),
        lambda: xentrs.torch.cross_entropy(X, Y, denominator=value, z_loss=0.1),
        lambda: xentrs.torch.linear_cross_entropy(X[:, :3], torch.eye(5, 3), Y, denominator=value),
        lambda: xentrs.torch.binary_cross_entropy_with_logits(X, Q, denominator=value),
    ):
        with pytest.raises(ValueError, match=r"denominator is -2\.0, but must not be negative"):
            call()


def test_softcap_of_zero():
    with pytest.raises(ValueError, match=r"softcap is 0\.0, but must be positive"):
        xentrs.torch.cross_entropy(X, Y, softcap=0.0)


def test_tensors_on_another_device():
    for name, t in (("sample_weight", torch.ones(4)), ("denominator", torch.tensor(2.0))):
        with pytest.raises(RuntimeError, match=f"{name} is on meta, but must be on cpu"):
            xentrs.torch.cross_entropy(X, Y, **{name: t.to("meta")})
    where = torch.ones(4, 5, dtype=torch.bool, device="meta")
    with pytest.raises(RuntimeError, match="where is on meta, but must be on cpu"):
        xentrs.torch.binary_cross_entropy_with_logits(X, Q, where=where)


def test_position_of_a_bad_index_where_work_goes_by_chunks(monkeypatch):
    from xentrs.torch._cpu import tensors

    monkeypatch.setattr(tensors, "CHUNK", 8)
    x, w = torch.randn(50, 5), torch.eye(5)
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.uint16):
        y = torch.zeros(50, dtype=torch.int64)
        y[43] = 77
        y = y.to(dtype)
        logits = (x * 2.0).requires_grad_()
        before = (logits * 1.0).detach()
        moved = logits * 1.0
        for call in (
            lambda y=y: xentrs.torch.cross_entropy(x, y, z_loss=0.1),
            lambda y=y: xentrs.torch.linear_cross_entropy(x, w, y),
            lambda y=y, moved=moved: xentrs.torch.cross_entropy(moved, y, z_loss=0.1, inplace=True),
        ):
            with pytest.raises(
                IndexError, match=r"target\[43\] is 77, but a class index must be in"
            ):
                call()
        assert torch.equal(moved, before)


def test_sparse_targets_are_pytorchs():
    q = torch.eye(5)[:4].to_sparse()
    found = xentrs.torch.cross_entropy(X, q)
    torch.testing.assert_close(found, F.cross_entropy(X, q))


# Options that are numbers, as tensors

CALLS = {
    "temperature": lambda v: xentrs.torch.cross_entropy(X, Y, temperature=v),
    "softcap": lambda v: xentrs.torch.cross_entropy(X, Y, softcap=v),
    "z_loss": lambda v: xentrs.torch.cross_entropy(X, Y, z_loss=v),
    "gamma": lambda v: xentrs.torch.focal_loss(X, Y, gamma=v),
    "q": lambda v: xentrs.torch.generalized_cross_entropy(X, Y, q=v),
    "epsilon": lambda v: xentrs.torch.poly_loss(X, Y, epsilon=v),
    "beta": lambda v: xentrs.torch.js_divergence(X, X.detach() * 2, beta=v),
    "alpha": lambda v: xentrs.torch.sigmoid_focal_loss(X, Q, alpha=v),
    "label_smoothing": lambda v: xentrs.torch.nll_loss(X, Y, label_smoothing=v),
    "temperature, linear": lambda v: xentrs.torch.linear_cross_entropy(
        X[:, :3], torch.eye(5, 3), Y, temperature=v
    ),
    "temperature, kl": lambda v: xentrs.torch.kl_divergence(X, X.detach() * 2, temperature=v),
    "temperature, js": lambda v: xentrs.torch.js_divergence(X, X.detach() * 2, temperature=v),
    "gamma, sigmoid": lambda v: xentrs.torch.sigmoid_focal_loss(X, Q, gamma=v),
    "label_smoothing, binary": lambda v: xentrs.torch.binary_cross_entropy_with_logits(
        X, Q, label_smoothing=v
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_options_whose_gradient_is_wanted(name):
    call, option = CALLS[name], name.split(",")[0]
    message = rf"{option} requires a gradient, which xentrs\.torch does not compute"
    number = torch.tensor(0.5)
    for ask in (
        lambda: call(torch.nn.Parameter(number)),
        lambda: torch.func.grad(call)(number),
        lambda: torch.func.jvp(call, (number,), (number,)),
    ):
        with pytest.raises(NotImplementedError, match=message):
            ask()
    right = call(0.5)
    with torch.no_grad():
        assert call(torch.nn.Parameter(number)) == right
    assert call(number) == right
    assert call(torch.tensor([0.5])) == right


@pytest.mark.parametrize("option", ["label_smoothing", "z_loss", "temperature", "softcap"])
def test_options_as_tensors_within_a_transform(option):
    number = torch.tensor(0.5)

    def gradient(value):
        return torch.func.grad(lambda x: xentrs.torch.cross_entropy(x, Y, **{option: value}))(
            X.detach()
        )

    assert torch.equal(gradient(number), gradient(0.5))


def test_smoothing_whose_gradient_is_wanted():
    """As PyTorch, which has this option."""
    for losses in (torch.nn.functional, xentrs.torch):
        with pytest.raises(TypeError, match=r"label_smoothing.* must be float, not Parameter"):
            losses.cross_entropy(X, Y, label_smoothing=torch.nn.Parameter(torch.tensor(0.5)))


@pytest.mark.parametrize(
    "make", [xentrs.torch.CrossEntropyLoss, xentrs.torch.LinearCrossEntropyLoss]
)
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"z_loss": -0.1}, ValueError, r"z_loss is -0\.1"),
        ({"softcap": 0.0}, ValueError, r"softcap is 0\.0"),
        ({"temperature": "1"}, TypeError, r"temperature must be a number, not '1'"),
        ({"temperature": torch.ones(2)}, TypeError, r"not a tensor of shape \(2,\)"),
        ({"z_loss": torch.nn.Parameter(torch.ones(()))}, NotImplementedError, "z_loss requires a"),
    ],
    ids=str,
)
def test_modules_refuse_options_when_they_are_made(make, options, error, message):
    sizes = (3, 4) if make is xentrs.torch.LinearCrossEntropyLoss else ()
    with pytest.raises(error, match=message):
        make(*sizes, **options)


@pytest.mark.parametrize("value", [float("nan"), torch.tensor(float("nan"))])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_a_denominator_that_is_nan(value, z_loss):
    with pytest.raises(ValueError, match="denominator is nan, but must not be negative or NaN"):
        xentrs.torch.cross_entropy(X, Y, denominator=value, z_loss=z_loss)


@pytest.mark.parametrize("value", [float("inf"), torch.tensor(float("inf"))])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_an_infinite_denominator(value, z_loss):
    assert xentrs.torch.cross_entropy(X, Y, denominator=value, z_loss=z_loss) == 0.0


def test_class_weights_whose_gradient_is_not_wanted():
    weight = torch.full((5,), 0.5, requires_grad=True)
    with pytest.raises(NotImplementedError, match="gradients in the target or the class weights"):
        xentrs.torch.cross_entropy(X, Y, weight, z_loss=0.1)
    with torch.no_grad():
        found = xentrs.torch.cross_entropy(X, Y, weight, z_loss=0.1)
        assert found == xentrs.torch.cross_entropy(X, Y, weight.detach(), z_loss=0.1)
