"""The whole decoder beside Hugging Face transformers, on one machine in one run: prefill and decode tokens per second
and peak memory at 1K, 8K and 32K tokens of context, on a randomly initialised deepseek_v32 model of about 100 million
active parameters in bf16.

    python benchmarks/model.py                          # makes the checkpoint in a temporary folder (550 MB), then all
    python benchmarks/model.py --checkpoint FOLDER      # makes it there once, or takes what is there
    python benchmarks/model.py --contexts 1024 8192 --threads 2 --out model.csv
    python benchmarks/model.py --no-transformers        # ours alone, e.g. with another checkpoint

Every number comes from a process of its own, the two sides in turn. transformers computes DSA as dense attention under
a mask and materialises the indexer's scores, so its work is bounded here: prompts go in pieces whose score tensor stays
below 1 GiB, and after --prefill-seconds its prefill rate is that of the tokens done so far (the cheapest ones; marked
with "<" in the table) and its cache is filled up with copies of those, which cost a decode step the same.

Memory is the process's peak beyond what it had before the model was opened; "beside weights and cache" takes off the
checkpoint's bytes and those of the cache (negative: weights that no token chose were never read from the mapped file).
Needs torch and transformers 5.23 (the checkpoint is made with them, too).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import pathlib
import platform
import resource
import subprocess
import sys
import tempfile
import time

CONFIG = dict(
    vocab_size=8192, hidden_size=768, intermediate_size=3072, moe_intermediate_size=384, num_hidden_layers=8,
    num_attention_heads=12, num_key_value_heads=12, n_routed_experts=32, num_experts_per_tok=6, n_shared_experts=1,
    first_k_dense_replace=1, q_lora_rank=384, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64,
    v_head_dim=128, n_group=4, topk_group=2, routed_scaling_factor=2.5, index_topk=2048, index_head_dim=128,
    index_n_heads=32, max_position_embeddings=65536, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    tie_word_embeddings=False, attention_bias=False, pad_token_id=None)
SCORE_BYTES = 1 << 30


def make_checkpoint(folder):
    import torch
    from transformers import DeepseekV32Config, DeepseekV32ForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    DeepseekV32ForCausalLM(DeepseekV32Config(**CONFIG)).save_pretrained(folder)


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def prompt(context, vocabulary):
    return [(i * 7919 + 13) % vocabulary for i in range(context)]


def decode(step, count):
    """Tokens per second of the median step; `step` is called once before."""
    step(1)
    times = []
    for i in range(count):
        began = time.perf_counter()
        step(i * 31 + 2)
        times.append(time.perf_counter() - began)
    return 1 / sorted(times)[len(times) // 2]


# Each returns {"prefill", "decode" (tokens per second), "partial" (prefill tokens done), "peak", "cache" (bytes)}.

def ours(arguments, context):
    import numpy as np

    import tamis

    with tamis.Context(threads=arguments.threads) as ctx:
        before = peak_bytes()
        with tamis.Model(arguments.checkpoint, ctx) as model, model.cache() as cache, cache.sequence() as sequence:
            tokens = np.array(prompt(context, model.info.vocabulary), np.int32)
            began = time.perf_counter()
            model.eval(sequence, tokens)
            seconds = time.perf_counter() - began
            step = lambda token: model.eval(sequence, np.array([token], np.int32))
            rate = decode(step, arguments.tokens)
            traced = None
            if arguments.trace:
                spans = [(i * context // 8, (i + 1) * context // 8) for i in range(8)]
                with tamis.Trace(ctx, spans) as trace:
                    traced = decode(lambda token: model.eval(sequence, np.array([token], np.int32), trace=trace),
                                    arguments.tokens)
            found = {"prefill": context / seconds, "decode": rate, "partial": context, "peak": peak_bytes() - before,
                     "cache": cache.bytes()[0]}
            if traced:
                found["traced"] = traced
            if arguments.limits:  # last: its memory is not the model's
                found |= projections(ctx, arguments, step)
            return found


def projections(ctx, arguments, step, rounds=7):
    """Bytes per second of the projections of decoded tokens, and what the memory gives: in turns, the median of each,
    because a shared host changes from second to second."""
    read, limits = [], []
    for _ in range(rounds):
        start = ctx.counters("project")
        decode(step, max(1, arguments.tokens // rounds))
        spent = ctx.counters("project") - start
        read.append(spent.bytes / spent.wall_seconds)
        limits.append(ctx.limits(arguments.threads).memory_bytes_per_second)
    return {"project": sorted(read)[rounds // 2], "memory": sorted(limits)[rounds // 2]}


def theirs(arguments, context):
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    torch.set_num_threads(arguments.threads)
    before = peak_bytes()
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.bfloat16).eval()
    model.set_experts_implementation(arguments.experts)
    config = model.config
    piece = max(16, min(context, SCORE_BYTES // (4 * config.index_n_heads * context)))
    ids = torch.tensor([prompt(context, config.vocab_size)])
    cache = DynamicCache(config=config)
    with torch.inference_mode():
        began, done = time.perf_counter(), 0
        while done < context and time.perf_counter() - began < arguments.prefill_seconds:
            model(ids[:, done:done + piece], past_key_values=cache, use_cache=True, logits_to_keep=1)
            done = min(context, done + piece)
        seconds = time.perf_counter() - began
        stretch(cache, done, context)
        rate = decode(
            lambda token: model(torch.tensor([[token]]), past_key_values=cache, use_cache=True, logits_to_keep=1),
            arguments.their_tokens)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in tensors(layer).values())
    return {"prefill": done / seconds, "decode": rate, "partial": done, "peak": peak_bytes() - before, "cache": held}


def tensors(layer):
    return {"keys": layer.keys, "values": layer.values, "indexer_keys": layer.indexer_keys}


def stretch(cache, done, context):
    """Copies of the first tokens behind them, up to the context."""
    import torch

    if done >= context:
        return
    for layer in cache.layers:
        for name, tensor in tensors(layer).items():
            axis = tensor.dim() - 2
            copies = torch.cat([tensor] * (context // done + 1), axis)
            setattr(layer, name, copies.narrow(axis, 0, context).contiguous())


def measure(side, arguments, context):
    """One side at one context in a process of its own."""
    command = [sys.executable, __file__, "--worker", side, "--checkpoint", arguments.checkpoint, "--contexts",
               str(context), "--threads", str(arguments.threads), "--tokens", str(arguments.tokens), "--their-tokens",
               str(arguments.their_tokens), "--prefill-seconds", str(arguments.prefill_seconds),
               "--experts", arguments.experts]
    command += ["--limits"] if arguments.limits else []
    command += ["--trace"] if arguments.trace else []
    out = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def weight_bytes(folder):
    return sum(path.stat().st_size for path in pathlib.Path(folder).glob("*.safetensors"))


def cpu_name():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def run(arguments):
    sides = {"tamis": "ours"} | ({} if arguments.no_transformers else {"transformers": "theirs"})
    weights, rows = weight_bytes(arguments.checkpoint), []
    print(f"{'context':>8} {'':14}{'prefill tok/s':>14} {'decode tok/s':>13} {'peak MiB':>9} {'beside':>7}", flush=True)
    for context in arguments.contexts:
        for name, side in sides.items():
            found = measure(side, arguments, context)
            beside = found["peak"] - weights - found["cache"]
            bound = "<" if found["partial"] < context else ""
            print(f"{context:>8} {name:14}{bound + format(found['prefill'], '.1f'):>14} {found['decode']:>13.2f} "
                  f"{found['peak'] >> 20:>9} {beside >> 20:>7}", flush=True)
            rows.append({"context": context, "side": name, **found, "beside": beside})
        if len(sides) == 2:
            a, b = rows[-2:]
            print(f"{'':8} {'times faster':14}{a['prefill'] / b['prefill']:>14.1f} {a['decode'] / b['decode']:>13.1f}")
        mine = rows[-len(sides)]
        if arguments.trace:
            print(f"{'':8} traced: {mine['traced']:.2f} tokens/s, {mine['traced'] / mine['decode']:.2f} of the rate")
        if arguments.limits:
            print(f"{'':8} projections at decode read {mine['project'] / 1e9:.1f} GB/s, "
                  f"{100 * mine['project'] / mine['memory']:.0f} % of the {mine['memory'] / 1e9:.1f} GB/s measured")
        if arguments.out:
            write(arguments, weights, rows)


def write(arguments, weights, rows):
    fields = sorted({field for row in rows for field in row})
    with open(arguments.out, "w", newline="", encoding="utf-8") as file:
        file.write(f"# {cpu_name()}, {arguments.threads} threads, weights {weights >> 20} MiB\n")
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["context"]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 8192, 32768])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tokens", type=int, default=32, help="decode steps timed, ours")
    parser.add_argument("--their-tokens", type=int, default=3, help="decode steps timed, transformers")
    parser.add_argument("--prefill-seconds", type=float, default=120, help="transformers' prefill stops after this")
    parser.add_argument("--no-transformers", action="store_true")
    parser.add_argument("--limits", action="store_true", help="also the bandwidth of projections at decode")
    parser.add_argument("--trace", action="store_true", help="also the rate of decode while eight spans are traced")
    parser.add_argument("--experts", default="grouped_mm", help="transformers' way with experts: grouped_mm, eager ...")
    parser.add_argument("--out", help="CSV")
    parser.add_argument("--worker", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps({"ours": ours, "theirs": theirs}[arguments.worker](arguments, arguments.contexts[0])))
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments.checkpoint = arguments.checkpoint or temporary
        if not os.path.exists(os.path.join(arguments.checkpoint, "config.json")):
            make_checkpoint(arguments.checkpoint)
        run(arguments)


if __name__ == "__main__":
    main()
