"""The compiled module, private: `_losses` holds what people call."""

from collections.abc import Callable
from typing import Any, TypedDict, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

__all__ = [
    "FEW_CLASSES",
    "LOSSES",
    "STATE_CLASS_WEIGHT",
    "STATE_FIELDS",
    "STATE_HELD",
    "STATISTICS",
    "__version__",
    "compared_statistics",
    "compute",
    "compute_rows",
    "compute_tensors",
    "config",
    "exact_add",
    "exact_carry",
    "get_num_threads",
    "is_one",
    "join_threads",
    "merge_states",
    "new_tensor",
    "plain_options",
    "public",
    "quick_binary_cross_entropy",
    "quick_cross_entropy",
    "sample_divergences",
    "sample_statistics",
    "set_num_threads",
    "slice_grad",
    "slice_states",
    "state_losses",
    "use_tensors",
    "wait_for_calls",
]

__version__: str

class _Loss(TypedDict):
    """A loss: what is the same for it and its variants `_with_grad` and `_with_grad_hess`."""

    input: str  # what its first argument is called
    second: str | None  # what its second argument is called, if it has one
    axis: bool  # whether it has a class axis
    options: tuple[str, ...]  # its keywords in order, without `out` and `hess_out`
    derivatives: int  # how many these variants return at most

LOSSES: dict[str, _Loss]

FEW_CLASSES: int  # that are few: one kernel takes up to so many, another one more

# Of `PartialCrossEntropy`: numbers of a sample's state, and which of them are these two.
STATE_FIELDS: int
STATE_HELD: int
STATE_CLASS_WEIGHT: int

STATISTICS: int  # numbers of a sample that `sample_statistics` writes

def compute(name: str, order: int, values: object, target: object, /, *rest: object) -> Any:
    """Evaluate a loss of arrays.

    `order` is how many derivatives to return beside the loss. `rest` are the options in the order
    of `LOSSES`, `out` and `hess_out`. Returns `NotImplemented`, having done nothing, unless all
    arrays are in the form that `_arrays.py` makes.
    """

def compute_rows(
    name: str, values: object, axis: object, temperature: object, base: object, out: object, /
) -> Any:
    """Compute `softmax`, `log_softmax`, `logsumexp` or `entropy` of an array, by its name.

    `None` stands for an option that is left out. Returns `NotImplemented` as `compute` does.
    """

def compute_tensors(name: str, order: int, values: object, target: object, /, *rest: object) -> Any:
    """Evaluate a loss of PyTorch's tensors, the gradient in `out`; otherwise as `compute`."""

def quick_cross_entropy(
    logits: object,
    target: object,
    weight: object,
    ignore_index: object,
    label_smoothing: object,
    reduction: object,
    with_grad: bool,
    /,
) -> Any: ...
def quick_binary_cross_entropy(
    logits: object, target: object, pos_weight: object, reduction: object, with_grad: bool, /
) -> Any: ...
def plain_options(name: str, /, *options: object) -> tuple[Any, ...]:
    """Return a loss's options, numbers and words checked and of Python's own types.

    Reading them again runs no code of the caller's. Arrays and ints are returned as they came.
    """

def slice_states(
    logits: object,
    targets: object,
    counts: object,
    weight: object | None,
    smooths: bool,
    states: object,
    /,
) -> Any:
    """Reduce logits of samples by classes to a state of `STATE_FIELDS` numbers each."""

def merge_states(states: object, others: object, /) -> Any:
    """Merge the states of other classes of the same samples into `states`."""

def state_losses(
    states: object,
    scales: object,
    counts: object,
    mixture: tuple[float, float, float],
    losses: object,
    /,
) -> Any:
    """Write the loss of each sample times its factor; return their sum.

    `mixture` is label smoothing, the number of all classes, and the factor of z-loss.
    """

def slice_grad(
    logits: object,
    targets: object,
    counts: object,
    states: object,
    scales: object,
    weight: object | None,
    mixture: tuple[float, float, float],
    grad: object,
    /,
) -> Any:
    """Write the gradient of a slice of classes."""

def sample_statistics(
    logits: object,
    target: object,
    options: tuple[object, ...],
    losses: object,
    statistics: object | None,
    argmax: object | None,
    /,
) -> Any:
    """Write each sample's cross-entropy in float64, its statistics, and its likeliest class.

    `options` are axis, weight, ignore_index and label_smoothing. There are `STATISTICS` numbers a
    sample: `src/softmax/statistics.rs` names them.
    """

def compared_statistics(
    logits: object,
    reference: object,
    target: object,
    options: tuple[object, ...],
    outputs: tuple[object, ...],
    /,
) -> Any:
    """Do what `sample_statistics` does for a model and a reference, and `sample_divergences`.

    For class indices and more than 256 classes. `outputs` are the model's losses and statistics,
    the reference's losses and likeliest classes, and the divergences.
    """

def sample_divergences(logits: object, reference: object, axis: object, losses: object, /) -> Any:
    """Write the divergence KL(reference, model) of each sample in float64."""

def exact_add(
    digits: object,
    first: int,
    special: object,
    rows: object | None,
    values: object,
    factors: object | None,
    /,
) -> Any:
    """Add numbers, or exact products, to the rows of a table of exact sums.

    Returns `None`; or does nothing, and returns the first digit that the table must have, and the
    one after the last.
    """

def exact_carry(digits: object, /) -> Any:
    """Carry the digits of a table: all but the last of a row are in [0, 2^32) then."""

def public(function: _F, /) -> _F: ...
def set_num_threads(n: int, /) -> None: ...
def get_num_threads() -> int: ...
def config() -> dict[str, Any]: ...
def use_tensors(tensor: type, /) -> None: ...
def wait_for_calls() -> None: ...
def join_threads() -> None: ...
def is_one(tensor: object, /) -> bool: ...
def new_tensor(like: object, shape: tuple[int, ...] | None, /) -> Any: ...
