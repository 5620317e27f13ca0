"""Machines, predictions, prices: the published figures through the package, and what must be refused."""
import decimal
import json

import pytest
from conftest import ROOT

import tamis

TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"

D = decimal.Decimal


def dollars_per_million(prediction):
    return prediction.seconds * 2 / 3600 * 1e6


@pytest.mark.parametrize(("keys", "phase", "mode", "dollars"), [
    (0, "prefill", "sparse", 0.0611), (8192, "decode", "sparse", 0.1506), (32768, "prefill", "dense", 0.2061),
    (131071, "decode", "dense", 2.1543), (131071, "decode", "sparse", 0.2491)])
def test_figure_3(keys, phase, mode, dollars):
    h800 = tamis.Machine.published("H800")
    assert dollars_per_million(h800.token(keys, phase, mode=mode)) == pytest.approx(dollars, rel=0.01)


def test_a_request_and_its_break_even():
    h800 = tamis.Machine.published()
    dense, sparse = (tamis.predict(h800, 4000, 500, mode=mode) for mode in ("dense", "sparse"))
    assert dense.seconds / sparse.seconds == pytest.approx(0.87, rel=0.01)  # DSA is dearer here
    assert sparse.low_seconds <= sparse.seconds < sparse.high_seconds and sparse.basis == "analytic"
    assert sparse.seconds == pytest.approx(sparse.prefill_seconds + sparse.decode_seconds)
    for kind, tokens in (("decode", 4871), ("prefill", 10646), ("prompt", 18100)):
        found = h800.break_even(kind)
        assert found.tokens == pytest.approx(tokens, rel=0.01) and found.low < found.tokens < found.high
    cached = h800.request(4000, 500, cached_tokens=3600, mode="sparse")
    assert cached.prefill_seconds < sparse.prefill_seconds and cached.decode_seconds == sparse.decode_seconds
    assert "fleet" in h800.profile["trust"]["note"]


def test_another_architecture():
    h800 = tamis.Machine.published()
    small = tamis.Architecture(layers=2, heads=4, key_dim=32, value_dim=16, expanded_key_dim=24, expanded_value_dim=8,
                               index_heads=2, index_dim=16, top_k=64, active_parameters=1000, cache_bytes=64,
                               index_key_bytes=20)
    keys = 1000
    found = h800.token(keys, "decode", mode="sparse", architecture=small)
    assert found.flops == 2 * 1000 + keys * 2 * 2 * 16 * 2 + 64 * 2 * 4 * (32 + 16) * 2
    assert found.bytes == 1000 + keys * 20 * 2 + 64 * 64 * 2
    none = h800.token(keys, "decode", mode="sparse", architecture=tamis.Architecture(active_parameters=0))
    assert none.flops == keys * 2 * 64 * 128 * 61 + keys * 0 + min(keys, 2048) * 2 * 128 * 1088 * 61


def test_architecture_of_a_config():
    """Against the published 36.62 billion active parameters and the shapes of DeepSeek-V3.2's config.json."""
    config = {"num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128, "kv_lora_rank": 512,
              "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128, "q_lora_rank": 1536,
              "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048, "first_k_dense_replace": 3,
              "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "moe_intermediate_size": 2048,
              "intermediate_size": 18432, "vocab_size": 129280}
    found = tamis.Architecture.from_config(config, cache_bytes=656)
    assert found.active_parameters == pytest.approx(36.62e9, rel=0.001)
    assert (found.key_dim, found.expanded_key_dim, found.top_k, found.index_key_bytes) == (576, 192, 2048, 132)
    # Of the published shapes: 1536 to 64 heads of 128, 7168 to a key and to 64 weights; 129,280 x 7168 in the head.
    assert found.index_parameters == 61 * (12_582_912 + 917_504 + 458_752) and found.head_parameters == 926_679_040
    assert found.weight_matrices == 61 * 6 + 3 * 3 + 58 * (9 * 3 + 1) + 1
    assert found.weight_bytes == found.active_parameters
    for options, size in (({"dtype": "bfloat16"}, 2), ({"torch_dtype": "float32"}, 4),
                          ({"torch_dtype": "bfloat16", "quantization_config": {"quant_method": "fp8"}}, 1)):
        other = tamis.Architecture.from_config({**config, **options}, cache_bytes=656)
        assert other.weight_bytes == size * found.active_parameters
    with pytest.raises(tamis.ArgumentError, match="kv_lora_rank"):
        tamis.Architecture.from_config({name: config[name] for name in config if name != "kv_lora_rank"})


def test_this_machine_is_measured_saved_and_loaded(tmp_path):
    shape = tamis.Architecture(layers=1, heads=4, key_dim=64, value_dim=32, index_heads=4, index_dim=32, top_k=64,
                               active_parameters=0)
    with tamis.Context(threads=1) as ctx:
        machine = tamis.Machine.measure(ctx, name="here", price_per_hour="0.10", currency="EUR", architecture=shape)
        assert ctx.counters("select").calls > 0
    assert machine.request(1000, 10, architecture=shape).basis == "calibrated"
    assert machine.profile["price_per_hour"] == {"amount": "0.1", "currency": "EUR"}
    machine.save(tmp_path / "machine.json")
    again = tamis.Machine.load(tmp_path / "machine.json")
    assert again.profile == machine.profile
    spoilt = json.loads(machine.text())
    spoilt["decode"]["dense"]["efficiency"] = -1
    with pytest.raises(tamis.ArgumentError, match="efficiency"):
        tamis.Machine.parse(json.dumps(spoilt))
    with pytest.raises(tamis.FormatError):
        tamis.Machine.parse("{")


def test_a_model_times_its_own_steps(tmp_path):
    """A token behind 500 others, as was timed, costs what the timed one cost; FLOP are those that the counters see."""
    shape = tamis.Architecture.from_config(TOY)
    with tamis.Context(threads=1) as ctx, tamis.Model(TOY, ctx) as model, tamis.Context(threads=1) as other:
        meter = tamis.Meter("measuring", ctx)
        with meter:
            own = tamis.Machine.measure(ctx, architecture=shape, model=model)
        assert meter.read().calls > 0 and meter.read().keys_expanded > 0  # charged as other calls
        plain = tamis.Machine.measure(ctx, architecture=shape)
        assert "steps of a deepseek_v32 (4 layers): a prompt of 512" in own.profile["trust"]["note"]
        assert "norms, routing and sampling are not" in plain.profile["trust"]["note"]
        for machine in (own, plain):
            assert machine.profile["prefill"]["expanded"]["efficiency"] > 0
            assert machine.profile["decode"]["expanded"] is None
            assert machine.profile["decode"]["linear_bytes_per_second"] > 0
        for phase in ("prefill", "decode"):
            name = "overhead_seconds_per_layer"
            assert own.profile[phase][name] > 0
        with pytest.raises(tamis.ArgumentError, match="another context"):
            tamis.Machine.measure(other, architecture=shape, model=model)
        # Active parameters and the indexer's are what a decoded token multiplies, but for attention.
        with model.cache() as cache, cache.sequence() as sequence:
            model.eval(sequence, [5] * 300)
            before = ctx.counters("project")
            model.eval(sequence, [7])
            linear = (ctx.counters("project") - before).flops
        attended = 128 * 2 * shape.heads * (shape.key_dim + shape.value_dim) * shape.layers
        scored = 301 * 2 * shape.index_heads * shape.index_dim * shape.layers
        assert own.token(301, mode="sparse", architecture=shape).flops == linear + attended + scored


def test_profiles_of_before_are_read():
    """Without the rates that were not measured then; the expanded form is predicted at the dense rate."""
    h800 = json.loads(tamis.Machine.published().text())
    for phase in ("prefill", "decode"):
        for name in ("expanded", "linear_bytes_per_second", "seconds_per_matrix", "expanded_overhead_seconds_per_layer"):
            del h800[phase][name]
    assert tamis.Machine.parse(json.dumps(h800)).profile == tamis.Machine.published().profile
    h800["prefill"]["expanded"] = {"precision": "sixteen_bit", "efficiency": 7}
    with pytest.raises(tamis.ArgumentError, match="efficiency"):
        tamis.Machine.parse(json.dumps(h800))
    h800["prefill"]["expanded"] = None
    h800["decode"]["seconds_per_matrix"] = -1
    with pytest.raises(tamis.ArgumentError, match="overhead"):
        tamis.Machine.parse(json.dumps(h800))


def test_list_prices_are_exact():
    assert tamis.Prices().bill(input_tokens=10_000, cached_tokens=9_000, output_tokens=500).amount == D("0.000742")
    tiered = tamis.Prices(input=1, output="2", cached="0.1", currency="EUR", cache_storage="36",
                          tiers=[{"above": 1000, "input": D("2"), "output": "4"}])
    assert str(tiered.bill(input_tokens=1000, output_tokens=1)) == "0.001002 EUR"
    assert tiered.bill(input_tokens=1001, cached_tokens=1).amount == D("0.002002")
    assert tiered.bill(cache_token_seconds=3600 * 500).amount == D("0.018")


def test_machine_and_energy_prices():
    both = tamis.Prices(machine_hour="2", busy_share="0.25", kilowatt_hour="0.31")
    assert both.bill(kind="machine", nanoseconds=3600 * 10**9).amount == D("0.5")
    assert both.bill(kind="energy", microjoules=36 * 10**11).amount == D("0.31")
    with pytest.raises(tamis.UnsupportedError, match="energy was not measured"):
        both.bill(kind="energy")
    with pytest.raises(tamis.UnsupportedError):
        both.bill(input_tokens=5)


@pytest.mark.parametrize(("options", "match"), [
    ({"input": "-1", "output": 1}, "-0.000001"), ({"input": 0.28, "output": 1}, "decimal"),
    ({"input": "1"}, "without input and output"), ({"input": 1, "output": 1, "currency": "QQQ"}, "currency"),
    ({"machine_hour": "1e12"}, "1000000000"), ({"machine_hour": "NaN"}, "not a number"),
    ({"kilowatt_hour": "1", "currency": "\0"}, "currency"), ({"input": 1, "output": 1, "tiers": [{"input": 1}]}, "above"),
])
def test_prices_refused(options, match):
    with pytest.raises((tamis.ArgumentError, tamis.FormatError), match=match):
        tamis.Prices(**options)


def test_binary_money_is_refused_and_closed_objects_too():
    prices = tamis.Prices()
    with pytest.raises(tamis.ArgumentError, match="cached"):
        prices.bill(input_tokens=1, cached_tokens=2)
    with pytest.raises(tamis.ArgumentError, match="has no tokens"):
        prices.bill(tokens=2)
    prices.close()
    with pytest.raises(tamis.ArgumentError, match="is closed"):
        prices.bill()
