"""Measures what selecting k keys costs in quality, on a model that Tamis runs.

    python benchmarks/quality/run.py examples/model --out docs/quality.json     # twenty minutes on two processors
    python benchmarks/quality/run.py examples/model --quick --out q.json   # two minutes, wide intervals; scripts/demo's
    python benchmarks/quality/report.py docs/quality.json docs/quality.md       # tables and plots

Sections, each written as soon as it is done: `text` (bits per byte of held-out text), `recall` (planted facts against
context length), `mass` (attention captured, and an oracle), `keys` (types of the stored index keys). Every comparison
is on the same tokens. `--only SECTION` measures one and keeps the others of the file.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from pathlib import Path

import numpy as np

import selections
import tamis
from intervals import mean_and_half, wilson
from tasks import Text

# text: (tokens, windows, k of the indexer, of the window, of random keys).
# recall: (tokens, contexts, contexts for window and random, k of the indexer); they have the last of its k.
# queries: of a context with easy and with hard records.  mass: (windows, rows of each, k).
# keys: (windows, contexts, queries of each).
FULL = {
    "text": [(2048, 24, (16, 32, 64, 128, 256), (64, 128, 256), (128,)), (8192, 4, (128, 512), (512,), (512,)),
             (16384, 3, (128, 1024), (1024,), (1024,))],
    "recall": [(2048, 6, 3, (64, 128)), (8192, 4, 2, (128, 512)), (16384, 4, 1, (128, 1024))], "queries": (32, 64),
    "mass": (8, 16, (16, 64, 128, 256)), "keys": (6, 4, 24),
}
QUICK = {
    "text": [(2048, 3, (64, 128), (128,), (128,)), (8192, 1, (512,), (512,), ())],
    "recall": [(2048, 2, 1, (64, 128)), (8192, 1, 1, (512,))], "queries": (32, 64),
    "mass": (1, 8, (128,)), "keys": (2, 2, 24),
}
RECALL_KINDS = ((32, False), (128, True))  # records in the context, whether their keys share tokens


class Bench:
    """The model, its text, and one way to run tokens: a mode is ("dense",) or (selection, k)."""

    def __init__(self, directory, index_dtype="i8"):
        self.model = tamis.Model(directory)
        self.text = Text(lambda text: self.model.tokenize(text, bare=True))
        self.index_dtype = index_dtype
        self.vocabulary_bytes = np.array([
            len(self.model.token_bytes([i], skip_special=True)) for i in range(self.model.info.vocabulary)])

    def options(self, mode, seed=0):
        """The arguments of Model.eval for a mode."""
        selection, *k = mode
        if selection == "dense":
            return {"attention": "dense"}
        hook = {"indexer": None, "recent": selections.recent, "random": selections.random_keys(seed)}[selection]
        return {"attention": "automatic", "top_k": k[0], "selected": hook}

    def sequence(self, index_dtype=None):
        return self.model.cache(index_dtype=index_dtype or self.index_dtype).sequence()

    def losses(self, ids, mode, index_dtype=None):
        """Bits of each token of ids but the first, float64 [n - 1]; every token is read in the mode."""
        sequence, bits = self.sequence(index_dtype), []
        for start in range(0, len(ids) - 1, 1024):
            stop = min(start + 1024, len(ids) - 1)
            logits = self.model.eval(sequence, ids[start:stop], logits="all", **self.options(mode, start))
            bits.append(bits_of(logits, ids[start + 1 : stop + 1]))
        return np.concatenate(bits)

    def bits_per_byte(self, windows, mode, index_dtype=None):
        """Of each window."""
        return [float(self.losses(ids, mode, index_dtype).sum() / self.vocabulary_bytes[ids[1:]].sum())
                for ids in windows]

    def recalled(self, task, mode, index_dtype=None):
        """For each query of a task: whether every token of its value was the best guess."""
        sequence = self.sequence(index_dtype)
        self.model.eval(sequence, task.context, logits=None, **self.options(mode))
        return answered(self.model, sequence, task.queries, **self.options(mode, 1))


def answered(model, sequence, queries, **options):
    """For each query, asked alone behind the sequence: whether every token of its value was the best guess."""
    hits = []
    for query in queries:
        logits = model.eval(sequence.fork(), query.ids, logits="all", **options)
        before = slice(query.value.start - 1, query.value.stop - 1)
        hits.append(bool((logits[before].argmax(-1) == query.ids[query.value]).all()))
    return hits


def bits_of(logits, targets):
    """Bits of targets [n] under logits [n, vocabulary]."""
    logits = logits.astype(np.float64)
    top = logits.max(-1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return (total - logits[np.arange(len(targets)), targets]) / math.log(2)


def compared(values, dense):
    """Mean, and the paired difference from dense with its half width."""
    difference, half = mean_and_half([a - b for a, b in zip(values, dense)])
    return {"mean": sum(values) / len(values), "difference": difference, "half": half}


NAMES = {"recent": "sinks + window"}


def named(row):
    return f"{row.get('length', 2048):>6} tokens, {NAMES.get(row['mode'], row['mode'])} {row['k'] or ''}".ljust(34)


def text_line(row):
    relative = 100 * row["difference"] / (row["mean"] - row["difference"])
    against = "" if row["mode"] == "dense" else f", {relative:+.2f} % of dense"
    return f"{named(row)} {row['mean']:.4f} bits a byte of held-out text{against}"


def recall_line(row):
    kind = "keys share tokens" if row["hard"] else "one-token keys"
    return (f"{named(row)} {row['hits']} of {row['queries']} facts recalled (95 %: {100 * row['low']:.0f} to "
            f"{100 * row['high']:.0f} %; {row['pairs']} records, {kind})")


def mass_lines(found):
    best = {row["k"]: row["mean"] for row in found["mass"] if row["mode"] == "oracle"}
    return [f"{named(row)} {100 * row['mean'] / best[row['k']]:.1f} % of the attention mass that the best keys capture"
            for row in found["mass"] if row["mode"] != "oracle"]


def key_line(row):
    return (f"{named(row | {'mode': row['dtype'] + ' keys,'})} {row['mean']:.4f} bits a byte, "
            f"{100 * row['recall']:.0f} % of facts recalled, {100 * row['overlap']:.1f} % the keys of f32")


def measure_text(bench, plan):
    rows = []
    for length, count, *ks in plan["text"]:
        if length > bench.model.info.max_tokens:
            continue
        windows = bench.text.windows(length, count, seed=5)
        dense = bench.bits_per_byte(windows, ("dense",))
        rows.append({"length": length, "windows": count, "mode": "dense", "k": None} | compared(dense, dense))
        say(text_line(rows[-1]))
        for selection, k in [(s, k) for s, some in zip(("indexer", "recent", "random"), ks) for k in some]:
            values = bench.bits_per_byte(windows, (selection, k))
            rows.append({"length": length, "windows": count, "mode": selection, "k": k} | compared(values, dense))
            say(text_line(rows[-1]))
    return rows


def measure_recall(bench, plan):
    rows = []
    for length, contexts, few, ks in plan["recall"]:
        if length > bench.model.info.max_tokens:
            continue
        modes = [("dense",), *(("indexer", k) for k in ks), ("recent", ks[-1]), ("random", ks[-1])]
        for (pairs, hard), queries in zip(RECALL_KINDS, plan["queries"]):
            tasks = [bench.text.recall(length, pairs, queries, hard, seed) for seed in range(contexts)]
            dense = None
            for mode in modes:
                asked = tasks[:few] if mode[0] in ("recent", "random") else tasks
                hits = [hit for task in asked for hit in bench.recalled(task, mode)]
                dense = dense or hits
                share, low, high = wilson(sum(hits), len(hits))
                rows.append({
                    "length": length, "pairs": pairs, "hard": hard, "mode": mode[0], "k": (*mode, None)[1],
                    "hits": sum(hits), "queries": len(hits), "share": share, "low": low, "high": high,
                    "as_dense": sum(a == b for a, b in zip(hits, dense))})
                say(recall_line(rows[-1]))
    return rows


def measure_mass(bench, plan):
    """Decoding token by token behind a dense context: what each choice captures of the dense attention's mass."""
    windows, rows, ks = plan["mass"]
    layers = bench.model.info.layers
    kinds = [(kind, k) for k in ks for kind in ("oracle", "indexer", "recent", "random")]
    masses = {kind: np.zeros(layers) for kind in kinds}
    bits = {kind: [] for kind in [("dense", None)] + [kind for kind in kinds if kind[0] in ("oracle", "indexer")]}
    for number, ids in enumerate(bench.text.windows(2048, windows, seed=6)):
        trunk = bench.sequence()
        first = len(ids) - 1 - rows
        bench.model.eval(trunk, ids[:first], logits=None, attention="dense")
        for at in range(first, len(ids) - 1):
            row = Row(bench, trunk, at, ids[at], ids[at + 1])
            for kind, value in row.run(ks, seed=number * rows + at).items():
                masses[kind] += value
            for kind, value in row.bits.items():
                bits[kind].append(value)
            bench.model.eval(trunk, ids[at : at + 1], logits=None, attention="dense")
    total = windows * rows
    found = {"rows": total, "mass": [
        {"mode": kind, "k": k, "layers": (value / total).tolist(), "mean": float(value.mean() / total)}
        for (kind, k), value in masses.items()],
        "bits": [{"mode": kind, "k": k} | compared(value, bits["dense", None]) for (kind, k), value in bits.items()]}
    for line in mass_lines(found):
        say(line)
    return found


class Row:
    """One token after a dense context of `at` tokens, evaluated in several ways on forks of it."""

    def __init__(self, bench, trunk, at, token, target):
        self.model, self.trunk, self.at = bench.model, trunk, at
        self.token, self.target, self.bits = np.array([token], np.int32), np.array([target]), {}

    def evaluate(self, kind, **options):
        logits = self.model.eval(self.trunk.fork(), self.token, logits="last", **options)
        self.bits[kind] = float(bits_of(logits.reshape(1, -1), self.target)[0])

    def run(self, ks, seed):
        """{(kind, k): mass [layers]} of the dense attention; fills `bits`."""
        layers, keys = self.model.info.layers, self.at + 1
        spans = np.stack((np.arange(keys), np.arange(1, keys + 1)), -1)
        trace = tamis.Trace(self.model.ctx, spans, layers=layers)
        self.evaluate(("dense", None), attention="dense", trace=trace)
        mass, found = trace.mass, {}  # [layers, keys]
        rng = np.random.default_rng(seed)
        for k in ks:
            recorder = selections.Recorder()
            self.evaluate(("indexer", k), attention="sparse", top_k=k, selected=recorder)
            best = np.sort(np.argsort(-mass, axis=1, kind="stable")[:, :k], axis=1)
            self.evaluate(("oracle", k), attention="sparse", top_k=k, selected=selections.given(best))
            recent = np.r_[0 : selections.SINKS, keys - k + selections.SINKS : keys]
            chosen = {"oracle": best, "recent": [recent] * layers,
                      "indexer": [recorder.rows[layer, self.at] for layer in range(layers)],
                      "random": [rng.choice(keys, k, replace=False) for _ in range(layers)]}
            for kind, positions in chosen.items():
                found[kind, k] = np.array([mass[layer, p].sum() for layer, p in enumerate(positions)])
        return found


def measure_keys(bench, plan):
    """The indexer with its keys stored in fewer bits, against float32 ones."""
    windows, contexts, queries = plan["keys"]
    texts = bench.text.windows(2048, windows, seed=7)
    tasks = [bench.text.recall(2048, 128, queries, True, 100 + seed) for seed in range(contexts)]
    dtypes = ["f32", "bf16", "i8"] + ["index132"] * (bench.model.info.index_dim == 128)
    rows, reference = [], None
    for k in (64, 128):
        chosen = {}
        for dtype in dtypes:
            values = bench.bits_per_byte(texts, ("indexer", k), dtype)
            hits = [hit for task in tasks for hit in bench.recalled(task, ("indexer", k), dtype)]
            chosen[dtype] = selected_of(bench, texts[0], k, dtype)
            reference = values if dtype == "f32" else reference
            same = [len(np.intersect1d(a, chosen["f32"][place], assume_unique=True)) / len(a)
                    for place, a in chosen[dtype].items() if place[1] >= 2 * k]
            share, low, high = wilson(sum(hits), len(hits))
            rows.append({"dtype": dtype, "k": k, "overlap": float(np.mean(same)), "recall": share, "low": low,
                         "high": high, "queries": len(hits)} | compared(values, reference))
            say(key_line(rows[-1]))
    return rows


def selected_of(bench, ids, k, dtype):
    recorder = selections.Recorder()
    bench.model.eval(bench.sequence(dtype), ids[:-1], logits=None, attention="sparse", top_k=k, selected=recorder)
    return recorder.rows


MEASURES = {"text": measure_text, "recall": measure_recall, "mass": measure_mass, "keys": measure_keys}


def say(line):
    print(line, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=MEASURES, action="append")
    options = parser.parse_args()
    results = json.loads(options.out.read_text()) if options.only and options.out.exists() else {}
    bench = Bench(options.model)
    results |= {
        "command": "python benchmarks/quality/run.py " + options.model + (" --quick" if options.quick else ""),
        "model": bench.model.describe(), "python": platform.python_version(),
        "held_out": {"modules": sorted(bench.text.modules), "tokens": len(bench.text.tokens),
                     "bytes_per_token": bench.text.bytes_per_token}}
    for section in options.only or MEASURES:
        results[section] = MEASURES[section](bench, QUICK if options.quick else FULL)
        results.setdefault("machines", {})[section] = bench.model.ctx.describe()
        options.out.write_text(json.dumps(results, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
