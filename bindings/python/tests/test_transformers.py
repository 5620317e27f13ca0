"""tamis.transformers against the unpatched models of transformers itself: tiny random models of every family, past
several multiples of index_topk. Skipped where torch or transformers is missing."""
import contextlib
import copy

import numpy as np
import pytest
from conftest import VOCABULARY, difference, logits, prompt

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers", "5.23")

import tamis  # noqa: E402
import tamis.transformers  # noqa: E402

TOPK = 12
torch.set_num_threads(1)  # of models as small as these; threads that wait for each other take the time
SMALL = dict(vocab_size=VOCABULARY, hidden_size=48, intermediate_size=64, moe_intermediate_size=32,
             num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, kv_lora_rank=24,
             q_lora_rank=40, qk_rope_head_dim=8, v_head_dim=20, qk_nope_head_dim=16, num_experts_per_tok=2,
             index_topk=TOPK, index_head_dim=16, index_n_heads=24, max_position_embeddings=512, initializer_range=0.2,
             bos_token_id=1, eos_token_id=None, pad_token_id=0)
FULL_SHARED = ["full", "shared", "full", "shared"]
MODELS = {
    "deepseek_v32": ("DeepseekV32", dict(n_group=2, topk_group=1)),
    "glm_moe_dsa": ("GlmMoeDsa", dict(indexer_types=FULL_SHARED)),
    "axk2": ("AXK2", {}),
    "hy_v4": ("HYV4", dict(indexer_types=FULL_SHARED, learnable_sink_init=0.3)),
    "mistral_large4": ("MistralLarge4Text", dict(indexer_types=["full", "shared", "full", "full"],
                                                 no_rope_layers=[1, 1, 1, 0], kv_source_layers=[0, 0, 0, 3])),
    "dots3_note": ("Dots3Note", dict(sliding_window=16, head_dim=24,
                                     layer_types=["indexed_attention", "sliding_attention"] * 2)),
}


def tiny(family, dtype=torch.float32, **changes):
    """A random model; the same one each time."""
    name, special = MODELS[family]
    settings = {**SMALL, **special, **changes}
    if family == "mistral_large4":
        return tiny_mistral(settings).to(dtype).eval()
    if family == "dots3_note":
        settings |= {f"swa_{key}": SMALL[key] for key in ("num_attention_heads", "num_key_value_heads", "q_lora_rank",
                                                          "kv_lora_rank", "qk_nope_head_dim", "v_head_dim")}
        settings["swa_head_dim"] = 24
    config = getattr(hf, name + ("TextConfig" if family == "dots3_note" else "Config"))(**settings)
    torch.manual_seed(3)
    return getattr(hf, name + "ForCausalLM")(config).to(dtype).eval()


def tiny_mistral(settings):
    settings.pop("q_lora_rank")
    text = hf.MistralLarge4TextConfig(**settings)
    vision = hf.PixtralVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                    patch_size=14, image_size=28)
    torch.manual_seed(3)
    return hf.MistralLarge4ForConditionalGeneration(hf.MistralLarge4Config(text_config=text, vision_config=vision))


@contextlib.contextmanager
def accelerated(model, **options):
    tamis.transformers.accelerate(model, **options)
    try:
        yield model
    finally:
        tamis.transformers.restore(model)


@pytest.mark.parametrize("family", MODELS)
def test_logits_agree(family):
    model = tiny(family)
    ids, mask = prompt(5 * TOPK, 2, pads=(0, 17))
    expected = logits(model, ids, mask)
    with accelerated(model):
        assert difference(logits(model, ids, mask), expected, mask) < 1e-4
        assert difference(logits(model, ids, mask, use_cache=False), expected, mask) < 1e-4
    assert torch.equal(logits(model, ids, mask), expected)


@pytest.mark.parametrize("family", MODELS)
def test_a_prompt_in_pieces_agrees(family):
    model = tiny(family)
    ids, mask = prompt(5 * TOPK, 2, pads=(3, 0))
    expected = logits(model, ids, mask)
    with accelerated(model):
        cache, got, begin = hf.DynamicCache(config=model.config), [], 0
        for end in (7, 8, 30, 31, 5 * TOPK):
            got.append(logits(model, ids[:, begin:end], mask[:, :end], past_key_values=cache))
            begin = end
            assert cache.get_seq_length() == end
    assert difference(torch.cat(got, 1), expected, mask) < 1e-4


def indexers(model):
    return [module for module in model.modules() if hasattr(module, "weights_proj")]


@contextlib.contextmanager
def recorded(model, monkeypatch):
    """What each indexer returned and, of an unpatched one, the masked scores that it called topk on."""
    returned, scores, inside, topk = [], [], [], torch.Tensor.topk

    def watch(self, *arguments, **named):
        if inside:
            scores.append(self)
        return topk(self, *arguments, **named)

    def leave(_module, _given, result):
        inside.pop()
        returned.append(result)

    hooks = [hook for indexer in indexers(model) for hook in (
        indexer.register_forward_pre_hook(lambda *_: inside.append(1)), indexer.register_forward_hook(leave))]
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "topk", watch)
        yield returned, scores
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("family", MODELS)
def test_the_same_tokens_are_selected(family, monkeypatch):
    model = tiny(family)
    length = 5 * TOPK
    ids, mask = prompt(length, 2, pads=(0, 17))
    with recorded(model, monkeypatch) as (_, scores):
        logits(model, ids, mask)
    with accelerated(model), recorded(model, monkeypatch) as (chosen, _):
        logits(model, ids, mask)
    assert len(scores) == len(chosen) == len(indexers(model)) > 0
    for expected, got in zip(scores, chosen):
        first = 0
        for row in range(2):
            places = mask[row].nonzero()[:, 0]
            for count, place in enumerate(places.tolist(), 1):
                visible = expected[row, place, places[:count]]
                kept = got[first]
                kept = kept[kept >= 0].long()
                assert len(kept) == min(TOPK, count) == len(set(kept.tolist())) and kept.max() < count
                # exactly the best by transformers' own scores, up to the rounding of another order of summation
                worst, best = visible[kept].min(), visible.sort().values[-len(kept)]
                assert worst >= best - 1e-5 * visible.abs().max()
                first += 1
        assert first == len(got)


@pytest.mark.parametrize("family", MODELS)
def test_bfloat16_is_as_near_as_the_unpatched_model(family):
    exact = tiny(family)
    rough = tiny(family, torch.bfloat16)
    exact.load_state_dict(rough.state_dict())
    ids, _ = prompt(4 * TOPK)
    truth, plain = logits(exact, ids), logits(rough, ids).float()
    with accelerated(rough):
        ours = logits(rough, ids).float()
    error = (ours - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    usual = (plain - truth).square().mean().sqrt() / truth.square().mean().sqrt()
    assert error < 1.3 * usual + 0.01


def same_text(model, ids, mask, **options):
    """Does the accelerated model generate the same tokens?"""
    options = dict(max_new_tokens=TOPK + 4, pad_token_id=0, suppress_tokens=[0], attention_mask=mask) | options
    torch.manual_seed(5)
    expected = model.generate(ids, **options)
    with accelerated(model):
        torch.manual_seed(5)
        got = model.generate(ids, **options)
    return torch.equal(got, expected)


WAYS = {
    "greedy": dict(do_sample=False),
    "sampling": dict(do_sample=True, temperature=0.8, top_k=20),
    "beams": dict(do_sample=False, num_beams=3, num_return_sequences=2),
    "beam sampling": dict(do_sample=True, num_beams=2),
    "a prompt in chunks": dict(do_sample=False, prefill_chunk_size=10),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", ["deepseek_v32", "glm_moe_dsa"])
def test_generate(family, way):
    assert same_text(tiny(family), *prompt(3 * TOPK, 3, pads=(0, 5, 20)), **WAYS[way])


@pytest.mark.parametrize("family", ["axk2", "hy_v4", "mistral_large4", "dots3_note"])
def test_generate_with_beams_and_padding(family):
    assert same_text(tiny(family), *prompt(3 * TOPK, 2, pads=(0, 9)), do_sample=False, num_beams=2)


def test_generate_that_looks_ahead_and_crops():
    model = tiny("deepseek_v32")
    ids, mask = prompt(3 * TOPK)
    ids = torch.cat((ids, ids), 1)
    assert same_text(model, ids, torch.ones_like(ids), do_sample=False, prompt_lookup_num_tokens=4)


def test_a_conversation_goes_on_in_its_cache():
    model = tiny("glm_moe_dsa")
    ids, _ = prompt(2 * TOPK)
    options = dict(max_new_tokens=TOPK, do_sample=False, pad_token_id=0, suppress_tokens=[0],
                   return_dict_in_generate=True)

    def talk(cache):
        first = model.generate(ids, past_key_values=cache, **options)
        more = torch.cat((first.sequences, ids[:, :5]), 1)
        second = model.generate(more, past_key_values=first.past_key_values, **options)
        assert second.past_key_values is cache
        cache.crop(-3)
        again = model.generate(second.sequences[:, :-2], past_key_values=cache, **options)
        return torch.cat((second.sequences, again.sequences), 1)

    expected = talk(hf.DynamicCache(config=model.config))
    with accelerated(model):
        cache = hf.DynamicCache(config=model.config)
        assert torch.equal(talk(cache), expected)
        assert all(isinstance(layer, tamis.transformers.IndexedLayer) for layer in cache.layers)


def test_changed_weights_are_seen():
    model = tiny("deepseek_v32")
    ids, _ = prompt(40)
    with accelerated(model):
        logits(model, ids)
        with torch.no_grad():
            for layer in model.model.layers:
                layer.self_attn.kv_b_proj.weight.mul_(1.5)
        got = logits(model, ids)
        with torch.inference_mode():
            assert torch.equal(model(ids).logits, got)
    assert difference(got, logits(model, ids)) < 1e-4


def test_a_copied_cache_is_a_fork():
    model = tiny("deepseek_v32")
    ids, _ = prompt(40)
    expected = logits(model, ids)
    with accelerated(model):
        cache = hf.DynamicCache()
        logits(model, ids[:, :30], past_key_values=cache)
        copied = copy.deepcopy(cache)
        logits(model, ids[:, :7], past_key_values=copied)
        assert (cache.get_seq_length(), copied.get_seq_length()) == (30, 37)
        got = logits(model, ids[:, 30:], past_key_values=cache)
    assert difference(got, expected[:, 30:]) < 1e-4


@pytest.mark.parametrize("family", ["glm_moe_dsa", "mistral_large4"])
def test_cached_tokens_may_become_padding(family):
    model = tiny(family)
    ids, mask = prompt(70, 2, pads=(0, 4))
    later = mask.clone()
    later[0, 20:27] = later[1, 38] = 0

    def in_two(**named):
        logits(model, ids[:, :40], mask[:, :40], **named)
        return logits(model, ids[:, 40:], later, **named)

    expected = in_two(past_key_values=hf.DynamicCache(config=model.config))
    with accelerated(model):
        assert difference(in_two(past_key_values=hf.DynamicCache(config=model.config)), expected) < 1e-4


def test_beams_share_their_pages():
    model = tiny("deepseek_v32")
    ids, _ = prompt(200)
    with accelerated(model):
        cache = hf.DynamicCache()
        logits(model, ids, past_key_values=cache)
        pages = cache.layers[0].sequences[0].cache.bytes()
        cache.batch_repeat_interleave(4)
        assert cache.layers[0].sequences[0].cache.bytes() == pages
        cache.reorder_cache(torch.tensor([3, 3, 0, 1]))
        assert cache.layers[0].sequences[0].cache.bytes() == pages and len(cache.layers[0].sequences) == 4


def test_long_prompts_are_cut_into_blocks():
    model = tiny("deepseek_v32", num_hidden_layers=2)
    ids, mask = prompt(700, 2, pads=(0, 129))
    expected = logits(model, ids, mask)
    with accelerated(model):
        assert difference(logits(model, ids, mask), expected, mask) < 1e-4


def test_the_counters_show_the_saving():
    model = tiny("deepseek_v32")
    ids, _ = prompt(8 * TOPK)
    ctx = tamis.Context(threads=1)
    with accelerated(model, ctx=ctx):
        logits(model, ids)
    done, rows = ctx.counters("attend"), np.arange(1, 8 * TOPK + 1)
    assert done.keys_attended == 4 * np.minimum(rows, TOPK).sum()
    assert done.keys_dense == 4 * rows.sum()


def test_index_keys_of_8_bits():
    model = tiny("deepseek_v32")
    ids, _ = prompt(4 * TOPK)
    expected = logits(model, ids)
    with accelerated(model, index_dtype="i8"):
        assert difference(logits(model, ids), expected) < 0.5  # near ties may fall otherwise


# ------------------------------------------------- Refusals -------------------------------------------------


def state(model):
    return [(name, sorted(vars(module)), vars(module).get("config")) for name, module in model.named_modules()]


def test_unknown_models_are_refused_untouched():
    config = hf.LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                            num_attention_heads=2)
    model = hf.LlamaForCausalLM(config)
    before = state(model)
    with pytest.raises(tamis.UnsupportedError, match="in 'llama', expected one of the families deepseek_v32, glm_moe"):
        tamis.transformers.accelerate(model)
    assert state(model) == before
    with pytest.raises(tamis.ArgumentError, match="expected a torch.nn.Module"):
        tamis.transformers.accelerate("deepseek")
    with pytest.raises(tamis.ArgumentError, match="index_dtype 'f8' is not"):
        tamis.transformers.accelerate(tiny("deepseek_v32"), index_dtype="f8")
    with pytest.raises(tamis.UnsupportedError, match="lies on meta"):
        tamis.transformers.accelerate(tiny("deepseek_v32").to("meta"))


def test_twice_and_back():
    model = tiny("deepseek_v32")
    before = state(model)
    tamis.transformers.accelerate(model)
    with pytest.raises(tamis.ArgumentError, match="accelerated already"):
        tamis.transformers.accelerate(model)
    assert tamis.transformers.restore(model) is model and state(model) == before
    with pytest.raises(tamis.ArgumentError, match="is not accelerated"):
        tamis.transformers.restore(model)


def test_foreign_caches_are_refused():
    model, other = tiny("deepseek_v32"), tiny("deepseek_v32")
    ids, _ = prompt(20)
    plain, ours = hf.DynamicCache(config=model.config), hf.DynamicCache(config=model.config)
    logits(model, ids, past_key_values=plain)
    with accelerated(model), accelerated(other):
        logits(model, ids, past_key_values=ours)
        for cache, text in ((plain, "filled without Tamis"), (hf.StaticCache(config=model.config, max_cache_len=50),
                                                              "is StaticCache, expected a DynamicCache")):
            with pytest.raises(tamis.ArgumentError, match=text):
                logits(model, ids, past_key_values=cache)
        with pytest.raises(tamis.ArgumentError, match="belongs to another model"):
            logits(other, ids, past_key_values=ours)
        with pytest.raises(tamis.ArgumentError, match="holds 1 sequences, expected 2"):
            logits(model, ids.repeat(2, 1), past_key_values=ours)
        assert ours.get_seq_length() == 20
    with pytest.raises(tamis.ArgumentError, match="the model that uses it now is not"):
        logits(model, ids, past_key_values=ours)


def test_masks_that_cannot_be_kept_are_refused():
    model = tiny("deepseek_v32")
    ids, mask = prompt(20, 2, pads=(0, 4))
    with accelerated(model):
        cache = hf.DynamicCache()
        logits(model, ids, mask, past_key_values=cache)
        longer = torch.cat((mask, mask[:, -1:]), 1)
        for wrong, text in ((None, "some cached tokens are padding"), (mask, r"is \[2, 20\], expected \[2, 21\]"),
                            (torch.ones_like(longer), "were padding when they came"),
                            (longer[:, None, None], r"is \[2, 1, 1, 21\], expected \[2, 21\]")):
            with pytest.raises(tamis.ArgumentError, match=text):
                logits(model, ids[:, :1], wrong, past_key_values=cache)
        with pytest.raises(tamis.UnsupportedError, match="packed"):
            logits(model, ids, position_ids=torch.tensor([list(range(10)) * 2]))
        assert cache.get_seq_length() == 20
        logits(model, ids[:, :1], longer, past_key_values=cache)


def test_a_failed_pass_leaves_the_cache_as_it_was():
    model = tiny("deepseek_v32")
    ids, _ = prompt(60)
    expected = logits(model, ids)
    with accelerated(model):
        cache = hf.DynamicCache()
        logits(model, ids[:, :40], past_key_values=cache)
        mlp = model.model.layers[2].mlp
        hook = mlp.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            logits(model, ids[:, 40:], past_key_values=cache)
        hook.remove()
        assert [layer.get_seq_length() for layer in cache.layers] == [40] * 4
        assert difference(logits(model, ids[:, 40:], past_key_values=cache), expected[:, 40:]) < 1e-4


def test_a_budget_is_an_error_and_nothing_is_lost():
    model = tiny("deepseek_v32")
    ids, _ = prompt(64)
    measure = tamis.Context(threads=1)
    with accelerated(model, ctx=measure):
        expected = logits(model, ids)
    enough = measure.bytes()[1] + 20_000
    with tamis.Context(threads=1, max_bytes=enough) as ctx, accelerated(model, ctx=ctx):
        cache = hf.DynamicCache()
        logits(model, ids[:, :40], past_key_values=cache)
        with pytest.raises(tamis.BudgetError):
            logits(model, ids.repeat(1, 40), past_key_values=cache)
        assert difference(logits(model, ids[:, 40:], past_key_values=cache), expected[:, 40:]) < 1e-4


def test_a_backward_pass_is_refused():
    model = tiny("deepseek_v32")
    with accelerated(model):
        loss = model(prompt(20)[0]).logits.sum()
        with pytest.raises(tamis.UnsupportedError, match="has no backward pass"):
            loss.backward()


def test_a_copied_model_is_accelerated_on_its_own():
    model = tiny("deepseek_v32")
    ids, _ = prompt(40)
    expected = logits(model, ids)
    with accelerated(model):
        other = copy.deepcopy(model)
        with torch.no_grad():
            model.model.embed_tokens.weight.zero_()
        assert difference(logits(other, ids), expected) < 1e-4
    assert torch.equal(logits(tamis.transformers.restore(other), ids), expected)


def test_naming_the_attention_is_not_enough():
    model = tiny("deepseek_v32")
    model.config._attn_implementation = "tamis"
    with pytest.raises(tamis.ArgumentError, match="call tamis.transformers.accelerate"):
        logits(model, prompt(20)[0], torch.ones((1, 1, 20, 20), dtype=torch.bool).tril())
