"""The options of a loss, which cross every layer as one object."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import NamedTuple, SupportsIndex, TypeAlias

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
    """Return `ignore_index` as a tuple."""
    if type(value) is int:
        return (value,)
    if value is None:
        return ()
    if isinstance(value, Iterable):
        return tuple([i.__index__() for i in value])
    return (value.__index__(),)


def legacy_reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    """Return the reduction that PyTorch's two deprecated arguments ask for."""
    if size_average is None and reduce is None:
        return reduction
    chosen = "none" if reduce is False else "sum" if size_average is False else "mean"
    warnings.warn(
        f"size_average and reduce are deprecated, use reduction={chosen!r} instead", stacklevel=3
    )
    return chosen
