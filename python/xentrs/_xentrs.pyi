"""The compiled module, private: `_losses` holds what people call.

Each loss takes `order`, how many derivatives to return beside the loss: 0, 1 or 2. It returns
`NotImplemented`, having done nothing, unless all arrays are in the form that `_arrays.py` makes.
"""

from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "__version__",
    "binary_cross_entropy_with_logits",
    "config",
    "cross_entropy",
    "cross_entropy_of_tensors",
    "get_num_threads",
    "is_one",
    "join_threads",
    "log_loss",
    "new_tensor",
    "plain_options",
    "public",
    "quick_cross_entropy",
    "set_num_threads",
    "use_tensors",
]

__version__: str

def cross_entropy(
    order: int,
    logits: object,
    target: object,
    axis: object,
    weight: object,
    sample_weight: object,
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    denominator: object,
    base: object,
    out: object,
    hess_out: object,
    /,
) -> Any: ...
def cross_entropy_of_tensors(
    order: int,
    logits: object,
    target: object,
    axis: object,
    weight: object,
    sample_weight: object,
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    denominator: object,
    base: object,
    out: object,
    hess_out: object,
    /,
) -> Any: ...
def quick_cross_entropy(
    logits: object,
    target: object,
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    with_grad: bool,
    /,
) -> Any: ...
def log_loss(
    order: int,
    probabilities: object,
    target: object,
    axis: object,
    weight: object,
    sample_weight: object,
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    denominator: object,
    base: object,
    out: object,
    hess_out: object,
    /,
) -> Any: ...
def binary_cross_entropy_with_logits(
    order: int,
    logits: object,
    target: object,
    weight: object,
    pos_weight: object,
    label_smoothing: object,
    reduction: object,
    denominator: object,
    base: object,
    where: object,
    out: object,
    hess_out: object,
    /,
) -> Any: ...
def plain_options(
    label_smoothing: object, reduction: object, denominator: object, base: object, /
) -> tuple[float, str, float | None, float | None]: ...
def public(function: _F, /) -> _F: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def config() -> dict[str, Any]: ...
def use_tensors(tensor: type, /) -> None: ...
def join_threads() -> None: ...
def is_one(tensor: object, /) -> bool: ...
def new_tensor(like: object, shape: tuple[int, ...] | None, /) -> Any: ...
