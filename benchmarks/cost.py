"""Predicted against measured seconds: DeepSeek-V3.2's attention layer on this machine, decode and prefill at 1K..128K.

The machine is measured once with `tamis.Machine.measure` (a few seconds); then, without another look at it, the seconds
of one layer are predicted and measured: select and attend of one token (decode) or of 64 tokens (prefill), sparse and
dense.
Keys are cold, as in a model whose other layers were read in between: each call reads another part of a large memory.

    python benchmarks/cost.py                           # everything (a minute or two)
    python benchmarks/cost.py --isa avx512 --threads 1 --out docs/benchmarks/cost-avx512-1

With `--checkpoint DIRECTORY` a whole model instead: prompts from their first to their last token, and one decoded token
behind them. The machine is then measured with a few of the model's own steps (a prompt of 512 tokens and tokens behind
it), so what is predicted is how its time grows with the context; with `--no-steps` it is not, and norms, routing, gates
and copies are left out.

    python benchmarks/cost.py --checkpoint DIRECTORY --most 8192    # benchmarks/model.py --checkpoint makes one
    python benchmarks/cost.py --checkpoint DIRECTORY --rounds 2 --out docs/benchmarks/cost-model-1

The bar is 20 %. Both sides take the best of several runs: on a machine that others share that is what repeats, and where
it does not, `--rounds 3` measures machine and layer in turns and keeps the best of each.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time

import numpy as np

import tamis

HEADS, KEY, VALUE, INDEX_HEADS, INDEX_DIM, K, ROWS = 128, 576, 512, 64, 128, 2048, 64
POOL = 400_000  # latents in memory (460 MB) and as many index keys (51 MB) times 4
CONTEXTS = [1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]
BAR = 0.20

# One layer, attention alone; dense prefill runs absorbed here, so its expanded form is the absorbed one.
LAYER = tamis.Architecture(layers=1, active_parameters=0, cache_bytes=2 * KEY, expanded_key_dim=KEY,
                           expanded_value_dim=VALUE, index_key_bytes=INDEX_DIM + 4)


class Memory:
    """Latents and index keys of which each call reads another part."""

    def __init__(self, ctx):
        rng = np.random.default_rng(0)
        self.ctx = ctx
        bits = rng.integers(0, 2**16, (POOL, 1, KEY), np.uint16)
        np.bitwise_and(bits, 0x80FF, out=bits)
        np.bitwise_or(bits, 0x3F00, out=bits)  # BF16 numbers of size 0.5 to 2
        self.latents = bits
        self.index = rng.integers(-127, 128, (4 * POOL, INDEX_DIM), np.int8)
        self.scales = np.full((4 * POOL, 1), 0.01, np.float32)
        self.calls = 0

    def latent(self, keys):
        rows = self._next(POOL, keys)
        return tamis.Quantized(self.latents[rows], "bf16"), tamis.Quantized(self.latents[rows][..., :VALUE], "bf16")

    def index_keys(self, keys):
        rows = self._next(4 * POOL, keys)
        return tamis.Quantized(self.index[rows], "i8", self.scales[rows])

    def _next(self, room, keys):
        self.calls += 1
        first = self.calls * (keys + 64) % (room - keys)
        return slice(first, first + keys)


class Queries:
    """Query rows of one phase and their outputs."""

    def __init__(self, ctx, rows):
        rng = np.random.default_rng(rows)
        self.index_q = rng.standard_normal((rows, INDEX_HEADS, INDEX_DIM), np.float32)
        self.weights = rng.standard_normal((rows, INDEX_HEADS), np.float32) / 90.5
        self.q = ctx.quantize(rng.standard_normal((rows, HEADS, KEY), np.float32), "bf16")
        self.out = np.empty((rows, HEADS, VALUE), np.float32)
        self.indices = np.empty((rows, K), np.int32)
        self.rows = rows


def best(ctx, threads, call, seconds, most=24):
    """Seconds of the fastest of several calls by the context's counters, after one that warms nothing but the code. One
    thread's own processor time, which other programs do not add to; the wall's with more threads: as the machine's."""
    call()
    fastest, began, runs = float("inf"), time.perf_counter(), 0
    while runs < 3 or (runs < most and time.perf_counter() - began < seconds):
        before = ctx.counters()
        call()
        spent = ctx.counters() - before
        fastest = min(fastest, spent.cpu_seconds if threads == 1 else spent.wall_seconds)
        runs += 1
    return fastest


def measured(ctx, threads, memory, queries, keys, mode, seconds):
    """Seconds for one token of this phase."""
    def attend(indices):
        latent, value = memory.latent(keys)
        ctx.attend(queries.q, latent, value, indices=indices, out=queries.out)

    if mode == "dense":
        return best(ctx, threads, lambda: attend(None), seconds, most=6) / queries.rows

    def sparse():
        ctx.select(queries.index_q, queries.weights, memory.index_keys(keys), k=K, out=queries.indices)
        attend(queries.indices)

    return best(ctx, threads, sparse, seconds) / queries.rows


def compare(ctx, threads, memory, machine, contexts, seconds):
    for phase, rows in (("decode", 1), ("prefill", ROWS)):
        queries = Queries(ctx, rows)
        for keys in contexts:
            for mode in ("automatic", "dense"):
                if phase == "prefill" and mode == "dense" and keys > 16384:
                    continue  # minutes, and a straight line
                found = measured(ctx, threads, memory, queries, keys, mode, seconds)
                guess = machine.token(keys - (rows - 1) // 2, phase, mode=mode, architecture=LAYER).seconds
                yield {"phase": phase, "context": keys, "mode": "sparse" if mode == "automatic" else "dense",
                       "measured_ms": 1e3 * found, "predicted_ms": 1e3 * guess, "error": guess / found - 1}


def whole_model(threads, model, machine, architecture, contexts):
    """A model's prompts and decoded tokens, as rows of `compare`."""
    clock = time.thread_time if threads == 1 else time.perf_counter

    def seconds(call, *arguments, **options):
        began = clock()
        call(*arguments, **options)
        return clock() - began

    with model.cache() as cache:
        for keys in contexts:
            tokens = (np.arange(keys, dtype=np.int32) * 7919 + 13) % model.info.vocabulary
            for mode in ("automatic", "dense"):
                if mode == "dense" and keys > 16384:
                    continue  # many minutes, and a parabola
                with cache.sequence() as sequence:
                    prompt, token = seconds(model.eval, sequence, tokens, attention=mode), []
                    for i in range(8):  # other tokens choose other experts
                        token.append(seconds(model.eval, sequence, [(5 + 31 * i) % model.info.vocabulary], attention=mode))
                        sequence.truncate(keys)
                guess = machine.request(keys, 1, mode=mode, architecture=architecture)
                for phase, found, predicted in (("prompt", prompt, guess.prefill_seconds),
                                                ("token", min(token), guess.decode_seconds)):
                    yield {"phase": phase, "context": keys, "mode": "sparse" if mode == "automatic" else "dense",
                           "measured_ms": 1e3 * found, "predicted_ms": 1e3 * predicted, "error": predicted / found - 1}


def best_of(rounds):
    """Of each row the fastest measurement and the cheapest prediction."""
    for rows in zip(*rounds):
        row = dict(rows[0])
        for name in ("measured_ms", "predicted_ms"):
            row[name] = min(each[name] for each in rows)
        yield {**row, "error": row["predicted_ms"] / row["measured_ms"] - 1}


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--isa", default=None)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--seconds", type=float, default=0.6, help="for each figure")
    options.add_argument("--most", type=int, default=CONTEXTS[-1], help="longest context")
    options.add_argument("--checkpoint", default=None, help="a model's directory: all of it, not one layer's attention")
    options.add_argument("--no-steps", action="store_true", help="measure the machine without the model's own steps")
    options.add_argument("--out", default=None, help="write OUT.csv and OUT.json (the machine's profile)")
    args = options.parse_args()

    ctx = tamis.Context(threads=args.threads, isa=args.isa)
    print(ctx.describe())
    memory = None if args.checkpoint else Memory(ctx)
    layer = tamis.Architecture.from_config(args.checkpoint) if args.checkpoint else LAYER
    model = tamis.Model(args.checkpoint, ctx) if args.checkpoint else None
    most = min(args.most, model.info.max_tokens - 8) if model else args.most
    contexts = [keys for keys in CONTEXTS if keys <= most]
    rounds = []
    for _ in range(args.rounds):
        began = time.perf_counter()
        machine = tamis.Machine.measure(ctx, architecture=layer, model=None if args.no_steps else model)
        print(f"machine measured in {time.perf_counter() - began:.1f} s")
        if model:
            rounds.append(list(whole_model(args.threads, model, machine, layer, contexts)))
        else:
            rounds.append(list(compare(ctx, args.threads, memory, machine, contexts, args.seconds)))
    rows = list(best_of(rounds))
    print(f"{'':8}{'context':>9}{'':>8}{'measured':>12}{'predicted':>12}  (ms)")
    for row in rows:
        print(f"{row['phase']:8}{row['context']:>9,}{row['mode']:>8}{row['measured_ms']:>12.4f}{row['predicted_ms']:>12.4f}"
              f"{row['error']:>+9.0%}{'' if abs(row['error']) <= BAR else '  beyond the bar'}")
    errors = [abs(row["error"]) for row in rows]
    inside = sum(error <= BAR for error in errors)
    summary = (f"{inside} of {len(rows)} within {BAR:.0%}; median error {statistics.median(errors):.0%}, "
               f"largest {max(errors):.0%}")
    print(summary)
    if args.out:
        with open(args.out + ".csv", "w", newline="") as file:
            what = f"{model.describe()}; {'without' if args.no_steps else 'with'} steps of its own; " if model else ""
            file.write(f"# {ctx.describe()}; {what}{args.rounds} rounds; {summary}\n")
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({n: round(v, 5) if isinstance(v, float) else v for n, v in row.items()} for row in rows)
        machine.save(args.out + ".json")


if __name__ == "__main__":
    main()
