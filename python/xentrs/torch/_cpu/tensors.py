"""What the losses on the CPU have in common."""

from __future__ import annotations

import math
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from xentrs._xentrs import LOSSES, compute_tensors
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._backend import HALVES

# Logits in slices that are no contiguous rows of float32 or float64 are copied, so many a thread at
# a time: they stay in the second-level cache.
CHUNK = 1 << 16

# The options of a loss in the order in which the compiled module takes them.
IN_ORDER = {name: itemgetter(*loss["options"]) for name, loss in LOSSES.items()}

# Keywords that several losses have. The others are a loss's own options, in their order.
_SHARED = frozenset(
    {"axis", "weight", "pos_weight", "sample_weight", "where", "ignore_index", "label_smoothing"}
    | {"z_loss", "softcap", "temperature", "reduction", "denominator", "base"}
    | {"logsumexp_out", "argmax_out"}
)
_NO_TENSORS = dict.fromkeys(("weight", "pos_weight", "sample_weight", "where", "denominator"))
_OWN = {
    name: [
        key
        for key in loss["options"]
        if key not in _SHARED or (key == "temperature" and loss["second"] == "teacher_logits")
    ]
    for name, loss in LOSSES.items()
}


def plain(t: Tensor | None) -> Tensor | None:
    """Return a tensor without its gradient, whose memory holds its values."""
    return None if t is None else (t.detach() if t.requires_grad else t).resolve_neg()


def readable(t: Tensor | None) -> Tensor | None:
    """Return weights in a type that the compiled functions read."""
    t = plain(t)
    return _allocated(t).float() if t is not None and t.dtype in HALVES else t


def array(a: Any) -> Any:
    """Return an array on a tensor's memory, or arrays on those of a pair; others as they are."""
    if isinstance(a, tuple):
        return tuple(array(part) for part in a)
    if not isinstance(a, Tensor):
        return a
    return _allocated(a).detach().numpy()


def contiguous(a: Any) -> Any:
    """Return a contiguous and aligned tensor or pair of such; others as they are."""
    if isinstance(a, tuple):
        return tuple(contiguous(part) for part in a)
    return aligned(a.contiguous()) if isinstance(a, Tensor) else a


def aligned(t: Tensor) -> Tensor:
    """Return a tensor whose memory begins at a multiple of the size of its numbers.

    That of `torch.frombuffer` may begin anywhere.
    """
    return t if is_aligned(_allocated(t)) else t.clone()


def is_aligned(t: Tensor) -> bool:
    return t.data_ptr() % t.itemsize == 0


def _allocated(t: Tensor) -> Tensor:
    """Refuse a tensor without memory: NumPy would make an array of memory of its own."""
    if t.numel() and not t.data_ptr():
        raise RuntimeError("the memory of a tensor was freed: untyped_storage().resize_(0)?")
    return t


def named_options(name: str, options: Options) -> dict[str, Any]:
    """Return a loss's options that are no tensors, by the names that the compiled module has."""
    return {
        "ignore_index": options.ignored,
        "label_smoothing": options.label_smoothing,
        "z_loss": options.z_loss,
        "softcap": options.softcap or None,
        "temperature": options.temperature,
        "reduction": options.reduction,
        "base": None,
        "logsumexp_out": None,
        "argmax_out": None,
        **dict(zip(_OWN[name], options.own, strict=True)),
    }


def each_loss(
    name: str, x: Tensor, target: Tensor, options: Options, with_grad: bool, others: dict[str, Any]
) -> Any:
    """Return the loss of each sample or element, with the gradient if wanted.

    Or NotImplemented where the compiled module does not take the tensors as they are. `others` are
    the options that are tensors, and the axis.
    """
    grad = _backend.empty_like(x) if with_grad else None
    settings = _NO_TENSORS | named_options(name, options) | others
    found = compute_tensors(name, int(with_grad), x, target, *IN_ORDER[name](settings), grad, None)
    if found is NotImplemented:
        return found
    return (torch.from_numpy(found[0]), grad) if with_grad else torch.from_numpy(found)


def positive_divisors(
    call: SoftmaxArguments, options: Options
) -> tuple[SoftmaxArguments, float | None, float]:
    """Return an equal call, `denominator` and `z_loss` that the compiled functions take.

    They take one divisor, which is not negative, and divide the z-loss by it too. A divisor is
    negative as the sum of negative weights: both change their signs.
    """
    if call.denominator is None or options.reduction != "mean":
        return call, None, options.z_loss
    divisor, z_loss = call.denominator.item(), options.z_loss
    # Without a divisor of its own the z-loss has the same, also if that is infinite.
    apart = call.z_denominator if z_loss else None
    z_divisor = 0.0 if apart is None else apart.item()
    if math.isnan(divisor) or math.isnan(z_divisor):  # a weight is NaN, which makes all results NaN
        s = call.sample_weight
        nan = torch.full(tuple(call.samples), math.nan)
        call = call._replace(sample_weight=nan if s is None else torch.where(s == 0.0, s, math.nan))
        return call, 1.0, z_loss
    if z_divisor < 0.0:
        assert call.sample_weight is not None
        divisor, z_divisor = -divisor, -z_divisor
        call = call._replace(sample_weight=-call.sample_weight)
    if divisor < 0.0:
        weight = call.input.new_ones(call.classes) if call.weight is None else call.weight
        divisor, call = -divisor, call._replace(weight=-weight)
    return call, divisor, z_loss * (divisor / z_divisor) if z_divisor else z_loss
