"""`kl_divergence` and `KLDivergenceLoss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs.torch._arguments.logits import check_teacher
from xentrs.torch._arguments.options import Options, as_temperature
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_denominator
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._module import LossModule
from xentrs.torch._operators.divergence import of_teacher


def kl_divergence(
    input: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    direction: str = "forward",
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Kullback-Leibler divergence between the softmaxes of a teacher's and a model's logits.

    With ``"forward"`` it is the distillation loss of Hinton et al. [1]_. It is never negative, and
    keeps its digits where the models are nearly equal.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        The model's logits: float16, bfloat16, float32 or float64, of any strides.
    teacher_logits : Tensor
        The teacher's logits, of the shape of `input` and of any of these types. They get no
        gradient.
    temperature : float, default 1.0
        What the logits of both are divided by; finite and above 0. The gradient is that in `input`
        as given, 1 / temperature included. The customary factor temperature**2 is the caller's.
    direction : {"forward", "reverse"}, default "forward"
        ``"forward"`` is KL(teacher, model), ``"reverse"`` KL(model, teacher).
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, their sum, or each. The mean divides by
        the number of samples or the sum of their weights, as ``"batchmean"`` of PyTorch does.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis. A sample of weight 0
        counts for nothing, whatever its logits are.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead of the total weight. A tensor may be on the CPU or on the
        device of `input`.
    inplace : bool, default False
        Write the gradient over the logits, which saves memory of their size. They must be neither a
        view nor a leaf, and using them later raises an error in the backward pass. Without effect
        where no gradient is wanted, and under `torch.compile` and `torch.func`.
    loss_dtype : torch.dtype, optional
        A floating dtype of the loss, instead of the one under Returns. With float32 the loss of a
        half-precision `input` is not rounded to half precision.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of `input` without its class axis. Of the
        wider dtype of `input` and `teacher_logits`, or float32 for a half precision if autocast is
        on.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the two are no tensors of floats, have other shapes or are on other devices, or if
        `temperature`, `direction` or another option has a value other than above.
    NotImplementedError
        If the teacher or a weight requires a gradient.

    References
    ----------
    .. [1] G. Hinton, O. Vinyals, J. Dean, "Distilling the knowledge in a neural network", 2015,
       arXiv:1503.02531.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> teacher = torch.tensor([[2.0, 0.5, -1.0], [0.0, 2.0, 0.0]])
    >>> xentrs.torch.kl_divergence(logits, teacher)
    tensor(0.0575)
    """
    refuse_jit_trace("kl_divergence")
    temperature = as_temperature(temperature)
    _check_direction(direction)
    options = Options(reduction, own=(temperature, direction))
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, teacher_logits, None, sample_weight, denominator)
    check_teacher(call, options)
    return KL_DIVERGENCE.compute(call, options, inplace, loss_dtype)


def _check_direction(value: str) -> None:
    if value not in ("forward", "reverse"):
        raise ValueError(f"direction must be 'forward' or 'reverse', not {value!r}")


def _meaning(own: tuple[Any, ...]) -> tuple[float, float]:
    temperature, direction = own
    return temperature, 0.0 if direction == "forward" else 1.0


KL_DIVERGENCE = of_teacher("kl_divergence", ("float temperature", "str direction"), _meaning)


class KLDivergenceLoss(LossModule):
    """`kl_divergence` as a module.

    `torch.nn.KLDivLoss` is another loss: it takes log-probabilities, and its ``"mean"`` divides by
    the number of elements.

    Parameters
    ----------
    temperature, direction, reduction, inplace, loss_dtype
        As in `kl_divergence`. `sample_weight` and `denominator` are arguments of the call.
    """

    function = staticmethod(kl_divergence)

    def __init__(
        self,
        temperature: float = 1.0,
        direction: str = "forward",
        *,
        reduction: str = "mean",
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        as_temperature(temperature)
        _check_direction(direction)
        super().__init__(
            temperature=temperature,
            direction=direction,
            reduction=reduction,
            inplace=inplace,
            loss_dtype=loss_dtype,
        )
