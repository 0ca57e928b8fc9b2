"""The options of a loss, which cross every layer as one object."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from numbers import Real
from typing import NamedTuple, SupportsIndex, TypeAlias

import torch
from torch import Tensor

from xentrs import _arrays

Ignored: TypeAlias = SupportsIndex | Iterable[SupportsIndex] | None


class Options(NamedTuple):
    """What a loss does; in the order in which the operators' schemas have it."""

    reduction: str = "mean"
    ignored: tuple[int, ...] = ()
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float = 0.0  # 0 for none

    @property
    def is_plain(self) -> bool:
        """Whether the logits go to the softmax as they are and nothing is added to the loss."""
        return self.z_loss == 0.0 and self.softcap == 0.0


def ignored_indices(value: Ignored) -> tuple[int, ...]:
    """Return `ignore_index` as a tuple, or say what is wrong with it."""
    found = value if type(value) is int else _arrays._ignore_index(value)
    ignored = () if found is None else found if isinstance(found, tuple) else (found,)
    for index in ignored:
        if not -(1 << 63) <= index < 1 << 63:
            raise ValueError(f"ignore_index is {index}, but must fit in 64 bits")
    return ignored


def are_tensors(*values: object) -> bool:
    """Whether all of these are tensors."""
    return all([isinstance(value, Tensor) for value in values])


def is_number(value: object) -> bool:
    """Whether PyTorch takes this for a float."""
    return isinstance(value, Real | Tensor | torch.SymFloat | torch.SymInt)


# Of arguments that PyTorch's functions have not got, they cannot say what is wrong.


def check_number(name: str, value: object) -> None:
    """Refuse what is no number."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number, not {value!r} ({type(value).__name__})")


def check_tensor(name: str, value: object) -> None:
    """Refuse what is no tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, not {type(value).__name__}")


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that PyTorch's two deprecated arguments ask for."""
    if size_average is None and reduce is None:
        return reduction
    chosen = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        f"size_average and reduce are deprecated, use reduction={chosen!r} instead", stacklevel=3
    )
    return chosen
