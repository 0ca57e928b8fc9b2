"""`patch` and `unpatch`: the losses of xentrs under PyTorch's names, for code that is not yours."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable
from contextlib import ContextDecorator
from types import TracebackType
from typing import Any, Final, TypeVar

import torch

from xentrs.torch._binary import BCEWithLogitsLoss, binary_cross_entropy_with_logits
from xentrs.torch._cross_entropy import CrossEntropyLoss, cross_entropy
from xentrs.torch._linear import LinearCrossEntropyLoss, linear_cross_entropy
from xentrs.torch._mode import set_patched

# Whatever a loss of PyTorch's is looked up in when it is called. Modules made before the patch,
# and what has imported a class of `torch.nn` by name (such as transformers), call these functions.
_OURS: Final = (
    (
        torch.nn.functional,
        (cross_entropy, binary_cross_entropy_with_logits, linear_cross_entropy),
    ),
    (torch.nn, (CrossEntropyLoss, BCEWithLogitsLoss, LinearCrossEntropyLoss)),
)

_Function = TypeVar("_Function", bound=Callable[..., Any])

_lock = threading.RLock()
# What stood there before, while the names are replaced.
_saved: list[tuple[Any, str, Any]] = []
# Calls of `patch` that no `with` has taken over, and `with` statements that are entered.
_called = False
_entered = 0
_epoch = 0  # how often `unpatch` has ended all of them


class _Patch(ContextDecorator):
    """What `patch` returns: as context manager and as decorator, it takes the patch back."""

    def __init__(self, is_first: bool) -> None:
        self._is_first = is_first
        self._epochs: list[int] = []

    def __call__(self, func: _Function) -> _Function:
        """Patch while the function is called, and not from now on."""
        with self:  # which takes over this call's patch, and ends it
            pass
        kinds = inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction
        if any(is_kind(func) for is_kind in kinds):
            raise TypeError(
                "xentrs.torch.patch decorates no generator and no coroutine, whose code runs when "
                "the call is over: write `with xentrs.torch.patch():` inside of it"
            )
        return super().__call__(func)

    def __enter__(self) -> None:
        global _called, _entered
        with _lock:
            if self._is_first:  # this call's patch lasts as long as the statement
                self._is_first = _called = False
            _entered += 1
            self._epochs.append(_epoch)
            _replace()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        global _entered
        with _lock:
            if self._epochs.pop() == _epoch:
                _entered -= 1
            if not _called and not _entered:
                _restore()


def patch() -> _Patch:
    """Put the losses of xentrs in the place of PyTorch's, for code that is not yours.

    Until `unpatch`, or the end of ``with xentrs.torch.patch():``, or during each call of a function
    that ``@xentrs.torch.patch()`` decorates, these names are those of `xentrs.torch`:
    `torch.nn.functional.cross_entropy`, `binary_cross_entropy_with_logits` and
    `linear_cross_entropy`, `torch.nn.CrossEntropyLoss`, `BCEWithLogitsLoss` and
    `LinearCrossEntropyLoss`.

    Returns
    -------
    context manager and decorator
        Of no use unless in a ``with`` statement or above a function. The end of the statement, or
        of each call of the function, restores what was there before it.

    Notes
    -----
    Modules of PyTorch's classes are served too, since they look the function up when they are
    called; so are the losses of `transformers` and Lightning. Whatever xentrs refuses or leaves to
    PyTorch reaches PyTorch's own functions: a device without kernels, `torch.jit.trace`, logits
    that are sharded over their classes.

    A function that was imported by its name before (``from torch.nn.functional import
    cross_entropy``) stays PyTorch's, and what `torch.compile` has compiled stays as it is.
    `torch.jit.script` cannot compile the losses of xentrs. The patch is one for all threads.
    Calling it again changes nothing; of nested ``with`` statements the outermost takes the patch
    back.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> logits, target = torch.tensor([[17.0, 0.0]]), torch.tensor([0])
    >>> torch.nn.functional.cross_entropy(logits, target)
    tensor(0.)
    >>> with xentrs.torch.patch():
    ...     torch.nn.functional.cross_entropy(logits, target)
    tensor(4.1399e-08)
    """
    global _called
    with _lock:
        is_first = not _called
        _called = True
        _replace()
        return _Patch(is_first)


def unpatch() -> None:
    """Restore what `patch` has replaced, however often it was called.

    Examples
    --------
    >>> import torch
    >>> import xentrs.torch
    >>> _ = xentrs.torch.patch()
    >>> xentrs.torch.unpatch()
    >>> torch.nn.functional.cross_entropy is xentrs.torch.cross_entropy
    False
    """
    global _called, _entered, _epoch
    with _lock:
        _called, _entered = False, 0
        _epoch += 1
        _restore()


def _replace() -> None:
    if _saved:
        return
    for module, replacements in _OURS:
        for ours in replacements:
            name = ours.__name__
            if hasattr(module, name):
                _saved.append((module, name, getattr(module, name)))
                setattr(module, name, ours)
    set_patched(True)


def _restore() -> None:
    while _saved:
        module, name, original = _saved.pop()
        setattr(module, name, original)
    set_patched(False)
