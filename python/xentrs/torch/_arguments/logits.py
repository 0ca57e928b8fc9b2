"""The checks of losses of logits that PyTorch does not have, so that no call is left to it."""

from __future__ import annotations

import torch
from torch import Tensor

from xentrs.torch._arguments.options import REDUCTIONS, Options, check_tensor
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_further_arguments
from xentrs.torch._arguments.tensors import check_further
from xentrs.torch._backend import FLOATS


def check_input(call: SoftmaxArguments, options: Options) -> None:
    """Refuse what is wrong with the logits, the weights of samples or the reduction."""
    _check_logits("input", call.input)
    if not call.input.dim() or not call.classes:
        raise ValueError(f"input of shape {tuple(call.input.shape)} has no classes")
    if options.reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {options.reduction!r}")
    check_further_arguments(call)


def check_teacher(call: SoftmaxArguments, options: Options) -> None:
    """Refuse what is wrong with a call whose second tensor is the logits of a teacher."""
    check_tensor("input", call.input)
    _check_logits("teacher_logits", call.target)
    x, y = call.input, call.target
    check_input(call, options)
    if y.shape != x.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(y.shape)}, but input has shape {tuple(x.shape)}"
        )
    check_further("teacher_logits", y, x)


def _check_logits(name: str, t: Tensor) -> None:
    check_tensor(name, t)
    if t.dtype not in FLOATS:
        raise TypeError(
            f"{name} has dtype {t.dtype}, but must be float16, bfloat16, float32 or float64"
        )
    if t.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {t.layout}, but must be strided")
