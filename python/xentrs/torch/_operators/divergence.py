"""Divergences of a model's softmax from a teacher's."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._cpu import softmax as _cpu
from xentrs.torch._gpu import divergence as _gpu
from xentrs.torch._operators.loss import Loss, products_of


def of_teacher(
    name: str, own: tuple[str, ...], meaning: Callable[[tuple[Any, ...]], tuple[float, float]]
) -> Loss:
    """Return a divergence.

    `own` are its own options, as in an operator's schema. `meaning` makes of their values the
    temperature, and the beta of which it is the Jensen-Shannon divergence: 0 for KL(teacher,
    model), 1 for KL(model, teacher).
    """

    def on_gpu(
        call: SoftmaxArguments, options: Options, with_grad: bool, inplace: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        temperature, beta = meaning(options.own)
        return _gpu.evaluate(call, options, with_grad, inplace, temperature=temperature, beta=beta)

    def gradient(call: SoftmaxArguments, options: Options) -> Tensor:
        temperature, beta = meaning(options.own)
        dtype = _backend.accumulator(call.input.dtype)
        dtype = torch.promote_types(dtype, call.target.dtype)
        x, y = (t.to(dtype) / temperature for t in (call.input, call.target))
        return _gradient(x, y, beta, call.axis) / temperature

    return Loss(
        name,
        SoftmaxArguments,
        cpu=partial(_cpu.evaluate, name),
        gpu=on_gpu,
        product=products_of(gradient),
        own=own,
        shared=("reduction",),
    )


def _gradient(x: Tensor, y: Tensor, beta: float, axis: int) -> Tensor:
    """Return the gradient of each sample's loss, by functions of PyTorch."""
    p, q = x.softmax(axis), y.softmax(axis)
    if beta == 0.0:
        return p - q
    # A class that neither has adds nothing.
    some = (x != -torch.inf) & (y != -torch.inf) if beta == 1.0 else x != -torch.inf
    log_p, log_q = x.log_softmax(axis), y.log_softmax(axis)
    if beta == 1.0:
        slope = log_p - log_q
    else:
        slope = -torch.log(beta * (log_q - log_p).exp() + (1.0 - beta))
    slope = torch.where(some, slope, 0.0)
    mean = (p * slope).sum(axis, keepdim=True)
    scale = 1.0 if beta == 1.0 else 1.0 - beta
    return scale * p * (slope - mean)
