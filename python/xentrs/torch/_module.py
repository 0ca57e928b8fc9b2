"""What the modules have in common."""

from __future__ import annotations

import inspect
from abc import ABCMeta
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from xentrs.torch._mode import is_patched


class StandsFor(ABCMeta):
    """The class of a module that is PyTorch's module with further options.

    While the module stands under PyTorch's name, PyTorch's own modules are its instances too: what
    code that is not ours tests by that name stays true. Abstract base classes may be mixed in.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls, instance) or cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, other: type) -> bool:
        pytorchs = cls.__base__
        if is_patched() and pytorchs is not None and not isinstance(pytorchs, StandsFor):
            return issubclass(other, pytorchs)
        # Not `super().__subclasscheck__`, which the compiler cannot trace.
        return cls in other.__mro__


def further_repr(module: nn.Module, names: tuple[str, ...]) -> str:
    """Return what `repr` says of the options that PyTorch's module lacks: those that are set.

    The class has their defaults.
    """
    values = {name: getattr(module, name) for name in names}
    shown = [name for name, value in values.items() if value != getattr(type(module), name)]
    return ", ".join(f"{name}={values[name]!r}" for name in shown)


class LossModule(nn.Module):
    """A loss as a module: what its constructor takes are options of the function.

    A subclass names the function, and its constructor passes everything on by name. Tensors become
    buffers. The other arguments of the function are arguments of the call.
    """

    function: ClassVar[Callable[..., Tensor]]
    options: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.options = tuple(inspect.signature(cls.__init__).parameters)[1:]

    def __init__(self, **options: Any) -> None:
        super().__init__()
        for name, value in options.items():
            if name.endswith("weight"):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def extra_repr(self) -> str:
        """Return what `repr` says of the module."""
        hidden = {"ignore_index", "inplace", "loss_dtype", *self._buffers}
        shown = [name for name in self.options if name not in hidden]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)

    def forward(self, input: Tensor, *args: Tensor, **kwargs: Any) -> Tensor:
        """Return the loss."""
        options = {name: getattr(self, name) for name in self.options}
        return self.function(input, *args, **options, **kwargs)
