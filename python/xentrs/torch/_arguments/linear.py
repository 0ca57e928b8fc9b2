"""The arguments of the loss of a linear layer's outputs."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from xentrs.torch._arguments import softmax
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import masked
from xentrs.torch._backend import FLOATS


class LinearArguments(NamedTuple):
    """The tensors of a call."""

    input: Tensor  # (N, in)
    linear_weight: Tensor  # (C, ..., in)
    linear_bias: Tensor | None  # (C, ...)
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    denominator: Tensor | None  # of no dimension
    z_denominator: Tensor | None = None  # what a mean of the z-loss divides by, if something else

    def loss(self) -> SoftmaxArguments:
        """Return the arguments of the loss, with one number in place of all logits."""
        shape = (*self.input.shape[:1], *self.linear_weight.shape[:-1])
        logits = self.input.detach().new_zeros(()).expand(shape)
        return SoftmaxArguments(logits, *self[3:])

    def cast(self, dtype: torch.dtype) -> LinearArguments:
        """Return the call with the tensors of the linear layer as autocast casts them."""

        def cast(t: Tensor) -> Tensor:
            return t.to(dtype) if t.dtype in FLOATS - {torch.float64} else t

        x, w, b = self[:3]
        return LinearArguments(cast(x), cast(w), None if b is None else cast(b), *self[3:])

    def row_mask(self, options: Options) -> Tensor | None:
        """Return which rows of the input count, as a column; None where all do."""
        return self.masks(options)[0]

    def masks(self, options: Options) -> list[Tensor | None]:
        """Return which entries of the gradients of input, weight and bias count."""
        return gradient_masks(self.loss().mask(options))

    def upstreams(self, grad_output: Tensor, options: Options) -> list[Tensor]:
        """Return the upstream gradient, a number, for each gradient: 0 where nothing counts."""
        return [masked(grad_output, mask) for mask in self.masks(options)]

    def times(self, grad_output: Tensor, options: Options) -> tuple[LinearArguments, Options]:
        """Return a call and options whose gradients are multiplied by an upstream gradient."""
        loss, options = self.loss().times(grad_output, options)
        call = self._replace(
            sample_weight=loss.sample_weight,
            denominator=loss.denominator,
            z_denominator=loss.z_denominator,
        )
        return call, options


def gradient_masks(mask: Tensor | None) -> list[Tensor | None]:
    """Return which entries of the three gradients count, of which samples do."""
    if mask is None:
        return [None] * 3
    # An input has a part in the losses of its row, a weight in those of its column.
    columns = mask.any(0)
    rows = mask.unsqueeze(-1).flatten(1).any(1, keepdim=True)
    return [rows, columns.unsqueeze(-1) if columns.dim() else columns, columns]


def fits(call: LinearArguments, options: Options) -> bool:
    """Whether the arguments are what the kernels take; all else is left to PyTorch."""
    x, w, b = call[:3]
    return (
        x.dtype in FLOATS
        and x.dim() == 2
        and w.dim() >= 2
        and w.shape[-1] == x.shape[1]
        and (b is None or b.shape == w.shape[:-1])
        and all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in (w, b))
        and softmax.fits(call.loss(), options)
    )
