"""The options of a loss, which cross every layer as one object."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import torch
from torch import Tensor

from xentrs import _arrays
from xentrs.torch._mode import differentiates

Ignored: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None

REDUCTIONS = ("mean", "sum", "none")

# The options that several losses have, as operators' schemas have them.
SHARED = {
    "reduction": "str",
    "ignored": "int[]",
    "label_smoothing": "float",
    "z_loss": "float",
    "softcap": "float",
    "temperature": "float",
}


class Options(NamedTuple):
    """What a loss does; first what is in `SHARED`, in its order."""

    reduction: str = "mean"
    ignored: tuple[int, ...] = ()
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0  # 0 for none
    temperature: float = 1.0
    own: tuple[Any, ...] = ()  # of this loss alone, such as the gamma of the focal loss

    @property
    def is_plain(self) -> bool:
        """Whether the logits go to the softmax as they are and nothing is added to the loss."""
        return self.z_loss == 0.0 and self.softcap == 0.0 and self.temperature == 1.0


# Operators take options one by one: those of `SHARED` that they have, then their own.


def flat(options: Options, names: Sequence[str]) -> tuple[Any, ...]:
    """Return what an operator takes that has these options of `SHARED`."""
    return *[getattr(options, name) for name in names], *options.own


def unflat(values: Sequence[Any], names: Sequence[str]) -> Options:
    """Return the options that an operator was given."""
    shared = dict(zip(names, values, strict=False))
    options = Options(**shared, own=tuple(values[len(names) :]))
    return options._replace(ignored=tuple(options.ignored))


def ignored_indices(value: Ignored) -> tuple[int, ...]:
    """Return `ignore_index` as a tuple, or say what is wrong with it."""
    ignored = (value,) if type(value) is int else _arrays._ignore_index(value)
    for index in ignored:
        if not -(1 << 63) <= index < 1 << 63:
            raise ValueError(f"ignore_index is {index}, but must fit in 64 bits")
    return ignored


def is_number(value: object) -> bool:
    """Whether PyTorch takes this for a float."""
    if isinstance(value, Tensor):
        return not value.is_complex()
    return isinstance(value, Real | torch.SymFloat | torch.SymInt)


def as_number(value: Any) -> Any:
    """Return a number as a float: a tensor's too, if it has one and no gradient in it is wanted.

    Numbers of NumPy among them, of which Triton makes no constants, even of those that are floats.
    Anything else is returned as it is: `torch.compile` has numbers of its own.
    """
    if isinstance(value, Tensor):
        plain = value.numel() == 1 and not value.is_complex() and not differentiates(value)
        return float(value) if plain else value
    return float(value) if isinstance(value, Real) else value


def is_smoothing(value: float) -> bool:
    """Whether this is a number in [0, 1], and no tensor whose gradient is wanted."""
    if isinstance(value, Tensor) and (value.numel() != 1 or differentiates(value)):
        return False
    return (type(value) is float or is_number(value)) and 0.0 <= value <= 1.0


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that PyTorch's two deprecated arguments stand for."""
    if size_average is None and reduce is None:
        return reduction
    chosen = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        f"size_average and reduce are deprecated, use reduction={chosen!r} instead", stacklevel=3
    )
    return chosen


# PyTorch's functions do not have the arguments below, so they cannot say what is wrong with them.


def check_number(name: str, value: object) -> None:
    """Refuse what is no number, or a tensor whose gradient is wanted."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r} ({type(value).__name__})")
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise TypeError(f"{name} must be a number, not a tensor of shape {tuple(value.shape)}")
        if differentiates(value):
            raise NotImplementedError(no_gradient(name))


def no_gradient(name: str) -> str:
    """Return the message for an argument whose gradient is wanted, and not computed."""
    return f"{name} requires a gradient, which xentrs.torch does not compute: {name}.detach()"


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, not {type(value).__name__}")


def check_loss_dtype(value: torch.dtype | None) -> None:
    """Refuse what is no dtype of a loss."""
    if value is not None and not (isinstance(value, torch.dtype) and value.is_floating_point):
        raise TypeError(f"loss_dtype must be a floating torch.dtype or None, not {value!r}")


def as_z_loss(value: float) -> float:
    """Return the factor of the squared logsumexp, or say what is wrong with it."""
    check_not_negative("z_loss", value)
    return as_number(value)


def as_softcap(value: float | None) -> float:
    """Return a softcap as a number, 0 for none."""
    if value is None:
        return 0.0
    check_number("softcap", value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"softcap is {value}, but must be positive")
    return as_number(value)


def as_temperature(value: float) -> float:
    """Return what logits are divided by, or say what is wrong with it."""
    check_number("temperature", value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"temperature must be finite and above 0, not {value}")
    return float(value)


def check_further_options(z_loss: float, softcap: float | None, temperature: float) -> None:
    """Refuse what is wrong with the options that a module adds to those of PyTorch's."""
    as_z_loss(z_loss)
    as_softcap(softcap)
    as_temperature(temperature)


def softmax_options(
    reduction: str,
    ignored: tuple[int, ...],
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    temperature: float,
) -> Options:
    """Return the options of a loss of logits, of which PyTorch has the first three."""
    return Options(
        reduction,
        ignored,
        as_number(label_smoothing),
        as_z_loss(z_loss),
        as_softcap(softcap),
        as_temperature(temperature),
    )


def check_not_negative(name: str, value: float) -> None:
    """Refuse what is no number, negative or not finite."""
    check_number(name, value)
    if not 0.0 <= value < math.inf:
        raise ValueError(f"{name} is {value}, but must be finite and not negative")
