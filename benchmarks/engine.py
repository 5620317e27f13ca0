"""The engine's sweep: DeepSeek-V3.2's attention layer, one decode token at 1K..128K and 256 prefill queries at 4K..32K.

For every row it prints the time beside the share of this machine's own limits, measured in the same run; our dense
path beside the sparse one; and numpy and (when installed) PyTorch doing the same work as a competent user would write
it. Writes a CSV that begins with a machine line, and a plot when matplotlib is there.

    python benchmarks/engine.py                     # everything (a few minutes)
    python benchmarks/engine.py --quick             # decode up to 32K only
    python benchmarks/engine.py --isa avx512 --threads 1 --out engine

Times are the best of several runs on a machine that others may share: read the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time

import numpy as np

import tamis

HEADS, KEY, VALUE, INDEX_HEADS, INDEX_DIM, K = 128, 576, 512, 64, 128, 2048
INDEX_MACS, ATTEND_MACS = INDEX_HEADS * INDEX_DIM, HEADS * (KEY + VALUE)


def best(call, seconds=0.6, most=40):
    """Milliseconds of the fastest of several calls; a call longer than `seconds` is made once."""
    fastest, began, runs = float("inf"), time.perf_counter(), 0
    while runs < most and (runs == 0 or time.perf_counter() - began < seconds):
        start = time.perf_counter()
        call()
        fastest = min(fastest, time.perf_counter() - start)
        runs += 1
    return 1e3 * fastest


class Layer:
    """Keys of one layer at one context length, as Tamis and as the peers hold them."""

    def __init__(self, ctx, keys, queries, seed=0):
        rng = np.random.default_rng(seed)
        self.ctx, self.keys, self.queries = ctx, keys, queries
        index = rng.standard_normal((keys, INDEX_DIM), np.float32)
        latent = rng.standard_normal((keys, 1, KEY), np.float32)
        self.index_f32, self.latent_f32 = index, latent[:, 0]
        self.index_i8 = ctx.quantize(index, "i8")
        self.index_fp8 = ctx.quantize(index, "f8e4m3", power_of_two=True)
        self.latent = ctx.quantize(latent, "bf16")
        self.index_q = rng.standard_normal((queries, INDEX_HEADS, INDEX_DIM), np.float32)
        self.weights = rng.standard_normal((queries, INDEX_HEADS), np.float32) / 90.5
        self.q_f32 = rng.standard_normal((queries, HEADS, KEY), np.float32)
        self.q = ctx.quantize(self.q_f32, "bf16")
        self.indices = ctx.select(self.index_q, self.weights, self.index_i8, k=K)

    def select(self, keys="index_i8"):
        return self.ctx.select(self.index_q, self.weights, getattr(self, keys), k=K)

    def attend(self, sparse=True):
        indices = self.indices if sparse else None
        return self.ctx.attend(self.q, self.latent, self.latent[..., :VALUE], indices=indices)

    def pairs(self):
        """(row, key) pairs that are visible, and that k keys a row leave."""
        seen = np.arange(self.keys - self.queries + 1, self.keys + 1)
        return int(seen.sum()), int(np.minimum(seen, K).sum())


def numpy_decode(layer):
    """One token in float32 with OpenBLAS: scores, argpartition, gather, two matrix products."""
    q, w = layer.index_q[0], layer.weights[0]
    k = min(K, layer.keys)
    products = np.empty((layer.keys, INDEX_HEADS), np.float32)

    def step():
        np.matmul(layer.index_f32, q.T, out=products)
        np.maximum(products, 0, out=products)
        scores = products @ w
        chosen = np.argpartition(scores, layer.keys - k)[layer.keys - k :] if k < layer.keys else np.arange(k)
        rows = layer.latent_f32[chosen]
        logits = layer.q_f32[0] @ rows.T * KEY**-0.5
        p = np.exp(logits - logits.max(1, keepdims=True))
        return (p / p.sum(1, keepdims=True)) @ rows[:, :VALUE]

    return step


def torch_decode(torch, layer):
    """One token in bfloat16 (oneDNN), the fastest plain formulation found."""
    index = torch.from_numpy(layer.index_f32).bfloat16()
    latent = torch.from_numpy(layer.latent_f32).bfloat16()
    iq, q = torch.from_numpy(layer.index_q[0]).bfloat16(), torch.from_numpy(layer.q_f32[0]).bfloat16()
    w = torch.from_numpy(layer.weights[0]).bfloat16()
    k = min(K, layer.keys)

    def attend(rows):
        p = torch.softmax((q @ rows.T).float() * KEY**-0.5, -1).bfloat16()
        return p @ rows[:, :VALUE]

    def sparse():
        scores = torch.relu_(index @ iq.T) @ w
        return attend(latent[torch.topk(scores, k, sorted=False).indices])

    return sparse, lambda: attend(latent)


def row_of(kind, layer, limits, torch, peers):
    visible, chosen = layer.pairs()
    i8, bf16 = limits.i8_macs_per_second, limits.bf16_macs_per_second
    row = {"kind": kind, "context": layer.keys, "queries": layer.queries}
    row["select_ms"] = best(layer.select)
    row["select_fp8_ms"] = best(lambda: layer.select("index_fp8"))
    row["attend_ms"] = best(layer.attend)
    row["dense_ms"] = best(lambda: layer.attend(sparse=False), seconds=0.3, most=5)
    scored = visible if layer.keys > K else 0
    row["select_pct_i8"] = 100 * scored * INDEX_MACS / (row["select_ms"] / 1e3) / i8
    row["select_fp8_pct_bf16"] = 100 * scored * INDEX_MACS / (row["select_fp8_ms"] / 1e3) / bf16
    row["select_pct_memory"] = 100 * layer.keys * (INDEX_DIM + 4) / (row["select_ms"] / 1e3) / limits.memory_bytes_per_second
    row["attend_pct_bf16"] = 100 * chosen * ATTEND_MACS / (row["attend_ms"] / 1e3) / bf16
    row["dense_pct_bf16"] = 100 * visible * ATTEND_MACS / (row["dense_ms"] / 1e3) / bf16
    row["sparse_ms"] = row["select_ms"] + row["attend_ms"]
    row["dense_over_sparse"] = row["dense_ms"] / row["sparse_ms"]
    if peers and kind == "decode":
        row["numpy_ms"] = best(numpy_decode(layer))
        if torch is not None:
            sparse, dense = torch_decode(torch, layer)
            row["torch_ms"] = best(sparse)
            row["torch_dense_ms"] = best(dense, seconds=0.3, most=5)
    return row


def topk_row(ctx):
    """2,048 of 131,072 scores: ours, numpy's argpartition."""
    scores = np.random.default_rng(1).standard_normal((1, 131072), np.float32)
    flat = scores[0]
    ours = best(lambda: ctx.topk(scores, k=K))
    theirs = best(lambda: np.argpartition(flat, flat.size - K))
    return ours, theirs


FORMATS = [
    ("context", "{:>8,}"), ("select_ms", "{:>8.3f}"), ("select_pct_i8", "{:>5.0f}%"), ("select_fp8_ms", "{:>8.3f}"),
    ("select_fp8_pct_bf16", "{:>5.0f}%"), ("attend_ms", "{:>8.3f}"), ("attend_pct_bf16", "{:>5.0f}%"),
    ("sparse_ms", "{:>8.3f}"), ("dense_ms", "{:>9.2f}"), ("dense_pct_bf16", "{:>5.0f}%"),
    ("dense_over_sparse", "{:>7.1f}x"), ("numpy_ms", "{:>8.2f}"), ("torch_ms", "{:>8.2f}"), ("torch_dense_ms", "{:>8.2f}"),
]
HEAD = (
    " context   select  of i8  sel.fp8 of bf16   attend of bf16   sparse     dense of bf16  dense/sp    numpy"
    "    torch tor.dense"
)


def show(row):
    print(" ".join(f.format(row[name]) if name in row else " " * 8 for name, f in FORMATS), flush=True)


def plot(rows, path, machine):
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no plot")
        return
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.5))
    rows = [r for r in rows if r["kind"] == "decode"]
    x = [r["context"] for r in rows]
    for name, label in [
        ("dense_ms", "Tamis, dense"), ("sparse_ms", "Tamis, sparse (k = 2,048)"), ("numpy_ms", "numpy, sparse"),
        ("torch_dense_ms", "PyTorch, dense"), ("torch_ms", "PyTorch, sparse"),
    ]:
        if all(name in r for r in rows):
            axis.plot(x, [r[name] for r in rows], marker="o", label=label)
    axis.set(xscale="log", yscale="log", xlabel="tokens of context", ylabel="ms for one token and layer")
    axis.set_title(machine, fontsize=8)
    axis.set_xticks(x, [f"{v // 1024}K" for v in x])
    axis.grid(alpha=0.3)
    axis.legend()
    figure.tight_layout()
    figure.savefig(path)


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--isa", default=None, help="cap on the instruction set, for example avx512")
    options.add_argument("--out", default=None, help="write OUT.csv and OUT.svg")
    options.add_argument("--quick", action="store_true", help="decode up to 32K only, no prefill")
    options.add_argument("--no-peers", action="store_true")
    args = options.parse_args()

    torch = None
    if not args.no_peers:
        try:
            import torch

            torch.set_num_threads(args.threads)
            torch.set_grad_enabled(False)
        except ImportError:
            print("PyTorch is not installed: its columns are left out", file=sys.stderr)

    ctx = tamis.Context(threads=args.threads, isa=args.isa)
    limits = ctx.limits(threads=args.threads)
    machine = ctx.describe()
    measured = (
        f"limits measured now: int8 {limits.i8_macs_per_second / 1e9:.0f}, bf16 {limits.bf16_macs_per_second / 1e9:.0f}, "
        f"fp32 {limits.f32_macs_per_second / 1e9:.0f} GMAC/s, memory {limits.memory_bytes_per_second / 1e9:.1f} GB/s"
    )
    print(machine, measured, sep="\n")
    ours, theirs = topk_row(ctx)
    print(f"top-2048 of 131,072: {1e3 * ours:.0f} us, numpy argpartition {1e3 * theirs:.0f} us ({ours / theirs:.2f})")

    rows = []
    print(f"\ndecode, one token (ms)\n{HEAD}")
    for context in [1024, 2048, 4096, 8192, 16384, 32768] + ([] if args.quick else [65536, 131072]):
        rows.append(row_of("decode", Layer(ctx, context, 1), limits, torch, not args.no_peers))
        show(rows[-1])
    if not args.quick:
        print(f"\nprefill, 256 queries (ms)\n{HEAD}")
        for context in [4096, 8192, 16384, 32768]:
            rows.append(row_of("prefill", Layer(ctx, context, 256), limits, torch, False))
            show(rows[-1])
    if args.out:
        with open(args.out + ".csv", "w", newline="") as file:
            file.write(f"# {machine}; {measured}\n")
            names = list(dict.fromkeys(name for row in rows for name in row))
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({n: round(v, 4) if isinstance(v, float) else v for n, v in row.items()} for row in rows)
        plot(rows, args.out + ".svg", machine)


if __name__ == "__main__":
    main()
