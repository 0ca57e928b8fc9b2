"""The checks of losses that compare a model with a teacher: PyTorch has none to leave a call to."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from xentrs.torch._arguments.options import REDUCTIONS, Options, check_number, check_tensor
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_further_arguments
from xentrs.torch._arguments.tensors import check_further
from xentrs.torch._backend import FLOATS


def check_temperature(value: float) -> None:
    """Refuse what logits cannot be divided by."""
    check_number("temperature", value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature must be finite and above 0, not {value}")


def check_teacher(call: SoftmaxArguments, options: Options) -> None:
    """Refuse what is wrong with the tensors of a call, or with its reduction."""
    for name, t in (("input", call.input), ("teacher_logits", call.target)):
        check_tensor(name, t)
        _check_logits(name, t)
    x, y = call.input, call.target
    if not x.dim() or not call.classes:
        raise ValueError(f"input of shape {tuple(x.shape)} has no classes")
    if y.shape != x.shape:
        raise ValueError(
            f"teacher_logits has shape {tuple(y.shape)}, but input has shape {tuple(x.shape)}"
        )
    check_further("teacher_logits", y, x)
    if options.reduction not in REDUCTIONS:
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', not {options.reduction!r}")
    check_further_arguments(call, options)


def _check_logits(name: str, t: Tensor) -> None:
    if t.dtype not in FLOATS:
        raise TypeError(
            f"{name} has dtype {t.dtype}, but must be float16, bfloat16, float32 or float64"
        )
    if t.layout is not torch.strided:
        raise TypeError(f"{name} has the layout {t.layout}, but must be strided")
