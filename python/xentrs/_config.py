"""Threads, and what the compiled module found out about the machine."""

from __future__ import annotations

import atexit
import sys
from typing import Any, Literal, SupportsIndex, overload

from xentrs import _arrays, _xentrs

# A daemon thread must not end within the compiled module (`src/python/exit.rs`). From Python 3.14
# on such threads sleep; on other systems they end without unwinding their stacks.
if sys.platform == "linux" and sys.version_info < (3, 14):
    atexit.register(_xentrs.wait_for_calls)

# As in `src/parallel/process.rs`.
_MOST_THREADS = 4096


def set_num_threads(n: SupportsIndex) -> None:
    """Set how many threads a call may use.

    Small inputs stay on the calling thread whatever the number. Results do not depend on it, not
    in a single bit.

    Parameters
    ----------
    n : int
        The number of threads, the calling one included; in [1, 4096].

    Raises
    ------
    TypeError, ValueError
        If `n` is not an int, or is outside of [1, 4096].

    Examples
    --------
    >>> import xentrs
    >>> before = xentrs.get_num_threads()
    >>> xentrs.set_num_threads(2)
    >>> xentrs.get_num_threads()
    2
    >>> xentrs.set_num_threads(before)
    """
    count = _arrays._integer("n", n, "an int")
    if not 1 <= count <= _MOST_THREADS:
        raise ValueError(f"n must be in [1, {_MOST_THREADS}], not {count}")
    _xentrs.set_num_threads(count)


def get_num_threads() -> int:
    """Return how many threads a call may use.

    Until `set_num_threads` is called that is the first of these that is set: the environment
    variables ``XENTRS_NUM_THREADS``, ``RAYON_NUM_THREADS`` and ``OMP_NUM_THREADS``, then the
    number of CPUs that this process may use (its affinity, its cgroup).

    Returns
    -------
    int
        The number of threads, the calling one included.

    Raises
    ------
    ValueError
        If the variable that is taken holds no number in [1, 4096].
    """
    return _xentrs.get_num_threads()


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...
@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...
def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """Print, or return, the version, the instruction set in use and the number of threads.

    Parameters
    ----------
    mode : {"stdout", "dicts"}, default "stdout"
        Whether to print, or to return a dictionary, as in `numpy.show_config`.

    Returns
    -------
    dict or None
        With ``mode="dicts"``: ``{"version": ..., "simd": {"level": ..., "available": [...],
        "source": ...}, "threads": {"count": ..., "source": ...}}``.

    Raises
    ------
    ValueError
        If `mode` is another string, or the environment variable ``XENTRS_SIMD`` names an
        instruction set that is unknown or not available, or the variable for the number of threads
        holds no such number.

    Examples
    --------
    >>> import xentrs
    >>> sorted(xentrs.show_config(mode="dicts"))
    ['simd', 'threads', 'version']
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts", not {mode!r}')
    config = _xentrs.config()
    if mode == "dicts":
        return config
    simd, threads = config["simd"], config["threads"]
    print(f"xentrs {config['version']}")
    print(f"simd: {simd['level']} ({simd['source']}); available: {', '.join(simd['available'])}")
    print(f"threads: {threads['count']} ({threads['source']})")
    return None
