"""Slices of classes on the CPU: the compiled functions behind `xentrs.PartialCrossEntropy`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from xentrs import get_num_threads
from xentrs._arrays import done
from xentrs._xentrs import STATE_FIELDS, merge_states, slice_grad, slice_states, state_losses
from xentrs.torch import _backend
from xentrs.torch._arguments.tensors import as_rows, chunks, write_back
from xentrs.torch._cpu import tensors

Mixture = tuple[float, float, float]


def reduce(x: Tensor, target: Tensor, counts: Tensor, smooths: bool) -> tuple[Tensor, ...]:
    """Return the state of each sample of a slice.

    `target` is the true class counted from the slice's first. All arguments but the logits have one
    row of samples.
    """
    states = torch.empty((len(target), STATE_FIELDS), dtype=torch.float64)
    for part, rows, _ in _blocks(x, None):
        logits, indices, counted = tensors.array((rows, target[part], counts[part]))
        done(slice_states(logits, indices, counted, None, smooths, states[part].numpy()))
    return (states,)


def merge(gathered: Tensor) -> Tensor:
    """Merge the states of several processes."""
    merged = gathered[0].numpy()
    for other in gathered[1:]:
        done(merge_states(merged, other.numpy()))
    return gathered[0]


def losses(states: Tensor, scales: Tensor, counts: Tensor, mixture: Mixture) -> Tensor:
    """Return the loss of each sample times its scale."""
    found = torch.empty_like(scales)
    arrays = states.numpy(), scales.numpy(), counts.numpy()
    done(state_losses(*arrays, mixture, found.numpy()))
    return found


def gradient(
    x: Tensor,
    target: Tensor,
    counts: Tensor,
    merged: Tensor,
    reduced: tuple[Tensor, ...],
    scales: Tensor,
    mixture: Mixture,
) -> Tensor:
    """Return the gradient of a slice, from the merged states."""
    grad = _backend.empty_like(x)
    for part, rows, to in _blocks(x, grad):
        result = to if to is not None and _is_plain(to) else torch.empty_like(rows)
        given = rows, target[part], counts[part], merged[part], scales[part]
        logits, y, counted, states, factors = tensors.array(given)
        done(slice_grad(logits, y, counted, states, factors, None, mixture, result.numpy()))
        if to is not None and result is not to:
            to.copy_(result.view(to.shape))
    return grad


def _is_plain(t: Tensor) -> bool:
    wide = t.dtype not in _backend.HALVES
    return t.dim() == 2 and wide and t.is_contiguous() and tensors.is_aligned(t)


def _blocks(x: Tensor, to: Tensor | None) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Yield logits as contiguous rows, all at once where they lie so, else by chunks.

    With each block come the samples that it has, and its part of `to`.
    """
    x = x.resolve_neg()
    if _is_plain(x) and (to is None or _is_plain(to)):
        yield slice(0, len(x)), x, to
        return
    rows, to_rows = as_rows(x), None if to is None else as_rows(to)
    n, classes, positions = rows.shape
    size = max(tensors.CHUNK * get_num_threads() // classes, 1)
    for i, j in chunks(n, positions, size):
        block = rows[i, :, j].transpose(1, 2)
        at = i.start * positions + (j.start or 0)
        part = slice(at, at + block.shape[0] * block.shape[1])
        block = block.to(_backend.accumulator(x.dtype)).reshape(-1, classes)
        block = tensors.contiguous(block)
        yield part, block, None if to_rows is None else to_rows[i, :, j].transpose(1, 2)
    write_back(to, to_rows)
