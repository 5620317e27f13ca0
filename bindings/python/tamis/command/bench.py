"""`tamis bench`: tokens per second of a checkpoint at several contexts, sparse beside dense in the same run."""
from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from .. import Context, Model, Sequence
from . import context, progress, report, table

HELP = "tokens per second at several contexts, sparse beside dense"
PIECE = 512  # tokens of a prompt between two moves of the progress bar


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIRECTORY", help="a checkpoint directory")
    parser.add_argument("--contexts", default="256,1024,4096,16384", metavar="N,...",
                        help="tokens before the measured ones; those the model has no room for are left out")
    parser.add_argument("--tokens", type=int, default=16, metavar="N", help="decoded for each figure (default 16)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the random prompt")


def run(arguments: argparse.Namespace) -> int:
    if arguments.tokens < 1:
        raise SystemExit("tamis bench: --tokens: expected at least 1")
    with context(arguments) as ctx, Model(arguments.model, ctx) as model:
        most = model.info.max_tokens - arguments.tokens - 1
        contexts = sorted({length for length in lengths(arguments.contexts) if length <= most}) or [max(most, 1)]
        prompt = np.random.default_rng(arguments.seed).integers(0, model.info.vocabulary, max(contexts), np.int32)
        pieces = [(length, start) for length in contexts for start in range(0, length, PIECE)]
        results: list[dict[str, Any]] = []
        for length, start in progress(pieces, "bench"):
            if start == 0:
                sequence, spent = model.cache().sequence(), 0.0
            spent += seconds(lambda: model.eval(sequence, prompt[start:min(start + PIECE, length)], logits=None))
            if start + PIECE >= length:
                results.append({"context": length, "prefill_tokens_per_second": length / spent,
                                **decode(ctx, model, sequence, prompt[:arguments.tokens])})
        record = {"machine": ctx.describe(), "model": model.describe(), "results": results, "peak_bytes": ctx.bytes()[1]}
        report(arguments, record, f"{record['machine']}\n{record['model']}\n\n{table(rows_of(results))}")
    return 0


def lengths(text: str) -> list[int]:
    """"256,1024" as numbers."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise SystemExit(f"tamis bench: --contexts: {text!r} is not a list of positive numbers")
    return found


def seconds(work: Any) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def decode(ctx: Context, model: Model, sequence: Sequence, tokens: np.ndarray) -> dict[str, Any]:
    """Sparse and dense steps in turns at the same place, so that a busy machine slows both; medians."""
    length = len(sequence)
    spent: dict[str, list[float]] = {"automatic": [], "dense": []}

    def step(token: int, attention: str) -> float:
        took = seconds(lambda: model.eval(sequence, [token], attention=attention))
        sequence.truncate(length)
        return took

    for attention in spent:  # brings weights into memory
        step(tokens[0], attention)
    before = ctx.counters("attend")
    for token in tokens:
        for attention, times in spent.items():
            times.append(step(token, attention))
    done = ctx.counters("attend") - before
    sparse, dense = (statistics.median(times) for times in spent.values())
    return {"decode_tokens_per_second": 1 / sparse, "dense_decode_tokens_per_second": 1 / dense,
            "speedup": dense / sparse,
            "keys_attended": done.keys_attended, "keys_dense": done.keys_dense}


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    return [["context", "prefill tokens/s", "decode tokens/s", "dense decode tokens/s", "dense / sparse"]] + [
        [f"{one['context']:,}", f"{one['prefill_tokens_per_second']:.0f}", f"{one['decode_tokens_per_second']:.1f}",
         f"{one['dense_decode_tokens_per_second']:.1f}", f"{one['speedup']:.2f}"] for one in results]
