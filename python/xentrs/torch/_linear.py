"""Cross-entropy of a linear layer's outputs, which never exist all at once.

The forward goes through the samples in chunks: their logits by a matrix product, loss and gradient
in their place by the kernels of `_cross_entropy.py`, and from that, while the chunk is in memory,
the gradients of input, weight and bias by two more products. The backward multiplies these by what
arrives at the loss. For ``reduction="none"``, where that is a number a sample, the forward takes
the losses alone and the backward does all of this.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.functional import linear_cross_entropy as _pytorchs

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
    z_denominator: Tensor | None = None  # what a mean of z_loss's part divides by, where not that

    def loss(self) -> _cross_entropy._Arguments:
        """Return the arguments of the loss, with one number in place of all logits."""
        shape = (*self.input.shape[:1], *self.linear_weight.shape[:-1])
        logits = self.input.detach().new_zeros(()).expand(shape)
        return _cross_entropy._Arguments(logits, *self[3:])

    def used(self, options: Options) -> Tensor | None:
        """Return which rows of the input count at all, as a column; None where all do."""
        return self.counts(options)[0]

    def arriving(self, factor: Tensor, options: Options) -> list[Tensor]:
        """Return what arrives at the loss, a number, for each gradient: 0 where nothing counts."""
        return [_autograd.counted(factor, counts) for counts in self.counts(options)]

    def counts(self, options: Options) -> list[Tensor | None]:
        """Return which entries of the gradients of input, weight and bias count at all."""
        return _counts(self.loss().counts(options))

    def rows(self) -> int:
        """Return a good number of samples for a chunk."""
        elements = _ELEMENTS if self.input.device.type == "cpu" else _ELEMENTS_ON_GPU
        return max(elements // max(prod(self.linear_weight.shape[:-1]), 1), _LEAST_ROWS)


def _counts(counts: Tensor | None) -> list[Tensor | None]:
    """Return which entries of the three gradients count, of which samples do."""
    if counts is None:
        return [None] * 3
    # An input has a part in the losses of its row, a weight in those of its column.
    columns = counts.any(0)
    rows = counts.unsqueeze(-1).flatten(1).any(1, keepdim=True)
    return [rows, columns.unsqueeze(-1) if columns.dim() else columns, columns]


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
    divisor = whole.divisor(options) if mean else None
    z_divisor = whole.z_divisor(options) if mean and options.z_loss else None
    # Of a row that does not count nothing is looked at: 0 times NaN is no 0 in the products.
    used = call.used(options)
    if used is not None and x.is_cpu and used.all():
        used = None

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
            if used is not None:
                x_here = torch.where(used[here], x_here, 0.0)
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
                z_denominator=z_divisor,
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
    options = Options(*args[8:13])
    return (
        _Arguments(*args[:8]),
        options._replace(ignored=tuple(options.ignored)),
        args[13],
        args[14],
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
            (g * f).to(g.dtype) if want else None
            for g, f, want in zip(grads, call.arriving(factor, options), wanted, strict=True)
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
    call = call._replace(
        sample_weight=loss.sample_weight,
        denominator=loss.denominator,
        z_denominator=loss.z_denominator,
    )
    return call, options


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
    return [
        (g * f).to(dtype) if want else None
        for g, f, want in zip(grads, call.arriving(factor, options), wanted, strict=True)
    ]


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
    used = call.used(options)
    if used is not None:  # before anything is computed
        x = torch.where(used, x, 0.0)
    logits = linear(x, w, None if call.linear_bias is None else call.linear_bias.reshape(-1))
    loss = call.loss()._replace(input=logits.view(-1, *classes))
    g = _cross_entropy._operator(*loss, *options, True)[1].reshape(logits.shape)
    along_x, along_w, along_b = directions
    if used is not None and along_x is not None:
        along_x = torch.where(used, along_x, 0.0)
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
    by_x = by_x if used is None else torch.where(used, by_x, 0.0)
    return [by_x, by_w.view(call.linear_weight.shape), product.sum(0).view(classes)]


_operator = _autograd.define(
    f"{_NAME}(Tensor input, Tensor linear_weight, Tensor? linear_bias, Tensor target, "
    "Tensor? weight, Tensor? sample_weight, Tensor? denominator, Tensor? z_denominator, "
    "str reduction, int[] ignored, float label_smoothing, float z_loss, float softcap, int rows, "
    "bool[] with_grad) "
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
            ctx.again = _autograd.remember(call, 4 if call.loss().is_soft else 3)
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
        elif ctx.late and (_autograd.is_traced(factor) or _autograd.is_batched(factor)):
            grads = _late_gradients(_Arguments(*saved), options, ctx.rows, ctx.wanted, factor)
        elif ctx.late:
            call, options = _times(_Arguments(*saved), options, factor)
            grads = _evaluate(call, options, ctx.rows, ctx.wanted)[1]
        else:
            counts = [lambda i=i: _counts_of(ctx)[i] for i in range(3)]
            grads = [
                None if g is None else _autograd.scaled(g, factor, c)
                for g, c in zip(saved, counts, strict=True)
            ]
        return *grads, None, None, None


def _counts_of(ctx: Any) -> list[Tensor | None]:
    """Return which entries of the stored gradients count."""
    (_, _, _, target, *others), options = ctx.again, ctx.options
    soft = isinstance(target[0], weakref.ref) or target[0].is_floating_point()
    y, w, s = _autograd.recall(_NAME, [None if soft else target, *others[:2]], "the gradient")
    y = None if y is None else y.detach().long()
    return _counts(_cross_entropy._counts(y, w, s, options))


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
    _backend.refuse_tracing(_NAME)
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
    if _backend.is_eager(call.input) and _backend.is_plain(*call[1:]):
        if any(wanted):
            loss = _Eager.apply(*call[:3], call, chosen, rows)
        else:
            loss = _evaluate(call, chosen, rows, wanted)[0]
    elif reduction == "none" and any(wanted):
        used = call.used(chosen)
        if used is not None:  # 0 times NaN is no 0 in the products
            call = call._replace(input=torch.where(used, call.input, 0.0))
        whole = call.loss()._replace(input=_logits(call))
        loss = _cross_entropy._operator(*whole, *chosen, True)[0]
    else:
        loss = _operator(*call, *chosen, rows, wanted)[0]
    if single and reduction == "none":
        loss = loss[0]
    return loss.to(call.loss().dtype)


def _logits(call: _Arguments) -> Tensor:
    bias = None if call.linear_bias is None else call.linear_bias.reshape(-1)
    logits = linear(call.input, call.linear_weight.flatten(0, -2), bias)
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
        loss = _pytorchs(
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

    # Of modules that were pickled without.
    z_loss = 0.0
    softcap: float | None = None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: Ignored = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,  # type: ignore[arg-type]
            label_smoothing=label_smoothing,
            options=options,
        )
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
