"""`tamis info`: what this machine and, when one is named, a checkpoint directory are."""
from __future__ import annotations

import argparse
import dataclasses

from .. import Model
from . import context, report, table

HELP = "what this machine can do and what a model is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="DIRECTORY", help="a checkpoint directory")
    parser.add_argument("--limits", action="store_true", help="measure the machine's limits (half a second)")


def run(arguments: argparse.Namespace) -> int:
    with context(arguments) as ctx:
        record: dict = {"machine": ctx.describe()}
        lines = [record["machine"]]
        if arguments.limits:
            limits = ctx.limits(arguments.threads)
            record["limits"] = dataclasses.asdict(limits)
            lines += ["", f"limits with {limits.threads} thread{'s' if limits.threads > 1 else ''}:", table([
                ["  8-bit multiply-adds", f"{limits.i8_macs_per_second / 1e9:.0f} G/s"],
                ["  BF16 multiply-adds", f"{limits.bf16_macs_per_second / 1e9:.0f} G/s"],
                ["  float multiply-adds", f"{limits.f32_macs_per_second / 1e9:.0f} G/s"],
                ["  memory", f"{limits.memory_bytes_per_second / 1e9:.1f} GB/s"]])]
        if arguments.model:
            with Model(arguments.model, ctx) as model:
                about = model.info
                record["model"] = {"description": model.describe(), **dataclasses.asdict(about)}
                lines += ["", model.describe(), table([
                    [f"  {name.replace('_', ' ')}", "-" if value is None else f"{value:,}"]
                    for name, value in dataclasses.asdict(about).items()])]
        report(arguments, record, "\n".join(lines))
    return 0
