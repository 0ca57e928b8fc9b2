"""Calls of each loss, and how far from float64 PyTorch itself is on them."""

from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

import xentrs.torch
from backends import BACKENDS
from xentrs.torch import _backend

NAMES = ("cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# For tests in which a dtype means no more than whether the backward pass computes the gradient, as
# it does for float16. Triton's interpreter, which is slow, takes one dtype of each kind.
each_backend_and_dtype = pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param(backend, dtype, id=f"{backend}-{dtype}")
        for backend in BACKENDS
        for dtype in ((torch.float32, torch.float16) if backend == "interpreter" else DTYPES)
    ],
    indirect=["backend"],
)


def fast():
    """Return options of gradcheck.

    In Triton's interpreter it compares derivatives in random directions, else those of all numbers.
    """
    return {"fast_mode": _backend.FORCED == "triton"}


@dataclass
class Sample:
    """The arguments of a call; those at the places of `leaves` are differentiated."""

    name: str
    arguments: list
    options: dict = field(default_factory=dict)
    leaves: tuple = (0,)

    def to(self, dtype=None, device=None):
        def move(t):
            if not torch.is_tensor(t):
                return t
            t = t.detach().clone()
            return t.to(dtype if t.is_floating_point() else None).to(device)

        return replace(
            self,
            arguments=[move(a) for a in self.arguments],
            options={k: move(v) for k, v in self.options.items()},
        )

    def run(self, module, weights=None):
        """Return the loss of the module's function and its gradients."""
        copy = self.to()
        leaves = [copy.arguments[i] for i in self.leaves]
        if copy.options.get("linear_bias") is not None:
            leaves.append(copy.options["linear_bias"])
        for leaf in leaves:
            leaf.requires_grad_()
        loss = getattr(module, self.name)(*copy.arguments, **copy.options)
        if weights is None:
            weights = torch.linspace(0.5, 1.5, max(loss.numel(), 1), device=loss.device)
            weights = weights[: loss.numel()].reshape(loss.shape)
        grads = torch.autograd.grad(loss, leaves, weights.to(loss.dtype))
        return [loss.detach(), *grads]


def operator_samples(name):
    """Yield PyTorch's own sample inputs of a function."""
    for op in op_db:
        if op.name != f"nn.functional.{name}":
            continue
        for sample in op.sample_inputs("cpu", torch.float64, requires_grad=False):
            leaves = (0, 1) if name == "linear_cross_entropy" else (0,)
            yield Sample(name, [sample.input, *sample.args], dict(sample.kwargs), leaves)


def terms_of_gradient(exact):
    """Return the size of the terms whose differences the gradient of the logits is, or more.

    It is 0 where there is no difference: for class indices and labels that are 0 or 1.
    """
    x, target, *_ = exact.arguments
    if exact.name == "cross_entropy":
        if target.shape != x.shape and not exact.options.get("label_smoothing"):
            return 0.0
        axis = 1 if x.dim() > 1 else 0
        return exact.run(F)[1].nan_to_num().abs().amax(axis, keepdim=True)
    if ((target == 0) | (target == 1)).all():
        return 0.0
    return exact.run(F)[1].nan_to_num().abs().max()


def assert_as_good(sample, dtype, device="cpu", ulps=4.0):
    """Assert that our error is at most PyTorch's own, or `ulps` of the largest number."""
    # In float64 what we compare with is no better: PyTorch's gradient is rounded before its last
    # subtraction, p - 1.
    one = 1.0 if dtype == torch.float64 else 0.0
    sample = sample.to(dtype, device)
    exact = sample.to(torch.float64)
    exact.options.pop("options", None)
    more = 0.0
    x = exact.arguments[0]
    if _backend.uses_triton(sample.arguments[0]) and x.numel():
        # There exp(x - largest) is of a rounded difference: half a ULP for each of its units.
        more = 0.5 * (x.nan_to_num().max() - x.nan_to_num().min()).item()
    ours, theirs, true = sample.run(xentrs.torch), sample.run(F), exact.run(F)
    for our, their, real in zip(ours, theirs, true, strict=True):
        assert (our.dtype, our.shape) == (their.dtype, their.shape)
        rounded = real.to(our.dtype)
        torch.testing.assert_close(our.isnan(), rounded.isnan())
        infinite = rounded.isinf()
        torch.testing.assert_close(our[infinite], rounded[infinite], rtol=0.0, atol=0.0)
        if not real.numel():
            continue

        finite = rounded.isfinite()
        # Each number by itself, not the largest error by the largest number.
        error, allowed, size = (
            torch.where(finite, t, 0.0).abs()
            for t in (our.double() - real, their.double() - real, real)
        )
        if real.dim() == 0:  # a sum, whose terms may cancel
            terms = replace(exact, options=exact.options | {"reduction": "none"}).run(F)[0]
            size = size + terms.nan_to_num().abs().max()
        elif sample.name == "linear_cross_entropy":  # as errors of products are
            size = size.max()
        elif real.shape == sample.arguments[0].shape:
            # Of a gradient that is a difference, the error is one of its terms'.
            size = size + terms_of_gradient(exact)
        floor = (ulps + more) * torch.finfo(dtype).eps * size.clamp(min=one)
        floor = floor + torch.finfo(dtype).smallest_normal
        assert (error <= torch.maximum(allowed, floor)).all(), (sample, our, their, real)
