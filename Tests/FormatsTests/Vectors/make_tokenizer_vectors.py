#!/usr/bin/env python3
"""Makes the tokenizer vectors: small byte-level BPE tokenizers of the families in use, and what Hugging Face's
`tokenizers` package makes of varied text with them.

    pip install tokenizers            (made with 0.23.3)
    python3 Tests/FormatsTests/Vectors/make_tokenizer_vectors.py

Writes beside itself: <family>.json (a tokenizer each), cases.json, and characters.json: for each normal form the CRC-32
of what it makes of every character alone and of every character between a letter and combining marks.
In cases.json a text is hex bytes and a number of repetitions; `ids` is encode(text), `plain` the same with special
tokens as text (left out where it is equal), and `text` is what decode(ids) gives, as hex (left out where it is the text
itself).
Random characters are those that Python's Unicode 14 knows: the regex libraries have tables of different years.
"""
import itertools
import json
import pathlib
import random
import sys
import unicodedata
import zlib

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors,
                        trainers)

HERE = pathlib.Path(__file__).parent
TOY = HERE.parent.parent / "Fixtures" / "toy-v32" / "tokenizer.json"

CORPUS = [
    "def encode(self, text: str) -> list[int]:\n    return [self.ids[t] for t in self.split(text)]\n",
    "for (int i = 0; i < count; i++) {\n\tsum += values[i] * weights[i];\r\n}\n",
    "The quick brown fox jumps over the lazy dog. It's what they'll do, isn't it? We've seen I'M AND YOU'RE.",
    "In 1984, 2,048 tokens of 131072 were selected: 1.5625 %. Call +49 (0)30 901820.",
    "稀疏注意力只读取被选中的标记。快速索引器先给每个过去的标记打分。", "日本語のテキストとカタカナ、ひらがな。", "한국어 문장입니다. 토큰을 고릅니다.",
    "Быстрая коричневая лиса прыгает через ленивую собаку.", "Η γρήγορη αλεπού πηδά πάνω από τον τεμπέλη σκύλο.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول", "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है", "👍🏽 👩‍👩‍👧‍👦 🇩🇪 ✅ → ∑ ≤ €",
    "https://example.org/a?b=c&d=%20#e  <div class=\"x\">&nbsp;</div>", "    \t\n\n   \r\n  x  y   z    \n",
    "SELECT name, COUNT(*) FROM tokens WHERE id >= 10 GROUP BY name HAVING COUNT(*) > 1;",
]

# The public patterns of each family.
DEEPSEEK = [
    r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+|"
    " ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
          r"\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
O200K = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
         r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(pattern), behavior, invert)


def train(pre_tokenizer, size=640, specials=("<|begin|>", "<|end|>")):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS * 3, trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(specials), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


FORMS = {form.lower(): getattr(normalizers, form) for form in ("NFC", "NFD", "NFKC", "NFKD")}


def normalizing(form, normalizer):
    tokenizer = train(pre_tokenizers.Sequence([split(QWEN), BYTES]), size=420 if form == "nfc" else 300)
    tokenizer.normalizer = normalizer
    tokenizer.add_tokens([
        AddedToken("cafe\u0301", normalized=True), AddedToken("\u212b", normalized=False), AddedToken("\u2126x", normalized=True),
        AddedToken("\ufb01n", normalized=True), AddedToken("\uac01\u11a8", normalized=True, single_word=True),
        AddedToken("<\uff53>", special=True, normalized=True), AddedToken("e\u0301!", special=True, lstrip=True)])
    return tokenizer


def begin_with(tokenizer, token):
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B", special_tokens=[(token, tokenizer.token_to_id(token))])


def families():
    deepseek = train(pre_tokenizers.Sequence([*(split(p) for p in DEEPSEEK), BYTES]))
    deepseek.add_special_tokens([AddedToken("<｜User｜>", normalized=False), AddedToken("<｜Assistant｜>", normalized=False)])
    deepseek.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    yield "deepseek", deepseek, {"merges": "text"}

    gpt2 = train(pre_tokenizers.ByteLevel(add_prefix_space=True), specials=["<|endoftext|>"])
    gpt2.post_processor = processors.ByteLevel()
    yield "gpt2", gpt2, {"merges": "text"}

    llama3 = train(pre_tokenizers.Sequence([split(LLAMA3), BYTES]))
    llama3.post_processor = processors.Sequence([processors.ByteLevel(), begin_with(llama3, "<|begin|>")])
    yield "llama3", llama3, {"ignore_merges": True, "drop_merges": 60}

    qwen = train(pre_tokenizers.Sequence([split(QWEN), BYTES]))
    qwen.add_tokens([
        AddedToken("<mask>", lstrip=True), AddedToken("<pad>", rstrip=True, normalized=False),
        AddedToken("word", single_word=True), AddedToken("wordy", normalized=False), AddedToken("日本", single_word=True),
        AddedToken("<m", normalized=True), AddedToken("<both>", lstrip=True, rstrip=True, special=True)])
    yield "qwen", qwen, {}

    yield "o200k", train(pre_tokenizers.Sequence([split(O200K), BYTES]), size=400), {}

    yield "behaviors", train(pre_tokenizers.Sequence([
        split(r"[aeiou]", "merged_with_previous"), split(r"[A-Z]", "merged_with_next"), split(r"\p{P}", "contiguous"),
        split(r"#|~", "removed"), pre_tokenizers.Split("==", "isolated"), pre_tokenizers.Digits(individual_digits=False),
        split(r"\p{L}*", "isolated", True), BYTES]), size=300), {}
    yield "digits", train(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), split(r"[^\s]+", "removed", True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]), size=300), {}
    yield "lookaround", train(pre_tokenizers.Sequence([
        split(r"(?<=\p{Ll})(?=\p{Lu})|(?<!\d)(?=\d{3}\b)".replace(r"\b", r"(?!\d)"), "isolated"),
        split(r"x*", "merged_with_previous"), BYTES]), size=300), {}


def normal_families():
    for form, make in FORMS.items():
        yield form, normalizing(form, make()), {}
    yield "forms", normalizing("forms", normalizers.Sequence(
        [normalizers.NFD(), normalizers.Sequence([]), normalizers.Sequence([normalizers.NFKC()])])), {}


def adjusted(tokenizer, options):
    """The file as the families ship it: merges as text or as pairs, whole words that no merge reaches."""
    data = json.loads(tokenizer.to_str())
    model = data["model"]
    if options.get("merges") == "text":
        model["merges"] = [" ".join(pair) for pair in model["merges"]]
    if "drop_merges" in options:
        model["merges"] = model["merges"][:-options["drop_merges"]]
    model["ignore_merges"] = options.get("ignore_merges", False)
    return json.dumps(data, ensure_ascii=len(model["vocab"]) % 2 == 1, separators=(",", ":"))


def texts(rng):
    yield b"", 1
    for text in CORPUS:
        yield text.encode(), 1
    specials = ["<|begin|>", "<|end|>", "<|endoftext|>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<mask>",
                "<pad>", "word", "wordy", "日本", "<both>", "<|bos|>", "<|eos|>", "<|rec|>", "<m", "<ma", "<|beg", "<｜"]
    fixed = [
        "a", " ", "  ", "\n", "\r\n", " a", "a ", "\u00a0", "\u0085", "\u180e", "\u2028x\u2029", "\u200b\u200d\ufeff", "\0", "\x7f\x01\x1b[0m",
        "e\u0301 \u00e9 \u1e9b\u0323 a\u0308\u0332", "ﬁ ﬆ ß ẞ ſ 's 'S 'ſ It'ſ K'LL", "½ ² Ⅷ ① ٣ ४ 三 〇", "👩‍👩‍👧‍👦👍🏽🇩🇪🏳️‍🌈", "\U0010ffff\U000e0001\ue000",
        "don't DON'T we'LL they'Ve I'd'd", "x=1;y==2;z===3;#a~b##", "1234567890 12 123 1234", "camelCaseHTTPServer2Go fooBAR123abc",
        "   leading", "trailing   ", "a\n\n\n  b\n \n c", "\t\tif x:\r\n\t\t\treturn\r\n", "!!!...???---===+++", "日本語中文한글かなカナ", "ไทยภาษา ພາສາລາວ ខ្មែរ",
        "a<mask>b", "a  <mask>  b", "a <pad>  b", "<pad><pad> <mask>", "word wordy sword words word. (word) _word_ word2 éword", "日本 日本語 。日本。",
        "  <both>  <both>x<both>", "<|begin|><|end|>", "x<|begin|>y<|end|> z", "<｜User｜>Hi<｜Assistant｜><think>\n", "<|beg<|begin|>in|>", "<<<<<|end|>>>>",
    ]
    for text in fixed:
        yield text.encode(), 1
    for bad in ["80", "c3", "c328", "e282", "e28228", "f09f98", "f09f9841", "eda080", "f4908080", "c0af", "fffe", "61ff62", "e4b8ade4b8", "f8888080", "20c320a020"]:
        yield bytes.fromhex(bad), 1
    for unit, times in [("a", 3000), (" ", 2000), ("\n", 500), ("ab", 1500), ("1", 1000), ("中", 700), ("!", 1000), ("é", 500), ("👍", 300),
                        (" \n", 300), ("a ", 700), ("<|end|>", 40), ("the ", 300), ("\xff", 100)]:
        yield (unit.encode() if unit != "\xff" else b"\xff"), times
    known = [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and unicodedata.category(chr(c)) != "Cn"]
    latin = [chr(c) for c in range(0x20, 0x7F)] + ["\n", "\r\n", "\t", " ", " ", "  "]
    for _ in range(25):
        yield "".join(rng.choice(latin) for _ in range(rng.randint(1, 60))).encode(), 1
    for _ in range(25):
        pool = rng.choice([known, known[:3000], known[:700], known[3000:12000]])
        yield "".join(rng.choice(rng.choice([pool, latin])) for _ in range(rng.randint(1, 40))).encode(), 1
    for _ in range(20):
        yield "".join(rng.choice([rng.choice(specials), rng.choice(latin), " "]) for _ in range(rng.randint(2, 12))).encode(), 1
    for _ in range(20):
        text = bytearray("".join(rng.choice(known[:20000]) for _ in range(rng.randint(2, 20))).encode())
        for _ in range(3):
            text[rng.randrange(len(text))] = rng.randrange(256)
        yield bytes(text), 1


def unnormal_texts(rng):
    """Texts that are in no normal form."""
    for text in [
        "cafe\u0301 caf\u00e9 cafe \u0301", "\u212b \u00c5 A\u030a \u2126x \u03a9x", "\ufb01n fin \ufb01", "e\u0301! \u00e9! x  \u00e9!",
        "<\uff53> <s> <\uff53", "\uac01\u11a8 \uac02 \u1100\u1161\u11a8\u11a8 \uac00\u11a7 \u1100\u1161 \uac00\u1161 \u1112\u1175\u11c2",
        "a\u0323\u0307 a\u0307\u0323 \u1e69 s\u0323\u0307 s\u0307\u0323 q\u0307\u0323\u0301\u0334", "\u0301\u0323a", "\u0344 \u0340 \u0341 \u0374 \u037e",
        "\u0958 \u0929 \u0928\u093c \u09cb \u09c7\u09be \u0b94 \u0dda", "\uf900 \ufa30 \U0002f800 \u8c48", "\u30ac \u30ab\u3099 \uff76\uff9e \u304b\u3099",
        "\ufdfa \u32ff \u3392 \u00bd \u2460 \uff21 \u00a0x \u2003", "\U0001d15e \U0001d1bb \U0001109a \U00011099\U000110ba \U00011938",
        "a\u0898\u0301 \ua7f2 \u1dfa\u0323", "\u0f73 \u0f71\u0f72 \u0f81\u0f71", "\u1fbe \u03b9\u0301 \u1fc1 \u00a8\u0342", "\u0041\u030a\u0301\u0323", "",
    ]:
        yield text.encode(), 1
    yield "e\u0301".encode(), 300
    yield "\u0323\u0301".encode(), 400
    yield b"e\xcc\x81\xcc", 3
    yield b"\xe1\x84\x80\xe1\x85\xa1\xff\xe1\x86\xa8", 3
    known = [chr(c) for c in range(0x80, 0x110000) if not 0xD800 <= c <= 0xDFFF and unicodedata.category(chr(c)) != "Cn"]
    marks = [c for c in known if unicodedata.combining(c)]
    decomposed = [c for c in known if unicodedata.decomposition(c)]
    jamo = [chr(c) for c in [*range(0x1100, 0x1113), *range(0x1161, 0x1176), *range(0x11A7, 0x11C3), 0xAC00, 0xAC1C, 0xD7A3]]
    for number in range(130):
        pool = [[*marks, *"aeou"], decomposed, jamo, [*decomposed[:900], *marks[:80]], known][number % 5]
        text = "".join(rng.choice(rng.choice([pool, pool, "ae o\n"])) for _ in range(rng.randint(1, 24)))
        yield text.encode(), 1


def characters(form):
    """CRC-32 of what a form makes of every character alone, and of every one in company."""
    normalize, alone, company = FORMS[form]().normalize_str, 0, 0
    for scalar in range(0x110000):
        if not 0xD800 <= scalar <= 0xDFFF:
            alone = zlib.crc32(normalize(chr(scalar)).encode(), alone)
            company = zlib.crc32(normalize(f"o\u0301{chr(scalar)}\u0323\u0334").encode(), company)
    return {"form": form.upper(), "alone": alone, "company": company}


def decode(tokenizer, ids):
    """An added token as the file writes it: a deliberate difference (Tokenizer.swift); all else is the package's."""
    added, text = tokenizer.get_added_tokens_decoder(), ""
    for is_added, run in itertools.groupby(ids, added.__contains__):
        text += "".join(added[i].content for i in run) if is_added else tokenizer.decode(list(run), skip_special_tokens=False)
    return text


def cases(tokenizer, all_texts):
    for text, times in all_texts:
        string = (text * times).decode(errors="replace")
        tokenizer.encode_special_tokens = False
        ids = tokenizer.encode(string).ids
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(string).ids
        case = {"hex": text.hex(), "times": times, "ids": ids}
        if plain != ids:
            case["plain"] = plain
        decoded = decode(tokenizer, ids)
        if decoded.encode() != text * times:
            case["text"] = decoded.encode().hex()
        yield case


def main():
    rng = random.Random(20)
    all_texts = list(texts(rng))
    result = []
    for name, tokenizer, options in families():
        text = adjusted(tokenizer, options)
        (HERE / f"{name}.json").write_text(text)
        result.append({"file": f"{name}.json", "cases": list(cases(Tokenizer.from_str(text), all_texts))})
    unnormal = list(unnormal_texts(rng))
    for name, tokenizer, options in normal_families():
        text = adjusted(tokenizer, options)
        (HERE / f"{name}.json").write_text(text)
        chosen = (all_texts if name == "nfc" else []) + unnormal
        result.append({"file": f"{name}.json", "cases": list(cases(Tokenizer.from_str(text), chosen))})
    result.append({"file": "../../Fixtures/toy-v32/tokenizer.json",
                   "cases": list(cases(Tokenizer.from_file(str(TOY)), all_texts))})
    lines = ",\n".join(
        '{"file":%s,"cases":[\n%s]}' % (json.dumps(r["file"]), ",\n".join(json.dumps(c, separators=(",", ":")) for c in r["cases"]))
        for r in result)
    (HERE / "cases.json").write_text("[" + lines + "]\n")
    (HERE / "characters.json").write_text(json.dumps([characters(form) for form in FORMS], indent=1) + "\n")
    print(len(all_texts), "texts,", len(result), "tokenizers", file=sys.stderr)


if __name__ == "__main__":
    main()
