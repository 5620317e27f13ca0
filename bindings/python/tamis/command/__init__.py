"""The command `tamis`. Each subcommand is a module here with `HELP`, `add_arguments(parser)` and `run(arguments)`,
which returns the exit status. This file owns what they share: `--json`, contexts, progress, and errors as one line
on stderr with exit status 1."""
from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from .._context import Context
from .._errors import Error

COMMANDS = ("info", "run", "bench", "cost")
Item = TypeVar("Item")


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="tamis", description="DeepSeek Sparse Attention on CPUs.")
    parser.add_argument("--version", action="version", version=version())
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    shared.add_argument("--threads", type=int, default=0, metavar="N", help="0: what this process may use")
    modules = {name: importlib.import_module(f".{name}", __name__) for name in COMMANDS}
    for name, module in modules.items():
        module.add_arguments(subparsers.add_parser(name, help=module.HELP, description=module.HELP, parents=[shared]))
    arguments = parser.parse_args(argv)
    try:
        return modules[arguments.command].run(arguments)
    except BrokenPipeError:
        return 0
    except (Error, OSError) as failure:
        print(f"tamis {arguments.command}: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def version() -> str:
    """What `tamis --version` says."""
    with Context(threads=1) as ctx:
        return ctx.describe().split(",")[0]


def context(arguments: argparse.Namespace) -> Context:
    """The context that the shared arguments ask for."""
    return Context(threads=arguments.threads)


def report(arguments: argparse.Namespace, record: dict[str, Any], text: str) -> None:
    """The result of a command: text, or the record with --json."""
    print(json.dumps(record, ensure_ascii=False) if arguments.json else text)


def progress(items: Iterable[Item], what: str, total: int | None = None) -> Iterator[Item]:
    """The items, with a bar on stderr while somebody watches it and tqdm is installed (`pip install tamis[command]`)."""
    try:
        from tqdm import tqdm
    except ImportError:
        return iter(items)
    return iter(tqdm(items, desc=what, total=total, leave=False, disable=not sys.stderr.isatty()))


def table(rows: list[list[str]]) -> str:
    """Columns, the first one to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) if i == 0 else cell.rjust(width)
                               for i, (cell, width) in enumerate(zip(row, widths))).rstrip() for row in rows)
