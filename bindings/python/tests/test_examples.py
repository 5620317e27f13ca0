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


def printed_by(*arguments, cwd=None):
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "bindings" / "python"), "TAMIS_LIBRARY": _c.library._name}
    done = subprocess.run([sys.executable, *arguments], env=settings, cwd=cwd,
                          capture_output=True, text=True, timeout=600)
    if done.returncode == SKIPPED:
        assert len(done.stdout.splitlines()) == 1
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_select():
    printed = run("select_keys.py")
    assert "196608 keys scored, 12288 selected; attend compared 12288" in printed
    assert "dense attention would have compared 196608" in printed


def test_rag_select():
    printed = run("rag_select.py", "May I use the trade names of the licensor?", ROOT / "LICENSE")
    excerpts = re.findall(r"^LICENSE:\d+-\d+, score .*\n(?:  .*\n)+", printed, flags=re.M)
    assert any("does not grant permission to use the trade" in excerpt for excerpt in excerpts)
    assert int(re.search(r"(\d+) keys scored", printed).group(1)) > 1500
    assert 0 < int(re.search(r"(\d+) tokens are kept", printed).group(1)) <= 256


def test_long_text(tmp_path):
    printed = run("long_text.py", ROOT / "examples" / "model", "2048", tmp_path / "page.html")
    sparse, dense = map(int, re.search(r"recalled: sparse (\d) of 6, dense (\d) of 6", printed).groups())
    assert sparse >= 5 and dense >= 5
    assert len(re.findall(r" 128/20\d\d ", printed)) == 7  # keys that a token compares, sparse and dense
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.count("<svg") == 7 and page.count('class="tick"') == 7 * 6
    assert not re.search(r"<[^>]*https?:", page)  # self-contained: no element names an address
    bill = dict(re.findall(r"^(\w+: .+?)  +[\d.,]+ +([\d.,]+) ", printed, flags=re.M))
    assert int(bill["reading: comparisons of attention"].replace(",", "")) == 2048 * 2049 // 2 * 6
    assert float(bill["reading: USD for 1,000 such at 0.10 an hour"]) > 0
    assert len(re.findall(r"[\d.]+ % at [\d,]+ '", printed)) >= 7  # spans that were attended to


def test_rag():
    printed = run("rag.py")
    read = [int(number) for number in re.findall(r"\((\d+) of them read before\)", printed)]
    documents = int(re.search(r"(\d+) tokens of 4 documents", printed).group(1))
    assert len(read) == 3 and read[0] == 0 and min(read[1:]) > documents * 0.9
    begins = [float(seconds) for seconds in re.findall(r"the first after ([\d.]+) s", printed)]
    assert len(begins) == 3 and max(begins[1:]) < 0.5 * begins[0]  # a hundredth of the tokens are read
    shares = [float(share) for share in re.findall(r"([\d.]+) % of attention", printed)]
    assert len(shares) == 12 and all(0 < sum(shares[at:at + 4]) <= 100.2 for at in (0, 4, 8))


@pytest.mark.parametrize("framework", ["langchain", "llama_index", "haystack"])
def test_rag_with_a_framework(framework):
    printed = run(f"rag_{framework}.py")
    assert re.search(r"^question: .*\nanswer:   '", printed)
    found = re.findall(r"([\d.]+) % of attention: (\w+\.md), characters (\d+) to (\d+)", printed)
    assert found and all(int(begin) < int(end) for _, _, begin, end in found)
    assert 0 < sum(float(share) for share, *_ in found) <= 100.2


def test_generate():
    printed = run("generate.py", ROOT / "Tests" / "Fixtures" / "toy-v32", "def f(x):\n    return x\n\ndef g(")
    shares = [int(share) for share in re.findall(r"^ *(\d+)%  ", printed, flags=re.M)]
    assert len(shares) == 4 and 98 <= sum(shares) <= 102
    assert "deepseek_v32" in printed and "def g(" in printed


def test_serve():
    printed = run("serve.py")
    assert len(re.findall(r"^\d: \d+ tokens behind \d\d\d+ of the document, first token after", printed, flags=re.M)) == 4
    assert re.search(r"^5 requests in \d+ steps", printed, flags=re.M)
    assert len(re.findall(r"^tenant \d: \d+ tokens in \(\d+ read before\)", printed, flags=re.M)) == 4


def test_fit():
    printed = run("fit.py")
    first, last = map(float, re.search(r"divergence ([\d.]+) -> ([\d.]+) nats", printed).groups())
    oracle, found = map(float, re.search(r"^ +128 +([\d.]+) +([\d.]+)", printed, flags=re.M).groups())
    assert last < 0.2 * first and found > 0.9 * oracle
    assert float(re.search(r"([\d.]+) % from dense", printed).group(1)) < 40
    dense, sparse = map(float, re.search(r"([\d.]+) -> ([\d.]+)$", printed, flags=re.M).groups())
    assert dense == pytest.approx(2 * 4 * (16 + 48) * 512 / 1e3, abs=0.1)
    assert sparse == pytest.approx((2 * 4 * (16 + 48) * 128 + 2 * 4 * 32 * 512) / 1e3, abs=0.1)


def test_retrofit(tmp_path):
    printed = run("retrofit.py", ROOT / "examples" / "model", tmp_path / "indexers")
    shares = [float(share) for share in re.findall(r"^\d +[\d.]+ +([\d.]+)", printed, flags=re.M)]
    assert len(shares) == 6 and min(shares) > 0.7 and sum(shares) > 6 * 0.85
    compared, dense = map(int, re.search(r"compared (\d+) keys, .* compared (\d+)", printed).groups())
    assert compared < 0.3 * dense and "from indexers: the same continuation, 32 keys a token" in printed
    assert sorted(path.name for path in (tmp_path / "indexers").iterdir()) == [
        "indexers.safetensors", "report.json", "report.svg", "retrofit.json"]


def test_bill():
    printed = run("bill.py")
    tokens, out, selected, scored, others = (int(number.replace(",", "")) for number in re.search(
        r"([\d,]+) tokens in, (\d+) out[^$]*?([\d,]+) selected, ([\d,]+) keys scored by the indexer, ([\d,]+) not sel",
        printed).groups())
    rows = [min(n, 128) for n in range(1, tokens + out)]  # the last token is not evaluated
    dense = sum(range(1, tokens + out))
    assert (selected, others) == (4 * sum(rows), 4 * (dense - sum(rows)))
    assert scored == 4 * sum(n for n in range(129, tokens + out)) and "(calibrated)" in printed
    assert f"{(tokens * 28 + out * 42) / 1e8:.7f} USD by the list" in printed


def test_documents(tmp_path):
    document = tmp_path / "document.py"
    document.write_text("def double(x):\n    return 2 * x\n\n" * 20)
    call = ("documents.py", ROOT / "Tests" / "Fixtures" / "toy-v32", tmp_path / "store", document)
    first, second = run(*call), run(*call)
    count = re.match(r"(\d+) tokens, 0 of them from the store", first).group(1)
    assert second.startswith(f"{count} tokens, {count} of them from the store") and "stored=1" in first
    said = [re.search(r"# In short:(.*?)\n\[", printed, flags=re.S).group(1) for printed in (first, second)]
    assert said[0] == said[1] != ""


@pytest.mark.parametrize("readme", ["README.md", "bindings/python/README.md"])
def test_readme(readme):
    code = re.findall(r"```python\n(.*?)```", (ROOT / readme).read_text(), flags=re.S)[0]
    assert printed_by("-c", code) == "(1, 128, 512) 32768 2048\n"


def test_readme_of_a_rag():
    pytest.importorskip("langchain_core")
    _, code = re.findall(r"```python\n(.*?)```", (ROOT / "bindings/python/README.md").read_text(), flags=re.S)
    printed = printed_by("-c", code, cwd=ROOT)
    assert "'output_tokens': 24" in printed
    found = re.findall(r"^([\d.]+) % of attention: docs/\w+\.md, from character \d+$", printed, flags=re.M)
    assert found and 0 < sum(map(float, found)) <= 100.5
