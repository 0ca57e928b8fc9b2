"""Slices of classes: the functions for the CPU and those for GPUs, in one process."""

import itertools
import math

import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make test-torch has it")

from torch.testing import assert_close

import xentrs.torch
from xentrs.torch._cpu import slices as cpu
from xentrs.torch._gpu import slices as gpu

BOUNDS = (0, 7, 8, 20)
CLASSES = BOUNDS[-1]


def logits_of(kind, dtype):
    torch.manual_seed(0)
    spread, offset = {
        "plain": (3.0, 0.0),
        "confident": (3.0, 0.0),
        "spread": (60.0, 0.0),
        "offset": (3.0, 1e5),
        "beyond": (3.0, -2e5),  # units that are no powers of two
        "around": (3.0, 131072.0),  # some slices have the one kind of unit, some the other
    }[kind]
    x = torch.randn((12, CLASSES), dtype=torch.float64) * spread + offset
    y = torch.randint(0, CLASSES, (12,))
    if kind == "confident":
        x[range(12), y] += 50.0
    return x.to(dtype), y


def evaluate(on, x, y, counts, smoothing, z_loss):
    """Return losses and gradient by slices."""
    spans = [slice(a, b) for a, b in itertools.pairwise(BOUNDS)]
    device = x.device
    parts = [x[:, span].contiguous() for span in spans]
    inside = [torch.where((y >= s.start) & (y < s.stop), y - s.start, -1) for s in spans]
    found = [
        on.reduce(part, own, counts, smoothing > 0.0)
        for part, own in zip(parts, inside, strict=True)
    ]
    merged = on.merge(torch.stack([states for states, *_ in found]))
    scales = torch.linspace(0.5, 2.0, len(y), dtype=torch.float64, device=device)
    classes = torch.tensor(float(CLASSES), dtype=torch.float64, device=device)
    if on is gpu:
        weight = torch.full_like(classes, smoothing) if smoothing else 0.0
        mixture = weight, classes, z_loss
    else:
        mixture = smoothing, classes.item(), z_loss
    losses = on.losses(merged, scales, counts, mixture)
    grads = [
        on.gradient(part, own, counts, merged, reduced, scales, mixture)
        for part, own, reduced in zip(parts, inside, found, strict=True)
    ]
    return losses, torch.cat(grads, 1), scales


@pytest.fixture(params=["cpu", "gpu"])
def functions(request):
    if request.param == "gpu":
        pytest.importorskip("triton", reason="Triton is not installed")
        return gpu, "cuda" if torch.cuda.is_available() else "cpu"
    return cpu, "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("smoothing", "z_loss"), [(0.0, 0.0), (0.1, 0.0), (0.2, 0.01), (1.0, 0.0)])
@pytest.mark.parametrize("kind", ["plain", "confident", "spread", "offset", "beyond", "around"])
def test_slices_are_the_whole(kind, smoothing, z_loss, dtype, functions):
    on, device = functions
    x, y = logits_of(kind, dtype)
    counts = torch.ones(12, dtype=torch.bool)
    counts[3] = False
    actual, grad, scales = evaluate(
        on, x.to(device), y.to(device), counts.to(device), smoothing, z_loss
    )
    whole = x.double().requires_grad_()
    exact = xentrs.torch.cross_entropy(
        whole, y, reduction="none", label_smoothing=smoothing, z_loss=z_loss
    )
    exact = torch.where(counts, scales.cpu() * exact, 0.0)
    exact.sum().backward()
    # A GPU's kernel rounds differences of logits; float64 sums of offset logits round too.
    near = {torch.float32: 2e-5, torch.float64: 1e-10 if on is gpu else 1e-13}[dtype]
    assert_close(actual.cpu(), exact.detach(), rtol=near, atol=0.0)
    size = whole.grad.abs().amax(1, keepdim=True)
    assert ((grad.cpu().double() - whole.grad).abs() <= near * size).all()
    if not smoothing and not z_loss:
        own = grad.cpu().double()[range(12), y]
        assert_close(own, whole.grad[range(12), y], rtol=near, atol=0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_infinite_logits(smoothing, functions):
    on, device = functions
    x, inf, nan = torch.randn(12, CLASSES), math.inf, math.nan
    y = torch.zeros(12, dtype=torch.long)
    x[0, 3] = -inf
    x[1, 7:] = -inf  # two whole slices
    x[2, 1:] = -inf  # all but the true class
    x[3, 0] = -inf  # the true class
    x[4] = -inf
    x[5, 9], x[6, 9], x[7, 0], x[8, 0], x[9, ::2] = inf, nan, inf, nan, nan
    counts = torch.ones(12, dtype=torch.bool)
    counts[9] = False
    actual, grad, scales = evaluate(on, x.to(device), y.to(device), counts.to(device), smoothing, 0)
    whole = x.double().requires_grad_()
    exact = xentrs.torch.cross_entropy(whole, y, reduction="none", label_smoothing=smoothing)
    exact = torch.where(counts, scales.cpu() * exact, 0.0)
    assert_close(actual.cpu(), exact.detach(), rtol=1e-5, atol=1e-7, equal_nan=True)
    exact.backward(torch.ones(12, dtype=torch.float64))
    expected = torch.where(counts[:, None], whole.grad, 0.0)
    assert_close(grad.cpu().double(), expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    assert (grad[9] == 0.0).all()
