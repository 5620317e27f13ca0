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


def test_run():
    printed, said = tamis("run", TOY, "-p", "def f(", "--max-tokens", "8")
    record = json.loads(tamis("run", TOY, "-p", "def f(", "--max-tokens", "8", "--json")[0])
    assert printed == record["text"] + "\n" and len(record["tokens"]) <= 8
    assert "written at" in said and record["keys_attended"] <= record["keys_dense"]
    asked = json.loads(tamis("run", TOY, "-p", "def f(", "--max-tokens", "2", "--chat", "--json")[0])
    assert asked["prompt_tokens"] > record["prompt_tokens"]
    _, said = tamis("run", TOY, "-p", "", status=1)
    assert "tamis run: prompt: has no tokens; give --prompt" in said and said.count("\n") == 1


def test_bench():
    record = json.loads(tamis("bench", TOY, "--contexts", "64,300,99999", "--tokens", "3", "--json")[0])
    short, long = record["results"]
    assert (short["context"], long["context"]) == (64, 300)
    assert short["keys_attended"] == short["keys_dense"] == 3 * 2 * 4 * 65  # every token is visible and chosen
    assert long["keys_attended"] == 3 * 4 * (128 + 301) and long["keys_dense"] == 3 * 2 * 4 * 301
    assert "dense / sparse" in tamis("bench", TOY, "--contexts", "64", "--tokens", "1")[0]
    tamis("bench", TOY, "--contexts", "many", status=1)


@pytest.mark.parametrize("command", ["info", "run", "bench"])
def test_help(command):
    assert "--json" in tamis(command, "--help")[0]
