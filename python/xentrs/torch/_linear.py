"""Cross-entropy of a linear layer's outputs, which never exist all at once.

The forward goes through the samples in chunks: their logits by a matrix product, loss and gradient
in their place by the kernels of `_cross_entropy.py`, and from that, while the chunk is in memory,
the gradients of input, weight and bias by two more products. The backward multiplies these by what
arrives at the loss. For ``reduction="none"``, where that is a number a sample, the forward takes
the losses alone and the backward does all of this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xentrs.torch import _autograd, _backend, _cross_entropy
from xentrs.torch._backend import FLOATS
from xentrs.torch._options import Ignored, Options, are_tensors, check_tensor, ignored_indices

_NAME = "linear_cross_entropy"

# Logits of a chunk, and samples at least, as products of fewer are slower. More take more memory.
_ELEMENTS = 1 << 22
_ELEMENTS_ON_GPU = 1 << 27
_LEAST_ROWS = 256


class _Arguments(NamedTuple):
    """The tensors of a call."""

    input: Tensor  # (N, in)
    linear_weight: Tensor  # (C, ..., in)
    linear_bias: Tensor | None  # (C, ...)
    target: Tensor
    weight: Tensor | None
    sample_weight: Tensor | None
    denominator: Tensor | None  # of no dimension

    def loss(self) -> _cross_entropy._Arguments:
        """Return the arguments of the loss, with one number in place of all logits."""
        shape = (*self.input.shape[:1], *self.linear_weight.shape[:-1])
        logits = self.input.detach().new_zeros(()).expand(shape)
        return _cross_entropy._Arguments(logits, *self[3:])

    def rows(self) -> int:
        """Return a good number of samples for a chunk."""
        elements = _ELEMENTS if self.input.device.type == "cpu" else _ELEMENTS_ON_GPU
        return max(elements // max(prod(self.linear_weight.shape[:-1]), 1), _LEAST_ROWS)


def _evaluate(
    call: _Arguments, options: Options, rows: int, wanted: Sequence[bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the loss, in the accumulator's dtype, and those of the gradients that are wanted."""
    x, n, width = call.input.detach(), *call.input.shape
    classes = call.linear_weight.shape[:-1]
    outputs = prod(classes)
    dtype = _backend.accumulator(x.dtype)
    # A CPU is no faster at products of half precisions, and rounds every result.
    kind = dtype if x.device.type == "cpu" else x.dtype
    weight = call.linear_weight.detach().reshape(outputs, width).to(kind)
    bias = call.linear_bias
    bias = None if bias is None else bias.detach().reshape(outputs).to(kind)
    whole = call.loss()
    if x.is_cpu and not whole.is_soft:
        _cross_entropy.check_indices(whole, options.ignored)  # all, before anything is computed
    mean = options.reduction == "mean"
    divisor = whole.divisor(options.ignored) if mean else None

    empty = _backend.empty
    grad_x = empty((n, width), x.dtype, x.device) if wanted[0] else None
    grad_weight = empty((outputs, width), dtype, x.device).zero_() if wanted[1] else None
    grad_bias = empty((outputs,), dtype, x.device).zero_() if wanted[2] else None
    losses = [x.new_empty((0, *classes[1:]) if options.reduction == "none" else 0, dtype=dtype)]
    buffer = empty((min(rows, n), outputs), kind, x.device)
    with torch.autocast(x.device.type, enabled=False):
        for i in range(0, n, rows):
            here = slice(i, i + rows)
            x_here = x[here].to(kind)
            logits = buffer[: len(x_here)]
            if bias is None:
                torch.mm(x_here, weight.t(), out=logits)
            else:
                torch.addmm(bias, x_here, weight.t(), out=logits)
            s = call.sample_weight
            part = whole._replace(
                input=logits.view(-1, *classes),
                target=call.target[here],
                sample_weight=None if s is None else s[here],
                denominator=divisor,
            )
            loss, _ = _cross_entropy._evaluate(part, options, any(wanted), inplace=any(wanted))
            losses.append(loss if options.reduction == "none" else loss[None])
            # From here on these are the gradient.
            if grad_x is not None and kind == x.dtype:
                torch.mm(logits, weight, out=grad_x[here])
            elif grad_x is not None:
                grad_x[here] = logits @ weight
            if grad_weight is not None and kind == dtype:
                grad_weight.addmm_(logits.t(), x_here)
            elif grad_weight is not None:
                grad_weight += logits.t() @ x_here
            if grad_bias is not None:
                grad_bias += logits.sum(0, dtype=dtype)
    loss = torch.cat(losses)
    if options.reduction != "none":
        loss = loss.sum()
        if divisor is not None and call.denominator is None:
            loss = torch.where(divisor == 0.0, math.nan, loss)
    grads = [
        None if g is None or like is None else g.to(x.dtype).view(like.shape)
        for g, like in zip((grad_x, grad_weight, grad_bias), call[:3], strict=True)
    ]
    return loss, grads


# The operator


def _unpack(args: Any) -> tuple[_Arguments, Options, int, list[bool]]:
    options = Options(*args[7:12])
    return (
        _Arguments(*args[:7]),
        options._replace(ignored=tuple(options.ignored)),
        args[12],
        args[13],
    )


def _forward(*args: Any) -> tuple[Tensor, ...]:
    call, options, rows, wanted = _unpack(args)
    loss, grads = _evaluate(call, options, rows, wanted)
    return loss, *[call.input.new_empty(0) if g is None else g for g in grads]


def _fake(*args: Any) -> tuple[Tensor, ...]:
    call, options, _, wanted = _unpack(args)
    x = call.input
    shape = call.loss().samples if options.reduction == "none" else ()
    grads = [
        x.new_empty(0 if like is None or not want else like.shape)
        for like, want in zip(call[:3], wanted, strict=True)
    ]
    return x.new_empty(shape, dtype=_backend.accumulator(x.dtype)), *grads


def _backward(
    arguments: list[Any], grads: tuple[Tensor, ...], factor: Tensor | None, directions: Any
) -> tuple[Tensor | None, ...]:
    call, options, rows, wanted = _unpack(arguments)
    results: list[Tensor | None] = [None, None, None]
    if factor is not None and _autograd.is_late(call.input):
        tensors = [factor, *[t for t in call[:3] if t is not None]]
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            results = _again(call, options, rows, wanted, factor)
        else:
            results = _late_gradients(call, options, rows, wanted, factor)
    elif factor is not None:
        results = [
            (g * factor).to(g.dtype) if want else None
            for g, want in zip(grads, wanted, strict=True)
        ]
    directions = [d if want else None for d, want in zip(directions, wanted, strict=True)]
    if any(d is not None for d in directions):
        second = _second(call, options, directions)
        results = [b if a is None else a + b for a, b in zip(results, second, strict=True)]
    third = results[2] if call.linear_bias is not None else None
    return *results[:2], third, *[None] * (len(arguments) - 3)


def _times(call: _Arguments, options: Options, factor: Tensor) -> tuple[_Arguments, Options]:
    """Return a call and options whose gradients are multiplied by what arrives at the loss."""
    loss, options = _cross_entropy.times(call.loss(), options, factor)
    return (
        call._replace(sample_weight=loss.sample_weight, denominator=loss.denominator),
        options,
    )


def _again(
    call: _Arguments, options: Options, rows: int, wanted: list[bool], factor: Tensor
) -> list[Tensor | None]:
    """Return the gradients, multiplied by what arrives at the loss, to be differentiated."""
    dtype = call.input.dtype
    if _autograd.is_late(call.input):
        x, w, b = call[:3]
        b = None if b is None else b.float()
        call = call._replace(input=x.float(), linear_weight=w.float(), linear_bias=b)
    grads = _operator(*call, *options, rows, wanted)[1:]
    return [(g * factor).to(dtype) if want else None for g, want in zip(grads, wanted, strict=True)]


def _late_gradients(
    call: _Arguments, options: Options, rows: int, wanted: list[bool], factor: Tensor
) -> list[Tensor | None]:
    """Return the same where they are rounded once, not to be differentiated."""
    call, options = _times(call, options, factor)
    grads = _operator(*call, *options, rows, wanted)[1:]
    return [g if want else None for g, want in zip(grads, wanted, strict=True)]


def _second(call: _Arguments, options: Options, directions: Any) -> list[Tensor]:
    """Return the derivatives of the gradients in these directions; here all logits exist.

    With logits z = x W' + b and their gradient G, the gradients are G W, G' x and the sum of G.
    """
    classes = call.linear_weight.shape[:-1]
    x, w = call.input, call.linear_weight.reshape(prod(classes), -1)
    logits = F.linear(x, w, None if call.linear_bias is None else call.linear_bias.reshape(-1))
    loss = call.loss()._replace(input=logits.view(-1, *classes))
    g = _cross_entropy._operator(*loss, *options, True)[1].reshape(logits.shape)
    along_x, along_w, along_b = directions
    along = torch.zeros_like(logits)
    by_x, by_w = torch.zeros_like(x), torch.zeros_like(w)
    if along_x is not None:
        along = along + along_x @ w.t()
        by_w = by_w + g.t() @ along_x
    if along_w is not None:
        along_w = along_w.reshape(w.shape)
        along = along + x @ along_w.t()
        by_x = by_x + g @ along_w
    if along_b is not None:
        along = along + along_b.reshape(-1)
    product = _cross_entropy._hessian_product(loss, options, along.view(-1, *classes))
    product = product.reshape(logits.shape)
    by_x = by_x + product @ w
    by_w = by_w + product.t() @ x
    return [by_x, by_w.view(call.linear_weight.shape), product.sum(0).view(classes)]


_operator = _autograd.define(
    f"{_NAME}(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    "Tensor? weight, Tensor? sample_weight, Tensor? denominator, str reduction, int[] ignored, "
    "float label_smoothing, float z_loss, float softcap, int rows, bool[] with_grad) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _backward,
)


# Autograd


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        call: _Arguments,
        options: Options,
        rows: int,
    ) -> Tensor:
        ctx.options, ctx.rows, ctx.wanted = options, rows, list(ctx.needs_input_grad[:3])
        # Where the gradients wait for what they are multiplied by.
        ctx.late = options.reduction == "none" or _autograd.is_late(input)
        if ctx.late:
            loss, _ = _evaluate(call, options, rows, [False] * 3)
            ctx.save_for_backward(*call)
        else:
            loss, grads = _evaluate(call, options, rows, ctx.wanted)
            ctx.save_for_backward(*grads)
            ctx.again = _autograd.remember(*call)
        return loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        options, saved = ctx.options, ctx.saved_tensors
        again = torch.is_grad_enabled()  # create_graph=True
        if again and options.reduction == "none":
            raise RuntimeError(
                f"xentrs.torch.{_NAME} with reduction='none' cannot be differentiated twice"
            )
        if again:
            tensors = saved if ctx.late else _autograd.recall(_NAME, ctx.again)
            grads = _again(_Arguments(*tensors), options, ctx.rows, ctx.wanted, factor)
        elif ctx.late and _autograd.is_batched(factor):
            grads = _late_gradients(_Arguments(*saved), options, ctx.rows, ctx.wanted, factor)
        elif ctx.late:
            call, options = _times(_Arguments(*saved), options, factor)
            grads = _evaluate(call, options, ctx.rows, ctx.wanted)[1]
        else:
            grads = [None if g is None else _autograd.scaled(g, factor) for g in saved]
        return *grads, None, None, None


# What people call


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: Ignored = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    r"""Cross-entropy of ``input @ linear_weight.T + linear_bias``, which never exists as a whole.

    A drop-in for `torch.nn.functional.linear_cross_entropy`: peak memory is that of the gradients
    and one chunk of logits.

    Parameters
    ----------
    input : Tensor of shape (in) or (N, in)
        What goes into the linear layer.
    linear_weight : Tensor of shape (C, in) or (C, d_1, ..., d_K, in)
        Its weight.
    target, weight, reduction, label_smoothing, z_loss, softcap, sample_weight, denominator
        As in `cross_entropy` of logits of shape (C), (N, C) or (N, C, d_1, ..., d_K).
    linear_bias : Tensor of shape (C) or (C, d_1, ..., d_K), optional
        The linear layer's bias.
    ignore_index : int or iterable of ints, optional
        As in `cross_entropy`; None stands for -100, as in PyTorch.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Of these ``batch_chunk_size`` is heeded: the samples in a chunk.

    Returns
    -------
    Tensor
        As in `cross_entropy`.

    Raises
    ------
    RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError
        As PyTorch's function does, in its words. ValueError or TypeError where an argument of ours
        is wrong.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    For half precisions the gradients of weight and bias are summed over the chunks in float32.
    With ``reduction="none"`` the backward pass computes the logits again, and under `torch.compile`
    and `torch.func` they exist as a whole.
    """
    ignored = ignored_indices(-100 if ignore_index is None else ignore_index)
    softcap = _cross_entropy.as_softcap(softcap)
    chosen = Options(reduction, ignored, label_smoothing, z_loss, softcap)
    denominator = _cross_entropy.as_denominator(denominator, input)
    if sample_weight is not None:
        check_tensor("sample_weight", sample_weight)
    args = (input, linear_weight, linear_bias, target, weight, sample_weight, denominator)
    call = _Arguments(*args)
    given = [t for t in (linear_bias, weight) if t is not None]
    if not are_tensors(input, linear_weight, target, *given):
        return _leave_to_torch(call, chosen)
    single = input.dim() == 1
    if single and linear_weight.dim() == 2:
        s = None if sample_weight is None else sample_weight[None]
        call = call._replace(input=input[None], target=target[None], sample_weight=s)
    if not _fits(call, chosen):
        return _leave_to_torch(_Arguments(*args), chosen)
    _cross_entropy._check_extras(call.loss(), chosen)
    if _backend.autocasts(input) and input.dtype != torch.float64:
        low = torch.get_autocast_dtype(input.device.type)
        x, w, b = call[:3]
        call = _Arguments(x.to(low), w.to(low), None if b is None else b.to(low), *call[3:])
    rows = getattr(options, "batch_chunk_size", None) or call.rows()
    wanted = [t is not None and _backend.wants_gradient(t) for t in call[:3]]
    if _backend.is_eager(call.input):
        if any(wanted):
            loss = _Eager.apply(*call[:3], call, chosen, rows)
        else:
            loss = _evaluate(call, chosen, rows, wanted)[0]
    elif reduction == "none" and any(wanted):
        whole = call.loss()._replace(input=_logits(call))
        loss = _cross_entropy._operator(*whole, *chosen, True)[0]
    else:
        loss = _operator(*call, *chosen, rows, wanted)[0]
    if single and reduction == "none":
        loss = loss[0]
    return loss.to(call.loss().dtype)


def _logits(call: _Arguments) -> Tensor:
    bias = None if call.linear_bias is None else call.linear_bias.reshape(-1)
    logits = F.linear(call.input, call.linear_weight.flatten(0, -2), bias)
    return logits.view(-1, *call.linear_weight.shape[:-1])


def _fits(call: _Arguments, options: Options) -> bool:
    """Whether the arguments are what the kernels take; all else is left to PyTorch."""
    x, w, b = call[:3]
    return (
        x.dtype in FLOATS
        and x.dim() == 2
        and w.dim() >= 2
        and w.shape[-1] == x.shape[1]
        and (b is None or b.shape == w.shape[:-1])
        and all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in (w, b))
        and _cross_entropy._fits(call.loss(), options)
    )


def _leave_to_torch(call: _Arguments, options: Options) -> Tensor:
    """Let PyTorch say what is wrong, or compute what only it can: gradients in the target."""
    extra = len(options.ignored) != 1 or not options.is_plain
    extra = extra or call.sample_weight is not None or call.denominator is not None
    with torch.set_grad_enabled(torch.is_grad_enabled() and not extra):
        loss = F.linear_cross_entropy(
            call.input,
            call.linear_weight,
            call.target,
            linear_bias=call.linear_bias,
            weight=call.weight,
            reduction=options.reduction,
            # None is -100, and the only one that may come with probabilities.
            ignore_index=options.ignored[0] if options.ignored not in ((), (-100,)) else None,
            label_smoothing=options.label_smoothing,
        )
    if extra:
        raise NotImplementedError(
            f"xentrs.torch.{_NAME}: z_loss, softcap, sample_weight, denominator and several "
            "ignored indices cannot be combined with gradients in the target or the class weights"
        )
    return loss


class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss):
    """`linear_cross_entropy` as a module that holds the linear layer.

    Parameters
    ----------
    in_features, num_classes, out_features, bias, device, dtype, reduction, weight, ignore_index, \
label_smoothing, options
        As in `torch.nn.LinearCrossEntropyLoss`.
    z_loss, softcap
        As in `cross_entropy`. Its `sample_weight` and `denominator` go to the call.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **arguments)
        self.z_loss = z_loss
        self.softcap = softcap

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        classes = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.view(*classes, -1),
            target,
            linear_bias=None if bias is None else bias.view(classes),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            z_loss=self.z_loss,
            softcap=self.softcap,
            sample_weight=sample_weight,
            denominator=denominator,
        )
