"""`cross_entropy` and `CrossEntropyLoss`, in place of PyTorch's."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy as _pytorchs

from xentrs.torch._arguments.options import (
    REDUCTIONS,
    Ignored,
    Options,
    check_further_options,
    ignored_indices,
    is_smoothing,
    legacy_reduction,
    softmax_options,
)
from xentrs.torch._arguments.softmax import (
    SoftmaxArguments,
    beyond_pytorch,
    capped_logits,
    check_further_arguments,
    check_pair,
    empty_summaries,
    fits,
)
from xentrs.torch._arguments.tensors import as_denominator, leave_to_pytorch
from xentrs.torch._mode import is_jit_traced, wants_gradient
from xentrs.torch._module import StandsFor, further_repr
from xentrs.torch._operators import quick
from xentrs.torch._operators.softmax import CROSS_ENTROPY, LogSumExp


@overload
def cross_entropy(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: Ignored = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
    return_logsumexp: Literal[False] = False,
    return_accuracy: Literal[False] = False,
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: Ignored = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
    return_logsumexp: bool = False,
    return_accuracy: bool = False,
) -> Tensor | tuple[Tensor, ...]: ...
def cross_entropy(
    input: Tensor,
    target: Tensor | tuple[Tensor, Tensor],
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: Ignored = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    sample_weight: Tensor | None = None,
    denominator: float | Tensor | None = None,
    inplace: bool = False,
    loss_dtype: torch.dtype | None = None,
    return_logsumexp: bool = False,
    return_accuracy: bool = False,
) -> Tensor | tuple[Tensor, ...]:
    r"""Cross-entropy between logits and class indices or probabilities.

    A drop-in for `torch.nn.functional.cross_entropy`, with the same arguments, results and errors.
    The keyword-only arguments are additions.

    Parameters
    ----------
    input : Tensor of shape (C), (N, C) or (N, C, d_1, ..., d_K)
        Logits: float16, bfloat16, float32 or float64, of any strides.
    target : Tensor or tuple of two
        Class indices, of any integer type, of the shape of `input` without its class axis; or
        probabilities, floats of the shape of `input`; or a pair of tensors (indices,
        probabilities), a few classes of each sample and their probabilities: both of the shape of
        `input` without its class axis, and a last axis for the entries of a sample. All other
        classes have 0, an ignored index marks an empty entry, and nothing is normalised.
    weight : Tensor of shape (C), optional
        Weight of each class.
    size_average, reduce : bool, optional
        Deprecated in PyTorch: see `reduction`.
    ignore_index : int, iterable of ints or None, default -100
        Class indices whose samples do not count, whatever their logits are.
    reduction : {"mean", "sum", "none"}, default "mean"
        Whether to return the mean of the samples' losses, weighted by the weights of their
        classes, their sum, or each.
    label_smoothing : float, default 0.0
        A number e in [0, 1]: the target becomes (1 - e) times itself plus e / C in every class.
    z_loss : float, default 0.0
        Adds ``z_loss * logsumexp(logits)**2`` to each sample's loss, as in PaLM. `sample_weight`
        multiplies this term, `weight` and `label_smoothing` do not change it.
    softcap : float, optional
        The logits x become ``softcap * tanh(x / softcap)`` first, as in Gemma 2.
    temperature : float, default 1.0
        What the logits are divided by, after `softcap`; finite and above 0.
    sample_weight : Tensor, optional
        Weight of each sample, of the shape of `input` without its class axis.
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
    return_logsumexp : bool, default False
        Also return the logsumexp of each sample's logits after `softcap` and `temperature`, ignored
        samples included. It has a gradient of its own.
    return_accuracy : bool, default False
        Also return the accuracy: the share of the samples whose largest logit is the target's. The
        target must be class indices.

    Returns
    -------
    loss : Tensor
        Of no dimension, or for ``"none"`` of the shape of `input` without its class axis. Of the
        dtype that PyTorch's function returns: that of `input`, or one that holds probabilities and
        their `weight` too; float32 for a half precision if autocast is on.
    logsumexp : Tensor
        If `return_logsumexp`: of the shape of `input` without its class axis, float32 for a half
        precision. It is that of the logits after `softcap` and `temperature`.
    accuracy : Tensor
        If `return_accuracy`, a float32 without gradient: for ``"mean"`` and ``"sum"`` the share of
        the samples that count, NaN if none does; for ``"none"`` 1 or 0 for each sample, and 0 for
        samples that do not count.

    Raises
    ------
    RuntimeError, ValueError, TypeError, NotImplementedError
        What PyTorch's function raises, with its message. ValueError or TypeError if a keyword-only
        argument is wrong, NotImplementedError if one requires a gradient.
    IndexError
        If a class index is out of range. On a GPU that is an assertion on the device.

    Notes
    -----
    `return_logsumexp` and `return_accuracy` need no further pass over the logits, except with
    `inplace`, for float16 that requires a gradient, and where the call is traced. On the CPU
    `return_logsumexp` needs one for half precision too, and `return_accuracy` does not.

    Half precisions are computed in float32. On the CPU the kernels of `xentrs.cross_entropy` run:
    the error of a sample's loss, and of each entry of the gradient of a class index, is at most 4
    ULP. On a GPU, too, small losses and logits of a large offset keep their digits.

    The forward pass computes the gradient. For float16 the backward pass does, and multiplies it by
    the upstream gradient (a loss scale, for instance) before it is rounded. Second derivatives need
    the logits unchanged, and logits of more than 16 MiB alive; with `inplace` there are none.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits = torch.tensor([[17.0, 0.0], [0.0, 1.0]], requires_grad=True)
    >>> loss = xentrs.torch.cross_entropy(logits, torch.tensor([0, 1]), reduction="sum")
    >>> loss.backward()
    >>> logits.grad[0]
    tensor([-4.1399e-08,  4.1399e-08])
    """
    if (
        sample_weight is denominator is softcap is size_average is reduce is None
        and loss_dtype is None
        and isinstance(z_loss, float | int)
        and isinstance(temperature, float | int)
        and z_loss == 0.0
        and temperature == 1.0
        and not inplace
        and not return_logsumexp
        and not return_accuracy
        and type(ignore_index) is int
        and reduction in REDUCTIONS
        and is_smoothing(label_smoothing)
    ):
        loss = quick.of_classes(
            CROSS_ENTROPY, input, target, weight, ignore_index, label_smoothing, reduction
        )
        if loss is not None:
            return loss
    if size_average is not None or reduce is not None:
        reduction = legacy_reduction(size_average, reduce, reduction)
    ignored = ignored_indices(ignore_index)
    options = softmax_options(reduction, ignored, label_smoothing, z_loss, softcap, temperature)
    denominator = as_denominator(denominator, input)
    if isinstance(target, tuple):
        if len(target) != 2:
            raise ValueError(
                f"target is a tuple of length {len(target)}, but must be a pair "
                "(indices, probabilities)"
            )
        indices, probabilities = target
        call = SoftmaxArguments(
            input, indices, weight, sample_weight, denominator, probabilities=probabilities
        )
        check_pair(call, options)
        check_further_arguments(call)
        if return_accuracy:
            raise TypeError("return_accuracy needs class indices as target")
        return _compute(call, options, inplace, loss_dtype, return_logsumexp, False)
    call = SoftmaxArguments(input, target, weight, sample_weight, denominator)
    if is_jit_traced("cross_entropy") or not fits(call, options):
        if return_logsumexp or return_accuracy:
            return _alone(call, options, return_logsumexp, return_accuracy)
        return _leave_to_pytorch(call, options, loss_dtype)
    if not options.is_plain or sample_weight is not None or denominator is not None:
        check_further_arguments(call)
    if return_accuracy and call.is_soft:
        raise TypeError("return_accuracy needs class indices as target")
    return _compute(call, options, inplace, loss_dtype, return_logsumexp, return_accuracy)


def _compute(
    call: SoftmaxArguments,
    options: Options,
    inplace: bool,
    loss_dtype: torch.dtype | None,
    return_logsumexp: bool,
    return_accuracy: bool,
) -> Any:
    """Return the loss, and what else is wanted."""
    if not (return_logsumexp or return_accuracy):
        return CROSS_ENTROPY.compute(call, options, inplace, loss_dtype)
    results: list[Tensor] = []
    if CROSS_ENTROPY.fills_summaries(call, inplace):
        found = empty_summaries(call, return_logsumexp)
        results.append(CROSS_ENTROPY.compute(call, options, loss_dtype=loss_dtype, summaries=found))
        if return_logsumexp:
            x, values = call.input, found.logsumexp
            assert values is not None
            results.append(
                LogSumExp.apply(x, values, call, options) if wants_gradient(x) else values
            )
        argmax = found.argmax
    else:  # before the gradient may take the place of the logits
        x = capped_logits(call, options)
        logsumexp = None
        if return_logsumexp:
            logsumexp = (x / options.temperature).logsumexp(call.axis)
        argmax = call.input.argmax(call.axis)
        results.append(CROSS_ENTROPY.compute(call, options, inplace, loss_dtype))
        if logsumexp is not None:
            results.append(logsumexp)
    if return_accuracy:
        hits = (argmax == call.indices).float()
        mask = call.mask(options)
        hits = hits if mask is None else torch.where(mask, hits, 0.0)
        if options.reduction != "none":
            hits = hits.mean() if mask is None else hits.sum() / mask.sum()
        results.append(hits)
    return tuple(results)


def _alone(
    call: SoftmaxArguments, options: Options, return_logsumexp: bool, return_accuracy: bool
) -> Any:
    """Refuse to leave a call to PyTorch, whose function returns nothing but the loss."""
    _leave_to_pytorch(call, options, None)  # says what is wrong, if something is
    names = ["return_logsumexp"] * return_logsumexp + ["return_accuracy"] * return_accuracy
    raise ValueError(
        f"{' and '.join(names)} cannot be combined with gradients in the target or the class "
        "weights, nor with torch.jit.trace"
    )


def _leave_to_pytorch(
    call: SoftmaxArguments, options: Options, loss_dtype: torch.dtype | None
) -> Tensor:
    return leave_to_pytorch(
        lambda: _pytorchs(
            call.input,
            call.target,
            call.weight,
            ignore_index=options.ignored[0] if options.ignored else -100,
            reduction=options.reduction,
            label_smoothing=options.label_smoothing,
        ),
        beyond_pytorch("cross_entropy", call.sample_weight, call.denominator, options, loss_dtype),
    )


class CrossEntropyLoss(nn.CrossEntropyLoss, metaclass=StandsFor):
    """`cross_entropy` as a module: `torch.nn.CrossEntropyLoss` with the further options.

    Parameters
    ----------
    weight, size_average, ignore_index, reduce, reduction, label_smoothing
        As in `torch.nn.CrossEntropyLoss`; `ignore_index` may be several, or None.
    z_loss, softcap, temperature, inplace, loss_dtype
        As in `cross_entropy`. `sample_weight` and `denominator` are arguments of the call.
    """

    # For modules that were pickled before these existed.
    z_loss = 0.0
    softcap: float | None = None
    temperature = 1.0
    inplace = False
    loss_dtype: torch.dtype | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: Ignored = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        z_loss: float = 0.0,
        softcap: float | None = None,
        temperature: float = 1.0,
        inplace: bool = False,
        loss_dtype: torch.dtype | None = None,
    ) -> None:
        check_further_options(z_loss, softcap, temperature)
        super().__init__(weight, size_average, -100, reduce, reduction, label_smoothing)
        self.ignore_index = ignore_index  # type: ignore[assignment]
        self.z_loss = z_loss
        self.softcap = softcap
        self.temperature = temperature
        self.inplace = inplace
        self.loss_dtype = loss_dtype

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        return further_repr(self, ("z_loss", "softcap", "temperature", "inplace", "loss_dtype"))

    def forward(
        self,
        input: Tensor,
        target: Tensor | tuple[Tensor, Tensor],
        *,
        sample_weight: Tensor | None = None,
        denominator: float | Tensor | None = None,
    ) -> Tensor:
        """Return the loss."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            z_loss=self.z_loss,
            softcap=self.softcap,
            temperature=self.temperature,
            sample_weight=sample_weight,
            denominator=denominator,
            inplace=self.inplace,
            loss_dtype=self.loss_dtype,
        )
