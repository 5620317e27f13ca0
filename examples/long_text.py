"""The main job: a long real text is read once, then asked, with sparse and with dense attention side by side. Prints what
each answers, how often they agree, where the answer looked, and what it cost; writes a page that shows what was selected.

    python examples/long_text.py [DIRECTORY [TOKENS [PAGE]]]

DIRECTORY: a deepseek_v32 checkpoint; the default, examples/model, was trained to recall records of the form
`<|record|> key value <|stop|>`. The text is Python's own library, modules that the model was not trained on, with six
records written over it; PAGE is one self-contained HTML file (default: long_text.html in the folder for temporary files).
"""
import html
import os
import pathlib
import sys
import tempfile
import time

import numpy as np
import tamis

directory = sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parent / "model"
length = int(sys.argv[2]) if len(sys.argv) > 2 else 16000
page = pathlib.Path(sys.argv[3] if len(sys.argv) > 3 else pathlib.Path(tempfile.gettempdir()) / "long_text.html")
MODULES = "pickletools calendar posixpath pstats urllib/request urllib/parse zipimport concurrent/futures/process"
WORDS = "value result name path index error default parser message buffer module option target string number object".split()
BINS = 64  # columns of the picture


def library() -> str:
    """The source of some modules of this Python."""
    folder = pathlib.Path(os.__file__).parent
    return "\n".join((folder / f"{name}.py").read_text("utf-8") for name in MODULES.split())


model = tamis.Model(directory)
text = model.tokenize(library(), special_as_text=True)
if len(text) < length:
    sys.exit(f"long_text: the library's text has {len(text)} tokens only, fewer than {length}")
text = text[:length].copy()
record, stop = (int(model.tokenize(mark, bare=True)[0]) for mark in ("<|record|>", "<|stop|>"))
words = [int(ids[0]) for ids in (model.tokenize(" " + word, bare=True) for word in WORDS) if len(ids) == 1]
if len(words) < 12:
    sys.exit("long_text: the model's tokenizer has too few of the words that records are made of")

# Six records at places spread over the text: one key, one value.
places = [int(length * (i + 0.5) / 6) for i in range(6)]
keys, values = words[:6], words[6:12]
for place, key, value in zip(places, keys, values):
    text[place:place + 4] = record, key, value, stop
questions = [([record, key], place, value) for key, place, value in zip(keys, places, values)]
questions.append((model.tokenize("\n    def __init__(self", bare=True), None, None))

print(f"{model.describe()}\n{length:,} tokens of text, {len(questions)} prompts, "
      f"{min(model.info.top_k, length)} keys for each token, {length} when dense\n")


def read(path: str) -> tuple[tamis.Sequence, float, tamis.Counters]:
    """The text in a sequence, the seconds that took, and what attention did."""
    sequence, before, begun = model.cache().sequence(), model.ctx.counters("attend"), time.perf_counter()
    model.eval(sequence, text, logits=None, attention=path)
    return sequence, time.perf_counter() - begun, model.ctx.counters("attend") - before


def ask(sequence: tamis.Sequence, prompt, path: str, **more) -> tuple[list[int], float, tamis.Counters]:
    """Eight tokens behind the text and the prompt: their ids, seconds a token, and what attention did."""
    before = model.ctx.counters("attend")
    answer = model.generate(prompt, sequence=sequence.fork(), max_tokens=8, stop_tokens=[stop],
                            evaluation={"attention": path, **more})
    begun = time.perf_counter()
    answer.finish()
    return answer.tokens, (time.perf_counter() - begun) / max(len(answer.tokens), 1), model.ctx.counters("attend") - before


def shown(tokens) -> str:
    return model.detokenize([token for token in tokens if token != stop]).strip().replace("\n", "\\n")[:28]


sequences, reading = {}, {}
for path in ("automatic", "dense"):
    sequences[path], *reading[path] = read(path)

print("prompt                        sparse                        dense                         same  on its record"
      "  keys/token  ms/token")
rows, pictures, agreed, right = [], [], 0, {"automatic": 0, "dense": 0}
edges = np.linspace(0, length, BINS + 1).astype(int)
for prompt, place, value in questions:
    seen = np.zeros((model.info.layers, length), bool)

    def look(layer, _sequence, _first, indices):
        """Called where keys are chosen: which positions of the text were."""
        chosen = indices[(indices >= 0) & (indices < length)]
        seen[layer, chosen] = True

    spans = [(int(a), int(b)) for a, b in zip(edges, edges[1:])]
    bins = tamis.Trace(model.ctx, spans)
    near = tamis.Trace(model.ctx, [(place, place + 4)]) if place is not None else None
    sparse, seconds, work = ask(sequences["automatic"], prompt, "automatic", selected=look, trace=bins)
    if near is not None:
        ask(sequences["automatic"], prompt, "automatic", trace=near)
    dense, dense_seconds, dense_work = ask(sequences["dense"], prompt, "dense")
    same = sparse == dense
    agreed += same
    for path, answer in (("automatic", sparse), ("dense", dense)):
        right[path] += value is not None and answer[:1] == [value]
    share = "" if near is None else f"{100 * near.mass[0] / near.tokens / model.info.layers:.1f} %"
    per_token = f"{work.keys_attended / max(work.queries, 1):.0f}/{dense_work.keys_attended / max(dense_work.queries, 1):.0f}"
    times = f"{1e3 * seconds:.1f}/{1e3 * dense_seconds:.1f}"
    row = [shown(prompt), shown(sparse), shown(dense), "yes" if same else "no", share, per_token, times]
    print(f"{row[0]:<30}{row[1]:<30}{row[2]:<30}{row[3]:<6}{row[4]:<17}{row[5]:<12}{row[6]}")
    rows.append(row)
    pictures.append((row[0], place, seen, bins.mass / bins.tokens / model.info.layers))

asked = len(questions) - 1
print(f"\n{agreed} of {len(questions)} answers are the same; records recalled: sparse {right['automatic']} of {asked}, "
      f"dense {right['dense']} of {asked}")
for path, name in (("automatic", "sparse"), ("dense", "dense")):
    seconds, work = reading[path]
    print(f"reading, {name:<7} {seconds:7.2f} s, {work.keys_attended:>13,} comparisons, {work.flops / 1e9:7.1f} GFLOP of attention")

# ---------------------------------------------------------------------------------------------------- The page


def picture(prompt: str, place: int | None, seen: np.ndarray, mass: np.ndarray) -> str:
    """One row of ticks for each layer (what was selected), bars below (where attention went), a mark at the record."""
    width, band = 960, 14
    layers = len(seen)
    parts = []
    for layer, chosen in enumerate(seen):
        path = "".join(f"M{position * width / length:.1f} {layer * band}v{band - 3}" for position in np.flatnonzero(chosen))
        parts.append(f'<path d="{path}" class="tick"/>')
    top, scale = layers * band + 4, 60 / max(mass.max(), 1e-9)
    for i, part in enumerate(mass):
        parts.append(f'<rect x="{i * width / BINS:.1f}" y="{top + 60 - part * scale:.1f}" width="{width / BINS - 1:.1f}" '
                     f'height="{part * scale:.1f}" class="mass"/>')
    if place is not None:
        parts.append(f'<path d="M{place * width / length:.1f} 0V{top + 60}" class="record"/>')
    return (f"<h2>{html.escape(prompt)}</h2><svg viewBox='-4 -4 {width + 8} {top + 68}' role='img'>{''.join(parts)}</svg>")


table = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
page.write_text(f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>What was selected</title>
<style>body{{font:15px/1.5 sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}}h2{{font:600 15px monospace}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #ddd;font-family:monospace}}
svg{{width:100%;background:#fafafa}}.tick{{stroke:#1d5f8a;stroke-width:1.2}}.mass{{fill:#d98324}}.record{{stroke:#c0182b;stroke-width:1.5;stroke-dasharray:4 3}}
</style><h1>What was selected</h1><p>{html.escape(model.describe())}. {length:,} tokens of Python's library. For each prompt,
left to right over the text: blue, the positions that each layer's indexer chose while the answer was written (layer 0 on
top); orange, where attention went; red, where the record stands.</p>
<table><tr><th>prompt<th>sparse<th>dense<th>same<th>on its record<th>keys/token<th>ms/token</tr>{table}</table>
{''.join(picture(*one) for one in pictures)}</html>""", "utf-8")
print(f"\nwhat was selected: {page}")
