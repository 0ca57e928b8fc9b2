"""What the losses have in common: masks, the denominator, checks, calls left to PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod

import torch
from torch import Tensor

from xentrs.torch._arguments.options import check_number, no_gradient
from xentrs.torch._mode import is_eager

INTEGERS = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)


def are_tensors(*values: object) -> bool:
    """Whether all of these are tensors."""
    return all([isinstance(value, Tensor) for value in values])


def is_dtensor(t: Tensor) -> bool:
    """Whether this is a DTensor, whose module takes long to import."""
    return hasattr(t, "device_mesh") and hasattr(t, "placements")


def class_shards(input: Tensor, axis: int | None) -> bool:
    """Whether the input is a DTensor that is sharded on this axis."""
    if axis is None or not is_dtensor(input):
        return False
    shards = [p.dim % input.dim() for p in input.placements if p.is_shard()]  # type: ignore[attr-defined]
    return axis in shards


def masked(grad_output: Tensor, mask: Tensor | None) -> Tensor:
    """Return an upstream gradient with 0 outside the mask: times 0, NaN and inf would be NaN."""
    return grad_output if mask is None else torch.where(mask, grad_output, 0.0)


def as_denominator(value: float | Tensor | None, input: Tensor) -> Tensor | None:
    """Return a denominator that is a number as a tensor."""
    if value is None:
        return None
    # PyTorch has yet to refuse an input that is no tensor.
    device = input.device if isinstance(input, Tensor) else None
    if isinstance(value, Tensor):
        if value.dim() == 0 and value.is_cpu and is_eager(value) and not value >= 0.0:
            raise ValueError(f"denominator is {value.item()}, but must not be negative or NaN")
        if not value.is_cpu or device is None or device.type == "cpu":
            return value
        if value.dim() == 0 and is_eager(value):  # a copy to a GPU would wait for it
            return torch.full((), value.item(), dtype=value.dtype, device=device)
        return value.to(device)
    check_number("denominator", value)
    if not value >= 0.0:
        raise ValueError(f"denominator is {value}, but must not be negative or NaN")
    return torch.full((), value, dtype=torch.float64, device=device)


def check_further(name: str, t: Tensor, input: Tensor) -> None:
    """Refuse a tensor on another device than the input, or one whose gradient is wanted.

    For arguments that PyTorch's function does not have.
    """
    if t.device != input.device:
        raise RuntimeError(f"{name} is on {t.device}, but must be on {input.device} as input is")
    if t.requires_grad and torch.is_grad_enabled():
        raise NotImplementedError(no_gradient(name))


def check_denominator(value: Tensor | None, input: Tensor) -> None:
    """Refuse a denominator that is no number of the input's device."""
    if value is not None and value.dim() != 0:
        raise ValueError(f"denominator has shape {tuple(value.shape)}, but must be a number")
    if value is not None:
        check_further("denominator", value, input)


def as_rows(t: Tensor) -> Tensor:
    """Return logits as samples x classes x positions: a view, if their strides allow one."""
    if t.dim() == 1:
        return t.reshape(1, -1, 1)
    return t.reshape(t.shape[0], t.shape[1], prod(t.shape[2:]))


def chunks(n: int, positions: int, size: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices of samples and of their positions that hold about `size` of both."""
    if positions <= size:
        step = max(size // max(positions, 1), 1)
        for i in range(0, n, step):
            yield slice(i, i + step), slice(None)
    else:
        for i in range(n):
            for j in range(0, positions, size):
                yield slice(i, i + 1), slice(j, j + size)


def write_back(grad: Tensor | None, rows: Tensor | None) -> None:
    """Copy `rows`, as `as_rows` returned them of a gradient, to it if they are no view of it."""
    if grad is not None and rows is not None and rows.data_ptr() != grad.data_ptr():
        grad.copy_(rows.view(grad.shape))


def leave_to_pytorch(pytorchs: Callable[[], Tensor], beyond: str | None) -> Tensor:
    """Let PyTorch say what is wrong, or compute what only it can: gradients in the target.

    `beyond` is the error where the call has arguments that PyTorch's function does not have.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and beyond is None):
        loss = pytorchs()
    if beyond is not None:
        raise NotImplementedError(beyond)
    return loss
