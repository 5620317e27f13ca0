"""What pyproject.toml cannot say: a wheel that carries the library (tamis/lib/libtamis.so.0, put there by
scripts/wheel) is for one platform, and for glibc from the newest version on that the library asks for. Any Python 3
does: nothing is compiled against it."""
import pathlib
import platform
import re

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

LIBRARY = pathlib.Path(__file__).parent / "tamis" / "lib" / "libtamis.so.0"


class WithLibrary(Distribution):
    """Files go where platform-dependent ones go."""

    def has_ext_modules(self):
        return LIBRARY.exists()


class Wheel(bdist_wheel):
    def get_tag(self):
        if not LIBRARY.exists():
            return "py3", "none", "any"
        asked = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)\b", LIBRARY.read_bytes())]
        return "py3", "none", f"manylinux_2_{max(asked)}_{platform.machine()}"


setup(distclass=WithLibrary, cmdclass={"bdist_wheel": Wheel})
