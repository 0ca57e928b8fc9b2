"""The public loss functions, one file a loss.

Each public function is a builtin of the compiled module, which costs less to call than a Python
function of a dozen keywords. `public` makes it from the Python function of the same name, whose
signature and docstring it takes, and whose body it calls where an argument is not an array in the
form that the kernels read (see `_arrays.py`).

A builtin holds neither annotations nor its source. Tools that want them, such as generators of
documentation, find the Python function in `PYTHON_FUNCTIONS`::

    inspect.getsource(PYTHON_FUNCTIONS["cross_entropy"])
    typing.get_type_hints(PYTHON_FUNCTIONS["cross_entropy"])

`inspect.signature` and `typing.get_overloads` take the builtin itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, get_overloads, overload

from xentrs import _xentrs

_F = TypeVar("_F", bound=Callable[..., Any])

# By the name of the public function.
PYTHON_FUNCTIONS: dict[str, Callable[..., Any]] = {}


def public(function: _F) -> _F:
    """Return the builtin that stands in front of a Python function, as a member of `xentrs`."""
    overloads = get_overloads(function)
    for f in (function, *overloads):
        f.__module__ = "xentrs"
    for f in overloads:
        overload(f)  # registered again, under the public module
    PYTHON_FUNCTIONS[function.__name__] = function
    return _xentrs.public(function)
