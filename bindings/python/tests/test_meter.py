"""Meters: what arrives where, budgets, and exports read back by the programs they are for."""
import csv
import decimal
import io
import json
import pathlib
import threading

import numpy as np
import pytest
from conftest import ROOT

import tamis

D = decimal.Decimal
PRICE_FILE = pathlib.Path(__file__).parent / "data" / "litellm_prices.json"
TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"


def layer(ctx, keys=3000, rows=2, k=256, sparse=True):
    """select and attend of a small layer."""
    rng = np.random.default_rng(3)
    index = ctx.quantize(rng.standard_normal((keys, 32), np.float32), "i8")
    latent = ctx.quantize(rng.standard_normal((keys, 1, 64), np.float32), "bf16")
    q, w = rng.standard_normal((rows, 4, 32), np.float32), rng.standard_normal((rows, 4), np.float32)
    chosen = ctx.select(q, w, index, k=k)
    query = rng.standard_normal((rows, 4, 64), np.float32)
    ctx.attend(query, latent, latent[..., :32], indices=chosen if sparse else None)


@pytest.fixture
def metered():
    """A meter with work, tokens and a counterfactual in it."""
    with tamis.Context(threads=1) as ctx:
        meter = tamis.Meter('acme "eu"\n\\', ctx, machine=tamis.Machine.published())
        with meter:
            layer(ctx)
        meter.charge(input_tokens=10_000, cached_tokens=9_000, output_tokens=500)
        yield meter


@pytest.fixture
def prices():
    return tamis.Prices(input="0.28", cached="0.028", output="0.42", machine_hour="2", kilowatt_hour="0.3")


# -- counting


def test_calls_go_to_the_entered_meter_and_up():
    with tamis.Context(threads=1) as ctx:
        root, tenant = tamis.Meter.of(ctx), tamis.Meter("tenant", ctx)
        request = tamis.Meter("request", tenant)
        layer(ctx)
        with tenant:
            layer(ctx)
            with request:
                layer(ctx)
        costs = [meter.read() for meter in (request, tenant, root)]
        assert [cost.calls for cost in costs] == [4, 8, 12]
        counters = ctx.counters()
        assert (costs[2].calls, costs[2].flops, costs[2].keys_scored) == (
            counters.calls, counters.flops, counters.keys_scored)
        assert costs[2].keys_avoided == 3 * ((3000 + 2999) - 2 * 256)
        assert (costs[1] - costs[0]).flops == costs[0].flops
        again = tamis.Meter.of(ctx)
    assert again.read() == costs[2]  # the root outlives its context


def test_the_counterfactual_has_its_basis():
    with tamis.Context(threads=1) as ctx:
        plain = tamis.Meter("no machine", ctx)
        with plain:
            layer(ctx)
        assert plain.read().basis is None and plain.read().dense_seconds is None
        dense = tamis.Meter("dense", ctx)
        with dense:
            layer(ctx, sparse=False)
        cost = dense.read()
        assert cost.basis == "measured" and 0 < cost.dense_nanoseconds <= cost.nanoseconds
        machine = tamis.Machine.published()
        parent = tamis.Meter("planned", ctx, machine=machine)
        child = tamis.Meter("inherits", parent)
        with child:
            layer(ctx)
        assert child.read().basis == parent.read().basis == "analytic"
        rate = 989.5e12 * 0.6
        attend = child.read().dense_flops / rate * 1e9  # all of it: nothing else here has dense FLOP
        assert child.read().dense_nanoseconds >= round(attend)


def test_threads_have_their_own_meters():
    with tamis.Context(threads=1) as ctx:
        meters = [tamis.Meter(str(i), ctx) for i in range(6)]

        def work(meter):
            for _ in range(5):
                with meter:
                    ctx.topk(np.zeros((1, 64), np.float32), 8)

        threads = [threading.Thread(target=work, args=(meter,)) for meter in meters]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [meter.read().calls for meter in meters] == [5] * 6
        assert tamis.Meter.of(ctx).read().calls == 30


def test_misuse_is_refused():
    meter = tamis.Meter("m")
    with pytest.raises(tamis.ArgumentError, match="entered last"):
        meter.__exit__(None, None, None)
    with pytest.raises(tamis.ArgumentError, match="cached"):
        meter.charge(input_tokens=1, cached_tokens=2)
    with pytest.raises(tamis.ArgumentError, match="output_tokens"):
        meter.charge(output_tokens=-1)
    meter.charge(output_tokens=2**64 - 1)
    with pytest.raises(tamis.FullError, match="nothing was charged"):
        meter.charge(input_tokens=5, output_tokens=1)
    assert meter.read().input_tokens == 0
    with meter:
        meter.close()  # freed while in use
        tamis.Context(threads=1).topk(np.zeros((1, 8), np.float32), 2)
    with pytest.raises(tamis.ArgumentError, match="is closed"):
        meter.read()


def test_energy_is_measured_or_not_but_never_guessed():
    with tamis.Context(threads=1) as ctx:
        meter = tamis.Meter("energy", ctx, energy=True)
        with meter:
            layer(ctx)
        joules = meter.read().microjoules
        assert joules is None or joules > 0
        with pytest.raises(tamis.UnsupportedError):
            tamis.Meter("none").bill(tamis.Prices(kilowatt_hour=1), "energy")
        with meter, tamis.Meter("second", ctx, energy=True):
            layer(ctx)
        assert meter.read().microjoules is None  # two at a time


# -- budgets


def test_a_budget_refuses_before_the_work():
    tenant = tamis.Meter("tenant", budget=tamis.Amount(money="0.01", tokens=10_000))
    with tenant.reserve(money="0.006", tokens=6000) as held:
        assert tenant.budget().reserved == tamis.Amount(money=D("0.006"), tokens=6000)
        with pytest.raises(tamis.BudgetError, match="money"):
            tenant.reserve(money="0.0041", tokens=1)
        with pytest.raises(tamis.BudgetError, match="tokens"):
            tenant.reserve(money=0, tokens=4001)
        with pytest.raises(tamis.ArgumentError, match="names none"):
            tenant.reserve(tokens=1)
        with pytest.raises(tamis.ArgumentError, match="more tokens than was reserved"):
            held.settle(money="0.001", tokens=6001)
        held.settle(money="0.002", tokens=2000)
        with pytest.raises(tamis.ArgumentError, match="settled before"):
            held.settle(money="0.002", tokens=2000)
    assert tenant.budget().spent == tamis.Amount(money=D("0.002"), tokens=2000)
    with pytest.raises(RuntimeError), tenant.reserve(money="0.001", tokens=10):
        raise RuntimeError("the work failed")
    tenant.reserve(money="0.001", tokens=10).release()
    budget = tenant.budget()
    assert budget.spent == tamis.Amount(money=D("0.003"), tokens=2010)
    assert budget.reserved == tamis.Amount(money=D(0), tokens=0)
    tenant.set_budget(tamis.Amount(money="0.003", tokens=2010))
    with pytest.raises(tamis.BudgetError):
        tenant.reserve(money="1e-30", tokens=0)
    assert not issubclass(tamis.BudgetError, MemoryError)


@pytest.mark.parametrize("amount", [{"money": 0.5}, {"money": "-1"}, {"money": "1", "currency": "XXX"}, {"tokens": -1},
                                    {"flops": 2**64}, {"money": "1" * 70}])
def test_amounts_refused(amount):
    with pytest.raises((tamis.ArgumentError, tamis.FormatError)):
        tamis.Meter("m").reserve(**amount)


# -- exports


def test_json_line(metered, prices):
    line = metered.json_line(model="m", prices=prices, time_unix_nanoseconds=17)
    record = json.loads(line)
    cost = metered.read()
    assert line.endswith("}\n") and line.count("\n") == 1
    assert (record["label"], record["model"], record["time_unix_nano"]) == (metered.label, "m", 17)
    assert (record["flops"], record["keys_scored"], record["basis"]) == (cost.flops, cost.keys_scored, "analytic")
    assert record["keys_avoided"] == cost.keys_avoided > 0 and record["joules"] is None
    assert [bill["source"] for bill in record["bills"]] == ["list", "machine"]  # energy was not measured
    assert record["bills"][0]["amount"] == "0.000742"
    assert str(metered.bill(prices)) == "0.000742 USD"


def test_prometheus_is_read_by_its_own_parser(metered, prices):
    parser = pytest.importorskip("prometheus_client.parser")
    second = tamis.Meter("other")
    second.charge(input_tokens=7)
    page = tamis.export([metered, second], "prometheus", model="m", prices=prices)
    families = {family.name: family for family in parser.text_string_to_metric_families(page)}
    cost = metered.read()
    assert all(family.type == "counter" and family.documentation for family in families.values())
    samples = {sample.labels["meter"]: sample for sample in families["tamis_keys_scored"].samples}
    assert samples[metered.label].value == cost.keys_scored and samples["other"].value == 0
    assert samples[metered.label].labels == {"meter": metered.label, "model": "m"}
    dense = families["tamis_dense_seconds"].samples
    assert [sample.labels["basis"] for sample in dense] == ["analytic"]
    assert dense[0].value == pytest.approx(cost.dense_seconds)
    money = {(sample.labels["meter"], sample.labels["source"]): sample.value
             for sample in families["tamis_cost"].samples}
    assert money[metered.label, "list"] == pytest.approx(0.000742)
    assert money["other", "list"] == pytest.approx(7 * 0.28e-6)
    assert "tamis_joules" not in families


def test_opentelemetry_names_are_the_conventions(metered, prices):
    names = pytest.importorskip("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")
    from opentelemetry.attributes import BoundedAttributes
    attributes = metered.opentelemetry(model="m", prices=prices)
    assert attributes[names.GEN_AI_REQUEST_MODEL] == "m"
    assert attributes[names.GEN_AI_USAGE_INPUT_TOKENS] == 10_000  # cached ones included
    assert attributes[names.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS] == 9_000
    assert attributes[names.GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS] == 0
    assert attributes[names.GEN_AI_USAGE_OUTPUT_TOKENS] == 500
    known = {value for value in vars(names).values() if isinstance(value, str)}
    proposed = {"gen_ai.usage.cost.amount", "gen_ai.usage.cost.currency", "gen_ai.usage.cost.source"}
    ours = {name for name in attributes if name.startswith("gen_ai.")}
    assert ours - known == proposed and attributes["gen_ai.usage.cost.amount"] == 0.000742
    assert all(name.startswith(("gen_ai.", "tamis.")) for name in attributes)
    kept = BoundedAttributes(attributes=attributes, immutable=True)  # drops what an attribute cannot be
    assert dict(kept) == attributes


def test_openai_usage(metered):
    usage = metered.openai_usage()
    assert usage == {"prompt_tokens": 10_000, "completion_tokens": 500, "total_tokens": 10_500,
                     "prompt_tokens_details": {"cached_tokens": 9_000}}
    types = pytest.importorskip("openai.types")
    read = types.CompletionUsage.model_validate(usage, strict=True)
    assert read.prompt_tokens_details.cached_tokens == 9_000


def test_langchain_usage(metered):
    usage = metered.langchain_usage()
    messages = pytest.importorskip("langchain_core.messages")
    message = messages.AIMessage("x", usage_metadata=usage)
    from langchain_core.messages.ai import add_usage
    both = add_usage(message.usage_metadata, message.usage_metadata)
    assert both["total_tokens"] == 21_000 and both["input_token_details"]["cache_read"] == 18_000


def test_csv(metered, prices):
    page = metered.csv(prices=prices, model="m") + tamis.Meter("other").csv(header=False)
    rows = list(csv.DictReader(io.StringIO(page)))
    assert [row["label"] for row in rows] == [metered.label, "other"]
    assert int(rows[0]["flops"]) == metered.read().flops and D(rows[0]["list_amount"]) == D("0.000742")
    assert rows[0]["joules"] == rows[1]["dense_seconds"] == rows[1]["list_amount"] == ""
    assert None not in rows[0] and None not in rows[1].values()


def test_exports_refused(metered):
    with pytest.raises(tamis.ArgumentError, match="expected 1 in this format"):
        tamis.export([metered, metered], "openai")
    with pytest.raises(tamis.ArgumentError, match="count"):
        tamis.export([], "json")
    with pytest.raises(tamis.ArgumentError, match="format"):
        tamis.export([metered], "xml")


# -- litellm's file


def by_hand(entry, tokens):
    """USD of (input, cached, written, output) tokens in exact decimals, the inclusive rule, standard rates."""
    if "tiered_pricing" in entry:
        entry = next(tier for tier in reversed(entry["tiered_pricing"])
                     if tier["range"][0] == 0 or tokens[0] > tier["range"][0])

    def price(name, default=None):
        long = entry.get(f"{name}_above_200k_tokens") if tokens[0] > 200_000 else None
        found = long if long is not None else entry.get(name, default)
        return D(repr(found)) if isinstance(found, (int, float)) else found

    each = price("input_cost_per_token")
    return ((tokens[0] - tokens[1] - tokens[2]) * each + tokens[1] * price("cache_read_input_token_cost", each)
            + tokens[2] * price("cache_creation_input_token_cost", each) + tokens[3] * price("output_cost_per_token"))


@pytest.mark.parametrize("model", ["deepseek/deepseek-v3.2", "dashscope/qwen-flash", "gemini/gemini-2.5-pro",
                                   "claude-sonnet-4-5-20250929-v1:0"])
@pytest.mark.parametrize("tokens", [(10_000, 9_000, 0, 500), (256_000, 0, 100, 7), (300_001, 123_456, 3, 999)])
def test_litellm_imports_as_it_is(model, tokens):
    prices = tamis.Prices.litellm(PRICE_FILE, model)
    bill = prices.bill(**dict(zip(("input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens"), tokens)))
    assert (bill.amount, bill.currency) == (by_hand(json.loads(PRICE_FILE.read_text())[model], tokens), "USD")


def test_litellm_refused(tmp_path):
    with pytest.raises(tamis.ArgumentError, match="no model of that name"):
        tamis.Prices.litellm(PRICE_FILE, "deepseek/none")
    cut = tmp_path / "prices.json"
    cut.write_bytes(PRICE_FILE.read_bytes()[:-3])
    with pytest.raises(tamis.FormatError):
        tamis.Prices.litellm(cut, "deepseek/deepseek-v3.2")


# -- sequences of a batch

KEYS = ("keys_scored", "keys_attended", "keys_dense", "keys_expanded")
EXACT = (*KEYS, "keys_selected", "queries", "flops", "dense_flops")
ADDED = (*EXACT, "bytes", "dense_bytes", "nanoseconds", "cpu_nanoseconds", "dense_nanoseconds")


def prompts(model, lengths):
    return [np.arange(3, 3 + length, dtype=np.int32) * 7 % model.info.vocabulary for length in lengths]


def test_a_prompt_in_the_expanded_form_is_its_own_counterfactual():
    """It compares all pairs and masks: a dense prompt does the same arithmetic, without the indexer."""
    with tamis.Context(threads=1) as ctx, tamis.Model(TOY, ctx) as model:
        machine = tamis.Machine.published()
        sparse, dense = (tamis.Meter(name, ctx, machine=machine) for name in ("sparse", "dense"))
        for meter, options in ((sparse, {"top_k": 32}), (dense, {"attention": "dense"})):
            with meter:
                model.eval(model.cache().sequence(), prompts(model, [100])[0], **options)
        sparse, dense = sparse.read(), dense.read()
        assert sparse.keys_expanded == sparse.keys_dense == dense.keys_expanded > sparse.keys_attended
        assert sparse.basis == "measured" and sparse.dense_flops == dense.dense_flops
        assert 0 < sparse.dense_nanoseconds < sparse.nanoseconds


@pytest.mark.parametrize("step_tokens", [0, 96])  # a prompt in one step, and cut among steps with its neighbours
def test_a_batch_charges_each_sequence_its_own(step_tokens):
    with (tamis.Context(threads=2) as ctx, tamis.Model(TOY, ctx, step_tokens=step_tokens) as model,
          model.cache() as cache):
        machine = tamis.Machine.published()
        root = tamis.Meter("all", machine=machine)
        tenants = [tamis.Meter(name, root) for name in "abc"]
        entered = tamis.Meter("whoever calls", root)
        owners = [tenants[0], tenants[1], None, tenants[0], tenants[2]]
        texts = prompts(model, [100, 80, 95, 70, 75] if step_tokens == 0 else [200, 37, 64, 5, 1])
        before, sequences = ctx.counters(), []
        for owner in owners:
            sequences.append(cache.sequence())
            sequences[-1].charge_to(owner)
        with entered:
            model.eval(sequences, texts, top_k=32)
            model.eval(sequences, [[5]] * len(sequences), top_k=32)
        spent, costs = ctx.counters() - before, [meter.read() for meter in (*tenants, entered)]
        whole = root.read()
        for name in ADDED:
            assert sum(getattr(cost, name) for cost in costs) == getattr(whole, name), name
        for name in ("queries", "keys_scored", "keys_selected", "keys_attended", "keys_expanded", "flops", "bytes", "dense_flops"):
            assert getattr(whole, name) == getattr(spent, name), name
        assert (whole.nanoseconds, whole.cpu_nanoseconds) == (spent.wall_nanoseconds, spent.cpu_nanoseconds)
        assert 0 < whole.keys_expanded < whole.keys_dense  # the long ones took the expanded form, decode did not
        assert sum(cost.calls for cost in costs) == whole.calls
        assert all(cost.nanoseconds > 0 for cost in costs) and whole.basis == "analytic"
        assert tamis.Meter.of(ctx).read().flops == 0  # not the context's own root: this tree has another
        # What each pays in counts is what its sequences take alone (what a step makes for all its rows depends on how it
        # is cut); of the weights, which are read once, it pays a share.
        for owner, cost in zip((*tenants, None), costs):
            alone = tamis.Meter("alone", machine=machine)
            for text in (text for text, payer in zip(texts, owners) if payer is owner):
                with cache.sequence() as sequence, alone:
                    model.eval(sequence, text, top_k=32)
                    model.eval(sequence, [5], top_k=32)
            found = alone.read()
            for name in EXACT if step_tokens == 0 else KEYS:
                assert getattr(cost, name) == getattr(found, name), name
            assert cost.bytes < found.bytes or step_tokens


def test_operators_over_a_batch_charge_each_sequence():
    rng = np.random.default_rng(5)
    with (tamis.Context(threads=1) as ctx,
          tamis.Cache(ctx, key_dim=64, value_dim=32, index_dim=32, kv_dtype="f32", index_dtype="f32") as cache):
        meters, sequences = [tamis.Meter(str(i), ctx) for i in range(3)], []
        for meter, length in zip(meters, (900, 70, 400)):
            sequence = cache.sequence()
            sequence.extend(length)
            sequence.charge_to(meter)
            sequence.write(0, 0, rng.standard_normal((length, 64), np.float32),
                           index_key=rng.standard_normal((length, 32), np.float32))
            sequences.append(sequence)
        rows = [2, 0, 3]
        chosen = cache.select(sequences, 0, rng.standard_normal((5, 4, 32), np.float32),
                              rng.standard_normal((5, 4), np.float32), k=64, rows=rows)
        cache.attend(sequences, 0, rng.standard_normal((5, 8, 64), np.float32), rows=rows, indices=chosen)
        costs = [meter.read() for meter in meters]
        assert [cost.calls for cost in costs] == [3, 1, 3]  # each write, then what there was to do for it
        assert [cost.keys_dense for cost in costs] == [899 + 900, 0, 398 + 399 + 400]
        assert [cost.keys_attended for cost in costs] == [128, 0, 192]
        assert costs[0].keys_scored == 899 + 900
        whole, counters = tamis.Meter.of(ctx).read(), ctx.counters()
        for name in ("queries", "keys_scored", "keys_attended", "flops", "bytes", "dense_flops", "cpu_nanoseconds"):
            assert sum(getattr(cost, name) for cost in costs) == getattr(whole, name) == getattr(counters, name), name
        assert (whole.calls, counters.calls) == (7, 5)
        sequences[0].charge_to(None)
        sequences[0].attend(0, np.zeros((1, 8, 64), np.float32))
        assert meters[0].read() == costs[0] and tamis.Meter.of(ctx).read().calls == 8
        with pytest.raises(tamis.ArgumentError, match="closed"):
            meters[1].close()
            sequences[1].charge_to(meters[1])
        sequences[1].attend(0, np.zeros((1, 8, 64), np.float32))  # its meter lives on
        assert tamis.Meter.of(ctx).read().calls == 9
