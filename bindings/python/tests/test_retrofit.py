"""tamis.transformers.retrofit: tiny random dense models of every family against their unpatched selves, whole and
masked to what was selected. Skipped where torch or transformers is missing."""
import contextlib
import copy
import json

import numpy as np
import pytest
from conftest import ROOT, VOCABULARY, difference, logits, prompt

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers", "5.23")

import tamis  # noqa: E402
import tamis.transformers  # noqa: E402
from tamis.transformers import _dense  # noqa: E402

K = 12
torch.set_num_threads(1)
SMALL = dict(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.2, bos_token_id=1,
             eos_token_id=None, pad_token_id=0)
LATENT = dict(num_key_value_heads=4, kv_lora_rank=24, q_lora_rank=40, qk_rope_head_dim=8, v_head_dim=20,
              qk_nope_head_dim=16, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_group=2,
              topk_group=1, first_k_dense_replace=1)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
MODELS = {
    "llama": ("Llama", dict(num_key_value_heads=4)),
    "mistral": ("Mistral", dict(sliding_window=None)),
    "mixtral": ("Mixtral", dict(num_local_experts=4, num_experts_per_tok=2)),
    "qwen2": ("Qwen2", {}),
    "qwen2_moe": ("Qwen2Moe", EXPERTS),
    "qwen3": ("Qwen3", dict(head_dim=16)),
    "qwen3_moe": ("Qwen3Moe", EXPERTS | dict(head_dim=16)),
    "olmo2": ("Olmo2", {}),
    "granite": ("Granite", dict(attention_multiplier=0.2)),
    "smollm3": ("SmolLM3", dict(no_rope_layers=[1, 0, 1])),
    "phi3": ("Phi3", {}),
    "deepseek_v3": ("DeepseekV3", LATENT),
}
SOME = ["qwen3", "deepseek_v3"]


def tiny(family, dtype=torch.float32, **changes):
    """A random model; the same one each time."""
    name, special = MODELS[family]
    config = getattr(hf, name + "Config")(**{**SMALL, **special, **changes})
    torch.manual_seed(3)
    return getattr(hf, name + "ForCausalLM")(config).to(dtype).eval()


def texts(count=10, length=100):
    return [torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(n)) for n in range(count)]


def fitted(model, **options):
    return tamis.transformers.retrofit(model, texts(), **dict(
        k=K, length=100, rows=32, steps=8, dim=32, dense_below=0, share_above=2, seed=1) | options)


@contextlib.contextmanager
def retrofitted(model, **options):
    made = fitted(model, **options)
    try:
        yield made
    finally:
        tamis.transformers.restore(model)


def state(model):
    return [(name, sorted(vars(module)), vars(module).get("config"), module.training)
            for name, module in model.named_modules()]


@contextlib.contextmanager
def recorded(monkeypatch):
    """What each layer has chosen, and from what."""
    found, choose = {}, _dense.chosen

    def watch(module, layer, states, positions):
        made = choose(module, layer, states, positions)
        found[module.layer_idx] = (made.clone(), states, _dense.query_features(module, states), positions)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(_dense, "chosen", watch)
        yield found


def masked(model, ids, mask, found):
    """The unpatched model in plain torch, each row of each layer seeing only what was chosen for it."""
    real = [row.nonzero()[:, 0] for row in mask]

    def attend(module, query, key, value, attention_mask, scaling, **_):
        seen, first = torch.zeros((len(ids), 1, ids.shape[1], ids.shape[1]), dtype=torch.bool), 0
        for row, places in enumerate(real):
            for count, place in enumerate(places, 1):
                chosen = found[module.layer_idx][0][first]
                seen[row, 0, place, places[chosen[chosen >= 0].long()] if len(chosen) else places[:count]] = True
                first += 1
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -1e9)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    hf.AttentionInterface.register("masked_reference", attend)
    before = model.config._attn_implementation
    model.config._attn_implementation = "masked_reference"
    try:
        return logits(model, ids, mask)
    finally:
        model.config._attn_implementation = before


@pytest.mark.parametrize("family", MODELS)
def test_logits_agree(family, monkeypatch):
    """Dense, with k no smaller than the context, and sparse against a mask of the same selection."""
    model = tiny(family)
    before = state(model)
    ids, mask = prompt(5 * K, 2, pads=(0, 17))
    plain = logits(model, ids, mask)
    with retrofitted(model, k=96) as made:
        assert difference(logits(model, ids, mask), plain, mask) < 1e-4
        made.switch("dense")
        assert difference(logits(model, ids, mask), plain, mask) < 1e-4
    with retrofitted(model) as made, recorded(monkeypatch) as found:
        assert made.modes == ("sparse",) * 3
        sparse = logits(model, ids, mask)
        assert difference(logits(model, ids, mask, use_cache=False), sparse, mask) < 1e-6
    assert state(model) == before
    assert torch.equal(logits(model, ids, mask), plain)
    assert difference(sparse, plain, mask) > 1e-2
    assert difference(sparse, masked(model, ids, mask, found), mask) < 1e-4


@pytest.mark.parametrize("family", SOME)
def test_the_selection_is_the_indexers_best(family, monkeypatch):
    model = tiny(family)
    ids, mask = prompt(5 * K, 2, pads=(0, 17))
    with retrofitted(model) as made, recorded(monkeypatch) as found:
        logits(model, ids, mask)
    for number, (chosen, states, made_from, positions) in found.items():
        first = 0
        for row in range(2):
            places = mask[row].nonzero()[:, 0]
            at = positions.expand(2, -1)[row, places].to(torch.int32)
            q, w, key = made.indexers[number].project(states[row, places], made_from[row, places], positions=at)
            scores = np.einsum("nh,nhs->ns", w, np.maximum(np.einsum("nhd,sd->nhs", q, key), 0))
            for count in range(1, len(places) + 1):
                kept = chosen[first][chosen[first] >= 0].numpy()
                assert len(kept) == min(K, count) == len(set(kept)) and kept.max() < count
                worst, best = scores[count - 1, kept].min(), np.sort(scores[count - 1, :count])[-len(kept)]
                assert worst >= best - 1e-5 * np.abs(scores[count - 1, :count]).max()
                first += 1
        assert first == len(chosen)


@pytest.mark.parametrize("family", SOME)
def test_a_prompt_in_pieces_agrees(family):
    model = tiny(family)
    ids, mask = prompt(5 * K, 2, pads=(3, 0))
    with retrofitted(model):
        whole = logits(model, ids, mask)
        cache, got, begin = hf.DynamicCache(config=model.config), [], 0
        for end in (7, 8, 30, 31, 5 * K):
            got.append(logits(model, ids[:, begin:end], mask[:, :end], past_key_values=cache))
            begin = end
        assert all(isinstance(layer, tamis.transformers.IndexedLayer) for layer in cache.layers)
        cache.crop(-5)
        got.append(logits(model, ids[:, -5:], mask, past_key_values=cache))
    assert difference(torch.cat(got[:-1], 1), whole, mask) < 1e-4
    assert difference(got[-1], whole[:, -5:]) < 1e-4


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("family", SOME)
def test_generate(family, options):
    """With every key as the unpatched model; with k keys each token is what the whole text so far is continued with."""
    model = tiny(family)
    ids, mask = prompt(3 * K, 3, pads=(0, 5, 20))
    options = options | dict(max_new_tokens=K, do_sample=False, pad_token_id=0, suppress_tokens=[0],
                             attention_mask=mask)
    expected = model.generate(ids, **options)
    with retrofitted(model, k=96):
        assert torch.equal(model.generate(ids, **options), expected)
    if options.get("num_beams"):
        return
    with retrofitted(model):
        got = model.generate(ids, **options)
        longer = torch.cat((mask, torch.ones((3, K), dtype=mask.dtype)), 1)
        positions = (longer.cumsum(1) - 1).clamp(min=0)
        best = logits(model, got, longer, position_ids=positions)[:, :, 1:].argmax(-1) + 1
        assert torch.equal(got[:, -K:], best[:, -K - 1:-1])


def test_cached_tokens_may_become_padding():
    model = tiny("qwen3")
    ids, mask = prompt(70, 2, pads=(0, 4))
    later = mask.clone()
    later[0, 20:27] = later[1, 38] = 0

    def in_two(**named):
        logits(model, ids[:, :40], mask[:, :40], **named)
        return logits(model, ids[:, 40:], later, **named)

    expected = in_two(past_key_values=hf.DynamicCache(config=model.config))
    with retrofitted(model, k=96):
        assert difference(in_two(past_key_values=hf.DynamicCache(config=model.config)), expected) < 1e-4


@pytest.mark.parametrize("family", SOME)
def test_bfloat16(family):
    exact, rough = tiny(family), tiny(family, torch.bfloat16)
    exact.load_state_dict(rough.state_dict())
    ids, _ = prompt(4 * K)
    truth, plain = logits(exact, ids), logits(rough, ids).float()
    with retrofitted(rough, k=96):
        ours = logits(rough, ids).float()
    error = (ours - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    usual = (plain - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error < 1.3 * usual + 0.01


def test_modes():
    model = tiny("llama")
    ids, _ = prompt(5 * K)
    plain = logits(model, ids)
    ctx = tamis.Context(threads=1)
    with retrofitted(model, ctx=ctx) as made:
        sparse, before = logits(model, ids), ctx.counters("attend").keys_attended
        made.switch({1: "dense"})
        assert made.modes == ("sparse", "dense", "sparse")
        mixed = logits(model, ids)
        rows = np.arange(1, 5 * K + 1)
        assert ctx.counters("attend").keys_attended - before == 2 * np.minimum(rows, K).sum() + rows.sum()
        made.switch(["sparse", "shared", "shared"])
        scored = ctx.counters("select").keys_scored
        shared = logits(model, ids)
        assert ctx.counters("select").keys_scored - scored == rows[rows > K].sum()
        assert len({float(each.abs().sum()) for each in (plain, sparse, mixed, shared)}) == 4
        cache = hf.DynamicCache()
        logits(model, ids, past_key_values=cache)
        made.switch("dense")
        with pytest.raises(tamis.ArgumentError, match="begun while layer 0 was in another mode"):
            logits(model, ids[:, :1], past_key_values=cache)
        for wrong, text in (("sharp", "layer 0 is 'sharp'"), ({0: "shared"}, "layer before it is none"),
                            ({1: "shared"}, "layer before it is dense"), (["dense"], "names 1 layers, expected 3"),
                            ({3: "dense"}, "names layers")):
            with pytest.raises(tamis.ArgumentError, match=text):
                made.switch(wrong)
        assert made.modes == ("dense",) * 3 and difference(logits(model, ids), plain) < 1e-4


def test_modes_are_chosen_by_what_was_measured():
    model = tiny("llama")
    with retrofitted(model, dense_below=1.01) as made:
        assert made.modes == ("dense",) * 3
    with retrofitted(model, share_above=0) as made:
        assert made.modes == ("sparse", "shared", "shared")
        assert made.report.layers[0].overlap is None and 0 < made.report.layers[1].overlap < 1


def test_files(tmp_path):
    model = tiny("deepseek_v3")
    ids, _ = prompt(5 * K)
    with retrofitted(model) as made:
        made.switch({2: "shared"})
        expected = logits(model, ids)
        made.save(tmp_path / "made")
    from safetensors import safe_open
    with safe_open(tmp_path / "made" / "indexers.safetensors", "np") as file:
        assert file.get_slice("model.layers.0.self_attn.indexer.wq_b.weight").get_shape() == [4 * 32, 40]
    again = tamis.transformers.retrofit(model, indexers=tmp_path / "made")
    assert again.modes == ("sparse", "sparse", "shared") and again.k == K and again.report is None
    assert torch.equal(logits(model, ids), expected)
    tamis.transformers.restore(model)
    before = state(model)
    for other, folder, raised, text in (
            (tiny("llama"), "made", tamis.ArgumentError, "is of a 'deepseek_v3' with 3 layers"),
            (tiny("deepseek_v3", q_lora_rank=None), "made", tamis.ArgumentError, "takes 48 and 40 numbers"),
            (model, "none", tamis.FileError, "No such file"), (model, "bad", tamis.FormatError, "retrofit.json"),
            (model, "cut", tamis.FormatError, "'modes'")):
        for name, content in (("bad", "{"), ("cut", '{"k": 3}')):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "retrofit.json").write_text(content)
        with pytest.raises(raised, match=text):
            tamis.transformers.retrofit(other, indexers=tmp_path / folder)
    assert state(model) == before


def test_a_report(tmp_path):
    model = tiny("qwen2")
    machine = tamis.Machine.published()
    with retrofitted(model, steps=40, machine=machine) as made:
        report = made.report
    assert report.k == K and report.context == 100 and [one.name for one in report.layers] == ["0", "1", "2"]
    for one in report.layers:
        assert [at.k for at in one.after.at] == [3, 6, 12, 24, 48] == [cost.k for cost in one.costs[1:]]
        assert one.fit.last_loss < one.fit.first_loss
        assert one.cost(None).flops == 2 * 4 * (12 + 12) * 100 and one.cost(K).seconds > 0
        assert one.cost(K).flops == 2 * 4 * (12 + 12) * K + 2 * 4 * 32 * 100
    told = json.loads(report.json())
    assert told["layers"][2]["after"]["at"][2]["k"] == K and told["layers"][0]["costs"][0]["k"] is None
    assert "warning: few rows measured" in str(report) and " us" in str(report)
    for name, begin in (("a.svg", "<svg"), ("a.json", "{"), ("a.txt", "mass at k = 12")):
        report.save(tmp_path / name)
        assert (tmp_path / name).read_text().startswith(begin)
    import xml.etree.ElementTree as xml
    assert len(xml.fromstring(report.svg()).findall(".//{http://www.w3.org/2000/svg}polyline")) == 3 * 5


def dense_toy(folder):
    """The toy checkpoint without its indexers: a deepseek_v3, as it was before them. `folder`: an empty one."""
    toy = ROOT / "Tests" / "Fixtures" / "toy-v32"
    settings = {name: value for name, value in json.loads((toy / "config.json").read_text()).items()
                if not name.startswith("index_")}
    (folder / "config.json").write_text(json.dumps(
        settings | {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]}))
    (folder / "model.safetensors").symlink_to(toy / "model.safetensors")
    return hf.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tamis.Model(toy)


def test_a_trained_models_attention_is_found(tmp_path, monkeypatch):
    model, own = dense_toy(tmp_path)
    text = "".join((ROOT / name).read_text() for name in ("LICENSE", "include/tamis.h"))
    made = tamis.transformers.retrofit(model, [own.tokenize(text)], length=256, windows=30, steps=150, rows=128)
    for one in made.report.layers:
        assert one.share(16) > 0.85 > 2 * one.before.at[2].indexer / one.after.at[2].oracle
    # The same tensors in a DeepSeek-V3.2 checkpoint make transformers' own indexer choose the same.
    from safetensors.torch import load_file
    made.save(tmp_path / "made")
    toy = ROOT / "Tests" / "Fixtures" / "toy-v32"
    other = hf.AutoModelForCausalLM.from_pretrained(
        toy, config=hf.AutoConfig.from_pretrained(toy, index_topk=16), dtype=torch.float32, attn_implementation="eager")
    left = other.load_state_dict(load_file(tmp_path / "made" / "indexers.safetensors"), strict=False)
    assert not left.unexpected_keys
    ids = torch.from_numpy(own.tokenize(text)[:250]).long()[None]
    theirs = []

    def watch(_module, given, chosen):
        theirs.append((chosen[0].numpy(), given[0][0].contiguous(), given[1][0].contiguous()))

    for layer in other.model.layers:
        layer.self_attn.indexer.register_forward_hook(watch)
    logits(other, ids)
    made.switch("sparse")
    with recorded(monkeypatch) as ours:
        logits(model, ids)
    for number, (chosen, x, r) in enumerate(theirs):
        q, w, key = made.indexers[number].project(x, r)
        scores = np.einsum("nh,nhs->ns", w.astype(float), np.maximum(np.einsum("nhd,sd->nhs", q, key), 0))
        selected = tamis.select(q, w, key, k=16)
        # The first layer's input is torch's: in the running model it chooses the same, to the key.
        assert number or np.array_equal(ours[0][0].numpy()[16:], selected[16:])
        for row, (a, b) in enumerate(zip(selected[16:], chosen[16:]), 16):
            seen, worst = scores[row, :row + 1], np.sort(scores[row, :row + 1])[-16]
            different = np.setxor1d(a, b)
            assert np.abs(seen[different] - worst).max(initial=0) <= 1e-5 * np.abs(seen).max()
            assert number or not seen[different].any()  # and torch there, but for keys that score exactly 0
            # Often fewer than 16 keys score more than 0, and torch breaks that tie in its own way: ours are the first.
            none = np.flatnonzero(seen == 0)
            kept = np.intersect1d(a, none)
            assert np.array_equal(kept, none[:len(kept)])


def test_the_same_seed_gives_the_same_bits(monkeypatch):
    model = tiny("qwen3")
    found = []
    for seed, budget in ((1, 1 << 31), (1, 1), (2, 1 << 31)):
        monkeypatch.setattr(tamis.transformers._retrofit, "CAPTURE_BYTES", budget)  # 1: layer by layer
        with retrofitted(model, seed=seed) as made:
            found.append(made.indexers[2].project(torch.ones((1, 48)))[2])
    assert np.array_equal(found[0], found[1]) and not np.array_equal(found[0], found[2])


def test_texts_may_be_strings():
    model = tiny("llama")

    def tokenizer(text):
        return {"input_ids": [1 + ord(letter) % 96 for letter in text]}

    with pytest.raises(tamis.ArgumentError, match="need a tokenizer"):
        tamis.transformers.retrofit(model, ["some text"])
    made = tamis.transformers.retrofit(model, ["some text " * 60], tokenizer=tokenizer, length=100, steps=3, rows=16)
    assert made.k == 6 and made.report.context == 100


# ------------------------------------------------- Refusals -------------------------------------------------


def test_refusals_leave_the_model_untouched(monkeypatch):
    model = tiny("qwen3").train()
    before = state(model)
    seen = []
    for arguments, raised, text in (
            (dict(on_step=lambda layer, step, steps, loss: seen.append((layer, step)) or layer == 1),
             tamis.CancelledError, "stopped"),
            (dict(on_step=lambda *_: 1 / 0), ZeroDivisionError, "division"),
            (dict(k=100), tamis.ArgumentError, "k is 100"), (dict(k=-1), tamis.ArgumentError, "k is -1"),
            (dict(dim=20), tamis.ArgumentError, "dim is 20"),
            (dict(steps=0), tamis.ArgumentError, "steps"), (dict(index_dtype="f8"), tamis.ArgumentError, "index_dtype"),
            (dict(indexers="folder"), tamis.ArgumentError, "not both"),
            (dict(ctx=tamis.Context(max_bytes=100_000)), tamis.BudgetError, "exceed the context")):
        with pytest.raises(raised, match=text):
            fitted(model, **arguments)
    assert seen == [(0, step) for step in range(1, 9)] + [(1, 1)]
    for given, text in ((None, "expected texts"), ([], "has 0 tokens"), ([[1, 2]], "has 2 tokens"), ("text", "is one"),
                        ([[0.5] * 50], "expected integers"), ([list(range(50))], "one window")):
        with pytest.raises(tamis.ArgumentError, match=text):
            tamis.transformers.retrofit(model, given)
    assert state(model) == before
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.fill_(float("nan"))
    with pytest.raises(tamis.ArgumentError, match="sums to"):
        fitted(model)
    assert state(model) == before


def test_other_models_are_refused():
    gpt2 = hf.GPT2LMHeadModel(hf.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=VOCABULARY))
    with pytest.raises(tamis.UnsupportedError, match="in 'gpt2', expected one of the families llama, mistral"):
        fitted(gpt2)
    with pytest.raises(tamis.UnsupportedError, match="0 decoders with dense attention to all tokens"):
        fitted(tiny("mistral", sliding_window=16))
    with pytest.raises(tamis.UnsupportedError, match="lies on meta"):
        fitted(tiny("llama").to("meta"))
    with pytest.raises(tamis.ArgumentError, match="expected a torch.nn.Module"):
        tamis.transformers.retrofit("llama", texts())


def test_twice_and_back():
    model = tiny("llama")
    with retrofitted(model):
        for again in (fitted, tamis.transformers.accelerate):
            with pytest.raises(tamis.ArgumentError, match="accelerated already"):
                again(model)
    with pytest.raises(tamis.ArgumentError, match="is not accelerated"):
        tamis.transformers.restore(model)


def test_foreign_caches_are_refused():
    model, other = tiny("llama"), tiny("llama")
    ids, _ = prompt(20)
    plain, ours = hf.DynamicCache(config=model.config), hf.DynamicCache(config=model.config)
    logits(model, ids, past_key_values=plain)
    with retrofitted(model), retrofitted(other):
        logits(model, ids, past_key_values=ours)
        with pytest.raises(tamis.ArgumentError, match="filled without Tamis"):
            logits(model, ids, past_key_values=plain)
        with pytest.raises(tamis.ArgumentError, match="belongs to another model"):
            logits(other, ids, past_key_values=ours)
    with pytest.raises(tamis.ArgumentError, match="the model that uses it now is not"):
        logits(model, ids, past_key_values=ours)


def test_a_backward_pass_is_refused():
    model = tiny("llama")
    with retrofitted(model), pytest.raises(tamis.UnsupportedError, match="has no backward pass"):
        model(prompt(20)[0]).logits.sum().backward()


def test_a_copied_model_is_retrofitted_on_its_own():
    model = tiny("deepseek_v3")
    ids, _ = prompt(40)
    with retrofitted(model) as made:
        expected, other = logits(model, ids), copy.deepcopy(model)
        made.switch("dense")
        with torch.no_grad():
            model.model.embed_tokens.weight.zero_()
        assert difference(logits(other, ids), expected) < 1e-6


def test_naming_the_attention_is_not_enough():
    model = tiny("llama")
    model.config._attn_implementation = "tamis_steered"
    with pytest.raises(tamis.ArgumentError, match="call tamis.transformers.retrofit"):
        logits(model, prompt(20)[0])
