"""On the CPU alone: tensors read without arrays, half precisions, memory that is used again."""

import math
import os
import signal
import sys
from fractions import Fraction

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F

import xentrs.torch
from samples import DTYPES
from xentrs.torch import cross_entropy
from xentrs.torch._arguments.options import softmax_options
from xentrs.torch._operators import quick

pytestmark = pytest.mark.skipif(
    xentrs.torch._backend.FORCED == "triton", reason="of the CPU's own kernels"
)
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16]


def both(x, *arguments, **options):
    """Return loss and gradient."""
    x = x.detach().requires_grad_()
    loss = cross_entropy(x, *arguments, **options)
    (grad,) = torch.autograd.grad(loss.sum(), x)
    return loss.detach(), grad


def layouts(n, classes, *d, dtype=torch.float32):
    """Yield logits of one shape that lie in different orders, with the same values."""
    x = torch.randn(n, classes, *d).to(dtype)
    yield x
    yield x.transpose(0, 1).contiguous().transpose(0, 1)
    yield x.repeat_interleave(2, dim=1)[:, ::2]
    if d:
        yield x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize(
    "shape", [(1, 10), (7, 300), (3, 5, 4), (2, 21, 6, 40), (70, 3, 1), (0, 4)]
)
def test_the_plainest_call_is_like_any_other(shape):
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    ones = torch.ones(y.shape)  # not the plain call then
    for x in layouts(*shape, dtype=torch.float32):
        for dtype in (torch.float32, torch.float64):
            for options in ({}, {"reduction": "sum"}, {"label_smoothing": 0.1}):
                loss, grad = both(x.to(dtype), y, **options)
                expected = both(x.to(dtype), y, sample_weight=ones.to(dtype), **options)
                torch.testing.assert_close((loss, grad), expected, equal_nan=True)
                assert (loss.dtype, loss.shape) == (dtype, ())
                assert cross_entropy(x.to(dtype), y, **options).equal(loss) or loss.isnan()
                assert grad.stride() == torch.empty_like(x.to(dtype)).stride() or not grad.numel()


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
def test_integers(dtype):
    x, y = torch.randn(6, 5), torch.tensor([0, 4, 2, 3, 1, 1])
    assert both(x, y.to(dtype))[1].equal(both(x, y)[1])


def test_negated_memory():
    x = torch.randn(4, 5, dtype=torch.complex64).conj().imag
    assert x.is_neg()
    y = torch.tensor([0, 1, 2, 4])
    w = torch.rand(5, dtype=torch.complex64).conj().imag
    for weight in (None, w):
        expected = both(x.clone(), y, None if weight is None else w.clone())
        torch.testing.assert_close(both(x, y, weight), expected)


def test_new_tensors_are_on_the_cpu():
    x, y = torch.randn(3, 4), torch.tensor([0, 1, 2])
    expected = both(x, y)
    with torch.device("meta"):
        for options in ({}, {"weight": torch.ones(4, device="cpu")}):
            torch.testing.assert_close(both(x, y, **options), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(40, 10), (5, 1000), (3, 21, 5, 40), (2, 300, 40), (6, 4, 3)])
def test_halves_are_rounded_float32(shape, dtype):
    y = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    y.view(-1)[::5] = -100
    with torch.autocast("cpu", dtype=dtype):  # the loss stays float32
        for x in layouts(*shape, dtype=dtype):
            for options in ({}, {"reduction": "none"}, {"weight": torch.rand(shape[1])}):
                loss, grad = both(x, y, **options)
                expected, wide = both(x.float().contiguous(), y, **options)
                torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0.0)
                torch.testing.assert_close(grad, wide.to(dtype), rtol=1e-6, atol=0.0)
            x = x.clone(memory_format=torch.contiguous_format)
            leaf = x.clone().requires_grad_()
            layer = leaf * 1.0
            cross_entropy(layer, y, inplace=True).backward()
            assert leaf.grad.equal(both(x, y)[1])


def test_freed_memory_serves_down_to_half_its_size():
    x, y = torch.randn(1200, 1000), torch.randint(0, 1000, (1200,))
    place = both(x, y)[1].data_ptr()
    half = both(x[:700], y[:700])[1]
    assert half.data_ptr() == place
    torch.testing.assert_close(half, both(x[:700].double(), y[:700])[1].float())
    del half
    assert both(x[:300], y[:300])[1].data_ptr() != place


def test_gradients_outlive_what_follows():
    x, y = torch.randn(400, 1000, requires_grad=True), torch.randint(0, 1000, (400,))
    kept = [torch.autograd.grad(cross_entropy(x, y) * factor, x)[0] for factor in (1.0, 2.0, 3.0)]
    expected = torch.autograd.grad(F.cross_entropy(x, y), x)[0]
    for factor, grad in zip((1.0, 2.0, 3.0), kept, strict=True):
        torch.testing.assert_close(grad, factor * expected)


def test_a_graph_kept_gives_the_same_gradient_twice():
    x, y = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    loss = cross_entropy(x, y)
    first = torch.autograd.grad(loss, x, retain_graph=True)[0]
    first.mul_(7.0)
    twice = torch.autograd.grad(loss, x, torch.tensor(2.0), retain_graph=True)[0]
    torch.testing.assert_close(twice, 2.0 * torch.autograd.grad(loss, x)[0])
    torch.testing.assert_close(first, 3.5 * twice)


linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_large_calls_are_done_by_pytorchs_threads(python):
    script = """
        import pathlib, time, torch, xentrs, xentrs.torch
        torch.set_num_threads(3)
        x, y = torch.randn(4000, 1000), torch.randint(0, 1000, (4000,))
        def names():
            tasks = pathlib.Path("/proc/self/task").iterdir()
            return [(task / "comm").read_text() for task in tasks]
        losses = set()
        for threads in 1, 2, 3, 5:  # less than PyTorch's and more
            xentrs.set_num_threads(threads)
            losses.add(xentrs.torch.cross_entropy(x, y).item())
        assert len(losses) == 1, losses
        assert not any(name.startswith("xentrs-") for name in names())
        torch.set_num_threads(1)  # says nothing about ours
        assert xentrs.torch.cross_entropy(x, y).item() in losses
        while not any(name.startswith("xentrs-") for name in names()):  # once they have begun
            time.sleep(0.01)
    """
    python(script, timeout=100, XENTRS_NUM_THREADS=None, OMP_NUM_THREADS=None)


@linux
@pytest.mark.parametrize("how", ["os.fork", "multiprocessing", "DataLoader"])
def test_child_of_fork_imports_first(how, python):
    """It cannot know what threads its parent had, so it has its own."""
    script = """
        import multiprocessing, os, pathlib, signal, sys, torch
        x, y = torch.zeros(4000, 1000), torch.zeros(4000, dtype=torch.int64)  # by many threads
        class Losses(torch.utils.data.Dataset):
            def __len__(self):
                return 1
            def __getitem__(self, index):
                signal.alarm(100)  # a deadlock ends in SIGALRM
                torch.set_num_threads(2)
                assert "xentrs" not in sys.modules
                import xentrs.torch
                loss = xentrs.torch.cross_entropy(x, y).item()
                tasks = pathlib.Path("/proc/self/task").iterdir()
                while not any((task / "comm").read_text().startswith("xentrs-") for task in tasks):
                    tasks = pathlib.Path("/proc/self/task").iterdir()
                assert abs(loss - 6.907755) < 1e-5
                return loss
        torch.set_num_threads(2)
        torch.exp(x)
        if sys.argv[1] == "os.fork":
            child = os.fork()
            if child == 0:
                Losses()[0]
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
        elif sys.argv[1] == "multiprocessing":
            fork = multiprocessing.get_context("fork")
            child = fork.Process(target=Losses().__getitem__, args=(0,))
            child.start()
            child.join()
            assert child.exitcode == 0
        else:
            loader = torch.utils.data.DataLoader(
                Losses(), num_workers=1, timeout=100, multiprocessing_context="fork"
            )
            assert len(list(loader)) == 1
    """
    python(script, timeout=200, arguments=[how], XENTRS_NUM_THREADS=2, OMP_NUM_THREADS=None)


@linux
def test_child_of_fork_works():
    """PyTorch's threads are not there in the child, and OpenMP would wait for them."""
    x, y = torch.randn(4000, 1000), torch.randint(0, 1000, (4000,))
    torch.exp(x)
    expected = cross_entropy(x, y).item()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a deadlock ends in SIGALRM
        os._exit(int(cross_entropy(x, y).item() != expected))
    assert os.waitpid(child, 0)[1] == 0
    assert cross_entropy(x, y).item() == expected


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["binary_cross_entropy_with_logits", "sigmoid_focal_loss"])
def test_labels_and_weights_of_half_precision(name, half):
    """Beside logits of single and double precision, in any layout."""
    function = getattr(xentrs.torch, name)
    x, t = torch.randn(4, 3), torch.rand(4, 3).to(half)
    where = torch.tensor([True, False, True])
    calls = (
        (x.double(), t, {}),
        (x.t(), t.t(), {}),
        (x, t, {"weight": torch.ones(4, 1).to(half)}),
        (x, t.float(), {"weight": torch.ones(3).to(half), "where": where}),
        (x.to(half), t, {"weight": torch.ones(4, 1).to(half), "where": where}),
        (x.to(half).t(), (t > 0.5).t(), {}),
        (x.to(half), (t > 0.5).long(), {}),
    )
    for logits, labels, options in calls:
        wide = {k: a.double() if a.is_floating_point() else a for k, a in options.items()}
        expected = function(logits.double(), labels.double(), reduction="none", **wide)
        loss = function(logits, labels, reduction="none", **options)
        rtol = 1e-6 if loss.dtype in (torch.float32, torch.float64) else 1e-2
        torch.testing.assert_close(loss.double(), expected, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_place_beside_the_same_memory(dtype):
    """The gradient takes the place of logits that another argument shares."""
    x = torch.randn(4, 5).to(dtype)
    for function in (xentrs.torch.kl_divergence, xentrs.torch.cross_entropy):
        expected = x.clone().requires_grad_()
        function(expected * 1, x.clone()).backward()
        leaf = x.clone().requires_grad_()
        logits = leaf * 1
        function(logits, logits.detach(), inplace=True).backward()
        torch.testing.assert_close(leaf.grad, expected.grad)


# The commonest calls have a way of their own

ORDINARY = [
    ("cross_entropy", torch.float32, {}),
    ("cross_entropy", torch.float64, {"reduction": "sum", "label_smoothing": 0.1}),
    ("cross_entropy", torch.bfloat16, {}),
    ("cross_entropy", torch.float32, {"weight": [0.5, 1.0, 0.0, 2.0, 1.5]}),
    ("cross_entropy", torch.float64, {"weight": [0.5, 1.0, 0.0, 2.0, 1.5], "ignore_index": 3}),
    ("cross_entropy", torch.bfloat16, {"weight": [0.5, 1.0, 0.0, 2.0, 1.5]}),
    ("cross_entropy", torch.float32, {"reduction": "none"}),
    ("cross_entropy", torch.float64, {"reduction": "none", "weight": [0.5, 1.0, 0.0, 2.0, 1.5]}),
    ("cross_entropy", torch.bfloat16, {"reduction": "none", "label_smoothing": 0.1}),
    ("cross_entropy", torch.float32, {"reduction": "none", "ignore_index": 3}),
    ("binary_cross_entropy_with_logits", torch.float32, {}),
    ("binary_cross_entropy_with_logits", torch.float32, {"reduction": "none"}),
    (
        "binary_cross_entropy_with_logits",
        torch.float64,
        {"reduction": "none", "pos_weight": [0.5, 1.0, 0.0, 2.0, 1.5]},
    ),
    ("binary_cross_entropy_with_logits", torch.float64, {"reduction": "sum"}),
    ("binary_cross_entropy_with_logits", torch.float32, {"pos_weight": [0.5, 1.0, 0.0, 2.0, 1.5]}),
]


@pytest.mark.parametrize(("name", "dtype", "options"), ORDINARY, ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("place", ["rows", "columns"])
def test_the_quick_way_is_the_long_way(name, dtype, options, autocast, place, monkeypatch):
    torch.manual_seed(0)
    x = torch.randn(7, 5) if place == "rows" else torch.randn(5, 7).T
    x = (3.0 * x).to(dtype).requires_grad_()
    y = torch.tensor([0, 2, 4, 3, -100, 1, 1]) if name == "cross_entropy" else (x > 1).to(dtype)
    if "ignore_index" in options:
        y[4] = options["ignore_index"]
    given = {
        key: torch.tensor(value, dtype=dtype) if isinstance(value, list) else value
        for key, value in options.items()
    }
    taken = []

    def results():
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = getattr(xentrs.torch, name)(x, y, **given)
            with torch.no_grad():
                alone = getattr(xentrs.torch, name)(x, y, **given)
        (grad,) = torch.autograd.grad((2.0 * loss).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((grad * grad.detach()).sum(), x)
        return loss, alone, grad, second

    kind = "of_classes" if name == "cross_entropy" else "of_elements"
    original = getattr(quick, kind)

    def spy(*args):
        taken.append(original(*args))
        return taken[-1]

    monkeypatch.setattr(quick, kind, spy)
    found = results()
    assert len(taken) == 2
    # Binary losses that are not contiguous are copied, which the long way does.
    assert (taken[0] is not None) == (name == "cross_entropy" or place == "rows")
    monkeypatch.setattr(quick, kind, lambda *args: None)
    for one, other in zip(found, results(), strict=True):
        assert one.dtype == other.dtype
        assert one.stride() == other.stride()
        assert torch.equal(one, other)
    theirs = getattr(torch.nn.functional, name)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert found[0].dtype == theirs(x, y, **given).dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_a_sample_weight_of_nan(dtype, z_loss):
    """Its loss is NaN, and so is the mean's gradient, but where a sample does not count."""
    x = torch.randn(4, 5).to(dtype).requires_grad_()
    s = torch.tensor([1.0, math.nan, 0.0, 2.0])
    y = torch.tensor([0, 1, 2, -100])
    loss = xentrs.torch.cross_entropy(x, y, sample_weight=s, z_loss=z_loss)
    loss.backward()
    assert loss.isnan()
    assert x.grad[:2].isnan().all()
    assert not x.grad[2:].any()


@pytest.mark.parametrize("number", [np.float64, np.float32, torch.tensor, int, Fraction])
def test_options_are_floats(number):
    """Triton makes no constants of numbers of NumPy, not even of those that are floats."""
    options = softmax_options("mean", (-100,), number(1), number(1), number(1), number(1))
    kinds = {type(getattr(options, k)) for k in ("label_smoothing", "z_loss", "softcap")}
    assert kinds | {type(options.temperature)} == {float}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("freed", ["input", "target", "weight", "sample_weight"])
def test_memory_that_was_freed(freed, dtype):
    arguments = {"input": torch.randn(4, 3).to(dtype), "target": torch.tensor([0, 1, 2, 1])}
    arguments |= {"weight": torch.rand(3).to(dtype), "sample_weight": torch.rand(4)}
    arguments[freed].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="memory of a tensor was freed"):
        cross_entropy(**arguments)


@pytest.mark.parametrize("value", [math.nan, -1.0, -1e-300, np.float32(-0.5)])
def test_a_label_smoothing_that_pytorch_takes_for_0(value):
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
    with pytest.raises(ValueError, match=r"label_smoothing is -?\S+, but must be in \[0, 1\]"):
        cross_entropy(x, y, label_smoothing=value)
    with pytest.raises(ValueError, match=r"label_smoothing is -?\S+, but must be in \[0, 1\]"):
        xentrs.torch.binary_cross_entropy_with_logits(x, x.sigmoid(), label_smoothing=value)


@pytest.mark.parametrize("value", [None, "", [], 0j, torch.zeros(2)], ids=repr)
def test_a_label_smoothing_that_is_no_number(value):
    x = torch.randn(4, 3)
    for dtype in (torch.float32, torch.bfloat16):
        with pytest.raises(TypeError, match="label_smoothing must be a number"):
            xentrs.torch.binary_cross_entropy_with_logits(
                x.to(dtype), x.sigmoid().to(dtype), label_smoothing=value
            )
