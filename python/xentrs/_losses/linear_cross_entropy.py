"""Cross-entropy of a linear layer's outputs, which never exist all at once.

The samples are taken in chunks. The logits of a chunk are a matrix product, the kernels of
cross-entropy replace them by their gradient, and two more products add the chunk's part to the
gradients of hidden states and weight. So a call needs the memory of one chunk, and takes the time
of its three products.

    for each chunk of samples x:
        z = x W' + b                        the chunk's memory
        z = gradient of the loss in z       in place
        gradient in x = z W,    gradient in W += z' x,    gradient in b += the sum of z

Samples that do not count are left out of all of it, so that nothing they hold reaches a sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, SupportsFloat, TypeAlias, TypedDict, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xentrs import _arrays
from xentrs._losses import PYTHON_FUNCTIONS
from xentrs._losses._types import AnyFloat, Float, FloatArray, Half, Ignored, Reduction, Single
from xentrs._losses.cross_entropy import cross_entropy, cross_entropy_with_grad
from xentrs._xentrs import LOSSES, plain_options

_Array: TypeAlias = NDArray[Any]

# Bytes of a chunk's logits, and its samples at least, as products of fewer are slower
# (docs/decisions/0036-linear-cross-entropy-in-numpy.md).
_USUAL = 16 << 20
_LEAST_ROWS = 256
# The most bytes of a chunk.
_LARGEST = 64 << 20
# Bytes of the part of a product that is added to the gradient of the weight at a time.
_ADDED = 2 << 20


class Options(TypedDict, total=False):
    """The keywords on which no returned type depends."""

    bias: ArrayLike | None
    weight: ArrayLike | None
    sample_weight: ArrayLike | None
    ignore_index: Ignored
    label_smoothing: float
    z_loss: float
    softcap: float | None
    temperature: float
    denominator: SupportsFloat | None
    base: float | None


@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> float: ...
@overload
def linear_cross_entropy(  # type: ignore[overload-overlap]
    hidden: Half,
    linear_weight: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> Single: ...
@overload
def linear_cross_entropy(
    hidden: NDArray[Float],
    linear_weight: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> NDArray[Float]: ...
@overload
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> FloatArray: ...
def linear_cross_entropy(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> float | FloatArray:
    r"""Cross-entropy of a linear layer's outputs, in the memory of a chunk of them.

    The value is that of ``cross_entropy(hidden @ linear_weight.T + bias, target)``.

    Parameters
    ----------
    hidden : array_like, float16, bfloat16, float32 or float64
        Hidden states of shape (..., H): H features for each sample.
    linear_weight : array_like of shape (C, H)
        Weight of the linear layer, as PyTorch's ``Linear`` has it: a row for each of the C classes.
    target : array_like
        Class indices, of the shape of `hidden` without its last axis, as integers or as floats that
        are whole numbers; or probabilities of shape (..., C); or a pair of class indices and
        probabilities, both of shape (..., k).
    bias : array_like of shape (C,), optional
        Bias of the linear layer.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `hidden` without its last axis. A sample of weight 0
        counts for nothing, whatever its hidden state.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their hidden states;
        None for no such index.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
    z_loss : float, default 0.0
        A factor z, finite and not negative: z S**2, where S is the logsumexp of the sample's logits
        in nats, is added to the loss of each sample that counts.
    softcap : float, optional
        A number above 0: the logits x become softcap tanh(x / softcap), before the temperature.
    temperature : float, default 1.0
        A number above 0 that the logits are divided by.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float. For ``"none"`` an array of the shape of
        `hidden` without its last axis: float64 if an argument of the layer is, else float32.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above.
    ValueError
        If shapes do not fit, an option has a value other than above, or class indices are fractions
        or missing values.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    linear_cross_entropy_with_grad : also the gradients.
    cross_entropy : of logits that exist.

    Notes
    -----
    The logits never exist all at once: samples are taken in chunks, whose logits take 16 MiB, or
    256 samples if that is more, but never more than 64 MiB. Half precision is multiplied in
    float32: a float32 copy of `linear_weight` is made of it.

    The loss of a chunk has the errors of `cross_entropy`. The matrix products are NumPy's, and
    round as these do: the logits by some ULP of the largest product in their sum.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> hidden = np.array([[1.0, 0.0], [0.5, 2.0]])
    >>> head = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> round(xentrs.linear_cross_entropy(hidden, head, [0, 1]), 6)
    0.317107
    """
    return _evaluate(locals(), with_grad=False)


@overload
def linear_cross_entropy_with_grad(
    hidden: NDArray[AnyFloat],
    linear_weight: NDArray[AnyFloat],
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> tuple[float, tuple[NDArray[AnyFloat], NDArray[AnyFloat], FloatArray | None]]: ...
@overload
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    **options: Unpack[Options],
) -> tuple[float, tuple[FloatArray, FloatArray, FloatArray | None]]: ...
@overload
def linear_cross_entropy_with_grad(  # type: ignore[overload-overlap]
    hidden: Half,
    linear_weight: Half,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> tuple[Single, tuple[Half, Half, Half | None]]: ...
@overload
def linear_cross_entropy_with_grad(
    hidden: NDArray[Float],
    linear_weight: NDArray[Float],
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> tuple[NDArray[Float], tuple[NDArray[Float], NDArray[Float], FloatArray | None]]: ...
@overload
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    reduction: Literal["none"],
    **options: Unpack[Options],
) -> tuple[FloatArray, tuple[FloatArray, FloatArray, FloatArray | None]]: ...
def linear_cross_entropy_with_grad(
    hidden: ArrayLike,
    linear_weight: ArrayLike,
    target: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: Ignored = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    reduction: Reduction = "mean",
    denominator: SupportsFloat | None = None,
    base: float | None = None,
) -> tuple[float | FloatArray, tuple[FloatArray, FloatArray, FloatArray | None]]:
    r"""Cross-entropy of a linear layer's outputs and its gradients, in the memory of a chunk.

    The value is that of ``cross_entropy(hidden @ linear_weight.T + bias, target)``. The gradients
    are those in hidden states, weight and bias.

    Parameters
    ----------
    hidden : array_like, float16, bfloat16, float32 or float64
        Hidden states of shape (..., H): H features for each sample.
    linear_weight : array_like of shape (C, H)
        Weight of the linear layer, as PyTorch's ``Linear`` has it: a row for each of the C classes.
    target : array_like
        Class indices, of the shape of `hidden` without its last axis, as integers or as floats that
        are whole numbers; or probabilities of shape (..., C); or a pair of class indices and
        probabilities, both of shape (..., k).
    bias : array_like of shape (C,), optional
        Bias of the linear layer.
    weight : array_like of shape (C,), optional
        Weight of each class. For class indices without label smoothing, a weight of 0 leaves out
        every sample of that class, as a sample weight of 0 does. Negative weights are accepted.
    sample_weight : array_like, optional
        Weight of each sample, of the shape of `hidden` without its last axis. A sample of weight 0
        counts for nothing, whatever its hidden state.
    ignore_index : int, iterable of ints or None, default -100
        The class index, or several, whose samples count for nothing, whatever their hidden states;
        None for no such index.
    label_smoothing : float, default 0.0
        A number e in [0, 1]. The target becomes 1 - e times itself, plus e / C in every class.
    z_loss : float, default 0.0
        A factor z, finite and not negative: z S**2, where S is the logsumexp of the sample's logits
        in nats, is added to the loss of each sample that counts.
    softcap : float, optional
        A number above 0: the logits x become softcap tanh(x / softcap), before the temperature.
    temperature : float, default 1.0
        A number above 0 that the logits are divided by.
    reduction : {"mean", "sum", "none"}, default "mean"
        What to return: the mean over the samples, their sum, or the loss of each sample.
    denominator : float, optional
        What ``"mean"`` divides by, in place of the total weight of the samples. Pass that of the
        whole batch where a call sees a part of it, as in gradient accumulation. Not negative.
    base : float, optional
        Base of the logarithm in everything that is returned: 2 gives bits. Positive, finite and not
        1. The default is e, for nats.

    Returns
    -------
    loss : float or ndarray
        For ``"mean"`` and ``"sum"`` a Python float. For ``"none"`` an array of the shape of
        `hidden` without its last axis: float64 if an argument of the layer is, else float32.
    gradients : tuple of ndarray
        The gradients of the returned loss in `hidden`, `linear_weight` and `bias`, each of the
        shape and dtype of its argument; None for a bias that is not given. For ``"none"`` they are
        those of the sum of the losses. A sample that does not count adds nothing to any of them,
        whatever its hidden state holds.

    Raises
    ------
    TypeError
        If an argument has a type or dtype other than above.
    ValueError
        If shapes do not fit, an option has a value other than above, or class indices are fractions
        or missing values.
    IndexError
        If a class index that is not ignored lies outside ``[0, C)``.
    MemoryError
        If there is not enough memory.

    See Also
    --------
    linear_cross_entropy : the loss alone.
    cross_entropy_with_grad : of logits that exist.

    Notes
    -----
    With the gradient G of the loss in the logits, a row for each sample, the gradients are

    .. math:: G W, \quad G^T x, \quad \sum_n G_n

    in hidden states x, weight W and bias. A call takes about the time of these two products and of
    that of the logits.

    The logits never exist all at once: samples are taken in chunks, whose logits take 16 MiB, or
    256 samples if that is more, but never more than 64 MiB. Half precision is multiplied in
    float32: a float32 copy of `linear_weight` is made of it.

    The loss of a chunk has the errors of `cross_entropy`. The matrix products are NumPy's, and
    round as these do: the logits by some ULP of the largest product in their sum.

    References
    ----------
    .. [1] E. Wijmans, B. Huval, A. Hertzberg, V. Koltun, P. Krähenbühl, "Cut Your Losses in
       Large-Vocabulary Language Models", ICLR 2025, arXiv:2411.09009.

    Examples
    --------
    >>> import numpy as np
    >>> import xentrs
    >>> hidden = np.array([[1.0, 0.0], [0.5, 2.0]])
    >>> head = np.array([[2.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    >>> loss, grads = xentrs.linear_cross_entropy_with_grad(hidden, head, [0, 1])
    >>> grad_hidden, grad_weight, grad_bias = grads
    >>> round(loss, 6)
    0.317107
    >>> grad_hidden.round(4)
    array([[-0.1772,  0.0676],
           [ 0.1611, -0.1507]])
    """
    return _evaluate(locals(), with_grad=True)


class _Layer(NamedTuple):
    """A linear layer, and what it is applied to: a row for each sample."""

    hidden: _Array
    weight: _Array  # of the dtype of the products, as is the bias
    bias: _Array | None
    dtype: np.dtype[Any]


class _Call(NamedTuple):
    """What is the same for all chunks of samples, after every argument was checked."""

    target: Any  # one array or a pair; a row for each sample, as is the sample weight
    sample_weight: _Array | None
    options: dict[str, Any]  # of `cross_entropy`
    counted: _Array | None  # the samples that count; None for all of them
    nothing: float  # the reduced loss if it is 0


def _evaluate(arguments: dict[str, Any], *, with_grad: bool) -> Any:
    """Return the loss; with the gradients in hidden states, weight and bias if wanted."""
    given = {
        "hidden": _arrays._float_array("hidden", arguments["hidden"]),
        "linear_weight": _arrays._float_array("linear_weight", arguments["linear_weight"]),
    }
    if arguments["bias"] is not None:
        given["bias"] = _arrays._float_array("bias", arguments["bias"])
    samples, layer = _read_layer(given)
    call = _read_call(samples, layer, arguments)

    n, (classes, width) = len(layer.hidden), layer.weight.shape
    each = call.options["reduction"] == "none"
    losses = np.zeros(n if each else 0, layer.dtype)
    grad_hidden = grad_weight = grad_bias = None
    if with_grad:
        grad_hidden = np.zeros((n, width), given["hidden"].dtype.newbyteorder("="))
        grad_weight = np.zeros((classes, width), layer.dtype)
        grad_bias = None if layer.bias is None else np.zeros(classes, np.float64)

    count = n if call.counted is None else len(call.counted)
    step = _chunk_rows(count, classes * layer.dtype.itemsize)
    buffer = np.empty((min(step, count), classes), layer.dtype)
    total = 0.0
    # Overflow and NaN are results like any other.
    with np.errstate(all="ignore"):
        for rows in _chunks(call.counted, count, step):
            x = _operand(layer.hidden[rows], layer.dtype)
            logits = np.matmul(x, layer.weight.T, out=buffer[: len(x)])
            if layer.bias is not None:
                logits += layer.bias
            s = call.sample_weight
            options = call.options | ({} if s is None else {"sample_weight": s[rows]})
            target = call.target
            target = tuple(a[rows] for a in target) if type(target) is tuple else target[rows]
            if grad_hidden is None or grad_weight is None:
                loss = cross_entropy(logits, target, **options)
            else:
                loss, _ = cross_entropy_with_grad(logits, target, out=logits, **options)
                _multiply(logits, layer.weight, grad_hidden, rows)
                _add_product(logits, x, grad_weight)
                if grad_bias is not None:
                    grad_bias += np.matmul(np.ones(len(logits), layer.dtype), logits)
            if each:
                losses[rows] = loss
            else:
                total += loss
    reduced = total if total != 0.0 else call.nothing
    result = losses.reshape(samples) if each else reduced
    if not with_grad:
        return result
    gradients = [grad_hidden, grad_weight, grad_bias]
    named = zip(("hidden", "linear_weight", "bias"), gradients, strict=True)
    with np.errstate(all="ignore"):
        return result, tuple(
            None
            if gradient is None
            else gradient.astype(given[name].dtype.newbyteorder("="), copy=False).reshape(
                given[name].shape
            )
            for name, gradient in named
        )


# Arguments


def _read_layer(given: dict[str, _Array]) -> tuple[tuple[int, ...], _Layer]:
    """Check the shapes of the layer. Return the shape of its samples, and the layer by rows."""
    hidden, weight, bias = given["hidden"], given["linear_weight"], given.get("bias")
    if hidden.ndim == 0:
        raise ValueError("hidden must have an axis of features, but its shape is ()")
    samples, width = hidden.shape[:-1], hidden.shape[-1]
    if weight.ndim != 2 or weight.shape[1] != width:
        raise ValueError(
            f"linear_weight has shape {weight.shape}, but must have shape (C, {width}): hidden has "
            f"shape {hidden.shape}"
        )
    classes = len(weight)
    if classes == 0:
        raise ValueError(f"linear_weight of shape {weight.shape} has no classes")
    if bias is not None and bias.shape != (classes,):
        raise ValueError(
            f"bias has shape {bias.shape}, but must have shape ({classes},): linear_weight has "
            f"shape {weight.shape}"
        )
    wide = any(a.dtype.type is np.float64 for a in given.values())
    dtype = np.dtype(np.float64 if wide else np.float32)
    rows = hidden.reshape(math.prod(samples), width)
    return samples, _Layer(
        rows, _operand(weight, dtype), None if bias is None else bias.astype(dtype), dtype
    )


def _operand(a: _Array, dtype: np.dtype[Any]) -> _Array:
    """Return `a` as a matrix product reads it without a copy of its own."""
    a = np.require(a, dtype, ["A"])
    return a if a.flags.forc else np.ascontiguousarray(a)


def _read_call(samples: tuple[int, ...], layer: _Layer, arguments: dict[str, Any]) -> _Call:
    """Check the target and the options, before anything is computed."""
    names = LOSSES["cross_entropy"]["options"]
    defaults: dict[str, Any] = PYTHON_FUNCTIONS["cross_entropy"].__kwdefaults__ or {}
    given = [arguments.get(name, defaults[name]) for name in names]
    options = dict(zip(names, plain_options("cross_entropy", *given), strict=True))
    classes = len(layer.weight)
    # Logits of the shape that nobody computes: one number, seen at every place.
    logits = np.broadcast_to(np.zeros((), layer.dtype), (*samples, classes))
    read = _arrays._prepare_classes("logits", logits, arguments["target"], options, (None, None))
    target, *values = read.rest
    options = dict(zip(names, values, strict=True)) | {"axis": -1}
    n, ignored = len(layer.hidden), options["ignore_index"]
    pair = isinstance(target, tuple)
    soft = pair or target.ndim == logits.ndim
    if pair:
        _arrays.check_indices("target[0]", target[0], classes, ignored)
    elif not soft:
        _arrays.check_indices("target", target, classes, ignored)
    if pair:
        target = tuple(a.reshape(n, a.shape[-1]) for a in target)
    else:
        target = target.reshape((n, classes) if soft else n)
    s = options.pop("sample_weight")
    s = None if s is None else s.reshape(n)
    if soft:
        counted = np.ones(n, np.bool_)
        factor = None
        if not pair:
            _arrays.check_none_ignored(ignored)
    else:
        counted = ~_arrays.is_any_of(target, ignored)
        factor = options["weight"]
        # Class indices that count, those of samples that do not being 0.
        if factor is not None:
            factor = factor.astype(np.float64)[np.where(counted, target, 0).astype(np.intp)]
            if options["label_smoothing"] == 0.0:
                counted &= factor != 0.0
    if s is not None:
        counted &= s != 0.0
    nothing = _divide(options, counted, factor, s)
    every = bool(counted.all())
    if (scaled := options.pop("scaled", None)) is not None:
        s = scaled
    return _Call(target, s, options, None if every else np.flatnonzero(counted), nothing)


def _divide(
    options: dict[str, Any], counted: _Array, factor: _Array | None, s: _Array | None
) -> float:
    """Make the mean of all samples a sum of chunks. Return what the loss is if that sum is 0."""
    if options["reduction"] != "mean" or options["denominator"] is not None:
        return 0.0
    ones = np.ones(len(counted)) if s is None else s.astype(np.float64)
    ones = np.where(counted, ones, 0.0)
    weights = ones if factor is None else np.where(counted, ones * factor, 0.0)
    divisor, z_divisor = float(weights.sum()), float(ones.sum())
    if divisor == z_divisor or not options["z_loss"]:
        if divisor >= 0.0:
            options["denominator"] = divisor
        else:  # weights below 0
            options |= {"reduction": "sum", "scaled": ones / divisor}
    else:
        # The z-loss has a divisor of its own: of the samples' weights alone.
        ratio = z_divisor / divisor if divisor else math.inf
        options["weight"] = options["weight"].astype(np.float64) * ratio
        options |= {"reduction": "sum", "scaled": ones / z_divisor if z_divisor else ones}
    return math.nan if divisor == 0.0 else 0.0


# Chunks


def _chunk_rows(count: int, size: int) -> int:
    """Return the samples of a chunk, whose logits take `size` bytes each."""
    most = max(min(max(_USUAL // size, _LEAST_ROWS), _LARGEST // size), 1)
    chunks = -(-count // most)
    # Of about the same length: a short one at the end would be slow.
    return -(-count // chunks) if chunks else most


def _chunks(counted: _Array | None, count: int, step: int) -> Iterator[slice | _Array]:
    """Yield the samples of each chunk."""
    for i in range(0, count, step):
        here = slice(i, min(i + step, count))
        yield here if counted is None else counted[here]


def _multiply(grad_logits: _Array, weight: _Array, grad: _Array, rows: slice | _Array) -> None:
    """Write the gradient in some hidden states."""
    if isinstance(rows, slice) and grad.dtype == weight.dtype:
        np.matmul(grad_logits, weight, out=grad[rows])
    else:
        grad[rows] = np.matmul(grad_logits, weight)


def _add_product(grad_logits: _Array, x: _Array, grad: _Array) -> None:
    """Add a chunk's part to the gradient in the weight, some classes at a time."""
    classes, width = grad.shape
    step = max(_ADDED // max(width * grad.itemsize, 1), 1)
    part = np.empty((min(step, classes), width), grad.dtype)
    for i in range(0, classes, step):
        here = grad[i : i + step]
        here += np.matmul(grad_logits[:, i : i + step].T, x, out=part[: len(here)])
