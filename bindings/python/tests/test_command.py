"""The command `tamis`, run as a program of its own."""
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from tamis import _c

TOY = str(ROOT / "Tests" / "Fixtures" / "toy-v32")


def tamis(*arguments, status=0):
    """(what it prints, what it says on stderr)"""
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "TAMIS_LIBRARY": _c.library._name}
    done = subprocess.run([sys.executable, "-m", "tamis", *arguments], env=settings, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def test_version():
    assert tamis("--version")[0] == "tamis 0.1.0\n"


def test_info():
    printed, _ = tamis("info", TOY)
    assert "deepseek_v32, 4 layers" in printed and "3,639,640" in printed
    record = json.loads(tamis("info", TOY, "--json", "--threads", "1")[0])
    assert record["model"]["parameters"] == 3639640 and "1 thread," in record["machine"]


def test_errors_are_one_line():
    printed, said = tamis("info", "/nonexistent/model", status=1)
    assert printed == "" and said.startswith("tamis info: ") and "config.json" in said and said.count("\n") == 1
    tamis("nonsense", status=2)


@pytest.mark.parametrize("command", ["info"])
def test_help(command):
    assert "--json" in tamis(command, "--help")[0]
