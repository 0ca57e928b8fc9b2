"""`linear_cross_entropy` and `LinearCrossEntropyLoss`, in place of PyTorch's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear_cross_entropy as _pytorchs

from xentrs.torch._arguments.linear import LinearArguments, fits
from xentrs.torch._arguments.options import (
    Ignored,
    Options,
    check_further_options,
    check_loss_dtype,
    check_tensor,
    ignored_indices,
    softmax_options,
)
from xentrs.torch._arguments.softmax import beyond_pytorch, check_further_arguments
from xentrs.torch._arguments.tensors import (
    are_tensors,
    as_denominator,
    is_dtensor,
    leave_to_pytorch,
)
from xentrs.torch._mode import autocasts, is_jit_traced, is_patched
from xentrs.torch._module import StandsFor, further_repr
from xentrs.torch._operators.linear import chunk_rows, compute_loss

_NAME = "linear_cross_entropy"


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: Ignored = None,
    label_smoothing: float = 0.0,
    options: Any = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    loss_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Cross-entropy of ``input @ linear_weight.T + linear_bias``, which never exists as a whole.

    A drop-in for `torch.nn.functional.linear_cross_entropy`, with additional arguments. Its peak
    memory is that of the gradients and one chunk of logits.

    Parameters
    ----------
    input : Tensor of shape (in) or (N, in)
        What goes into the linear layer.
    linear_weight : Tensor of shape (C, in) or (C, d_1, ..., d_K, in)
        Its weight.
    target : Tensor
        Class indices, of any integer type, of the shape of the logits, (C), (N, C) or (N, C, d_1,
        ..., d_K), without their class axis; or probabilities, floats of the logits' shape.
    linear_bias : Tensor of shape (C) or (C, d_1, ..., d_K), optional
        The linear layer's bias.
    weight : Tensor of shape (C), optional
        Weight of each class.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, weighted by the weights of their
        classes, their sum, or each.
    ignore_index : int or iterable of ints, optional
        Class indices whose samples do not count, whatever their logits are. None stands for -100,
        as in PyTorch.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    options : torch.nn.LinearCrossEntropyOptions, optional
        Of these ``batch_chunk_size`` has an effect: the number of samples in a chunk.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(logits)**2`` to each sample's loss, as in PaLM. `sample_weight`
        multiplies this term, `weight` and `label_smoothing` do not change it.
    softcap : float, optional
        The logits x become ``softcap * tanh(x / softcap)`` first, as in Gemma 2.
    temperature : float, default 1.0
        What the logits are divided by, after `softcap`; finite and above 0.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of the logits without their class axis.
    denominator : float or Tensor of no dimension, optional
        What ``"mean"`` divides by instead of the total weight. A tensor may be on the CPU or on the
        device of `input`.
    loss_dtype : torch.dtype, optional
        A floating dtype of the loss, instead of the one under Returns. With float32 the loss of a
        half-precision `input` is not rounded to half precision.

    Returns
    -------
    Tensor
        Of no dimension, or for ``"none"`` of the shape of the logits without their class axis. Of
        the dtype that PyTorch's function returns: that of `input`, or one that holds probabilities
        and their `weight` too; under autocast that of `cross_entropy` of autocast logits.

    Raises
    ------
    RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError
        What PyTorch's function raises, with its message. ValueError or TypeError if an argument
        that PyTorch's function lacks is wrong.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    For half precisions the gradients of weight and bias are summed over the chunks in float32.
    With ``reduction="none"`` the backward pass computes the logits again, and under `torch.compile`
    and `torch.func` they exist as a whole.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> hidden, weight = torch.eye(2), torch.tensor([[17.0, 0.0], [0.0, 1.0]])
    >>> weight.requires_grad_()
    tensor([[17.,  0.],
            [ 0.,  1.]], requires_grad=True)
    >>> target = torch.tensor([0, 1])
    >>> loss = xentrs.torch.linear_cross_entropy(hidden, weight, target, reduction="sum")
    >>> loss.backward()
    >>> weight.grad
    tensor([[-4.1399e-08,  2.6894e-01],
            [ 4.1399e-08, -2.6894e-01]])
    """
    ignored = ignored_indices(-100 if ignore_index is None else ignore_index)
    chosen = softmax_options(reduction, ignored, label_smoothing, z_loss, softcap, temperature)
    denominator = as_denominator(denominator, input)
    if sample_weight is not None:
        check_tensor("sample_weight", sample_weight)
    if isinstance(target, tuple):
        raise TypeError(
            f"target is a tuple, but must be a tensor: xentrs.torch.{_NAME} takes no pair "
            "(indices, probabilities), as xentrs.torch.cross_entropy of the logits does"
        )
    args = (input, linear_weight, linear_bias, target, weight, sample_weight, denominator)
    call = LinearArguments(*args)
    given = [t for t in (linear_bias, weight) if t is not None]
    if is_jit_traced(_NAME) or not are_tensors(input, linear_weight, target, *given):
        return _leave_to_pytorch(call, chosen, loss_dtype)
    if any([is_dtensor(t) for t in (input, linear_weight, target, *given)]):
        if is_patched():
            return _leave_to_pytorch(call, chosen, loss_dtype)
        raise NotImplementedError(
            f"xentrs.torch.{_NAME} takes no DTensor: use xentrs.torch.cross_entropy of the logits, "
            "or xentrs.torch.vocab_parallel_cross_entropy of local logits"
        )
    single = input.dim() == 1
    if single and linear_weight.dim() == 2:
        s = None if sample_weight is None else sample_weight[None]
        call = call._replace(input=input[None], target=target[None], sample_weight=s)
    if autocasts(input):
        call = call.cast(torch.get_autocast_dtype(input.device.type))
    if not fits(call, chosen):
        return _leave_to_pytorch(LinearArguments(*args), chosen, loss_dtype)
    check_further_arguments(call.loss())
    check_loss_dtype(loss_dtype)
    rows = getattr(options, "batch_chunk_size", None) or chunk_rows(call)
    loss = compute_loss(call, chosen, rows)
    if single and reduction == "none":
        loss = loss[0]
    return loss.to(loss_dtype or call.loss().dtype)


def _leave_to_pytorch(
    call: LinearArguments, options: Options, loss_dtype: torch.dtype | None
) -> Tensor:
    return leave_to_pytorch(
        lambda: _pytorchs(
            call.input,
            call.linear_weight,
            call.target,
            linear_bias=call.linear_bias,
            weight=call.weight,
            reduction=options.reduction,
            # None is -100, and the only one that may come with probabilities.
            ignore_index=options.ignored[0] if options.ignored not in ((), (-100,)) else None,
            label_smoothing=options.label_smoothing,
        ),
        beyond_pytorch(_NAME, call.sample_weight, call.denominator, options, loss_dtype),
    )


class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss, metaclass=StandsFor):
    """`linear_cross_entropy` as a module that holds the linear layer.

    Parameters
    ----------
    in_features, num_classes, out_features, bias, device, dtype, reduction, weight, ignore_index, \
label_smoothing, options
        As in `torch.nn.LinearCrossEntropyLoss`.
    z_loss, softcap, temperature, loss_dtype
        As in `cross_entropy`. `sample_weight` and `denominator` are arguments of the call.
    """

    # For modules that were pickled before these existed.
    z_loss = 0.0
    softcap: float | None = None
    temperature = 1.0
    loss_dtype: torch.dtype | None = None

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: Ignored = None,
        label_smoothing: float = 0.0,
        options: Any = None,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        check_further_options(z_loss, softcap, temperature)
        super().__init__(
            in_features,
            num_classes,
            out_features=out_features,
            bias=bias,
            device=device,
            dtype=dtype,
            reduction=reduction,
            weight=weight,
            ignore_index=ignore_index,  # type: ignore[arg-type]
            label_smoothing=label_smoothing,
            options=options,
        )
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature
        self.loss_dtype = loss_dtype

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        further = further_repr(self, ("z_loss", "softcap", "temperature", "loss_dtype"))
        return ", ".join(filter(None, [super().extra_repr(), further]))

    def forward(
        self,
        input: Tensor,
        target: Tensor,
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        classes = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.view(*classes, -1),
            target,
            linear_bias=None if bias is None else bias.view(classes),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            z_loss=self.z_loss,
            softcap=self.softcap,
            temperature=self.temperature,
            sample_weight=sample_weight,
            denominator=denominator,
            loss_dtype=self.loss_dtype,
        )
