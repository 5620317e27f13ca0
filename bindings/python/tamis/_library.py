"""Finds and loads libtamis. Owns the search path; refuses a library of another version."""
from __future__ import annotations

import ctypes
import os
import pathlib
from collections.abc import Iterator

VERSION = (0, 1, 0)  # of the tamis.h that _c.py quotes


def candidates() -> Iterator[pathlib.Path]:
    """Where the library may be, best first: this package, TAMIS_LIBRARY, the builds of a source checkout."""
    package = pathlib.Path(__file__).resolve().parent
    yield from sorted((package / "lib").glob("libtamis.so*"))
    if os.environ.get("TAMIS_LIBRARY"):
        yield pathlib.Path(os.environ["TAMIS_LIBRARY"])
    root = package.parents[2] if len(package.parents) > 2 else package
    if (root / "include" / "tamis.h").exists():
        for folder in ("build/cmake", "build", ".build/release"):
            yield from sorted((root / folder).glob("libtamis.so*"))


def load() -> ctypes.CDLL:
    """The library, loaded with RTLD_LOCAL: its symbols are invisible to every other one in the process."""
    tried = list(candidates())
    for path in tried:
        if path.is_file():
            return checked(ctypes.CDLL(os.fspath(path), mode=ctypes.RTLD_LOCAL), path)
    looked = ", ".join(map(str, tried)) or "tamis/lib of the package; TAMIS_LIBRARY is not set"
    raise ImportError(f"libtamis.so was not found (looked at {looked}): install a wheel that contains it, or set "
                      "TAMIS_LIBRARY to the file that `swift build` or CMake made")


def checked(library: ctypes.CDLL, path: pathlib.Path) -> ctypes.CDLL:
    """The library, if its major and minor version are those of this package."""
    try:
        library.tamis_version.restype = ctypes.c_uint32
        number = library.tamis_version()
    except AttributeError:
        raise ImportError(f"{path} is not libtamis: it has no tamis_version") from None
    if (number >> 16, number >> 8 & 255) != VERSION[:2]:
        raise ImportError(f"{path} is version {number >> 16}.{number >> 8 & 255}, expected {VERSION[0]}.{VERSION[1]}")
    return library
