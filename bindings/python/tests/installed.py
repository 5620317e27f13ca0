"""Run with the Python of a clean environment into which only the wheel was installed: the library is inside, everything
works without a compiler, without TAMIS_LIBRARY, and in a forked child."""
import os
import pathlib
import subprocess
import sys

import numpy as np

import tamis
import tamis.excerpts


def works() -> bool:
    key = np.random.default_rng(0).standard_normal((300, 64)).astype(np.float32)
    with tamis.Context(threads=2) as ctx:
        chosen = ctx.select(key[:2, None], np.ones((2, 1), np.float32), key, 4, visible="all")
    return bool((chosen == np.sort(np.argsort(-np.maximum(key[:2] @ key.T, 0), kind="stable")[:, :4])).all())


package = pathlib.Path(tamis.__file__).parent
assert "TAMIS_LIBRARY" not in os.environ and pathlib.Path(sys.prefix) in package.parents, package
assert pathlib.Path(tamis._c.library._name) == package / "lib" / "libtamis.so.0"
assert (package / "py.typed").exists() and works()
child = os.fork()
if child == 0:
    os._exit(0 if works() else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
help_text = subprocess.run([pathlib.Path(sys.prefix) / "bin" / "tamis", "--help"], capture_output=True, text=True)
assert help_text.returncode == 0 and "info" in help_text.stdout, help_text.stderr
print("the installed wheel works:", tamis.__version__)
