"""Calls of each loss, and how far from float64 PyTorch itself is on them."""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db

import xentrs.torch

NAMES = ("cross_entropy", "binary_cross_entropy_with_logits", "linear_cross_entropy")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


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


def assert_as_good(sample, dtype, device="cpu", ulps=4.0):
    """Assert that our error is at most PyTorch's own, or `ulps` of the largest number."""
    # In float64 what we compare with is no better: PyTorch's gradient is rounded before its last
    # subtraction, p - 1.
    one = 1.0 if dtype == torch.float64 else 0.0
    sample = sample.to(dtype, device)
    exact = sample.to(torch.float64)
    exact.options.pop("options", None)
    ours, theirs, true = sample.run(xentrs.torch), sample.run(F), exact.run(F)
    for our, their, real in zip(ours, theirs, true, strict=True):
        assert (our.dtype, our.shape) == (their.dtype, their.shape)
        torch.testing.assert_close(our.isfinite(), real.to(our.dtype).isfinite())
        if not real.numel():
            continue
        error = (our.double() - real).nan_to_num().abs().max()
        allowed = (their.double() - real).nan_to_num().abs().max()
        floor = ulps * torch.finfo(dtype).eps * real.nan_to_num().abs().max().clamp(min=one)
        if real.dim() == 0:  # a sum, whose terms may cancel
            terms = replace(exact, options=exact.options | {"reduction": "none"}).run(F)[0]
            floor = floor + ulps * torch.finfo(dtype).eps * terms.abs().max()
        assert error <= torch.maximum(allowed, floor), (sample, our, their, real)
