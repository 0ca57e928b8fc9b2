"""The commonest calls, of plain tensors on the CPU, with as little around the kernel as can be.

A small call is mostly what is around the kernel. The compiled functions see whether the tensors
fit, and make the new ones. Each function here returns None where a call is not of this kind.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

import torch
from torch import Tensor

from xentrs import _xentrs
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.tensors import INTEGERS
from xentrs.torch._cpu.tensors import each_loss
from xentrs.torch._mode import autocasts, is_eager
from xentrs.torch._operators import gradients
from xentrs.torch._operators.loss import Loss
from xentrs.torch._private import version

_is_grad_enabled = torch.is_grad_enabled

# Of which dtypes the losses of elements, and those of class indices, go this way.
_WIDE = frozenset({torch.float32, torch.float64})
_DTYPES = _WIDE | {torch.bfloat16}


def of_classes(
    loss: Loss,
    input: Tensor,
    target: Any,  # a tensor, or a pair
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> Tensor | None:
    """Return the loss of class indices."""
    if not (_may_be_quick(input, target) and (weight is None or _is_plain_weight(weight))):
        return None
    with_grad = input.requires_grad and _is_grad_enabled()
    options = reduction, (ignore_index,), label_smoothing
    if reduction != "none":
        found = _xentrs.quick_cross_entropy(
            input, target, weight, ignore_index, label_smoothing, reduction, with_grad
        )
    elif (
        input.dtype in _DTYPES
        and target.dtype in INTEGERS
        and target.dim() < input.dim()
        and -(1 << 63) <= ignore_index < 1 << 63
    ):
        others = {"axis": 1 if input.dim() > 1 else 0, "weight": weight}
        found = each_loss(loss.name, input, target, Options(*options), with_grad, others)
    else:
        return None
    if found is NotImplemented:
        return None
    result = found
    if with_grad:
        weights = None if weight is None else (weight, version(weight))
        tensors = (_kept(input), (target, version(target)), weights, None, None)
        result = loss.eager.apply(input, (loss, tensors, options), found)
    if input.dtype is torch.bfloat16 and not autocasts(input):
        result = result.to(torch.bfloat16)
    return result


def of_elements(
    loss: Loss, input: Tensor, target: Tensor, pos_weight: Tensor | None, reduction: str
) -> Tensor | None:
    """Return the binary loss of floats as target."""
    if not (
        _may_be_quick(input, target)
        and not target.requires_grad
        and not target.is_neg()
        and (pos_weight is None or _is_plain_weight(pos_weight))
    ):
        return None
    with_grad = input.requires_grad and _is_grad_enabled()
    if reduction != "none":
        found = _xentrs.quick_binary_cross_entropy(input, target, pos_weight, reduction, with_grad)
    elif input.dtype in _WIDE and target.dtype is input.dtype and target.shape == input.shape:
        others = {"pos_weight": pos_weight}
        found = each_loss(loss.name, input, target, Options(reduction), with_grad, others)
    else:
        return None
    if found is NotImplemented:
        return None
    if not with_grad:
        return found
    weights = None if pos_weight is None else (pos_weight, version(pos_weight))
    tensors = (_kept(input), _kept(target), None, weights, None, None)
    return loss.eager.apply(input, (loss, tensors, (reduction,)), found)


def _may_be_quick(input: Tensor, target: Any) -> bool:
    return is_eager(input) and type(target) is Tensor and not _backend.FORCED and not input.is_neg()


def _is_plain_weight(weight: Tensor) -> bool:
    return (
        type(weight) is Tensor
        and weight.is_floating_point()
        and not weight.requires_grad
        and not weight.is_neg()
    )


def _kept(tensor: Tensor) -> Any:
    """Return what `gradients.remember` returns of a large tensor, in a third of its time."""
    return tensor if tensor.nbytes <= gradients.KEPT else ref(tensor), version(tensor)
