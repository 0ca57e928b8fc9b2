"""What ends a command with one line and exit status 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """A file or an option that is wrong: `where` it is, and what is wrong with it."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where}: {message}")


class MissingLibrary(Exception):
    """A library of the extra `cli` that a file or an option needs, and that is not installed."""

    def __init__(self, what: str, library: str) -> None:
        super().__init__(f"{what} needs {library}: pip install xentrs[cli]")


def reason(error: BaseException) -> str:
    """Return the first line of an error's text, or the name of its kind."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    lines = str(error).strip().splitlines()
    return lines[0][:500] if lines else type(error).__name__


@contextmanager
def errors_of(file: str) -> Iterator[None]:
    """Turn what the operating system refuses into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(file, reason(error)) from error


@contextmanager
def decoding(file: str) -> Iterator[None]:
    """Turn whatever a library says of a damaged file into an error that names the file."""
    try:
        yield
    except (InputError, MissingLibrary):
        raise
    except MemoryError as error:
        message = "cannot be read within the memory that there is"
        raise InputError(file, f"{message}: {reason(error)}") from error
    except Exception as error:  # zlib, zipfile and Arrow have many, UnicodeDecodeError among them
        what = "" if isinstance(error, OSError) and error.strerror else "cannot be read, damaged? "
        raise InputError(file, f"{what}{reason(error)}") from error
