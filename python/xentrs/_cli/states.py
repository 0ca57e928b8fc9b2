"""States of meters in files, and files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from xentrs._cli.errors import InputError, decoding, errors_of, reason

if TYPE_CHECKING:
    from xentrs import CrossEntropyMeter


def check_writeable(file: str) -> None:
    """Refuse a file that cannot be written, before the work whose result goes there."""
    with errors_of(file):
        if os.path.isdir(file):
            raise InputError(file, "is a directory")
        folder = os.path.dirname(file) or "."
        if not os.path.isdir(folder):
            raise InputError(file, f"cannot be written: there is no folder {folder}")
        if not os.access(folder, os.W_OK) or (
            os.path.exists(file) and not os.access(file, os.W_OK)
        ):
            raise InputError(file, "cannot be written: permission denied")


def write_whole(file: str, write: Callable[[IO[bytes]], None]) -> None:
    """Write a file under another name beside it, and rename that: nobody sees half of it."""
    with errors_of(file):
        if os.path.exists(file) and not stat.S_ISREG(os.stat(file).st_mode):
            with open(file, "wb") as opened:  # a device or a pipe
                write(opened)
            return
        file = os.path.realpath(file)  # a link keeps leading to the file
        # Of a name that nobody else has: in containers several processes have the same number.
        handle, temporary = tempfile.mkstemp(".tmp", ".xentrs-", os.path.dirname(file))
        try:
            with os.fdopen(handle, "wb") as opened:
                write(opened)
                opened.flush()
                os.fsync(handle)
            os.chmod(temporary, _mode(file))
            os.replace(temporary, file)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _mode(file: str) -> int:
    """Return the permissions of a file, or those that a new one would get."""
    try:
        return stat.S_IMODE(os.stat(file).st_mode)
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        return 0o666 & ~mask


def save_state(file: str, meter: CrossEntropyMeter) -> None:
    """Write the state of a meter as an .npz."""
    state: dict[str, Any] = meter.to_state()
    write_whole(file, lambda opened: np.savez(opened, **state))


def check_distinct(files: Iterable[str]) -> None:
    """Refuse a file that is given twice, by one name or by two: its samples would count twice."""
    names: dict[tuple[int, int], str] = {}
    for file in files:
        with errors_of(file):
            found = os.stat(file)
        place = found.st_dev, found.st_ino
        if place in names:
            message = f"was given before, as {names[place]}: its samples would count twice"
            raise InputError(file, message)
        names[place] = file


def load_state(file: str) -> CrossEntropyMeter:
    """Return the meter whose state is in a file."""
    from xentrs import CrossEntropyMeter

    with decoding(file), open(file, "rb") as opened:
        if not opened.read(1):
            raise InputError(file, "is empty")
        opened.seek(0)
        try:
            state = np.load(opened, allow_pickle=False)
            if not hasattr(state, "files"):
                raise InputError(file, "is an array, and no state of a meter (an .npz)")
            return CrossEntropyMeter.from_state({name: state[name] for name in state.files})
        except (KeyError, TypeError, ValueError) as error:
            message = reason(error)
            if "pickle" in message:
                message = "it has pickled objects, which are never loaded"
            raise InputError(file, f"is no state of a meter: {message}") from error
