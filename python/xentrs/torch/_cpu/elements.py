"""Losses without a class axis on the CPU: one call of the compiled module, on tensors' memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from xentrs import _arrays
from xentrs._xentrs import LOSSES, compute_tensors
from xentrs.torch import _backend
from xentrs.torch._arguments.binary import BinaryArguments
from xentrs.torch._arguments.options import Options
from xentrs.torch._backend import HALVES
from xentrs.torch._cpu.tensors import IN_ORDER, array, contiguous, named_options, plain, readable


def evaluate(
    name: str, call: BinaryArguments, options: Options, with_grad: bool, inplace: bool = False
) -> tuple[Tensor, Tensor | None]:
    """Return the loss, in the accumulator's dtype, and the gradient in the input if wanted."""
    x = call.input
    grad = _backend.empty(x.shape, x.dtype, x.device) if with_grad else None
    settings = {
        **named_options(name, options),
        "denominator": None if call.denominator is None else call.denominator.item(),
    }

    def arguments(
        call: BinaryArguments, read: Callable[[Tensor | None], Tensor | None] = plain
    ) -> tuple[Any, ...]:
        x, where = plain(call.input), plain(call.where)
        target, weight, pos_weight = (read(t) for t in call[1:4])
        named = settings | {"weight": weight, "pos_weight": pos_weight, "where": where}
        return int(with_grad), x, target, *IN_ORDER[name](named), grad, None

    try:
        result = compute_tensors(name, *arguments(call))
        if result is NotImplemented and x.dtype in HALVES:
            result = _arrays.done(compute_tensors(name, *arguments(_contiguous(call))))
        elif result is NotImplemented:
            arrays: list[Any] = [array(a) for a in arguments(call, readable)]
            result = _arrays.class_loss(name, *arrays, name="input")
    except ValueError as error:  # the compiled module calls the input probabilities
        raise ValueError(str(error).replace(LOSSES[name]["input"], "input")) from None
    loss = result[0] if with_grad else result
    if options.reduction == "none":
        return torch.from_numpy(loss), grad
    return _backend.scalar(loss, _backend.accumulator(x.dtype)), grad


def _contiguous(call: BinaryArguments) -> BinaryArguments:
    """Return the same call with tensors as the compiled functions read them."""
    x, target = call.input, call.target
    if not target.is_floating_point() and target.dtype != torch.bool:
        target = target.double()

    def weight(t: Tensor | None) -> Tensor | None:
        """Return a weight without axes that it is broadcast over, where these are the first."""
        if t is None:
            return None
        while t.dim() and t.shape[0] == 1:
            t = t[0]
        is_suffix = t.shape == x.shape[x.dim() - t.dim() :]
        return contiguous(t if is_suffix else t.expand_as(x))

    where = None if call.where is None else call.where.expand_as(x).contiguous()
    return call._replace(
        input=contiguous(x),
        target=contiguous(target),
        weight=weight(call.weight),
        pos_weight=weight(call.pos_weight),
        where=where,
    )
