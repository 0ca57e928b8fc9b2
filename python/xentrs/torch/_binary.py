"""Binary and multi-label cross-entropy: Triton kernel, operator, autograd, function and module.

As with `_cross_entropy.py`, the forward computes the gradient too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, no_type_check

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as _pytorchs

import xentrs
from xentrs.torch import _autograd, _backend
from xentrs.torch._backend import FLOATS, HALVES, Kernel
from xentrs.torch._cross_entropy import _floats, as_denominator, check_denominator, check_other
from xentrs.torch._math import log1p, narrowed
from xentrs.torch._options import (
    Options,
    are_tensors,
    check_number,
    check_tensor,
    legacy_reduction,
)

if TYPE_CHECKING:
    import triton.language as tl

_NAME = "binary_cross_entropy_with_logits"
_CHUNK = 1 << 16  # elements for each thread, as in _cross_entropy.py
_BLOCK = 2048  # elements of a program on the GPU


class _Arguments(NamedTuple):
    """The tensors of a call. All but the last broadcast to the input, the target has its shape."""

    input: Tensor
    target: Tensor
    weight: Tensor | None
    pos_weight: Tensor | None
    where: Tensor | None
    denominator: Tensor | None  # of no dimension

    def counts(self) -> Tensor | None:
        """Return which elements count at all, None where all do."""
        return _counts(self.weight, self.where)

    def arriving(self, factor: Tensor, options: Options) -> Tensor:
        """Return what arrives at the loss, or at each element's, 0 where nothing counts."""
        return _autograd.counted(factor, self.counts())

    def divisor(self) -> Tensor:
        """Return what a mean divides by, in float64, without waiting for it."""
        if self.denominator is not None:
            return self.denominator.double()
        x = self.input
        if self.where is not None:
            return self.where.expand_as(x).sum(dtype=torch.float64)
        return torch.full((), float(x.numel()), dtype=torch.float64, device=x.device)


def _counts(weight: Tensor | None, where: Tensor | None) -> Tensor | None:
    if weight is not None:
        weight = weight.detach() != 0
        return weight if where is None else weight & where
    return where


# On the CPU


def _rust(call: _Arguments, options: Options, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    x = call.input.detach().resolve_neg()
    if x.dtype in HALVES:
        return _rust_by_chunks(call, options, with_grad)
    denominator = None if call.denominator is None else call.denominator.item()
    others = [_floats(t) for t in call[1:5]]
    out = None
    if with_grad and x.nbytes >= _backend.LARGE:
        out = _backend.empty(x.shape, x.dtype, x.device)
    loss, grad = _call_rust(x, others, denominator, options, with_grad, out)
    if isinstance(loss, float):
        return _backend.scalar(loss, x.dtype), grad
    return torch.from_numpy(loss), grad


def _call_rust(
    x: Tensor,
    others: Sequence[Tensor | None],
    denominator: float | None,
    options: Options,
    with_grad: bool,
    out: Tensor | None = None,
) -> tuple[Any, Tensor | None]:
    target, weight, pos_weight, where = (None if t is None else t.numpy() for t in others)
    assert target is not None
    arguments: dict[str, Any] = {
        "weight": weight,
        "pos_weight": pos_weight,
        "where": where,
        "label_smoothing": options.label_smoothing,
        "reduction": options.reduction,
        "denominator": denominator,
    }
    if not with_grad:
        return xentrs.binary_cross_entropy_with_logits(x.numpy(), target, **arguments), None
    loss, grad = xentrs.binary_cross_entropy_with_logits_with_grad(
        x.numpy(), target, out=None if out is None else out.numpy(), **arguments
    )
    return loss, torch.from_numpy(grad) if out is None else out


def _rust_by_chunks(
    call: _Arguments, options: Options, with_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute in float32, chunk by chunk."""
    x, dtype = call.input.detach(), torch.float32
    size = _CHUNK * xentrs.get_num_threads()
    columns = x.shape[-1] if x.dim() > 1 and 0 < x.shape[-1] <= size else 1
    rows = x.reshape(-1, columns)
    grad = _backend.empty(x.shape, x.dtype, x.device) if with_grad else None
    grad_rows = None if grad is None else grad.view(rows.shape)

    def as_rows(t: Tensor | None) -> Tensor | None:
        """Return the tensor in rows, or as one row that holds for all of them."""
        if t is None:
            return None
        t = t.detach().resolve_neg()
        if columns > 1 and t.shape[:-1].numel() == 1:
            return t.reshape(1, -1).expand(1, columns)
        return t.expand_as(x).reshape(rows.shape)

    others = [as_rows(t) for t in call[1:5]]
    divisor = call.divisor().item() if options.reduction == "mean" else None
    losses = None
    if options.reduction == "none":
        losses = torch.empty(rows.shape, dtype=dtype, device=x.device)
    total = 0.0
    for i in range(0, len(rows), max(size // columns, 1)):
        here = slice(i, i + max(size // columns, 1))
        z = rows[here].float()
        parts = []
        for t in others:
            part = t if t is None or len(t) != len(rows) else t[here]
            parts.append(part.float() if part is not None and part.dtype in HALVES else part)
        loss, _ = _call_rust(z, parts, divisor, options, with_grad, z if with_grad else None)
        if grad_rows is not None:
            grad_rows[here] = z
        if losses is not None:
            losses[here] = torch.from_numpy(loss)
        else:
            total += loss
    if losses is not None:
        return losses.view(x.shape), grad
    if divisor == 0.0 and call.denominator is None:
        total = float("nan")
    return _backend.scalar(total, dtype), grad


# On a GPU


@Kernel
@no_type_check
def _binary(
    x, target, weight, weights, pos_weight, pos_weights, where, divisor, loss, grad, n,
    SMOOTHING: tl.constexpr, SUM: tl.constexpr, ACC: tl.constexpr, B: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0).to(tl.int64) * B + tl.arange(0, B)
    live = i < n
    z = tl.load(x + i, mask=live, other=0).to(ACC)
    t = tl.load(target + i, mask=live, other=0).to(ACC)  # as wide as the labels
    t = (1.0 - SMOOTHING) * t + 0.5 * SMOOTHING
    v = t
    if pos_weight is not None:
        v *= tl.load(pos_weight + i % pos_weights, mask=live, other=0).to(ACC)
    factor = tl.full([B], 1.0, ACC)
    if weight is not None:
        factor *= tl.load(weight + i % weights, mask=live, other=0).to(ACC)
    keep = live & (factor != 0.0)  # NaN counts
    if where is not None:
        keep &= tl.load(where + i, mask=live, other=0) != 0
    # z + softplus(-z) = softplus(z): the loss is (1 - t) softplus(z) + v softplus(-z).
    e = tl.exp(-tl.abs(z))
    tail = log1p(e)
    up = tl.where(t == 1.0, 0.0, (1.0 - t) * (tl.maximum(z, 0.0) + tail))
    down = tl.where(v == 0.0, 0.0, v * (tl.maximum(-z, 0.0) + tail))
    result = tl.where(z != z, z, up + down)
    result = tl.where(keep, factor * result, 0.0)
    if SUM:
        # Their sum may exceed float32 where a mean does not.
        tl.store(loss + tl.program_id(0), tl.sum(result.to(tl.float64), 0))
    else:
        tl.store(loss + i, result, mask=live)
    if grad is not None:
        if divisor is not None:
            factor = (factor / tl.load(divisor)).to(ACC)
        large, small = 1.0 / (1.0 + e), e / (1.0 + e)
        p = tl.where(z >= 0, large, small)
        q = tl.where(z >= 0, small, large)
        g = factor * ((1.0 - t) * p - v * q)
        tl.store(grad + i, narrowed(tl.where(keep, g, 0.0), grad), mask=live)


def _repeated(t: Tensor | None, x: Tensor) -> Tensor | None:
    """Return a tensor that repeated in memory is `t` broadcast to `x`: `t` itself if possible."""
    if t is None:
        return None
    t = t.detach()
    shape = t.shape
    while shape and shape[0] == 1:
        shape = shape[1:]
    if x.shape[x.dim() - len(shape) :] == shape:
        return t.reshape(shape).contiguous()
    return t.expand_as(x).contiguous()


def _triton(call: _Arguments, options: Options, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    x = call.input.detach().contiguous()
    n, dtype = x.numel(), _backend.accumulator(x.dtype)
    weight, pos_weight = _repeated(call.weight, x), _repeated(call.pos_weight, x)
    where = None if call.where is None else call.where.expand_as(x).contiguous()
    divisor = call.divisor() if options.reduction == "mean" else None
    programs = -(-n // _BLOCK)
    if options.reduction == "none":
        loss = torch.empty(x.shape, dtype=dtype, device=x.device)
    else:
        loss = torch.empty(programs, dtype=torch.float64, device=x.device)
    grad = torch.empty_like(x) if with_grad else None
    kinds = [t.dtype for t in call[:4] if t is not None]
    if n:
        _, tl = _backend.load_triton()
        _binary[(programs,)](
            x, call.target.detach().contiguous(), weight, 0 if weight is None else weight.numel(),
            pos_weight, 0 if pos_weight is None else pos_weight.numel(), where, divisor, loss, grad,
            n, SMOOTHING=options.label_smoothing, SUM=options.reduction != "none",
            ACC=tl.float64 if torch.float64 in kinds else tl.float32, B=_BLOCK, num_warps=8,
        )  # fmt: skip
    if options.reduction == "none":
        return loss, grad
    loss = loss.sum()
    return (loss if divisor is None else loss / divisor).to(dtype), grad


# The operator


def _evaluate(call: _Arguments, options: Options, with_grad: bool) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the logits if wanted."""
    on = _triton if _backend.uses_triton(call.input) else _rust
    return on(call, options, with_grad)


def _unpack(arguments: Any) -> tuple[_Arguments, Options]:
    reduction, label_smoothing = arguments[6:8]
    return _Arguments(*arguments[:6]), Options(reduction, label_smoothing=label_smoothing)


def _forward(*args: Any) -> tuple[Tensor, Tensor]:
    call, options = _unpack(args)
    loss, grad = _evaluate(call, options, args[-1])
    return loss, call.input.new_empty(0) if grad is None else grad


def _fake(*args: Any) -> tuple[Tensor, Tensor]:
    call, options = _unpack(args)
    x = call.input
    shape = x.shape if options.reduction == "none" else ()
    loss = x.new_empty(shape, dtype=_backend.accumulator(x.dtype))
    return loss, x.new_empty(x.shape) if args[-1] else x.new_empty(0)


def _backward(
    arguments: list[Any], grads: tuple[Tensor, ...], factor: Tensor | None, directions: Any
) -> tuple[Tensor | None, ...]:
    call, options = _unpack(arguments)
    result = None
    if factor is not None and not arguments[-1]:
        result = _autograd.late_gradient(_gradient_of, _times, call, options, factor)
    elif factor is not None:
        result = (grads[0] * call.arriving(factor, options)).to(call.input.dtype)
    if directions[0] is not None:
        product = _second(call, options) * call.arriving(directions[0], options)
        result = product if result is None else result + product
    return result, *[None] * (len(arguments) - 1)


def _times(call: _Arguments, options: Options, factor: Tensor) -> tuple[_Arguments, Options]:
    """Return a call and options whose gradient is multiplied by what arrives at the loss."""
    factor = call.arriving(factor.to(_backend.accumulator(call.input.dtype)), options)
    denominator = call.denominator
    if options.reduction == "mean":
        denominator = call.divisor()
    else:
        options = options._replace(reduction="sum")
    weight = factor if call.weight is None else factor * call.weight
    return call._replace(weight=weight, denominator=denominator), options


def _gradient_of(call: _Arguments, options: Options) -> Tensor:
    """Return the operator's gradient."""
    grad: Tensor = _operator(*call, options.reduction, options.label_smoothing, True)[1]
    return grad


def _second(call: _Arguments, options: Options) -> Tensor:
    """Return the second derivative of each element's loss, in PyTorch's terms."""
    x = call.input.to(_backend.accumulator(call.input.dtype))
    counts = call.counts()
    if counts is not None:  # before anything is computed, for what differentiates this
        x = torch.where(counts, x, 0.0)
    e = options.label_smoothing
    t = (1.0 - e) * call.target.to(x.dtype) + 0.5 * e
    scale = (1.0 - t) + (t if call.pos_weight is None else t * call.pos_weight)
    if call.weight is not None:
        scale = scale * call.weight
    second = scale * x.sigmoid() * (-x).sigmoid()
    if options.reduction == "mean":
        second = second / call.divisor().to(x.dtype)
    if counts is not None:
        second = torch.where(counts, second, 0.0)
    return second.to(call.input.dtype)


_operator = _autograd.define(
    f"{_NAME}(Tensor input, Tensor target, Tensor? weight, Tensor? pos_weight, Tensor? where, "
    "Tensor? denominator, str reduction, float label_smoothing, bool with_grad) "
    "-> (Tensor, Tensor)",
    _forward,
    _fake,
    _backward,
)


# Autograd


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, call: _Arguments, options: Options) -> Tensor:
        loss, grad = _evaluate(call, options, True)
        ctx.save_for_backward(grad)
        ctx.again = _autograd.remember(call, 2), options
        return loss

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = ctx.saved_tensors
        remembered, options = ctx.again
        if not torch.is_grad_enabled():

            def counts() -> Tensor | None:
                others = (remembered[2], remembered[4])
                return _counts(*_autograd.recall(_NAME, others, "the gradient"))

            return _autograd.scaled(grad, factor, counts), None, None
        # create_graph=True
        call = _Arguments(*_autograd.recall(_NAME, remembered))
        return _autograd.again(_gradient_of, call, options, factor), None, None


_Late = _autograd.late(_evaluate, _gradient_of, _times)


# What people call


def _fits(call: _Arguments, options: Options) -> bool:
    """Whether the arguments are what the kernels take; all else is left to PyTorch."""
    x, target = call.input, call.target
    if not are_tensors(x, target, *[t for t in call[2:4] if t is not None]):
        return False
    if x.dtype not in FLOATS or target.shape != x.shape or target.is_complex():
        return False
    if x.layout is not torch.strided or target.layout is not torch.strided:
        return False
    for t in (target, call.weight, call.pos_weight):
        if t is None:
            continue
        if t.device != x.device or (t.requires_grad and torch.is_grad_enabled()):
            return False
        if t is not target and not (t.is_floating_point() and _broadcasts(t, x)):
            return False
    return options.reduction in ("mean", "sum", "none")


def _broadcasts(t: Tensor, x: Tensor) -> bool:
    try:
        return torch.broadcast_shapes(t.shape, x.shape) == x.shape
    except RuntimeError:
        return False


def _leave_to_torch(call: _Arguments, options: Options) -> Tensor:
    """Let PyTorch say what is wrong, or compute what only it can: gradients in the target."""
    extra = call.where is not None or call.denominator is not None
    extra = extra or options.label_smoothing != 0.0
    with torch.set_grad_enabled(torch.is_grad_enabled() and not extra):
        loss = _pytorchs(
            call.input,
            call.target,
            call.weight,
            reduction=options.reduction,
            pos_weight=call.pos_weight,
        )
    if extra:
        raise NotImplementedError(
            f"xentrs.torch.{_NAME}: where, denominator and label_smoothing cannot be combined with "
            "gradients in the target or the weights"
        )
    return loss


def _check_extras(call: _Arguments, options: Options) -> None:
    """Refuse what is wrong with the arguments that PyTorch has not got."""
    check_number("label_smoothing", options.label_smoothing)
    if not 0.0 <= options.label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing is {options.label_smoothing}, but must be in [0, 1]")
    where = call.where
    if where is not None:
        check_tensor("where", where)
    if where is not None and where.dtype != torch.bool:
        raise TypeError(f"where has dtype {where.dtype}, but must be torch.bool")
    if where is not None and not _broadcasts(where, call.input):
        raise ValueError(
            f"where has shape {tuple(where.shape)}, which does not broadcast to that of input, "
            f"{tuple(call.input.shape)}"
        )
    if where is not None:
        check_other("where", where, call.input)
    check_denominator(call.denominator, call.input)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    where: Tensor | None = None,
    denominator: float | Tensor | None = None,
) -> Tensor:
    r"""Binary cross-entropy between the sigmoid of logits and a target, element by element.

    A drop-in for `torch.nn.functional.binary_cross_entropy_with_logits`, with the same arguments,
    results and errors; those after the star are not PyTorch's.

    Parameters
    ----------
    input : Tensor
        Logits of any shape: float16, bfloat16, float32 or float64.
    target : Tensor
        The probability of the positive class: floats, integers or bools of the shape of `input`.
    weight : Tensor, optional
        Weight of each element; broadcast to the shape of `input`.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: see `reduction`.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the elements' losses, their sum, or each.
    pos_weight : Tensor, optional
        Weight of the positive class; broadcast to the shape of `input`.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target t becomes (1 - e) t + e / 2.
    where : Tensor of bool, optional
        The elements that count; broadcast to the shape of `input`. The mean divides by their
        number.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input`. Of the dtype that PyTorch's
        function returns.

    Raises
    ------
    RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError
        As PyTorch's function does, in its words. ValueError or TypeError where an argument of ours
        is wrong.

    Notes
    -----
    Accumulated in float32 for half precisions, else in the type of `input`, on the CPU by the
    kernels of `xentrs.binary_cross_entropy_with_logits`: at most 4 ULP of error for the loss of an
    element and its gradient. Tiny losses keep their digits.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([0.0, 1.0986123], requires_grad=True)
    >>> labels = torch.tensor([0, 1])
    >>> xentrs.torch.binary_cross_entropy_with_logits(logits, labels, reduction="sum").backward()
    >>> logits.grad
    tensor([ 0.5000, -0.2500])
    """
    _backend.refuse_tracing(_NAME)
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce, reduction)
    options = Options(reduction, label_smoothing=label_smoothing)
    denominator = as_denominator(denominator, input)
    call = _Arguments(input, target, weight, pos_weight, where, denominator)
    if not _fits(call, options):
        return _leave_to_torch(call, options)
    if label_smoothing or where is not None or denominator is not None:
        _check_extras(call, options)
    with_grad = _backend.wants_gradient(input)
    if not (_backend.is_eager(input) and _backend.is_plain(*call[1:])):
        with_grad = with_grad and not _autograd.is_late(input)
        loss = _operator(*call, reduction, label_smoothing, with_grad)[0]
    elif with_grad:
        function = _Late if _autograd.is_late(input) else _Eager
        loss = function.apply(input, call, options)
    else:
        loss = _evaluate(call, options, False)[0]
    # PyTorch computes in the memory of 1 - target.
    dtype = target.dtype if target.is_floating_point() else input.dtype
    if dtype in HALVES and _backend.autocasts(input):
        dtype = torch.float32
    return loss if loss.dtype == dtype else loss.to(dtype)


class BCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """`binary_cross_entropy_with_logits` as a module.

    Parameters
    ----------
    weight, size_average, reduce, reduction, pos_weight
        As in `torch.nn.BCEWithLogitsLoss`.
    label_smoothing
        As in `binary_cross_entropy_with_logits`. Its `where` and `denominator` go to the call.
    """

    label_smoothing = 0.0  # of modules that were pickled without

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.label_smoothing = label_smoothing

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        where: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            label_smoothing=self.label_smoothing,
            where=where,
            denominator=denominator,
        )
