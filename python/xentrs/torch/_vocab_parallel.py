"""`vocab_parallel_cross_entropy`: of logits whose classes are spread over a process group."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from xentrs.torch._arguments.options import (
    Ignored,
    check_loss_dtype,
    check_tensor,
    ignored_indices,
    softmax_options,
)
from xentrs.torch._arguments.softmax import SoftmaxArguments, check_further_arguments, fits
from xentrs.torch._arguments.tensors import as_denominator
from xentrs.torch._backend import FLOATS
from xentrs.torch._mode import is_eager, is_plain, wants_gradient
from xentrs.torch._operators.vocab_parallel import VocabParallelCrossEntropy, evaluate

_NAME = "xentrs.torch.vocab_parallel_cross_entropy"


def vocab_parallel_cross_entropy(
    input: Tensor,
    target: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    first_class: int | None = None,
    ignore_index: Ignored = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    """Cross-entropy of logits whose classes are spread over a process group.

    Every process of the group calls it, with its own classes and the same other arguments.

    Parameters
    ----------
    input : Tensor of shape (N, C_local) or (N, C_local, d_1, ..., d_K)
        The logits of this process's classes.
    target : Tensor of shape (N) or (N, d_1, ..., d_K)
        Class indices, of any integer type, counted over all processes.
    group : ProcessGroup, optional
        Default: the default group.
    first_class : int, optional
        The index of this process's first class. Default: its rank in the group times C_local, as
        is right where all processes have the same number of classes.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples do not count, whatever their logits are.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, their sum, or each.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class, of
        the C classes of all processes.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(logits)**2`` to each sample's loss, as in PaLM. `sample_weight`
        multiplies this term, `label_smoothing` does not change it.
    softcap : float, optional
        The logits x become ``softcap * tanh(x / softcap)`` first, as in Gemma 2.
    temperature : float, default 1.0
        What the logits are divided by, after `softcap`; finite and above 0.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead of the total weight. A tensor may be on the CPU or on the
        device of `input`.
    loss_dtype : torch.dtype, optional
        A floating dtype of the loss, instead of the one under Returns. With float32 the loss of a
        half-precision `input` is not rounded to half precision.

    Returns
    -------
    Tensor
        In every process what `cross_entropy` returns of all logits: of no dimension, or for
        ``"none"`` of the shape of `input` without its class axis.

    Raises
    ------
    ValueError, TypeError
        If an argument does not fit.
    IndexError
        If a class index is none of any process's; on a GPU an assertion on the device.

    Notes
    -----
    Each process reduces its classes to ten float64 numbers a sample, as
    `xentrs.PartialCrossEntropy` does, and the forward pass gathers those of all processes. The
    backward pass exchanges nothing; it reads the logits again, which must not be changed before.
    The gradient cannot be differentiated again.

    `softcap` and `temperature` map the logits in float64, some rows at a time, which takes longer
    than the loss itself. Of float64 logits with a temperature and without z-loss the processes
    exchange the largest first, so that an offset of the logits costs no digits.

    On the CPU a loss of one sample and an entry of the gradient err by at most 4 ULP, as those of
    `xentrs.PartialCrossEntropy` do.
    """
    options = softmax_options(
        reduction, ignored_indices(ignore_index), label_smoothing, z_loss, softcap, temperature
    )
    for name, value in (("input", input), ("target", target)):
        check_tensor(name, value)
    given = [t for t in (target, sample_weight, denominator) if t is not None]
    if not (is_eager(input) and is_plain(*given)):
        raise NotImplementedError(f"{_NAME} works in eager mode only")
    if input.dtype not in FLOATS or input.dim() < 2 or input.shape[1] == 0:
        raise TypeError(
            f"input has dtype {input.dtype} and shape {tuple(input.shape)}, but must be floating "
            "point, of at least two axes, with classes on axis 1"
        )
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, target, None, sample_weight, denominator)
    if call.is_soft or not fits(call, options):
        raise ValueError(
            f"target of shape {tuple(target.shape)} and dtype {target.dtype} must be class indices "
            f"of shape {tuple(call.samples)} on {input.device}, reduction ({reduction!r}) 'mean', "
            f"'sum' or 'none', and label_smoothing ({label_smoothing}) in [0, 1]"
        )
    check_further_arguments(call)
    check_loss_dtype(loss_dtype)
    arguments = target, sample_weight, denominator, first_class, group
    if wants_gradient(input):
        loss = VocabParallelCrossEntropy.apply(input, options, *arguments)
    else:
        loss = evaluate(input, *arguments[:-1], options, group)[0]
    dtype = loss_dtype or call.dtype
    return loss if loss.dtype == dtype else loss.to(dtype)
