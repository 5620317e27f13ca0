"""Where the two forms of attention cross: attention and projections of a prompt's pieces, expanded (keys and values of
each head made once for all rows, everything multiplied, what is not selected masked) beside absorbed (selected latents
gathered), in turns; and where the library's rule, which counts multiply-adds, goes from one to the other. Without a
checkpoint: what a selected key costs the absorbed form by the number of heads, and the line through that; its constant
part, in those of 16 heads, is the kernels' gather_cost (tk_table).

    python benchmarks/model.py --checkpoint FOLDER --no-transformers --contexts 64      # makes a checkpoint
    python benchmarks/forms.py FOLDER --context 16384 --threads 2 --out forms.csv
    python benchmarks/forms.py --isa avx512
"""

from __future__ import annotations

import argparse
import csv
import os

import numpy as np

import tamis


def seconds(ctx, threads, call):
    """Of attention and projections: one thread's own processor time, which other programs do not add to; the wall's with
    more threads."""
    before = [ctx.counters(name) for name in ("attend", "project")]
    call()
    after = [ctx.counters(name) for name in ("attend", "project")]
    spent = [b - a for a, b in zip(before, after)]
    taken = sum(each.cpu_seconds if threads == 1 else each.wall_seconds for each in spent)
    return taken, spent[0].keys_expanded


def heads(arguments, keys=8192, selected=2048, rows=8, repeats=16):
    """ns of one thread for a selected key of 576 and 512 dims: keys anywhere among 8,192, the best of some calls."""
    rng = np.random.default_rng(0)
    chosen = np.sort(np.stack([rng.permutation(keys)[:selected] for _ in range(rows)])).astype(np.int32)
    found = []
    with tamis.Context(threads=1, isa=arguments.isa) as ctx:
        stored = rng.standard_normal((keys, 1, 576), np.float32)
        key = ctx.quantize(stored, "bf16")
        value = key[..., :512]
        for count in (16, 32, 64, 128):
            q = ctx.quantize(rng.standard_normal((rows, count, 576), np.float32), "bf16")
            times = [seconds(ctx, 1, lambda: ctx.attend(q, key, value, indices=chosen))[0] for _ in range(repeats)]
            found.append((count / 16, 1e9 * min(times) / (rows * selected)))
            print(f"{count:>4} heads: {found[-1][1]:>7.1f} ns a selected key", flush=True)
    tile, constant = np.polyfit(*zip(*found), 1)
    print(f"{constant:.0f} ns and {tile:.0f} ns for each 16 heads: gather_cost {constant / tile:.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?")
    parser.add_argument("--context", type=int, default=16384)
    parser.add_argument("--piece", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--isa")
    parser.add_argument("--out", help="CSV")
    arguments = parser.parse_args()
    if arguments.checkpoint is None:
        return heads(arguments)
    rows = []
    with tamis.Context(threads=arguments.threads, isa=arguments.isa) as ctx:
        with tamis.Model(arguments.checkpoint, ctx) as model, tamis.Model(arguments.checkpoint, ctx, one_form=True) as one:
            ids = (np.arange(arguments.context, dtype=np.int64) * 7919 + 13) % model.info.vocabulary
            sequences = [model.cache().sequence() for _ in range(3)]
            print(f"{'position':>9} {'expanded ms':>12} {'absorbed ms':>12}  the rule")
            for first in range(0, arguments.context, arguments.piece):
                piece = ids[first:first + arguments.piece].astype(np.int32)
                expanded, _ = seconds(ctx, arguments.threads, lambda: model.eval(sequences[0], piece, attention="dense"))
                absorbed, _ = seconds(ctx, arguments.threads, lambda: one.eval(sequences[1], piece))
                _, pairs = seconds(ctx, arguments.threads, lambda: model.eval(sequences[2], piece))
                rows.append({"position": first, "expanded_ms": 1e3 * expanded, "absorbed_ms": 1e3 * absorbed,
                             "rule": "expanded" if pairs else "absorbed"})
                print(f"{first:>9} {1e3 * expanded:>12.1f} {1e3 * absorbed:>12.1f}  {rows[-1]['rule']}", flush=True)
    faster = [row["position"] for row in rows if row["expanded_ms"] < row["absorbed_ms"]]
    print(f"expanded was faster up to {max(faster, default=-arguments.piece) + arguments.piece}")
    if arguments.out:
        with open(arguments.out, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


main()
