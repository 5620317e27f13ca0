"""The Python examples run and say what they should; what an example skips is a skipped test."""
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from tamis import _c

SKIPPED = 77


def run(name, *arguments):
    """What examples/<name> prints."""
    return printed_by(ROOT / "examples" / name, *map(str, arguments))


def printed_by(*arguments):
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "TAMIS_LIBRARY": _c.library._name}
    done = subprocess.run([sys.executable, *arguments], env=settings,
                          capture_output=True, text=True, timeout=600)
    if done.returncode == SKIPPED:
        assert len(done.stdout.splitlines()) == 1
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_select():
    printed = run("select.py")
    assert "196608 keys scored, 12288 selected; attend compared 12288" in printed
    assert "dense attention would have compared 196608" in printed


def test_rag_select():
    printed = run("rag_select.py", "Which key is chosen when two scores are equal?", ROOT / "include" / "tamis.h")
    excerpts = re.findall(r"^tamis.h:\d+-\d+\n(?:  .*\n)+", printed, flags=re.M)
    assert any("score descending, ties to the" in excerpt for excerpt in excerpts)
    scored, tokens = re.search(r"(\d+) keys scored, 256 selected", printed), re.search(r"over (\d+) tokens", printed)
    assert scored.group(1) == tokens.group(1)


def test_generate():
    printed = run("generate.py", ROOT / "Tests" / "Fixtures" / "toy-v32", "def f(x):\n    return x\n\ndef g(")
    shares = [int(share) for share in re.findall(r"^ *(\d+)%  ", printed, flags=re.M)]
    assert len(shares) == 4 and 98 <= sum(shares) <= 102
    assert "deepseek_v32" in printed and "def g(" in printed


@pytest.mark.parametrize("readme", ["README.md", "bindings/python/README.md"])
def test_readme(readme):
    code, = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), flags=re.S)
    assert printed_by("-c", code) == "(1, 128, 512) 32768 2048\n"
