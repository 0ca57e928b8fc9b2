"""Cross-entropy of logits whose classes are spread over the processes of a group.

As in Megatron-LM no process sees another's logits. Each reduces its own classes to a state of some
80 bytes a sample, the one of `xentrs.PartialCrossEntropy` (`src/softmax/state.rs`). The processes
exchange these once. Each merges all of them in the order of the processes, so that all have the
same loss to the last bit. The backward pass exchanges nothing: the gradient of a process's classes
follows from its logits and the merged states.

Between forward and backward the logits are kept, and the backward writes the gradient in one pass.

Softcap and temperature map the logits in float64, some rows at a time, before they are reduced.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from xentrs._xentrs import STATE_FIELDS, STATE_HELD
from xentrs.torch import _backend
from xentrs.torch._arguments.options import Options
from xentrs.torch._arguments.softmax import capped, index_error, not_ignored, slope_of_cap
from xentrs.torch._arguments.tensors import as_rows, chunks, write_back
from xentrs.torch._cpu import slices as _cpu
from xentrs.torch._gpu import slices as _gpu
from xentrs.torch._private import assert_on_device

_NAME = "xentrs.torch.vocab_parallel_cross_entropy"

# Logits that softcap and temperature map at a time: on the CPU, and on any other device.
_MAPPED_ON_CPU, _MAPPED = 1 << 17, 1 << 24


class _Samples(NamedTuple):
    """Numbers of each sample, in one row."""

    target: Tensor  # its class, counted from this process's first
    counts: Tensor  # whether it counts
    scales: Tensor  # of its loss in what is returned
    merged: Tensor  # the state of all classes
    classes: Tensor  # how many there are in all; of no dimension
    top: Tensor  # what is subtracted from its logits before they are divided by the temperature


def evaluate(
    input: Tensor,
    target: Tensor,
    sample_weight: Tensor | None,
    denominator: Tensor | None,
    first_class: int | None,
    options: Options,
    group: Any,
) -> tuple[Tensor, _Samples, tuple[Tensor, ...]]:
    """Return the loss, and what the gradient needs: of all processes, and of this one's classes."""
    x = input.detach()
    on = _gpu if _backend.uses_triton(x) else _cpu
    indices = target.detach().long()
    kept = not_ignored(indices, options.ignored).reshape(-1)
    first = dist.get_rank(group) * x.shape[1] if first_class is None else first_class
    own = (indices - first).reshape(-1)
    own = torch.where((own >= 0) & (own < x.shape[1]), own, -1)
    top = _top(x, options, group)
    reduced = _reduce(on, x, own, kept, top, options)
    # A sample that does not count has no state. Its classes count all the same.
    gathered = torch.empty(
        (dist.get_world_size(group), len(own) + 1, STATE_FIELDS),
        dtype=torch.float64,
        device=x.device,
    )
    size = torch.full_like(gathered[0, :1], float(x.shape[1]))
    dist.all_gather_into_tensor(gathered, torch.cat([reduced[0], size])[None], group)
    sizes = gathered[:, -1, 0]
    if first_class is None:
        _check_equal(sizes)
    classes = sizes.sum()
    merged = on.merge(gathered[:, :-1].contiguous())
    held = torch.where(kept, merged[:, STATE_HELD], 1.0).view(target.shape)
    _check(target, held, classes, options.ignored)

    scales = torch.ones(len(own), dtype=torch.float64, device=x.device)
    if sample_weight is not None:
        scales = sample_weight.detach().double().reshape(-1)
        kept &= scales != 0.0
    mixture = _mixture(options, classes, on)
    loss = on.losses(merged, scales.contiguous(), kept, mixture)
    if options.reduction == "mean":
        divisor = torch.where(kept, scales, 0.0).sum() if denominator is None else denominator
        divisor = divisor.double()
        scales, loss = scales / divisor, loss.sum() / divisor
    elif options.reduction == "sum":
        loss = loss.sum()
    else:
        loss = loss.view(target.shape)
    samples = _Samples(own, kept, scales, merged, classes, top)
    return loss.to(_backend.accumulator(x.dtype)), samples, reduced


def _maps(options: Options) -> bool:
    """Whether the logits do not go to the softmax as they are."""
    return options.softcap != 0.0 or options.temperature != 1.0


def _top(x: Tensor, options: Options, group: Any) -> Tensor:
    """Return what is subtracted from each sample's logits before the division by the temperature.

    It is the largest logit of all processes where that saves digits. Those of float32 survive in
    float64, and z-loss needs the logsumexp of the logits themselves.
    """
    top = torch.zeros(x.numel() // x.shape[1], dtype=torch.float64, device=x.device)
    if x.dtype == torch.float64 and options.temperature != 1.0 and not options.z_loss:
        top = torch.where(x.isnan(), -torch.inf, x).amax(1).reshape(-1)
        dist.all_reduce(top, dist.ReduceOp.MAX, group)
        if options.softcap:
            top = options.softcap * (top / options.softcap).tanh()
        top = torch.where(top.isfinite(), top, 0.0)
    return top


def _mapped(
    x: Tensor, top: Tensor, options: Options
) -> Iterator[tuple[slice, tuple[slice, slice], Tensor, Tensor | float]]:
    """Yield logits after softcap and temperature, some samples at a time, as rows of float64.

    With them come which samples they are, their place in what `as_rows` returns, and the derivative
    by the logits as given.
    """
    rows = as_rows(x)
    n, classes, positions = rows.shape
    mapped = _MAPPED_ON_CPU if x.device.type == "cpu" else _MAPPED
    for i, j in chunks(n, positions, max(mapped // classes, 1)):
        block = rows[i, :, j].transpose(1, 2)
        at = i.start * positions + (j.start or 0)
        part = slice(at, at + block.shape[0] * block.shape[1])
        z: Tensor = block.double().reshape(-1, classes)
        slope: Tensor | float = 1.0 / options.temperature
        if cap := options.softcap:
            slope = slope * slope_of_cap(z, cap)
            z = capped(z, cap)
        if options.temperature != 1.0:
            z = (z - top[part, None]) / options.temperature
        yield part, (i, j), z.contiguous(), slope


def _reduce(
    on: Any, x: Tensor, target: Tensor, counts: Tensor, top: Tensor, options: Options
) -> tuple[Tensor, ...]:
    """Return the states of this process's classes, and what else its gradient needs."""
    smooths = options.label_smoothing > 0.0
    if not _maps(options) or x.numel() == 0:
        return on.reduce(x, target, counts, smooths)
    found = [
        on.reduce(z, target[part], counts[part], smooths)
        for part, _, z, _ in _mapped(x, top, options)
    ]
    return tuple(map(torch.cat, zip(*found, strict=True)))


def _gradient(
    on: Any, x: Tensor, samples: _Samples, reduced: tuple[Tensor, ...], options: Options
) -> Tensor:
    """Return the gradient in this process's logits."""
    mixture = _mixture(options, samples.classes, on)
    target, counts, scales, merged, _, top = samples
    if not _maps(options):
        return on.gradient(x, target, counts, merged, reduced, scales, mixture)
    grad = _backend.empty_like(x)
    rows = as_rows(grad)
    for part, (i, j), z, slope in _mapped(x, top, options):
        of_part = (t[part] for t in (target, counts, merged))
        own = tuple(t[part] for t in reduced)
        found = on.gradient(z, *of_part, own, scales[part], mixture) * slope
        # A sample that does not count may have logits of any value.
        found = torch.where(counts[part, None], found, 0.0)
        to = rows[i, :, j].transpose(1, 2)
        to.copy_(found.view(to.shape))
    write_back(grad, rows)
    return grad


def _mixture(options: Options, classes: Tensor, on: Any) -> tuple[Any, Any, float]:
    """Return smoothing, the number of all classes, and z-loss's factor.

    The first two are tensors for the GPU's functions, so that nobody waits for the device.
    """
    # Of one class the cross-entropy is 0, whatever the smoothing.
    smoothing = torch.where(classes == 1.0, 0.0, torch.full_like(classes, options.label_smoothing))
    if on is _cpu:
        return smoothing.item(), classes.item(), options.z_loss
    return smoothing if options.label_smoothing else 0.0, classes, options.z_loss


def _check_equal(sizes: Tensor) -> None:
    """Refuse parts of different sizes: nobody knows where they begin."""
    if sizes.device.type != "cpu":
        assert_on_device((sizes == sizes[0]).all(), "first_class is needed: sizes differ")
    elif (sizes != sizes[0]).any():
        found = ", ".join(f"{size:.0f}" for size in sizes.tolist())
        raise ValueError(f"the processes have {found} classes: pass first_class to each of them")


def _check(target: Tensor, held: Tensor, classes: Tensor, ignored: tuple[int, ...]) -> None:
    """Refuse targets that are not held by one process."""
    wrong = held != 1.0
    if target.device.type != "cpu":
        assert_on_device(~wrong.any(), "target is out of bounds")
    elif wrong.any():
        index = target[wrong][0].item()
        if 0 <= index < classes:
            number = "no process has" if held[wrong][0] == 0.0 else "several processes have"
            raise IndexError(
                f"target holds {index}, but {number} this class: with their values of first_class "
                "the processes' classes overlap or leave a gap"
            )
        raise index_error("target", target, wrong, int(classes), ignored)


class VocabParallelCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, options: Options, *arguments: Any) -> Tensor:
        target, sample_weight, denominator, first_class, group = arguments
        loss, samples, reduced = evaluate(
            input, target, sample_weight, denominator, first_class, options, group
        )
        ctx.save_for_backward(input, *samples, *reduced)
        ctx.options = options
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(f"{_NAME} cannot be differentiated twice")
        input, *saved = ctx.saved_tensors
        number = len(_Samples._fields)
        samples, reduced = _Samples(*saved[:number]), tuple(saved[number:])
        upstream = grad_output.detach().resolve_neg().double().reshape(-1)
        scales = torch.where(samples.counts, samples.scales * upstream, 0.0)
        x = input.detach()
        on = _gpu if _backend.uses_triton(x) else _cpu
        grad = _gradient(on, x, samples._replace(scales=scales), reduced, ctx.options)
        return grad, *[None] * 6
