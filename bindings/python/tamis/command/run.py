"""`tamis run`: continues a text, or answers a question, with a checkpoint directory."""
from __future__ import annotations

import argparse
import sys
from typing import Any

from .. import Model
from .._errors import wrong
from . import context, report

HELP = "continue a text or answer a question"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIRECTORY", help="a checkpoint directory")
    parser.add_argument("-p", "--prompt", metavar="TEXT", help="without it: the standard input")
    parser.add_argument("--chat", action="store_true", help="the text is a question (DeepSeek-V3.2's chat encoding)")
    parser.add_argument("--thinking", action="store_true", help="with --chat: think before the answer")
    parser.add_argument("--max-tokens", type=int, default=128, metavar="N", help="default 128; 0: no limit")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default): the best token")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw from the best K; 0 (default): all")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw from the best that reach P")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable")
    parser.add_argument("--attention", choices=("automatic", "dense", "sparse"), default="automatic")


def run(arguments: argparse.Namespace) -> int:
    text = sys.stdin.read() if arguments.prompt is None else arguments.prompt
    with context(arguments) as ctx, Model(arguments.model, ctx) as model:
        turns = [{"role": "user", "content": text}]
        prompt = model.chat(turns, thinking=arguments.thinking) if arguments.chat else model.tokenize(text)
        if not len(prompt):
            raise wrong("prompt: has no tokens; give --prompt TEXT, or a text on the standard input")
        made = model.generate(
            prompt, max_tokens=arguments.max_tokens, temperature=arguments.temperature, top_k=arguments.top_k,
            top_p=arguments.top_p, seed=arguments.seed, stop=arguments.stop,
            evaluation={"attention": arguments.attention})
        for piece in made:
            if not arguments.json:
                print(piece, end="", flush=True)
        select, attend = ctx.counters("select"), ctx.counters("attend")
        record: dict[str, Any] = {
            "text": made.text, "tokens": made.tokens, "stop": made.stop, "prompt_tokens": made.prompt_tokens,
            "prefill_seconds": made.prefill_seconds, "decode_seconds": made.decode_seconds,
            "keys_scored": select.keys_scored, "keys_attended": attend.keys_attended, "keys_dense": attend.keys_dense,
            "peak_bytes": ctx.bytes()[1]}
        report(arguments, record, "")
        print(summary(record), file=sys.stderr)
    return 0


def summary(record: dict[str, Any]) -> str:
    """One line about speed and what attention read."""
    read = record["keys_attended"] / max(record["keys_dense"], 1)
    written = len(record["tokens"])
    return (f"{record['prompt_tokens']} tokens read in {record['prefill_seconds']:.2f} s, "
            f"{written} written at {written / max(record['decode_seconds'], 1e-9):.1f}/s ({record['stop']}); "
            f"attention read {read:.0%} of what dense attention would have")
