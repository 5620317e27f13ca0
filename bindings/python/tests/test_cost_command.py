"""`tamis cost`: the published planning table, a price file, a profile saved and used again, reports and plots."""
import json
from html.parser import HTMLParser

import pytest
from test_command import tamis
from test_meter import PRICE_FILE

import tamis as package


def planned(*arguments):
    return json.loads(tamis("cost", "--json", *arguments)[0])


@pytest.mark.parametrize(("tokens", "plain", "cached", "listed"), [
    ((4000, 500), (0.318, 0.364), (0.097, 0.107), 1.33), ((64000, 1000), (14.06, 7.61), (3.25, 1.08), 18.3)])
def test_the_published_plan(tokens, plain, cached, listed):
    record = planned("--input", str(tokens[0]), "--output", str(tokens[1]))
    costs = {(row["cached"], row["mode"]): float(row["cost"]["amount"]) for row in record["predictions"]}
    for share, (dense, sparse) in ((0, plain), (tokens[0] * 9 // 10, cached)):
        assert costs[share, "dense"] == pytest.approx(dense, rel=0.01)
        assert costs[share, "sparse"] == pytest.approx(sparse, rel=0.01)
        assert costs[share, "automatic"] <= costs[share, "sparse"]
    assert float(record["list_prices"][0]["amount"]) == pytest.approx(listed, rel=0.01)
    assert record["break_even"]["decode"]["tokens"] == pytest.approx(4871, rel=0.01)


def test_dollars_come_with_their_caveats():
    printed, _ = tamis("cost", "--input", "4000", "--output", "500")
    assert "0.87" in printed and "sparse costs more than dense below" in printed
    said = " ".join(printed.split())
    assert "2.0 to 2.1 times dearer" in said and "no memory limit" in said and "slower than dense on short prefill" in said


def test_prices_and_currency():
    record = planned("--input", "300000", "--output", "10", "--cached", "0", "--price-per-hour", "3", "--currency", "EUR",
                     "--litellm", str(PRICE_FILE), "gemini/gemini-2.5-pro", "--requests", "2")
    assert record["list_prices"] == [{"cached": 0, "amount": "1.5003", "currency": "USD"}]  # the tier above 200,000
    assert record["predictions"][0]["cost"]["currency"] == "EUR" and len(record["predictions"]) == 3


def test_another_model_and_a_saved_machine(tmp_path):
    config = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "kv_lora_rank": 32,
              "qk_rope_head_dim": 16, "qk_nope_head_dim": 16, "v_head_dim": 16, "q_lora_rank": None, "index_n_heads": 4,
              "index_head_dim": 32, "index_topk": 64, "intermediate_size": 128, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(config))
    saved = tmp_path / "machine.json"
    first = planned("--machine", "here", "--model", str(tmp_path), "--save", str(saved), "--threads", "1")
    again = planned("--machine", str(saved), "--model", str(tmp_path / "config.json"))
    assert first["predictions"] == again["predictions"] and first["basis"] == "calibrated"
    assert "cost" not in first["predictions"][0]  # nobody said what an hour costs
    assert "mean run took" in first["trust"]["note"]


def test_refusals():
    for arguments, match in (
            (("--input", "-1"), "--input"), (("--cached", "9", "--input", "8"), "cached"), (("--machine", "H9000"), "H800"),
            (("--price-per-hour", "-1"), "-1"), (("--currency", "QQQ", "--price-per-hour", "1"), "currency"),
            (("--model", "/nonexistent/config.json"), "nonexistent"), (("--litellm", str(PRICE_FILE), "none"), "model")):
        printed, said = tamis("cost", *arguments, status=1)
        assert printed == "" and match in said and said.count("\n") == 1 and said.startswith("tamis cost: ")


class Balance(HTMLParser):
    """Fails on a tag that is closed and not open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_of_a_metered_run(tmp_path):
    records, page = tmp_path / "run.jsonl", tmp_path / "run.html"
    with package.Context(threads=1) as ctx:
        from test_meter import layer
        meter = package.Meter("<b>tenant</b>", ctx, machine=package.Machine.published())
        with meter:
            layer(ctx)
        meter.charge(input_tokens=10_000, cached_tokens=9_000, output_tokens=500)
        records.write_text(package.export([meter, package.Meter.of(ctx)], "json", prices=package.Prices()))
        cost = meter.read()
    assert planned("--report", str(records), str(page)) == {"report": str(page), "records": 2}
    html = page.read_text()
    parser = Balance()
    parser.feed(html)
    assert parser.open == [] and parser.seen.count("rect") == 12
    assert "&lt;b&gt;tenant" in html and "<b>tenant" not in html
    assert f"{cost.keys_dense:,}" in html and f"{cost.flops:,}" in html and "0.000742 USD (list)" in html
    assert "all in the absorbed form" in html and "not measured" in html and "analytic" in html and "http" not in html
    records.write_text("{}\n")
    _, said = tamis("cost", "--report", str(records), str(page), status=1)
    assert "line 1" in said


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    saved, drawn = tmp_path / "machine.json", tmp_path / "cost.svg"
    shape = package.Architecture(heads=4, key_dim=64, value_dim=32, index_heads=4, index_dim=32, top_k=64)
    with package.Context(threads=1) as ctx:
        package.Machine.measure(ctx, architecture=shape).save(saved)
    assert planned("--machine", str(saved), "--plot", str(drawn))["plot"] == str(drawn)
    assert drawn.read_text().count("<path") > 20
