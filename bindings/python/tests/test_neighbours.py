"""Other native libraries in the same process, and servers that fork: torch, faiss and gunicorn themselves, each skipped
where it is missing."""
import concurrent.futures
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from conftest import ROOT

from tamis import _c

SETTINGS = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "TAMIS_LIBRARY": _c.library._name}

TOGETHER = """
import {0}, {1}, {2}
import numpy as np, tamis, torch, faiss
rng = np.random.default_rng(0)
x, q = rng.standard_normal((500, 64), np.float32), rng.standard_normal((3, 64), np.float32)
def ours():
    with tamis.Context(threads=2) as ctx:
        return ctx.select(torch.from_numpy(q)[:, None], np.ones((3, 1), np.float32), x, 5, visible="all")
def theirs():
    index = faiss.IndexFlatIP(64); index.add(x)
    products = (torch.from_numpy(q) @ torch.from_numpy(x).T).numpy()
    assert (np.sort(np.argsort(-products)[:, :5]) == np.sort(index.search(q, 5)[1])).all()
    return np.sort(index.search(q, 5)[1])
for _ in range(3):
    assert (ours() == theirs()).all()
print("fine")
"""


@pytest.mark.parametrize("order", ["tamis torch faiss", "faiss torch tamis", "torch tamis faiss"])
def test_torch_faiss_and_tamis_in_one_process(order):
    for name in ("torch", "faiss"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    program = TOGETHER.format(*order.split())
    done = subprocess.run([sys.executable, "-c", program], env=SETTINGS, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


APPLICATION = """
import os
import numpy as np, tamis
ctx = tamis.Context(threads=2)
key = np.random.default_rng(1).standard_normal((20000, 64), np.float32)
def answer():
    return ctx.select(key[:4, None], np.ones((4, 1), np.float32), key, 8, visible="all").tobytes()
expected = answer()  # before the fork: the pool's threads exist in the parent only
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{answer() == expected} {os.getpid()}".encode()]
"""


def test_gunicorn_forks_a_used_context(tmp_path):
    pytest.importorskip("gunicorn")
    (tmp_path / "service.py").write_text(APPLICATION)
    server = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", "2", "--bind", "127.0.0.1:0",
         "service:application"], cwd=tmp_path, env=SETTINGS, stderr=subprocess.PIPE, text=True)
    try:
        address = next(match for line in server.stderr if (match := re.search(r"http://127\.0\.0\.1:\d+", line)))[0]
        answers = set()
        until = time.monotonic() + 60
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            while len(answers) < 2 and time.monotonic() < until:
                asked = pool.map(lambda _: urllib.request.urlopen(address, timeout=60).read().decode(), range(16))
                answers |= set(asked)
        assert {answer.split()[0] for answer in answers} == {"True"} and len(answers) == 2
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=30)
    assert server.returncode == 0
