"""tamis.Model on the toy checkpoint, whose golden logits transformers made (input, and the same selection sizes)."""
import json
import struct
import threading

import numpy as np
import pytest
from conftest import ROOT

import tamis

TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"
VECTORS = ROOT / "Tests" / "ModelTests" / "Vectors"


def read_safetensors(path, named=None):
    """{name: array} of the F32 and I32 tensors of a file; `named`: only the shapes of all tensors."""
    raw = path.read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + length])
    header.pop("__metadata__", None)
    if named == "shapes":
        return {name: tuple(about["shape"]) for name, about in header.items()}
    found = {}
    for name, about in header.items():
        begin, end = (8 + length + offset for offset in about["data_offsets"])
        found[name] = np.frombuffer(raw[begin:end], {"F32": "<f4", "I32": "<i4", "I64": "<i8"}[about["dtype"]])
        found[name] = found[name].reshape(about["shape"])
    return found


GOLDEN = read_safetensors(TOY / "golden_hf_fp32.safetensors")


@pytest.fixture(scope="module")
def model():
    with tamis.Context(threads=2) as ctx, tamis.Model(TOY, ctx) as made:
        yield made


@pytest.fixture
def sequence(model):
    with model.cache() as cache, cache.sequence() as made:
        yield made


@pytest.fixture
def prompt():
    return np.ascontiguousarray(GOLDEN["input_ids"].reshape(-1), np.int32)


def test_info_is_what_the_files_say(model):
    config = json.loads((TOY / "config.json").read_text())
    shapes = read_safetensors(TOY / "model.safetensors", "shapes")
    info = model.info
    assert (info.layers, info.vocabulary, info.hidden) == (4, 2048, config["hidden_size"])
    assert (info.index_heads, info.index_dim, info.index_layers, info.top_k) == (4, 64, 4, config["index_topk"])
    assert (info.begin_token, info.end_token) == (config["bos_token_id"], config["eos_token_id"])
    assert info.max_tokens == config["max_position_embeddings"]
    assert info.parameters == sum(int(np.prod(shape)) for shape in shapes.values())
    unused = sum(int(np.prod(shape)) for name, shape in shapes.items() if ".experts." in name)
    unused = unused // info.experts * (info.experts - info.experts_per_token)
    assert info.active_parameters == info.parameters - unused - info.vocabulary * info.hidden
    assert info.weight_bytes == (TOY / "model.safetensors").stat().st_size
    assert model.describe().startswith("deepseek_v32, 4 layers, 3.6 M parameters (1.9 M active), indexer 4 x 64")


@pytest.mark.parametrize("text", ["", "def f(x):\n    return x", "naïve 中文 \U0001F980 \x00 end", "<|eos|>a<|bos|>"])
def test_text_comes_back(model, text):
    assert model.detokenize(model.tokenize(text)) == text


def test_special_tokens(model):
    end = model.info.end_token
    assert list(model.tokenize("<|eos|>")) == [end]
    plain = model.tokenize("<|eos|>", special_as_text=True)
    assert end not in plain and model.detokenize(plain) == "<|eos|>"
    assert model.detokenize([end, *model.tokenize("a"), end], skip_special=True) == "a"


def test_half_a_character(model):
    tokens = model.tokenize("\U0001F980")
    assert len(tokens) > 1
    assert b"".join(model.token_bytes([token]) for token in tokens) == "\U0001F980".encode()
    assert model.detokenize(tokens[:1]) == "\ufffd"
    assert np.array_equal(model.tokenize(b"a\xffb"), model.tokenize("a\ufffdb"))


@pytest.mark.parametrize("k", [64, 512])
def test_logits_are_those_of_transformers(k, prompt):
    with tamis.Model(TOY, widen=True) as exact, exact.cache(kv_dtype="f32", index_dtype="f32") as cache:
        logits = exact.eval(cache.sequence(), prompt, logits="all", top_k=k)
        golden = GOLDEN[f"logits_last8_k{k}"]
        assert np.abs(logits[-8:] - golden).max() <= 1e-4 * np.abs(golden).max()
        assert np.array_equal(logits.argmax(axis=1), GOLDEN[f"argmax_k{k}"])


CUTS = (1, 7, 31, 33, 64, 100, 200)  # 32 rows are the fewest that may take the expanded form


def in_pieces(model, cache, prompt, size):
    with cache.sequence() as sequence:
        return np.concatenate([model.eval(sequence, prompt[i:i + size], logits="all")
                               for i in range(0, len(prompt), size)])


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx"])  # the best there is up to these
def test_pieces_and_neighbours_change_nothing(isa, prompt):
    with (tamis.Context(threads=2, isa=isa) as ctx, tamis.Model(TOY, ctx, one_form=True) as model,
          model.cache() as cache):
        whole = model.eval(cache.sequence(), prompt, logits="all")
        for size in CUTS if isa == "amx" else CUTS[2:5]:
            assert np.array_equal(in_pieces(model, cache, prompt, size), whole), size
        first, second = cache.sequence(), cache.sequence()
        model.eval([first, second], [prompt[:200], prompt[:77]], logits=None)
        both = model.eval([second, first], [prompt[77:], prompt[200:]])
        assert np.array_equal(both[0], whole[-1]) and np.array_equal(both[1], whole[-1])
        assert len(cache.match(prompt)) == len(prompt)


def test_without_one_form_pieces_change_the_last_bits_and_neighbours_none(prompt):
    """The documented bound, 1e-4 of the largest logit in fp32; a key at the edge of the selection stays where it is."""
    with tamis.Context(threads=2) as ctx, tamis.Model(TOY, ctx, widen=True) as model:
        with model.cache(kv_dtype="f32", index_dtype="f32") as cache:
            whole = model.eval(cache.sequence(), prompt, logits="all")
            differences = [np.abs(in_pieces(model, cache, prompt, size) - whole).max() for size in CUTS]
            assert 0 < max(differences) <= 1e-4 * np.abs(whole).max()
    with tamis.Context(threads=2) as ctx, tamis.Model(TOY, ctx) as model, model.cache() as cache:
        before = ctx.counters("attend")
        prompts = [prompt[:200], prompt[:33], prompt[:150], prompt[100:101], prompt[50:]]
        alone = [model.eval(cache.sequence(), one, logits="all") for one in prompts]
        assert ctx.counters("attend").keys_expanded > before.keys_expanded
        together = model.eval([cache.sequence() for _ in prompts], prompts, logits="all")
        assert np.array_equal(together, np.concatenate(alone))


def test_selected_sees_and_changes_the_choice(model, prompt, sequence):
    seen = []

    def remember(layer, number, first, indices):
        seen.append((layer, number, first, indices.copy()))

    model.eval(sequence, prompt, selected=remember, logits=None)
    rows = {(layer, first + i): row for layer, _, first, indices in seen for i, row in enumerate(indices)}
    for (layer, position), row in rows.items():
        chosen = row[row >= 0]
        assert len(chosen) == min(model.info.top_k, position + 1) and (np.diff(chosen) > 0).all()
        assert chosen[-1] <= position
    assert {layer for layer, _ in rows} == set(range(model.info.layers))

    def window(layer, number, first, indices):
        k = indices.shape[1]
        for i, row in enumerate(indices):
            begin = max(0, first + i + 1 - k)
            row[:] = -1
            row[:first + i + 1 - begin] = np.arange(begin, first + i + 1)

    with model.cache() as cache:
        near = model.eval(cache.sequence(), prompt, selected=window)
        chosen = model.eval(cache.sequence(), prompt)
        every = model.eval(cache.sequence(), prompt, attention="dense")
        widest = model.eval(cache.sequence(), prompt, attention="sparse", top_k=len(prompt))
    assert not np.allclose(near, chosen)
    assert np.allclose(widest, every, rtol=0, atol=1e-3 * np.abs(every).max())


def test_an_exception_in_selected_ends_the_call(model, prompt, sequence):
    def fail(*_):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.eval(sequence, prompt, selected=fail)
    assert len(sequence) == 0
    assert model.eval(sequence, prompt).shape == (2048,)


def test_trace(model, prompt, sequence):
    layers = model.info.layers
    with tamis.Trace(model.ctx, [(0, 100), (100, 2048)]) as sum_of, \
            tamis.Trace(model.ctx, [(p, p + 1) for p in range(len(prompt))], layers=layers) as each:
        model.eval(sequence, prompt[:-1], logits=None)
        chosen = {}
        with model.cache() as cache:
            again = cache.sequence()
            model.eval(again, prompt[:-1], logits=None)
            model.eval(again, prompt[-1:], trace=each, logits=None,
                       selected=lambda layer, *rest: chosen.__setitem__(layer, rest[-1][0].copy()))
        model.eval(sequence, prompt[-1:], trace=sum_of, logits=None)
        mass = each.mass
        assert sum_of.tokens == each.tokens == 1
        assert np.allclose(mass.sum(axis=1), 1, atol=2e-3)  # bf16 keys
        assert np.allclose(sum_of.mass, [mass[:, :100].sum(), mass[:, 100:].sum()], atol=1e-5)
        for layer in range(layers):  # nothing beside the chosen positions was read
            beside = np.setdiff1d(np.arange(len(prompt)), chosen[layer])
            assert not mass[layer, beside].any()
        sum_of.clear()
        assert sum_of.tokens == 0 and not sum_of.mass.any()


def test_sample_is_a_pure_function(model, prompt, sequence):
    logits = model.eval(sequence, prompt)
    assert tamis.sample(logits) == logits.argmax()
    drawn = [tamis.sample(logits, temperature=1.5, top_k=50, seed=5, draws=i) for i in range(200)]
    assert drawn == [tamis.sample(logits, temperature=1.5, top_k=50, seed=5, draws=i) for i in range(200)]
    assert len(set(drawn)) > 1 and set(drawn) <= set(np.argsort(logits)[-50:])
    probability = np.exp(logits - logits.max())
    order = np.argsort(-probability)
    nucleus = order[:np.searchsorted(np.cumsum(probability[order]) / probability.sum(), 0.5) + 1]
    assert {tamis.sample(logits, temperature=1, top_p=0.5, seed=i) for i in range(100)} <= set(nucleus)
    for wrong in ({"temperature": -1}, {"top_p": 0.0}, {"top_p": 2.0}, {"top_k": -1}):
        with pytest.raises(tamis.ArgumentError):
            tamis.sample(logits, **wrong)


def test_what_is_refused(model, sequence, tmp_path):
    with pytest.raises(tamis.FileError, match="config.json"):
        tamis.Model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(tamis.UnsupportedError, match="model_type"):
        tamis.Model(tmp_path)
    (tmp_path / "config.json").write_text((TOY / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((TOY / "model.safetensors").read_bytes()[:100_000])
    with pytest.raises(tamis.FormatError, match="model.safetensors"):
        tamis.Model(tmp_path)
    for tokens in ([2048], [-1], [], np.zeros((2, 2), np.int32), np.zeros(3), range(3000)):
        with pytest.raises(tamis.ArgumentError):
            model.eval(sequence, tokens)
    with pytest.raises(tamis.ArgumentError):
        model.eval([sequence, sequence], [[1], [2]])
    with pytest.raises(tamis.ArgumentError):
        model.eval(sequence, [1], attention="lazy")
    with pytest.raises(tamis.ArgumentError):
        model.detokenize([5000])
    with pytest.raises(tamis.ArgumentError):
        tamis.Trace(model.ctx, [(3, 3)])
    assert len(sequence) == 0


def test_a_model_without_a_tokenizer(tmp_path, prompt):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(TOY / name)
    with tamis.Model(tmp_path) as silent, silent.cache() as cache:
        assert silent.info.token_count == 0
        assert silent.eval(cache.sequence(), prompt).shape == (2048,)
        with pytest.raises(tamis.UnsupportedError, match="tokenizer.json"):
            silent.tokenize("a")
        made = silent.generate(prompt, max_tokens=3, ignore_end=True)
        assert made.finish() == "" and len(made.tokens) == 3
    odd = json.loads((TOY / "tokenizer.json").read_text())
    odd["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(odd))
    with tamis.Model(tmp_path) as silent:
        with pytest.raises(tamis.UnsupportedError, match="normalizer"):
            silent.generate("a")


def test_memory_has_a_limit_and_nothing_is_lost(prompt):
    with tamis.Context(max_bytes=3 << 20) as ctx, tamis.Model(TOY, ctx) as small, small.cache() as cache:
        sequence = cache.sequence()
        model_tokens = 0
        with pytest.raises(tamis.BudgetError):
            while True:
                small.eval(sequence, prompt, logits=None)
                model_tokens += len(prompt)
                assert model_tokens < 4 * len(prompt)
        assert len(sequence) == model_tokens


def test_a_budget_that_ends_in_a_prefill_changes_nothing(prompt):
    """Two prompts in one call, under every budget from too little to enough: refused, and both sequences and the one
    beside them are as before, to the bit; or the same logits as without a limit."""
    def serve(budget):
        with tamis.Context(threads=1, max_bytes=budget) as ctx, tamis.Model(TOY, ctx, step_tokens=64) as small:
            cache = small.cache(index_dtype="f32")
            beside, *two = (cache.sequence() for _ in range(3))
            small.eval(beside, prompt[:50], logits=None)
            for sequence in two:
                small.eval(sequence, prompt[:20], logits=None)
            rows = [[cache_rows.copy() for cache_rows in sequence.read(1) if cache_rows is not None]
                    for sequence in (beside, *two)]
            status, logits = "refused", None
            try:
                logits = small.eval(two, [prompt[20:700], prompt[20:300]])
                status = "served"
            except tamis.BudgetError:
                assert [len(sequence) for sequence in (beside, *two)] == [50, 20, 20]
                for sequence, before in zip((beside, *two), rows):
                    after = [cache_rows for cache_rows in sequence.read(1) if cache_rows is not None]
                    assert all(map(np.array_equal, before, after))
            for sequence in two:
                sequence.close()
            return status, logits, small.eval(beside, prompt[50:60]), ctx.bytes()[1]

    _, expected, beside, most = serve(0)
    seen = []
    for budget in range(most // 4, most + most // 16, most // 16):
        try:
            status, logits, after, peak = serve(budget)
        except tamis.BudgetError:
            continue  # not even enough for what stands before
        seen.append(status)
        assert peak <= budget and np.array_equal(after, beside)
        assert logits is None or np.array_equal(logits, expected)
    assert seen.count("refused") >= 3 and seen[-1] == "served" and sorted(seen) == seen


def test_one_model_many_threads(model, prompt):
    results = [None] * 4

    def work(i):
        with model.cache() as cache:
            results[i] = model.eval(cache.sequence(), prompt[:150])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(result, results[0]) for result in results)


# Generation


def greedy(model, prompt, count):
    """The same without tamis's own loop."""
    with model.cache() as cache, cache.sequence() as sequence:
        logits, tokens = model.eval(sequence, prompt), []
        while len(tokens) < count:
            tokens.append(int(logits.argmax()))
            logits = model.eval(sequence, tokens[-1])
    return tokens


def test_generate_is_eval_and_sample(model):
    prompt = model.tokenize("import os\n\ndef ")
    expected = greedy(model, prompt, 30)
    made = model.generate(prompt, max_tokens=30, ignore_end=True)
    pieces = list(made)
    assert made.tokens == expected and made.stop == "max_tokens"
    assert "".join(pieces) == made.text == model.detokenize(expected, skip_special=True)
    assert made.prompt_tokens == len(prompt) and len(made.sequence) == len(prompt) + 29
    assert made.prefill_seconds > 0 and made.decode_seconds > 0
    assert list(made) == []  # it has ended
    drawn = [model.generate(prompt, max_tokens=20, temperature=2.0, seed=seed).finish() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_generate_continues_a_sequence(model):
    first, rest = model.tokenize("import os\n\n"), model.tokenize("def ")
    with model.cache() as cache:
        sequence = cache.sequence()
        model.eval(sequence, first, logits=None)
        made = model.generate(rest, sequence=sequence, max_tokens=5)
        made.finish()
        whole = model.generate(np.concatenate([first, rest]), max_tokens=5)
        assert whole.finish() == made.text and made.tokens == whole.tokens
        whole_text = np.concatenate([first, rest, made.tokens]).astype(np.int32)
        assert len(cache.match(whole_text)) == len(first) + len(rest) + 4


def test_stop_texts_are_not_handed_out(model):
    prompt = model.tokenize("def f(self):\n")
    full = model.generate(prompt, max_tokens=60, temperature=1.0, seed=3, ignore_end=True)
    text = full.finish()
    assert len(text) > 20
    for begin, length in [(4, 3), (7, 1), (2, 9), (15, 4)]:
        stop = text[begin:begin + length]
        at = text.index(stop)
        made = model.generate(prompt, max_tokens=60, temperature=1.0, seed=3, ignore_end=True, stop=["never this", stop])
        pieces = list(made)
        assert "".join(pieces) == text[:at] and made.stop == "text"
        assert made.tokens == full.tokens[:len(made.tokens)]
    # What only begins like a stop text is handed out in the end.
    made = model.generate(prompt, max_tokens=60, temperature=1.0, seed=3, ignore_end=True, stop=[text[-3:] + "\u2603"])
    assert made.finish() == text


def test_stop_tokens(model):
    prompt = model.tokenize("def f(self):\n")
    full = model.generate(prompt, max_tokens=40, temperature=1.0, seed=3, ignore_end=True)
    full.finish()
    stop = full.tokens[10]
    made = model.generate(prompt, max_tokens=40, temperature=1.0, seed=3, ignore_end=True, stop_tokens=[stop])
    assert made.finish() == model.detokenize(made.tokens[:-1], skip_special=True)
    assert made.stop == "end_token" and made.tokens == full.tokens[:full.tokens.index(stop) + 1]


def test_only_whole_characters(model):
    made = model.generate([0], max_tokens=400, temperature=1e6, seed=9, ignore_end=True)
    pieces = list(made)
    raw = b"".join(model.token_bytes([t], skip_special=True) for t in made.tokens)
    assert "".join(pieces) == raw.decode("utf-8", "replace")
    assert any(len(model.token_bytes([t])) == 1 and model.token_bytes([t])[0] >= 0x80 for t in made.tokens)


def test_generation_stops_at_the_last_position(model):
    with model.cache() as cache:
        sequence = cache.sequence()
        model.eval(sequence, np.resize(model.tokenize("import os\n"), model.info.max_tokens - 3), logits=None)
        made = model.generate([5], sequence=sequence, ignore_end=True)
        made.finish()
        assert made.stop == "full" and len(made.tokens) == 3 and len(sequence) == model.info.max_tokens


def test_a_generation_survives_a_failure(model):
    prompt = model.tokenize("import os\n\ndef ")
    expected = greedy(model, prompt, 12)
    fails = []

    def sometimes(*_):
        if len(fails) < 3:
            fails.append(1)
            raise RuntimeError("not now")

    with model.cache() as cache:
        sequence = cache.sequence()
        with pytest.raises(RuntimeError):
            model.generate(prompt, sequence=sequence, evaluation={"attention": "sparse", "selected": sometimes})
        assert len(sequence) == 0
        fails.extend([1, 1])
        made = model.generate(prompt, sequence=sequence, max_tokens=12, ignore_end=True,
                              evaluation={"attention": "sparse", "selected": sometimes})
        next(made)
        fails.clear()
        failures = 0
        while made.stop is None:
            try:
                next(made, None)
            except RuntimeError:
                failures += 1
        assert failures == 3 and made.tokens == expected
        made = model.generate(prompt, sequence=cache.sequence(), max_tokens=5)
        next(made)
        made.sequence.truncate(2)
        with pytest.raises(tamis.ArgumentError, match="sequence"):
            made.finish()


def test_a_generation_is_traced(model):
    prompt = model.tokenize("import os\n\ndef ")
    with tamis.Trace(model.ctx, [(0, len(prompt))]) as trace:
        model.generate(prompt, max_tokens=6, ignore_end=True, evaluation={"trace": trace}).finish()
        assert trace.tokens == len(prompt) + 5
        assert 0 < trace.mass[0] <= model.info.layers * trace.tokens * 1.001


def test_chat(model):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "naïve?"}]
    begin, user, assistant = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"
    text = model.detokenize(model.chat(turns))
    assert text == f"{begin}Be brief.{user}naïve?{assistant}</think>"
    assert model.detokenize(model.chat(turns, thinking=True)).endswith("<think>")
    long = [{"role": "user", "content": "word " * 1000}]
    assert model.detokenize(model.chat(long)).count("word") == 1000
    for wrong in ([], [{"role": "tool", "content": ""}], [{"role": "user", "content": "", "tool_calls": [{}]}],
                  [{"role": "system", "tools": [float("nan")]}], [{"role": "user", "typo": 1}],
                  [turns[1], {"role": "assistant", "content": "yes"}]):
        with pytest.raises(tamis.ArgumentError):
            model.chat(wrong, thinking=True)
    with pytest.raises(tamis.FormatError, match=r"messages\[0\].tools"):
        model.chat([{"role": "system", "tools": [{}]}])


def test_chat_is_that_of_the_encoder(model):
    """Tools, calls, results, thinking: the text that DeepSeek-V3.2's own encoder makes (make_chat_vectors.py)."""
    for case in json.loads((VECTORS / "chat.json").read_text(encoding="utf-8")):
        if case["text"] is None:
            with pytest.raises((tamis.ArgumentError, tamis.FormatError)):
                model.chat(case["messages"], thinking=case["thinking"])
        elif case["messages"]:
            assert model.detokenize(model.chat(case["messages"], thinking=case["thinking"])) == case["text"]


def test_a_reply_is_taken_apart(model):
    """As DeepSeek-V3.2's own parser does, from text and from tokens; and what it refuses (make_chat_vectors.py)."""
    for case in json.loads((VECTORS / "replies.json").read_text(encoding="utf-8")):
        text, thinking = case["reply"], case["thinking"]
        if case["message"] is None:
            with pytest.raises(tamis.FormatError, match=r"tamis_model_parse: reply"):
                model.parse(text, thinking=thinking)
        else:
            assert model.parse(text, thinking=thinking) == json.loads(case["message"])
            assert model.parse(model.tokenize(text, bare=True), thinking=thinking) == json.loads(case["message"])


def test_a_reply_is_a_turn(model):
    question = [{"role": "user", "content": "Weather?"}]
    turn = model.parse("Hm.</think>Let me see.\n\n<\uff5cDSML\uff5cfunction_calls>\n<\uff5cDSML\uff5cinvoke name=\"f\">\n"
                       "<\uff5cDSML\uff5cparameter name=\"city\" string=\"true\">K\u00f6ln</\uff5cDSML\uff5cparameter>\n</\uff5cDSML\uff5cinvoke>\n"
                       "</\uff5cDSML\uff5cfunction_calls>", thinking=True)
    assert turn["tool_calls"][0]["function"] == {"name": "f", "arguments": "{\"city\": \"K\u00f6ln\"}"}
    text = model.detokenize(model.chat([*question, turn, {"role": "tool", "content": "sun"}], thinking=True))
    answer = text[text.index("<think>") + 7:text.index("\n\n<function_results>")]
    assert model.parse(answer, thinking=True) == turn
    assert model.parse(b"a\xff")["content"] == "a\ufffd"


def test_generate_refuses(model):
    for wrong in ({"prompt": ""}, {"prompt": [5000]}, {"prompt": "a", "stop": [""]}, {"prompt": "a", "stop": ["\0"]},
                  {"prompt": "a", "temperature": -1}, {"prompt": "a", "max_tokens": -1},
                  {"prompt": "a", "evaluation": {"attention": "lazy"}}, {"prompt": "a", "evaluation": {"typo": 1}},
                  {"prompt": "a", "stop": ["x"] * 257}):
        with pytest.raises(tamis.ArgumentError):
            model.generate(**wrong)


def test_a_spliced_document_is_the_document_alone_elsewhere(model, prompt):
    """At a difference of 0 nothing changes; elsewhere the first layer, whose keys see no context, is what reading gives."""
    cache = model.cache(kv_dtype="f32", index_dtype="f32")
    document, copy, read = cache.sequence(), cache.sequence(), cache.sequence()
    model.eval(document, prompt[:40], logits=None)
    model.splice(copy, document)
    for layer in range(model.info.layers):
        for ours, theirs in zip(copy.read(layer), document.read(layer)):
            assert ours is None or np.array_equal(ours, theirs)
    spliced = cache.sequence()
    model.eval(spliced, prompt[40:63], logits=None)
    model.splice(spliced, document, 0, 40)
    model.eval(read, np.concatenate([prompt[40:63], prompt[:40]]), logits=None)
    assert len(spliced) == 63
    for ours, theirs in zip(spliced.read(0, 23), read.read(0, 23)):
        assert ours is None or np.allclose(ours, theirs, rtol=0, atol=2e-4 * np.abs(theirs).max())
    assert not np.allclose(spliced.read(0, 23).key, document.read(0).key, atol=1e-3)


def test_recomputed_rows_are_those_of_reading(model, prompt):
    """All rows computed anew: the bits of reading them there. The first five: those are, the others are turned."""
    cache = model.cache(kv_dtype="f32", index_dtype="f32")
    document, read = cache.sequence(), cache.sequence()
    model.eval(document, prompt[:40], logits=None)
    model.eval(read, prompt[40:63], logits=None)
    spliced, whole, some = read.fork(), read.fork(), read.fork()
    model.eval(read, prompt[3:40], logits=None)
    model.splice(spliced, document, 3)
    model.splice(whole, document, 3, recompute=37)
    model.splice(some, document, 3, 37, recompute=5)
    assert len(whole) == len(some) == len(read) == 60
    for layer in range(model.info.layers):
        for rows, expected in ((whole.read(layer, 23), read.read(layer, 23)),
                               (some.read(layer, 23, 5), read.read(layer, 23, 5)),
                               (some.read(layer, 28), spliced.read(layer, 28))):
            for ours, theirs in zip(rows, expected):
                assert ours is None or np.allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())
    with pytest.raises(tamis.ArgumentError, match="recompute is 38, expected 0 to 37"):
        model.splice(whole, document, 3, recompute=38)
    assert len(whole) == 60
