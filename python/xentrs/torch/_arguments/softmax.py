"""The arguments of losses with a class axis."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy as _pytorchs

from xentrs._arrays import no_class
from xentrs.torch import _backend
from xentrs.torch._arguments.options import (
    REDUCTIONS,
    Options,
    check_tensor,
    is_smoothing,
)
from xentrs.torch._arguments.tensors import (
    INTEGERS,
    are_tensors,
    check_denominator,
    check_further,
    class_shards,
    leave_to_pytorch,
    masked,
)
from xentrs.torch._backend import FLOATS, HALVES, has_kernels
from xentrs.torch._mode import autocasts, differentiates, is_patched


class Summaries(NamedTuple):
    """What a pass over the logits finds beside the loss, of each sample, of ignored ones too."""

    # Of the logits after softcap and temperature, in the accumulator's dtype, if wanted.
    logsumexp: Tensor | None
    argmax: Tensor  # int64: the first of the largest logits


class SoftmaxArguments(NamedTuple):
    """The tensors of a call.

    The target is class indices, or has the shape of the input (probabilities, the logits of a
    teacher), or is None for a loss of the input alone. With `probabilities` it is the classes of a
    few entries of each sample, on a last axis that both have.
    """

    input: Tensor
    target: Any  # Tensor, or None
    weight: Tensor | None
    sample_weight: Tensor | None
    denominator: Tensor | None  # of no dimension
    z_denominator: Tensor | None = None  # what a mean of the z-loss divides by, if something else
    probabilities: Tensor | None = None

    @property
    def axis(self) -> int:
        return 1 if self.input.dim() > 1 else 0

    @property
    def classes(self) -> int:
        return self.input.shape[self.axis]

    @property
    def samples(self) -> torch.Size:
        shape = self.input.shape
        return shape[: self.axis] + shape[self.axis + 1 :]

    @property
    def is_soft(self) -> bool:
        """Whether there is no class index of each sample."""
        if self.probabilities is not None or self.target is None:
            return True
        return bool(self.target.shape == self.input.shape)

    @property
    def dtype(self) -> torch.dtype:
        """That of PyTorch's loss."""
        dtype = self.input.dtype
        if self.is_soft:
            pair = self.probabilities is not None
            for t in (self.probabilities if pair else self.target, self.weight):
                dtype = dtype if t is None else torch.promote_types(dtype, t.dtype)
        return torch.float32 if dtype in HALVES and autocasts(self.input) else dtype

    @property
    def indices(self) -> Tensor:
        """The target's class indices, in a type that holds any `ignore_index`."""
        return self.target.detach().long()

    def entries(self, options: Options) -> tuple[Tensor, Tensor]:
        """Return the classes and the probabilities of a pair, on the class axis of the input.

        An empty entry has class 0 and probability 0, and so has a sample that does not count.
        """
        assert self.probabilities is not None
        y, q = self.indices, self.probabilities.detach()
        kept = not_ignored(y, tuple(options.ignored))
        mask = self.mask(options)
        kept = kept if mask is None else kept & mask.unsqueeze(-1)
        y, q = torch.where(kept, y, 0), torch.where(kept, q, 0.0)
        return y.movedim(-1, self.axis), q.movedim(-1, self.axis)

    def mask(self, options: Options) -> Tensor | None:
        """Return which samples count, None where all do."""
        indices = None if self.is_soft else self.indices
        return sample_mask(indices, self.weight, self.sample_weight, options)

    def loss_shape(self, options: Options) -> torch.Size:
        """Return the shape of the loss."""
        return self.samples if options.reduction == "none" else torch.Size()

    def along(self, grad: Tensor, direction: Tensor, options: Options) -> Tensor:
        """Return the derivative of the loss in a direction, of its gradient in the logits."""
        product = grad * masked(direction, self.gradient_mask(options))
        return product.sum(self.axis) if options.reduction == "none" else product.sum()

    def factor(self, options: Options) -> Tensor:
        """Return what multiplies each sample's loss, without its class weight; a divisor is 1."""
        dtype = _backend.accumulator(self.input.dtype)
        factor = torch.ones(self.samples, dtype=dtype, device=self.input.device)
        if self.sample_weight is not None:
            factor = factor * self.sample_weight.to(dtype)
        if options.reduction == "mean":
            factor = factor / self.divisor(options).to(dtype)
        return masked(factor, self.mask(options))

    def gradient_mask(self, options: Options) -> Tensor | None:
        """Return the mask such that it broadcasts to the logits."""
        mask = self.mask(options)
        return mask if mask is None or not mask.dim() else mask.unsqueeze(self.axis)

    def upstream(self, grad_output: Tensor, options: Options) -> Tensor:
        """Return the upstream gradient such that it multiplies that of the logits.

        It is 0 for a sample that does not count.
        """
        grad_output = masked(grad_output, self.mask(options))
        return grad_output.unsqueeze(self.axis) if grad_output.dim() else grad_output

    def divisor(self, options: Options) -> Tensor:
        """Return what a mean divides by, in float64, without waiting for it."""
        if self.denominator is not None:
            return self.denominator.double()
        weights = None
        if self.weight is not None and not self.is_soft:
            y = self.indices
            y = torch.where(not_ignored(y, options.ignored), y, 0)
            weights = self.weight.detach()[y].double()
        return self._total(weights, options)

    def z_divisor(self, options: Options) -> Tensor:
        """Return what a mean of the z-loss divides by."""
        given = self.denominator if self.z_denominator is None else self.z_denominator
        return self._total(None, options) if given is None else given.double()

    def _total(self, weights: Tensor | None, options: Options) -> Tensor:
        """Return the sum of `weights` times sample weights, over the samples that count."""
        mask = self.mask(options)
        if self.sample_weight is not None:
            s = self.sample_weight.detach().double()
            weights = s if weights is None else weights * s
        if mask is not None:
            weights = mask if weights is None else torch.where(mask, weights, 0.0)
        if weights is not None:
            return weights.sum(dtype=torch.float64)
        count = float(prod(self.samples))
        return torch.full((), count, dtype=torch.float64, device=self.input.device)

    def times(self, grad_output: Tensor, options: Options) -> tuple[SoftmaxArguments, Options]:
        """Return a call and options whose gradient is multiplied by an upstream gradient."""
        s = self.sample_weight
        weights = grad_output.to(_backend.accumulator(self.input.dtype)).expand(self.samples)
        weights = masked(weights, self.mask(options))
        weights = weights.contiguous() if s is None else weights * s
        if options.reduction != "mean":
            return self._replace(sample_weight=weights), options._replace(reduction="sum")
        z = self.z_divisor(options) if options.z_loss else None
        divisor = self.divisor(options)
        call = self._replace(sample_weight=weights, denominator=divisor, z_denominator=z)
        return call, options


def capped_logits(call: SoftmaxArguments, options: Options) -> Tensor:
    """Return the logits after their softcap, in the accumulator's dtype."""
    x, cap = call.input.to(_backend.accumulator(call.input.dtype)), options.softcap
    return capped(x, cap) if cap else x


def capped(x: Tensor, cap: float) -> Tensor:
    """Return logits after a softcap; infinite ones stay."""
    return torch.where(x.isinf(), x, cap * (x / cap).tanh())


def slope_of_cap(x: Tensor, cap: float) -> Tensor:
    """Return the derivative of `capped`: 1 - tanh^2, without its cancellation.

    The product of two sigmoids is smooth at 0, so that autograd may follow.
    """
    z = 2.0 * (x / cap)
    return 4.0 * z.sigmoid() * (-z).sigmoid()


def tempered(x: Tensor, axis: int, temperature: float) -> tuple[Tensor, Tensor | float]:
    """Return logits over a temperature less a number of each sample, and that number.

    It is the largest of them, so that the digits of their differences survive the division.
    """
    if temperature == 1.0:
        return x, 0.0
    top = x.detach().amax(axis, keepdim=True)
    top = torch.where(top.isfinite(), top, 0.0)
    return (x - top) / temperature, top / temperature


def empty_summaries(call: SoftmaxArguments, with_logsumexp: bool) -> Summaries:
    """Return new tensors, to be filled."""
    x = call.input.detach()
    dtype = _backend.accumulator(x.dtype)
    return Summaries(
        x.new_empty(call.samples, dtype=dtype) if with_logsumexp else None,
        x.new_empty(call.samples, dtype=torch.int64),
    )


def fill_logsumexp(logsumexp: Tensor, call: SoftmaxArguments, options: Options) -> None:
    """Fill a logsumexp by functions of PyTorch, in a pass of its own."""
    x = capped_logits(call, options).detach()
    x = x if options.temperature == 1.0 else x / options.temperature
    logsumexp.copy_(x.logsumexp(call.axis))


def sample_mask(
    indices: Tensor | None, weight: Tensor | None, sample_weight: Tensor | None, options: Options
) -> Tensor | None:
    """Return which samples count, None where all do; no `indices` stands for probabilities."""
    mask = None if sample_weight is None else sample_weight.detach() != 0
    if indices is None:
        return mask
    if not options.ignored and weight is None:
        return mask
    kept = not_ignored(indices, tuple(options.ignored))
    if weight is not None and options.label_smoothing == 0.0:
        kept = kept & (weight.detach()[torch.where(kept, indices, 0)] != 0)
    return kept if mask is None else mask & kept


def not_ignored(indices: Tensor, ignored: tuple[int, ...]) -> Tensor:
    """Return which class indices, int64, are not ignored."""
    if not ignored:
        return torch.ones_like(indices, dtype=torch.bool)
    kept = indices != ignored[0]
    for index in ignored[1:]:
        kept &= indices != index
    return kept


def fits(call: SoftmaxArguments, options: Options) -> bool:
    """Whether the arguments are what the kernels take; all else is left to PyTorch."""
    x, target, weight = call[:3]
    if not are_tensors(x, target, *() if weight is None else (weight,)):
        return False
    shape, axis = x.shape, 1 if x.dim() > 1 else 0
    if x.dtype not in FLOATS or not shape or not shape[axis] or target.device != x.device:
        return False
    if x.layout is not torch.strided:
        return False
    if is_patched() and (not has_kernels(x) or class_shards(x, axis)):
        return False
    if target.dtype in INTEGERS:
        if target.shape != shape[:axis] + shape[axis + 1 :]:
            return False
    elif (
        target.shape != shape
        or not target.is_floating_point()
        or target.layout is not torch.strided
        or any(i >= 0 for i in options.ignored)
        or differentiates(target)
    ):
        return False
    if weight is not None:
        taken = weight.shape == (call.classes,) and weight.is_floating_point()
        if not taken or weight.device != x.device or differentiates(weight):
            return False
    return options.reduction in REDUCTIONS and is_smoothing(options.label_smoothing)


def check_pair(call: SoftmaxArguments, options: Options) -> None:
    """Refuse what is wrong with a call whose target is a pair, which PyTorch does not have."""
    x, y, q, weight = call.input, call.target, call.probabilities, call.weight
    check_tensor("input", x)
    check_tensor("target[0]", y)
    check_tensor("target[1]", q)
    assert q is not None
    if x.dtype not in FLOATS:
        raise TypeError(f"input has dtype {x.dtype}, but must be floating point")
    if not x.dim() or not x.shape[call.axis]:
        raise ValueError(f"input of shape {tuple(x.shape)} has no classes")
    if y.dtype not in INTEGERS:
        raise TypeError(f"target[0] has dtype {y.dtype}, but must be integer class indices")
    if not q.is_floating_point():
        raise TypeError(f"target[1] has dtype {q.dtype}, but must be floating point")
    for name, t in (("target[0]", y), ("target[1]", q)):
        if t.dim() != x.dim() or t.shape[:-1] != call.samples:
            shape = ", ".join([*map(str, call.samples), "k"])
            raise ValueError(
                f"{name} has shape {tuple(t.shape)}, but input of shape {tuple(x.shape)} with the "
                f"class axis {call.axis} takes a pair (indices, probabilities) of shape ({shape})"
            )
        check_further(name, t, x)
    if y.shape != q.shape:
        raise ValueError(
            f"target[1] has shape {tuple(q.shape)}, but must have that of target[0], "
            f"{tuple(y.shape)}: the target is a pair (indices, probabilities)"
        )
    if weight is not None:
        check_tensor("weight", weight)
        if weight.shape != (call.classes,):
            raise ValueError(f"weight has shape {tuple(weight.shape)}, but must be of each class")
        check_further("weight", weight, x)
    if options.reduction not in REDUCTIONS:
        raise ValueError(f"{options.reduction} is not a valid value for reduction")
    if not is_smoothing(options.label_smoothing):
        raise ValueError(f"label_smoothing must be in [0, 1], not {options.label_smoothing}")


def check_further_arguments(call: SoftmaxArguments) -> None:
    """Refuse what is wrong with the arguments that PyTorch's function does not have."""
    s = call.sample_weight
    if s is not None:
        check_tensor("sample_weight", s)
        if s.shape != call.samples:
            raise ValueError(
                f"sample_weight has shape {tuple(s.shape)}, but must have shape "
                f"{tuple(call.samples)}: that of input, {tuple(call.input.shape)}, without axis "
                f"{call.axis}"
            )
        if not s.is_floating_point():
            raise TypeError(f"sample_weight has dtype {s.dtype}, but must be floating point")
        check_further("sample_weight", s, call.input)
    check_denominator(call.denominator, call.input)


def beyond_pytorch(
    name: str,
    sample_weight: Tensor | None,
    denominator: Tensor | None,
    options: Options,
    loss_dtype: torch.dtype | None,
) -> str | None:
    """Return what is wrong with leaving the call to PyTorch's function, which lacks arguments."""
    smoothing = options.label_smoothing
    if isinstance(smoothing, float) and not smoothing >= 0.0:  # PyTorch's function takes it for 0
        raise ValueError(f"label_smoothing is {smoothing}, but must be in [0, 1]")
    if (
        len(options.ignored) == 1
        and options.is_plain
        and sample_weight is None
        and denominator is None
        and loss_dtype is None
    ):
        return None
    return (
        f"xentrs.torch.{name}: z_loss, softcap, temperature, sample_weight, denominator, "
        "loss_dtype and several ignored indices cannot be combined with what only PyTorch's "
        "function computes: gradients in the target or the class weights, tensors of several "
        "dtypes, a sparse target, or a call that torch.fx records"
    )


def refuse(name: str, call: SoftmaxArguments, options: Options) -> Tensor:
    """Say what is wrong with a loss of class indices, in PyTorch's words if it has any."""
    target = call.target
    if isinstance(target, Tensor) and target.is_floating_point():
        raise TypeError(
            f"target has dtype {target.dtype}, but {name} takes class indices: the loss is "
            "defined by the probability of one class"
        )
    return leave_to_pytorch(
        lambda: _pytorchs(
            call.input,
            target,
            call.weight,
            ignore_index=options.ignored[0] if options.ignored else -100,
            reduction=options.reduction,
        ),
        f"xentrs.torch.{name} has no gradient in the class weights: weight.detach()",
    )


def check_indices(call: SoftmaxArguments, ignored: tuple[int, ...]) -> None:
    """Refuse class indices out of range, before anything is computed."""
    y = call.indices
    bad = not_ignored(y, ignored) & ((y < 0) | (y >= call.classes))
    name = "target" if call.probabilities is None else "target[0]"
    if bad.any():
        raise index_error(name, call.target, bad, call.classes, ignored)


def index_error(
    name: str, target: Tensor, bad: Tensor, classes: int, ignored: tuple[int, ...]
) -> IndexError:
    """Return the error for the first of the `bad` class indices."""
    place = bad.nonzero()[0].tolist()
    return no_class(f"{name}{place or ''}", target[tuple(place)].item(), classes, ignored)
