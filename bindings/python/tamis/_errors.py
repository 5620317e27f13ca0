"""One exception class for each status of tamis.h. Owns the mapping; the text always comes from the C library."""
from __future__ import annotations

from collections.abc import Iterable


class Error(Exception):
    """A call was refused or failed. `status` is the C number, `name` its name, the text one line of the library."""

    status = 0
    name = "TAMIS_OK"


class ArgumentError(Error, ValueError):
    """A wrong dtype, rank, shape, stride, range or overlap."""


class OutOfMemoryError(Error, MemoryError):
    """An allocation failed."""


class FullError(Error):
    """The cache has no room for more tokens."""


class FileError(Error, OSError):
    """The operating system refused a file operation."""


class FormatError(Error, ValueError):
    """A file is not what it should be."""


class UnsupportedError(Error, NotImplementedError):
    """Well formed, but not something this version does."""


class CancelledError(Error):
    """`Context.cancel` was called during the call."""


class BudgetError(Error):
    """The context's `max_bytes`, or a meter's limit, does not allow it."""


class BusyError(Error, RuntimeError):
    """The sequence is in use by another thread."""


class InternalError(Error, RuntimeError):
    """A defect of the library; please report it."""


CLASSES = {
    -1: ArgumentError,
    -2: OutOfMemoryError,
    -3: FullError,
    -4: FileError,
    -5: FormatError,
    -6: UnsupportedError,
    -7: CancelledError,
    -8: BudgetError,
    -9: BusyError,
    -10: InternalError,
}


def error(status: int, name: str, text: str) -> Error:
    """The exception for a status of the library."""
    made = CLASSES.get(status, Error)(text)
    made.status, made.name = status, name
    return made


def wrong(text: str) -> ArgumentError:
    """What this package itself refuses, before the library could see it."""
    made = error(-1, "TAMIS_E_ARGUMENT", text)
    assert isinstance(made, ArgumentError)
    return made


def known(owner: str, named: Iterable[str], names: Iterable[str] = ()) -> None:
    """Refuses names that are none of `names`."""
    unknown = sorted(set(named) - set(names))
    if unknown:
        raise wrong(f"{owner}: {', '.join(unknown)} is not supported")


def unsupported(text: str) -> UnsupportedError:
    """What is well formed, and this package does not do."""
    made = error(-6, "TAMIS_E_UNSUPPORTED", text)
    assert isinstance(made, UnsupportedError)
    return made
