"""`js_divergence` and `JSDivergenceLoss`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from xentrs.torch._arguments.logits import check_teacher
from xentrs.torch._arguments.options import Options, as_temperature, check_number
from xentrs.torch._arguments.softmax import SoftmaxArguments
from xentrs.torch._arguments.tensors import as_denominator
from xentrs.torch._mode import refuse_jit_trace
from xentrs.torch._module import LossModule
from xentrs.torch._operators.divergence import of_teacher


def js_divergence(
    input: Tensor,
    teacher_logits: Tensor,
    *,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "mean",
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Generalised Jensen-Shannon divergence between the softmaxes of two models' logits.

    With m = beta teacher + (1 - beta) model it is beta KL(teacher, m) + (1 - beta) KL(model, m):
    the loss of generalised knowledge distillation [1]_, as Liger Kernel and TRL define it.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        The model's logits: float16, bfloat16, float32 or float64, of any strides.
    teacher_logits : Tensor
        The teacher's logits, of the shape of `input` and of any of these types. They get no
        gradient.
    beta : float, default 0.5
        Weight of the teacher in the mixture, in [0, 1]. With 0 the function is KL(teacher, model),
        with 1 KL(model, teacher).
    temperature : float, default 1.0
        What the logits of both are divided by; finite and above 0. The gradient is that in `input`
        as given, 1 / temperature included. The customary factor temperature**2 is the caller's.
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
        `beta`, `temperature` or another option has a value other than above.
    NotImplementedError
        If the teacher or a weight requires a gradient.

    References
    ----------
    .. [1] R. Agarwal et al., "On-policy distillation of language models", ICLR 2024,
       arXiv:2306.13649.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]])
    >>> teacher = torch.tensor([[2.0, 0.5, -1.0], [0.0, 2.0, 0.0]])
    >>> xentrs.torch.js_divergence(logits, teacher)
    tensor(0.0149)
    """
    refuse_jit_trace("js_divergence")
    temperature = as_temperature(temperature)
    _check_beta(beta)
    options = Options(reduction, own=(float(beta), temperature))
    denominator = as_denominator(denominator, input)
    call = SoftmaxArguments(input, teacher_logits, None, sample_weight, denominator)
    check_teacher(call, options)
    return JS_DIVERGENCE.compute(call, options, inplace, loss_dtype)


def _check_beta(value: float) -> None:
    check_number("beta", value)
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"beta must be in [0, 1], not {value}")


def _meaning(own: tuple[Any, ...]) -> tuple[float, float]:
    beta, temperature = own
    return temperature, beta


JS_DIVERGENCE = of_teacher("js_divergence", ("float beta", "float temperature"), _meaning)


class JSDivergenceLoss(LossModule):
    """`js_divergence` as a module.

    Parameters
    ----------
    beta, temperature, reduction, inplace, loss_dtype
        As in `js_divergence`. `sample_weight` and `denominator` are arguments of the call.
    """

    function = staticmethod(js_divergence)

    def __init__(
        self,
        beta: float = 0.5,
        temperature: float = 1.0,
        *,
        reduction: str = "mean",
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        as_temperature(temperature)
        _check_beta(beta)
        super().__init__(
            beta=beta,
            temperature=temperature,
            reduction=reduction,
            inplace=inplace,
            loss_dtype=loss_dtype,
        )
